"""Ctrl-C in training."""

import json
import os
import signal

import pytest

from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification.training_curve import TrainingCurve
from composer_ls.lab.training.stopping import StoppedInTraining
from composer_ls.lab.training.train import train

RECIPE = load_recipe(
    "digits-mlp", ["duration=3ep", "eval_interval=1ep", "checkpoints.interval=3ep", "data.batch_size=256"]
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(RECIPE, RunFolder(tmp_path_factory.mktemp("runs"), RECIPE), progress=False)


def test_a_run_that_is_stopped_in_its_last_step_is_finished(tmp_path, monkeypatch):
    recipe = load_recipe("digits-mlp", ["duration=2ba", "data.batch_size=256"])
    after_forward = TrainingCurve.after_forward

    def pressed(self, state, logger):
        after_forward(self, state, logger)
        if int(state.timestamp.batch) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingCurve, "after_forward", pressed)
    assert train(recipe, RunFolder(tmp_path, recipe), progress=False)["steps"] == 2


@pytest.mark.parametrize("step", [8, 12])  # within the second epoch, and its last
def test_ctrl_c_saves_where_the_run_is_and_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch, undisturbed, step):
    steps, after_forward = [], TrainingCurve.after_forward

    def pressed(self, state, logger):
        after_forward(self, state, logger)
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingCurve, "after_forward", pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedInTraining, match=f"after step {step}"):
        train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
    assert len(steps) == step
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
    assert len(steps) == undisturbed["steps"] == 18
    assert resumed["metrics"] == pytest.approx(undisturbed["metrics"], rel=1e-6)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
