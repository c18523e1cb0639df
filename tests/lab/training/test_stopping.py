"""Ctrl-C and SIGTERM in training, and metrics that survive a stop in the middle of an epoch."""

import os
import signal
import subprocess
import sys

import pytest
from sklearn import datasets

from composer_ls.errors import RunFolderError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.classification.training_curve import TrainingCurve
from composer_ls.lab.training.metrics_file import MetricsFile
from composer_ls.lab.training.stopping import StoppedInTraining
from composer_ls.lab.training.train import train

OVERRIDES = ["duration=3ep", "eval_interval=1ep", "data.batch_size=256"]
RECIPE = load_recipe("digits-mlp", [*OVERRIDES, "checkpoints.interval=3ep"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    return train(RECIPE, RunFolder(path, RECIPE), progress=False), (path / "metrics.jsonl").read_text()


def test_a_run_that_is_stopped_in_its_last_step_is_finished(tmp_path, monkeypatch):
    recipe = load_recipe("digits-mlp", ["duration=2ba", "data.batch_size=256"])
    after_forward = TrainingCurve.after_forward

    def pressed(self, state, logger):
        after_forward(self, state, logger)
        if int(state.timestamp.batch) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingCurve, "after_forward", pressed)
    assert train(recipe, RunFolder(tmp_path, recipe), progress=False)["steps"] == 2


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 8), (signal.SIGTERM, 8), (signal.SIGINT, 12)],  # within the second epoch, and its last
)
def test_a_signal_saves_where_the_run_is_and_it_goes_on_to_the_same_numbers(
    tmp_path, monkeypatch, undisturbed, number, step
):
    steps, after_forward = [], TrainingCurve.after_forward

    def sent(self, state, logger):
        after_forward(self, state, logger)
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingCurve, "after_forward", sent)
    before = signal.getsignal(number)
    with pytest.raises(StoppedInTraining, match=f"after step {step}") as stopped:
        train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
    assert stopped.value.signal == number
    assert len(steps) == step
    assert signal.getsignal(number) is before
    resumed = train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
    whole, lines = undisturbed
    assert len(steps) == whole["steps"] == 18
    assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(tmp_path, monkeypatch, number):
    after_forward = TrainingCurve.after_forward

    def sent_twice(self, state, logger):
        after_forward(self, state, logger)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        pytest.fail("it went on")

    def stop(*_):
        raise SystemExit(7)

    before = signal.signal(number, stop)
    try:
        monkeypatch.setattr(TrainingCurve, "after_forward", sent_twice)
        with pytest.raises(SystemExit, match="7"):
            train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("written", [False, True])
def test_a_run_that_is_killed_after_the_last_checkpoint_of_an_epoch_has_one_line_for_it(
    tmp_path, monkeypatch, undisturbed, written
):
    recipe = load_recipe("digits-mlp", [*OVERRIDES, "checkpoints.interval=6ba"])  # before the end of the epoch
    write_line = MetricsFile.write_line

    def killed(self, state):
        if written:
            write_line(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write_line", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, RunFolder(tmp_path, recipe), progress=False)
    train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert (tmp_path / "metrics.jsonl").read_text() == undisturbed[1]


def test_the_command_keeps_signal_handlers_though_importing_composer_sets_both(tmp_path):
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from composer_ls.lab.commands.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
assert "composer" in sys.modules
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, signal.getsignal(signal.SIGINT)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGTERM)
"""
    arguments = ["train", "digits-mlp", "duration=1ba", "checkpoints.interval=1ep", "--out", str(tmp_path / "run")]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == 0


def test_a_run_is_not_continued_on_other_data(tmp_path, monkeypatch):
    read = datasets.load_digits

    def stopped(self, state, logger):
        if int(state.timestamp.batch) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCurve, "after_forward", stopped)
        with pytest.raises(StoppedInTraining):
            train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)

    def corrected(**options):
        images, labels = read(**options)
        return images, (labels + 1) % 10

    monkeypatch.setattr(datasets, "load_digits", corrected)
    with pytest.raises(RunFolderError, match=r"the data has changed .* \(train labels, test labels\)"):
        train(RECIPE, RunFolder(tmp_path, RECIPE), progress=False)
