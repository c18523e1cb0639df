"""Runs whose loss or weights become NaN or infinite in the middle."""

import math
import os
import signal

import pytest
import torch
from composer.models import ComposerClassifier

from composer_ls.errors import RunFolderError, TeacherError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.inference.loaded_run import load_run
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.report.diagnosed_runs import read_all
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.stopping import StoppedInTraining
from composer_ls.lab.training.teacher import load_teacher
from composer_ls.lab.training.train import train

QUICK = ["duration=3ep", "data.batch_size=128"]  # 11 steps an epoch


def run(path, *overrides):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False)


def on_step(monkeypatch, step, spoil):
    """Let the loss of that step go through a function, which is also given the network."""
    loss, steps = ComposerClassifier.loss, []

    def spoilt(self, *arguments):
        value = loss(self, *arguments)
        if not torch.is_grad_enabled():  # the network is asked for its loss before the first step
            return value
        steps.append(1)
        return spoil(self, value) if len(steps) == step else value

    monkeypatch.setattr(ComposerClassifier, "loss", spoilt)
    return steps


def infinite_loss(network, loss):
    return loss + math.inf  # its gradient is that of the loss


def nan_weight(network, loss):
    with torch.no_grad():
        next(network.parameters())[0, 0] = math.nan
    return loss  # finite, since the logits were made before


def pressing_ctrl_c(spoil):
    """The same spoilt step, during which Ctrl-C is pressed."""

    def pressed(network, loss):
        os.kill(os.getpid(), signal.SIGINT)
        return spoil(network, loss)

    return pressed


def checkpoints(path):
    return [file.name for file in (path / "checkpoints").glob("ep*")]


def good_checkpoint(path):
    saved = torch.load(path / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]
    return all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize(
    ("step", "spoil", "interval", "words", "last", "checkpoint"),
    [
        (14, infinite_loss, "1ep", "at step 14 its training loss was inf", 14, "ep1-ba11-rank0.pt"),
        (13, nan_weight, "1ep", "at step 14 its training loss was nan", 14, "ep1-ba11-rank0.pt"),
        (13, nan_weight, "1ba", "after step 13 its weights were not finite", 13, "ep1-ba12-rank0.pt"),
        (33, nan_weight, "1ep", "after step 33 its weights were not finite", 33, "ep2-ba22-rank0.pt"),
    ],
)
def test_a_run_that_diverges_stops_names_the_step_and_keeps_its_last_good_checkpoint(
    tmp_path, monkeypatch, step, spoil, interval, words, last, checkpoint
):
    steps = on_step(monkeypatch, step, spoil)
    result = run(tmp_path, f"checkpoints.interval={interval}")
    assert (result["diverged"], result["divergence"], result["steps"], result["metrics"]) == (True, words, last, {})
    assert [words in warning for warning in result["warnings"]] == [True, False]
    assert f"its last good checkpoint, {checkpoint}, is kept" in result["warnings"][1]
    assert checkpoints(tmp_path) == [checkpoint]
    assert good_checkpoint(tmp_path)
    assert not (tmp_path / "predictions.safetensors").exists()
    assert run(tmp_path, f"checkpoints.interval={interval}") == result
    assert len(steps) == last
    runs, left_out = read_runs(tmp_path)
    assert not runs
    assert [one.reason for one in left_out] == [f"it diverged: {words}"]


def test_a_run_that_diverges_before_its_first_checkpoint_says_so(tmp_path, monkeypatch, capfd):
    on_step(monkeypatch, 2, infinite_loss)
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits-mlp", *QUICK, "--out", str(tmp_path)])
    assert stop.value.code == 1
    assert "It was stopped there, before its first checkpoint" in capfd.readouterr().out
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("spoil", "kept"), [(nan_weight, ["ep1-ba11-rank0.pt"]), (infinite_loss, [])])
def test_a_run_may_go_on_and_no_comparison_counts_it(tmp_path, monkeypatch, spoil, kept):
    on_step(monkeypatch, 13, spoil)
    result = run(tmp_path, "on_divergence=continue", "checkpoints.interval=1ep")
    assert (result["diverged"], result["steps"]) == (True, 33)
    assert result["divergence"].startswith("at step 1")
    assert checkpoints(tmp_path) == (kept or ["ep3-ba33-rank0.pt"])  # the weights have stayed finite
    assert good_checkpoint(tmp_path)
    assert (result["metrics"]["nll"] is None) == bool(kept)
    _, left_out = read_runs(tmp_path)
    assert [one.reason for one in left_out] == [f"it diverged: {result['divergence']}"]


def test_a_run_that_is_stopped_and_resumed_remembers_that_it_diverged(tmp_path, monkeypatch):
    on_step(monkeypatch, 5, pressing_ctrl_c(infinite_loss))
    with pytest.raises(StoppedInTraining):
        run(tmp_path, "on_divergence=continue")
    assert run(tmp_path, "on_divergence=continue")["divergence"] == "at step 5 its training loss was inf"


def test_ctrl_c_replaces_no_checkpoint_by_weights_that_are_not_finite(tmp_path, monkeypatch):
    on_step(monkeypatch, 15, pressing_ctrl_c(nan_weight))
    with pytest.raises(StoppedInTraining):
        run(tmp_path, "on_divergence=continue", "checkpoints.interval=1ep")
    assert checkpoints(tmp_path) == ["ep1-ba11-rank0.pt"]
    assert good_checkpoint(tmp_path)


def test_the_network_of_a_run_that_diverged_is_not_used(tmp_path, monkeypatch):
    on_step(monkeypatch, 13, infinite_loss)
    run(tmp_path, "checkpoints.interval=1ep", "checkpoints.keep=true")
    how = "diverged .at step 13 its training loss was inf."
    with pytest.raises(RunFolderError, match=how):
        load_run(tmp_path)
    with pytest.raises(RunFolderError, match=how):
        read_all([tmp_path])
    with pytest.raises(TeacherError, match="diverged, so its network cannot teach"):
        load_teacher(tmp_path)
