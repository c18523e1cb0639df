"""composer-ls bench loss: what it measures, writes and refuses."""

import json
import re
from dataclasses import replace

import pytest
import torch

import composer_ls.online_label_smoothing
from composer_ls.lab.bench.contestants import HARD, SMOOTHED, USUAL, Problem, contestants
from composer_ls.lab.bench.measure import Settings, _memory, forced, how_long
from composer_ls.lab.bench.results import _LOOKS
from composer_ls.lab.commands.cli import main


def run(*arguments, command="loss"):
    """The exit status of a command."""
    try:
        main(["bench", command, *arguments])
    except SystemExit as exit_:
        return exit_.code or 0
    return 0


def test_times_go_to_the_terminal_a_file_and_a_picture(tmp_path, capsys):
    json_file, plot_file = tmp_path / "loss.json", tmp_path / "loss.png"
    files = ["--json", str(json_file), "--plot", str(plot_file)]
    options = ["--shapes", "8x5,8x9", "--peers", "composer_ls,timm,Composer", "--seconds", "0.1", "--no-memory"]
    assert run(*options, *files) == 0
    printed = capsys.readouterr().out
    assert "8 x 5" in printed
    assert "composer_ls" in printed
    assert plot_file.read_bytes().startswith(b"\x89PNG")
    record = json.loads(json_file.read_text())
    assert record["settings"]["dtype"] == "float32"
    assert torch.__version__.startswith(record["machine"]["versions"]["torch"])
    results = record["results"]
    assert {tuple(result["shape"]) for result in results} == {(8, 5), (8, 9)}
    assert {result["case"] for result in results} == set(USUAL)
    names = {result["name"] for result in results}
    assert {"composer_ls", HARD, SMOOTHED, "F.cross_entropy, dense", "timm", "Composer"} <= names <= set(_LOOKS)
    for result in results:
        low, high = result["spread"]
        assert 0 < low <= result["seconds"] <= high
        assert result["repeats"] >= 4
        assert result["extra"] is None
        if result["name"] == HARD:
            assert result["over_hard"] == 1
        if result["name"] == SMOOTHED:
            assert result["over_smoothed"] == 1
    for case in USUAL:
        losses = [result["loss"] for result in results if result["case"] == case and result["shape"] == [8, 9]]
        assert len(losses) >= 2
        assert max(losses) - min(losses) < 1e-5  # they compute the same


def test_every_method_is_a_case_and_a_prior_that_does_not_fit_is_left_out(monkeypatch):
    methods = {"by_class", "max_sup", "online"}
    for free, expected in ((1e5, methods), (None, methods), (1000, methods - {"online"})):
        monkeypatch.setattr(composer_ls.online_label_smoothing, "free_memory", lambda device, free=free: free)
        ours = contestants((8, 9), torch.float32, "cpu", 0.5, ("composer_ls",))
        found = {one.case: one for one in ours if one.case not in USUAL}
        assert found.keys() == expected
        problem = Problem.make((8, 9), torch.float32, "cpu", 0.5)
        for one in found.values():
            one.loss(problem).backward()
        assert problem.logits.grad.isfinite().all()


def test_label_maps_with_ignored_pixels_leave_out_who_cannot_do_them():
    everyone = contestants((2, 3, 4, 5), torch.float32, "cpu", 0.5)
    names = {contestant.name for contestant in everyone}
    assert {HARD, SMOOTHED, "composer_ls"} <= names
    assert not names & {"Composer", "timm", "torch.compile", "F.cross_entropy, dense"}
    problem = Problem.make((2, 3, 4, 5), torch.float32, "cpu", 0.5)
    assert 0 < int((problem.labels == -100).sum()) < problem.labels.numel()
    losses = {}
    for contestant in everyone:
        with forced(contestant.kernel):
            losses.setdefault(contestant.case, []).append(float(contestant.loss(problem).detach()))
    for values in (losses["hard"], losses["smoothed"]):
        assert max(values) - min(values) < 1e-5


