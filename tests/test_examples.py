"""The examples run from beginning to end."""

import gzip
import json
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from camvid_support import write_camvid
from comparison_support import make_comparison, make_run
from PIL import Image

from composer_ls.lab.commands.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(name), *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_hand_written_loop_learns(monkeypatch, capsys):
    run("hand_written_loop.py", "--model", "mlp", "--epochs", "3", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert float(lines[-1].split()[4]) > 0.8


def test_the_hand_written_loop_compares_itself_with_the_trainer(monkeypatch, capsys):
    run("hand_written_loop.py", "--model", "mlp", "--compare", "--batch-size", "16", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mlp, batch 16, ")
    assert float(lines[1].split("ratio ")[1]) > 0


def test_table_3_takes_the_row_of_translation_from_figure_4(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "paper")
    monkeypatch.delitem(sys.modules, "support", raising=False)  # the tests' own
    table = runpy.run_path(str(EXAMPLES / "paper" / "table3_calibration.py"))
    file = EXAMPLES / "paper" / "figures" / "figure4_beam_search-multi30k-transformer-small.json"
    numbers, rows = json.loads(file.read_text()), table["translation"](file)
    assert list(rows) == [f"translation, {name}{end}" for name in ("hard", "smoothing 0.1") for end in ("", ", scaled")]
    assert rows["translation, hard"]["ece"] == numbers["curves"]["hard"]["ece"][numbers["temperatures"].index(1)]
    assert (
        rows["translation, smoothing 0.1, scaled"]["temperature"] == numbers["fitted"]["smoothing 0.1"]["temperature"]
    )


def table_3_of(folder, out, monkeypatch):
    for file in folder.rglob("result.json"):
        metrics = {"accuracy": 0.8, "ece": 0.1, "nll": float(file.parent.name == "0")}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": metrics}))
    monkeypatch.syspath_prepend(EXAMPLES / "paper")
    monkeypatch.delitem(sys.modules, "support", raising=False)  # the tests' own
    run("paper/table3_calibration.py", "--runs", folder, "--out", out, monkeypatch=monkeypatch)
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("seeds", [1, 2])
def test_table_3_takes_the_factors_that_all_seeds_of_a_comparison_have(seeds, tmp_path, monkeypatch):
    make_comparison(tmp_path / "runs", (0.0, 0.1, 0.2), seeds)
    make_run(tmp_path / "runs" / "0.05", 0.05, seeds)  # of a seed that lacks the others
    alone = table_3_of(tmp_path / "runs", tmp_path / "alone", monkeypatch)
    assert alone["seeds"] == list(range(seeds))
    assert {"hard", "smoothing 0.1", "smoothing 0.2"} == {name for name in alone["table"] if "scaled" not in name}
    for seed in range(seeds):
        method = ("algorithms.label_smoothing=null", "algorithms.max_sup={strength: 0.1}")
        make_run(tmp_path / "runs" / f"another-{seed}", 0.0, seed, *method, better=9)
    assert table_3_of(tmp_path / "runs", tmp_path / "with another method", monkeypatch) == alone


def test_table_3_refuses_runs_that_differ_in_more_than_smoothing(tmp_path, monkeypatch):
    make_comparison(tmp_path / "runs", settings=((), ("duration=3ep",)))
    with pytest.raises(SystemExit, match="0-0.0/0 and .*1-0.0/0 differ in more than smoothing and seed"):
        table_3_of(tmp_path / "runs", tmp_path / "out", monkeypatch)


def diagnosed_run(folder, algorithm, seed, spread):
    """A run whose diagnostics, but for the first of them, are ``spread``."""
    make_run(folder, 0.0, seed, f"algorithms={{{algorithm}}}")
    names = ("train/relative_spread", "train/nc1", "train/simplex_deviation", "train/equivalent_smoothing")
    with (folder / "metrics.jsonl").open("a") as file:
        for epoch, value in ((31, 9.0), (32, spread)):
            line = {f"diagnostics/{name}": value for name in (*names, "test/relative_spread")}
            file.write(json.dumps(line | {"epoch": epoch, "batch": epoch}) + "\n")


def test_the_methods_of_one_amount_are_compared_seed_by_seed(tmp_path, monkeypatch, capsys):
    methods = {
        "": 0.5, "label_smoothing: {smoothing: 0.1}": 0.2, "max_sup: {strength: 0.1}": 0.3,
        "online_label_smoothing: {smoothing: 0.1}": 0.4,
    }  # fmt: skip
    for seed in range(3):
        for place, (method, spread) in enumerate(methods.items()):
            diagnosed_run(tmp_path / "runs" / f"{place}-{seed}", method, seed, spread + seed / 100)
        diagnosed_run(tmp_path / "runs" / f"other-{seed}", "label_smoothing: {smoothing: 0.2}", seed, 7.0)
    diagnosed_run(tmp_path / "runs" / "alone", "max_sup: {strength: 0.1}", 3, 7.0)  # of a seed that the others lack
    run("benchmarks/methods.py", tmp_path / "runs", "--out", tmp_path, monkeypatch=monkeypatch)
    found = json.loads((tmp_path / "features.json").read_text())
    assert found["seeds"] == [0, 1, 2]
    assert found["means"]["train/nc1 of label_smoothing"][0] == pytest.approx(0.21)
    difference = found["differences"]["train/nc1: max_sup minus label_smoothing"]
    assert difference["interval"] == [pytest.approx(0.1)] * 3
    assert (tmp_path / "features.png").stat().st_size > 10_000
    assert "| neural collapse (NC1; 0 is collapsed) | 0.510 | 0.210 | 0.310 | 0.410 |" in capsys.readouterr().out


def test_the_picture_of_what_smoothing_changed_is_of_the_test_part_and_label_smoothing(tmp_path):
    picture = runpy.run_path(str(EXAMPLES / "benchmarks" / "does_it_help.py"))
    for name in picture["COMPARISONS"]:
        points = picture["differences"](EXAMPLES / "benchmarks" / name, "accuracy")
        assert len({factor for factor, *_ in points}) == len(points) > 0
        assert all(low <= difference <= high for _, difference, low, high in points)
    columns = "setting,smoothing,part,metric,difference,difference_low,difference_high\n"
    rows = [
        f"{setting},0.1,{part},ece,{value},0,1\n"
        for setting, part, value in (
            ("max_sup", "test", 1),
            ("label_smoothing", "test", 2),
            ("label_smoothing", "validation", 3),
        )
    ]
    (tmp_path / "summary.csv").write_text(columns + "".join(rows))
    assert picture["differences"](tmp_path, "ece") == [(0.1, 2, 0, 1)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_figures_end_with_a_sentence_if_one_of_their_jobs_is_killed(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "paper")
    monkeypatch.delitem(sys.modules, "support", raising=False)  # the tests' own
    support = runpy.run_path(str(EXAMPLES / "paper" / "support.py"))
    with pytest.raises(SystemExit, match="a job was killed.*the same command continues"):
        support["for_each"](SimpleNamespace(jobs=2), signal.raise_signal, [signal.SIGKILL] * 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logits", "loss"), [("kept", "cross_entropy, fused"), ("never", "linear_cross_entropy, without logits")]
)
def test_the_causal_language_model_compares_smoothing_0_and_01(logits, loss, tmp_path, capsys, monkeypatch):
    words = ["a", "man", "dog", "child", "runs", "jumps", "sits", "near", "the", "red", "big", "tree", "bench", "water"]
    draw = random.Random(0)
    for part, lines in (("train", 128), ("val", 32)):
        text = "\n".join(" ".join(draw.choices(words, k=draw.randint(4, 9))) for _ in range(lines))
        (tmp_path / f"{part}.en.gz").write_bytes(gzip.compress(text.encode()))
    run("huggingface_causal_lm.py", "--data", tmp_path, "--quick", "--logits", logits, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert f"logits {logits}: " in printed
    assert f"{loss}, with labels shifted by one, which are not passed to GPT2LMHeadModel" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 0")]
    assert [row[0] for row in rows] == ["| 0", "| 0.1"]
    assert all(1 < float(row[1]) < 4000 and 0 <= float(row[2].rstrip(" |")) <= 1 for row in rows)


def test_the_causal_language_model_says_which_file_is_missing(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run("huggingface_causal_lm.py", "--data", tmp_path, monkeypatch=monkeypatch)
    assert f"{tmp_path}/train.en.gz does not exist: --data is the folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_journey_from_images_to_an_exported_network(tmp_path, monkeypatch):
    commands = []

    def command(words, *, original=subprocess.run, **options):
        if words[1:3] != ["-m", "composer_ls"]:
            return original(words, **options)
        commands.append(words[3])  # in this process, which has imported everything
        with pytest.raises(SystemExit) as ended:
            main(words[3:])
        assert ended.value.code == 0, words
        return None

    monkeypatch.setattr(subprocess, "run", command)
    run("your_own_images.py", "--quick", "--out", tmp_path, monkeypatch=monkeypatch)
    assert commands == ["train", "compare", "tune", "predict", "export", "export", "export"]
    predicted = len((tmp_path / "predictions.csv").read_text().splitlines()) - 1
    assert predicted in {len([*folder.iterdir()]) for folder in (tmp_path / "images" / "test").iterdir()}
    for file in (
        "run/result.json",
        "compare/report.html",
        "tune/tune.json",
        "model.onnx",
        "model.pt2",
        "model.safetensors",
    ):
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.slow
def test_the_study_of_transfer_trains_both_stages_in_each_way(tmp_path, capsys, monkeypatch):
    draw = random.Random(0)
    for part, count in (("train", 100), ("test", 10)):
        for name in "abcd":
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                color = tuple(draw.randrange(256) for _ in range(3))
                Image.new("RGB", (32, 32), color).save(tmp_path / "images" / part / name / f"{index}.png")
    run("transfer.py", "--data", tmp_path / "images", "--quick", "--out", tmp_path / "out", monkeypatch=monkeypatch)
    accuracies = json.loads((tmp_path / "out" / "transfer.json").read_text())["accuracy"]
    ways = {
        f"{way}, {a} then {b}" for way in ("fine-tuned", "backbone frozen") for a in ("0", "0.1") for b in ("0", "0.1")
    }
    assert accuracies.keys() == {"first classes, 0", "first classes, 0.1"} | ways
    assert all(len(values) == 1 and 0 <= values[0] <= 1 for values in accuracies.values())
    assert capsys.readouterr().out.count("| fine-tuned, ") == 4


@pytest.mark.slow
def test_the_step_of_a_language_model_is_compared_with_its_hard_loss(capsys, monkeypatch):
    small = ("--vocabulary", 500, "--sentences", 1, "--width", 32, "--layers", 1, "--repeats", 2)
    run(EXAMPLES / "benchmarks" / "causal_lm_step.py", *small, monkeypatch=monkeypatch)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["| hard", "| smoothed", "| never"]
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in rows)


def test_the_step_of_segmentation_is_timed_in_four_parts(tmp_path, capsys, monkeypatch):
    small = (f"data.root={write_camvid(tmp_path)}", "data.batch_size=1", "model.width=4")
    run(EXAMPLES / "benchmarks" / "segmentation_step.py", *small, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [row[0] for row in rows] == ["batch", "forward", "loss", "backward and optimizer"]
    assert sum(float(row[2].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.3)
    assert "1 images of (3, 24, 32), width 4" in lines[-1]
