"""Whole runs: the folder that they leave, resuming, several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from composer_ls.diagnostics.calibration import accuracy, expected_calibration_error
from composer_ls.errors import RecipeError, RunFolderError
from composer_ls.training import run as run_module
from composer_ls.training.recipe import load_recipe
from composer_ls.training.run import train
from composer_ls.training.run_folder import RunFolder

QUICK = ["duration=3ep", "eval_interval=1ep", "checkpoints.interval=1ep", "data.batch_size=128"]


def run(path, *overrides, **options):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return path, run(path)


def test_a_run_leaves_one_folder(finished):
    path, result = finished
    assert {file.name for file in path.iterdir()} == {
        "recipe.yaml",
        "result.json",
        "metrics.jsonl",
        "predictions.safetensors",
    }
    assert json.loads((path / "result.json").read_text()) == result
    assert load_recipe(path / "recipe.yaml") == load_recipe("digits-mlp", QUICK)


def test_the_result_says_what_where_and_how(finished):
    _, result = finished
    assert result["metrics"].keys() == {"accuracy", "nll", "ece", "brier"}
    assert (result["smoothing"], result["seed"], result["epochs"], result["steps"]) == (0.1, 17, 3, 33)
    assert result["train_seconds"] > 0
    assert result["plan"].startswith("smoothing 0.1, uniform over 10 classes; loss cross_entropy, fused")
    assert result["peak_memory_bytes"]["host"] > 1e8
    assert {"composer_ls", "mosaicml", "torch", "python"} <= result["versions"].keys()
    assert result["hardware"]["processes"] == 1


def test_the_metrics_can_be_computed_again_from_the_predictions(finished):
    path, result = finished
    predictions = load_file(path / "predictions.safetensors")
    logits, labels = predictions["logits"], predictions["labels"]
    assert (logits.shape, labels.shape) == ((360, 10), (360,))
    assert accuracy(logits, labels) == result["metrics"]["accuracy"]
    assert expected_calibration_error(logits, labels) == result["metrics"]["ece"]


def test_metrics_have_a_line_an_epoch(finished):
    path, result = finished
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["metrics/test/MulticlassAccuracy"] == pytest.approx(result["metrics"]["accuracy"], abs=1e-6)
    assert lines[0]["loss/train/total"] > lines[-1]["loss/train/total"]


def test_a_finished_run_is_not_run_again_unless_asked(finished):
    path, result = finished
    stamp = (path / "predictions.safetensors").stat().st_mtime_ns
    assert run(path) == result
    assert (path / "predictions.safetensors").stat().st_mtime_ns == stamp


def test_the_same_recipe_gives_the_same_numbers_and_overwrite_runs_again(tmp_path, finished):
    _, result = finished
    assert run(tmp_path / "again")["metrics"] == result["metrics"]
    assert run(tmp_path / "again", overwrite=True)["finished"] >= result["finished"]


def test_smoothing_reaches_the_training(tmp_path, finished):
    _, result = finished
    hard = run(tmp_path / "hard", "algorithms.label_smoothing.smoothing=0")
    assert hard["smoothing"] == 0
    assert hard["metrics"]["nll"] < result["metrics"]["nll"]  # digits are easy: the smoothed one is under-confident


def test_smoothing_0_is_no_smoothing_but_for_rounding(tmp_path):
    run(tmp_path / "zero", "algorithms.label_smoothing.smoothing=0", "duration=1ep")
    run(tmp_path / "off", "algorithms.label_smoothing=null", "duration=1ep")
    zero, off = (load_file(tmp_path / name / "predictions.safetensors") for name in ("zero", "off"))
    torch.testing.assert_close(zero["logits"], off["logits"], rtol=1e-4, atol=1e-5)


def initial_weights(tmp_path, monkeypatch, *overrides):
    """What training would start from."""
    kept = []

    def trainer(model, **_):
        kept.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        raise ValueError("enough")

    monkeypatch.setattr(run_module, "Trainer", trainer)
    with pytest.raises(RecipeError, match="enough"):
        run(tmp_path / str(hash(overrides)), *overrides)
    return kept[0]


def test_a_seed_gives_the_same_initial_weights_whatever_the_algorithms(tmp_path, monkeypatch):
    base = initial_weights(tmp_path, monkeypatch)
    for setting in ("algorithms.label_smoothing.smoothing=0", "algorithms.mixup={}", "algorithms.cutmix={alpha: 1.0}"):
        assert torch.equal(initial_weights(tmp_path, monkeypatch, setting), base)
    assert not torch.equal(initial_weights(tmp_path, monkeypatch, "seed=18"), base)


def test_a_seed_gives_the_same_initial_weights_whatever_was_drawn_before(tmp_path, monkeypatch):
    base = initial_weights(tmp_path, monkeypatch)
    build = run_module.build_algorithms
    monkeypatch.setattr(run_module, "build_algorithms", lambda *args: (torch.rand(3), build(*args))[1])
    assert torch.equal(initial_weights(tmp_path, monkeypatch, "duration=2ep"), base)


def test_workers_load_the_same_data(tmp_path, finished):
    assert run(tmp_path / "workers", "data.workers=1")["metrics"] == finished[1]["metrics"]


def test_kept_checkpoints_finish_a_run_that_was_stopped_before_its_result(tmp_path):
    path = tmp_path / "kept"
    first = run(path, "checkpoints.keep=true", "duration=1ep")
    assert list((path / "checkpoints").iterdir())
    (path / "result.json").unlink()
    again = run(path, "checkpoints.keep=true", "duration=1ep")
    assert again["metrics"] == first["metrics"]
    assert again["steps"] == first["steps"]


def test_a_folder_with_another_recipes_run_is_refused_with_the_keys(finished):
    path, _ = finished
    with pytest.raises(RunFolderError, match=r"another recipe \(they differ in seed\).*--out DIR.*--overwrite"):
        run(path, "seed=5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithms.mixupp={}", "unknown key algorithms.mixupp"),
        ("data.batch_size=2000", "more than the 1437 training examples"),
        ("schedule.warmup=1sp", "Composer refuses the recipe digits-mlp: Cannot use warmup scheduler .* same units"),
    ],
)
def test_overwriting_with_a_recipe_that_is_refused_leaves_the_old_run(finished, override, message):
    path, _ = finished
    files = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    with pytest.raises(RecipeError, match=message):
        run(path, override, overwrite=True)
    assert {file: file.read_bytes() for file in path.iterdir() if file.is_file()} == files


def test_overwriting_starts_afresh_and_ignores_the_checkpoints_there(tmp_path):
    first = run(tmp_path, "checkpoints.keep=true", "duration=1ep")
    again = run(tmp_path, "checkpoints.keep=true", "duration=2ep", overwrite=True)
    assert (first["steps"], again["steps"]) == (11, 22)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "recipe.yaml.orig").exists()


def test_checkpoints_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_text("")
    RunFolder(tmp_path, load_recipe("digits-mlp")).clear()
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="checkpoints was not left by a run of composer-ls: .*--out DIR"):
            run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "checkpoints" / "mine.pt").exists()


def test_a_recipe_of_ones_own_in_the_run_folder_is_no_run_and_is_kept(tmp_path):
    own = "name: own\nduration: 1ep  # a first try\ndata: {name: digits}\nmodel: {name: mlp}\n"
    (tmp_path / "recipe.yaml").write_text(own)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["duration=3ba"])
    train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert (tmp_path / "recipe.yaml.orig").read_text() == own
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_metrics_have_a_line_for_the_part_of_an_epoch_too(tmp_path):
    run(tmp_path, "duration=14ba")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["batch"]) for line in lines] == [(1, 11), (1, 14)]
    assert all({"loss/train/total", "metrics/test/MulticlassAccuracy"} <= line.keys() for line in lines)


def test_an_evaluation_after_the_last_epoch_is_in_its_line(tmp_path):
    run(tmp_path, "duration=2ep", "eval_interval=5ep")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"loss/train/total", "metrics/test/MulticlassAccuracy"} <= lines[-1].keys()


def test_the_command_repeats_the_run_on_as_many_processes(monkeypatch):
    monkeypatch.setattr("sys.argv", ["composer-ls", "train", "digits-mlp"])
    assert run_module._command() == "composer-ls train digits-mlp"
    monkeypatch.setattr(run_module.dist, "get_local_world_size", lambda: 2)
    assert run_module._command() == "composer -n 2 -m composer_ls train digits-mlp"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written .*--out DIR"):
        run(tmp_path / "file" / "run")


def test_a_failed_write_leaves_no_half_result(tmp_path, monkeypatch):
    recipe = load_recipe("digits-mlp", QUICK)
    folder = RunFolder(tmp_path, recipe)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        folder.write_result({"accuracy": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_does(tmp_path):
    overrides = ["duration=12ep", "checkpoints.interval=1ep", "checkpoints.keep=true", "data.batch_size=256"]
    command = [
        sys.executable,
        "-m",
        "composer_ls",
        "train",
        "digits-mlp",
        *overrides,
        "--out",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latest = tmp_path / "killed" / "checkpoints" / "latest-rank0.pt"
    deadline = time.monotonic() + 100
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert latest.exists()
    assert not (tmp_path / "killed" / "result.json").exists()
    recipe = load_recipe("digits-mlp", overrides)
    resumed = train(recipe, RunFolder(tmp_path / "killed", recipe), progress=False)
    undisturbed = train(recipe, RunFolder(tmp_path / "whole", recipe), progress=False)
    assert resumed["steps"] == undisturbed["steps"] == 12 * 5
    assert resumed["metrics"] == pytest.approx(undisturbed["metrics"], rel=1e-6)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 13))


@pytest.mark.slow
def test_two_processes_give_one_folder_with_the_same_result(tmp_path, finished):
    _, alone = finished
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", "-m", "composer_ls", "train", "digits-mlp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launcher, *QUICK, "--out", str(tmp_path / "two")],
        check=True,
        capture_output=True,
        env=environment,
        timeout=150,
    )
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert result["steps"] == alone["steps"]
    assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-3)
    predictions = load_file(tmp_path / "two" / "predictions.safetensors")
    reference = load_file(finished[0] / "predictions.safetensors")
    assert torch.equal(predictions["labels"], reference["labels"])
    torch.testing.assert_close(predictions["logits"], reference["logits"], rtol=1e-2, atol=1e-2)