def test_a_layer_and_its_loss_are_measured_with_and_without_logits(tmp_path):
    json_file = tmp_path / "layer.json"
    options = ["--shapes", "8x9", "--width", "4", "--seconds", "0.1", "--no-memory", "--json", str(json_file)]
    assert run(*options) == 0
    results = json.loads(json_file.read_text())["results"]
    for case in USUAL:
        losses = {result["name"]: result["loss"] for result in results if result["case"] == case}
        assert {"composer_ls, without logits", "composer_ls, with logits"} < losses.keys() <= set(_LOOKS)
        assert max(losses.values()) - min(losses.values()) < 1e-5
    for contestant in contestants((8, 9), torch.float32, "cpu", 0.0, width=4):
        problem = Problem.make((8, 9), torch.float32, "cpu", 0.0, 4)
        contestant.loss(problem).backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in problem.leaves)


def test_memory_is_that_of_the_gradient_alone():
    shape = (64, 40_000)
    ours = next(
        one for one in contestants(shape, torch.float32, "cpu", 0.0, ("composer_ls",)) if one.case == "smoothed"
    )
    extra = _memory(Settings((shape,)), shape, ours)
    size = 4 * 64 * 40_000
    assert extra is not None
    assert 0.9 * size < extra < 1.4 * size  # the gradient, and what any program needs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "5"], "--shapes has '5', but a shape is NxK, such as 256x1000"),
        (["--shapes", "5x3,ax2"], "--shapes has 'ax2'"),
        (["--shapes", "5x0"], "--shapes has '5x0'"),
        (["--dtype", "int8"], "--dtype is 'int8', but must be one of float32, float64, bfloat16, float16"),
        (["--cases", "hard,soft"], "--cases has 'soft', but a case is one of hard, smoothed, mixed"),
        (["--peers", "jax"], "--peers has 'jax', but a peer is one of composer_ls, Composer"),
        (["--width", "0"], "--width is 0, but must be at least 1"),
        (["--width", "4", "--shapes", "8x9x2x2"], "--shapes has 8x9x2x2, but with --width a shape is NxK"),
        (["--width", "4", "--shapes", "8x9", "--ignored", "0.5"], "--ignored is 0.5, but the losses that --width"),
        (["--ignored", "1"], "--ignored is 1.0, but must be in [0, 1)"),
        (["--device", "tpu"], "--device is 'tpu', but must be cpu or cuda"),
        (["--plot", "loss.doc"], "--plot is loss.doc, but must end in .png, .pdf or .svg"),
        (["--json", "no/such/folder/loss.json"], "no/such/folder does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_paragraph(options, message, capsys):
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("composer-ls: ")
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused_before_anything_is_measured(capsys):
    assert run("--device", "cuda") == 2
    assert "--device is cuda, but PyTorch sees no CUDA device; use --device cpu" in capsys.readouterr().err


def test_a_training_step_is_timed_without_and_with_smoothing(tmp_path, capsys):
    json_file = tmp_path / "step.json"
    assert run("--batch-size", "2", "--seconds", "0", "--json", str(json_file), command="step") == 0
    result = json.loads(json_file.read_text())["result"]
    assert result["blocks"] == 5
    assert f"{result['smoothed'] * 1e3:.1f} ms per step" in capsys.readouterr().out


def test_a_step_of_one_image_is_refused(capsys):
    assert run("--batch-size", "1", command="step") == 2
    assert "--batch-size is 1, but CutMix needs at least 2 images" in capsys.readouterr().err


def test_it_says_how_long_it_will_take_and_what_makes_it_shorter():
    short = Settings(((64, 10), (64, 100)), cases=("smooth",), seconds=0.5, memory=False)
    assert how_long(short) == "This will take about 1 s: 2 shapes of about 0.5 s each. --seconds makes it shorter."
    long = how_long(replace(short, memory=True, seconds=60))
    assert "processes of about 8 s to measure memory. --seconds and --no-memory make it shorter" in long
    assert re.search(r"about \d+ minutes", long)
