"""Reading run folders: which runs are found and measured, and which are left out and why."""

import json
import math
import os
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from comparison_support import make_run
from safetensors.torch import load_file, save_file

from composer_ls.diagnostics.calibration import accuracy, expected_calibration_error, fit_temperature
from composer_ls.errors import RunFolderError
from composer_ls.lab.compare.log import first_words
from composer_ls.lab.compare.measured_runs import find_runs, read_runs
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder


def reasons(root):
    return {one.folder.relative_to(root).as_posix(): one.reason for one in read_runs(root)[1]}


def test_a_run_is_measured_from_its_predictions_and_its_result(tmp_path):
    make_run(tmp_path / "deep" / "down", 0.1, seed=3)
    (run,), left_out = read_runs(tmp_path)
    assert left_out == []
    assert (run.recipe.smoothing, run.recipe.seed) == (0.1, 3)
    predictions = load_file(tmp_path / "deep" / "down" / "predictions.safetensors")
    logits, labels = predictions["logits"], predictions["labels"]
    assert run.values["accuracy"] == accuracy(logits, labels)
    assert run.values["ece"] == expected_calibration_error(logits, labels)
    assert run.values["step_time"] == pytest.approx(10.2 / 660)
    halves = [fit_temperature(logits[half::2], labels[half::2]) for half in (0, 1)]
    assert run.temperature == pytest.approx((halves[0] * halves[1]) ** 0.5)
    assert run.bins.counts.sum() == len(labels)
    assert len(run.lines) == 30


def test_a_part_that_was_held_out_is_measured_apart_and_judges(tmp_path):
    make_run(tmp_path, 0.1, held_out=1.0)
    (run,), _ = read_runs(tmp_path)
    predictions = load_file(tmp_path / "predictions.safetensors")
    assert run.part == "validation"
    assert run.values == run.parts["validation"].values
    assert run.values["accuracy"] == accuracy(predictions["validation.logits"], predictions["validation.labels"])
    assert run.parts["test"].values["accuracy"] == accuracy(predictions["logits"], predictions["labels"])
    assert run.values["accuracy"] > run.parts["test"].values["accuracy"]


def test_what_is_damaged_or_not_finished_is_named_and_left_out(tmp_path):
    for name in ["good", "begun", "torn", "empty", "unreadable", "diverged", "other_labels", "newer"]:
        make_run(tmp_path / name)
    (tmp_path / "begun" / "result.json").unlink()
    (tmp_path / "torn" / "result.json").write_text('{"name": "digi')
    (tmp_path / "empty" / "predictions.safetensors").unlink()
    (tmp_path / "unreadable" / "predictions.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{not")
    logits = torch.full((4, 5), torch.nan)
    save_file(
        {"logits": logits, "labels": torch.zeros(4, dtype=torch.int64)},
        tmp_path / "diverged" / "predictions.safetensors",
    )
    wrong = {"logits": torch.zeros(4, 5), "labels": torch.full((4,), 7)}
    save_file(wrong, tmp_path / "other_labels" / "predictions.safetensors")
    recipe = tmp_path / "newer" / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "telepathy: true\n")
    runs, _ = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["good"]
    told = reasons(tmp_path)
    assert set(told) == {"begun", "torn", "empty", "unreadable", "diverged", "other_labels", "newer"}
    assert told["begun"] == "it has begun, but not finished"
    assert told["torn"].startswith("its result.json is damaged (Unterminated string")
    assert told["empty"] == "its predictions.safetensors is missing"
    assert "cannot be used" in told["unreadable"]
    assert "logits of 4 of 4 examples are not finite: the run diverged" in told["diverged"]
    assert "cannot be used" in told["other_labels"]
    assert "see its telepathy" in told["newer"]


@pytest.mark.parametrize(("recipe", "metric"), [("camvid-unet", "mIoU"), ("multi30k-transformer", "accuracy")])
def test_a_run_that_diverged_is_left_out_whatever_its_task(tmp_path, recipe, metric):
    make_run(tmp_path / "good", recipe=recipe)
    make_run(tmp_path / "diverged", recipe=recipe, sharper=math.nan)
    runs, left_out = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["good"]
    assert [one.reason for one in left_out] == [f"its {metric} is not finite: the run diverged"]


def test_a_run_with_a_damaged_byte_in_its_predictions_is_left_out(tmp_path):
    file = make_run(tmp_path / "run") / "predictions.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # of a logit or a label
    file.write_bytes(content)
    assert reasons(tmp_path) == {
        "run": "its files cannot be used: the checksum of predictions.safetensors is wrong: it was damaged or edited after it was written"
    }


def test_a_result_without_what_is_needed_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    del result["train_seconds"]
    (folder / "result.json").write_text(json.dumps(result))
    assert reasons(tmp_path) == {"run": "'train_seconds' is missing from its files"}


def test_a_run_that_failed_is_named_with_the_end_of_its_log(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "result.json").unlink()
    (folder / "log.txt").write_text(first_words("2026-01-02", "train digits-mlp") + "\ncomposer-ls: no room left\n\n")
    early = tmp_path / "early"  # it failed before there was a recipe
    early.mkdir()
    (early / "log.txt").write_text(first_words("2026-01-02", "train digits-mlp") + "\ncomposer-ls: no such data\n")
    (tmp_path / "log.txt").write_text("what a shell wrote of the whole comparison")
    assert reasons(tmp_path) == {
        "run": "it has begun, but not finished; its log.txt ends with: no room left",
        "early": "it failed before it trained; its log.txt ends with: no such data",
    }


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"diverged": True}, "its numbers are not finite"),
        ({"metrics": {"nll": None}}, "its numbers are not finite"),
        ({"metrics": {"nll": math.inf}}, "its numbers are not finite"),
        (
            {"diverged": True, "divergence": "at step 3 its training loss was nan"},
            "at step 3 its training loss was nan",
        ),
    ],
)
def test_a_run_whose_result_says_that_it_diverged_is_left_out(tmp_path, changes, how):
    folder = make_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | changes))
    assert reasons(tmp_path) == {"run": f"it diverged: {how}"}


@pytest.fixture
def shared():
    """A folder that everyone can read, and a function that makes the process one of a user who is not root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder), lambda: os.seteuid(65534) if root else None
        if root:
            os.seteuid(0)


def test_a_run_that_another_user_may_not_read_is_left_out_and_not_finished_for_him(shared):
    root, become_another = shared
    closed = make_run(root / "closed")
    make_run(root / "open")
    closed.chmod(0)
    recipe = load_recipe("digits-mlp")  # root's, perhaps
    become_another()
    assert reasons(root) == {"closed": "it cannot be read (Permission denied)"}
    assert not PlannedRun("closed", recipe, (), closed).finished
    assert PlannedRun("open", recipe, (), root / "open").finished
    with pytest.raises(RunFolderError, match=r"closed cannot be written \(Permission denied\): choose another"):
        RunFolder(closed, recipe).check()


def test_metrics_that_are_cut_off_or_missing_lose_no_run(tmp_path):
    cut = make_run(tmp_path / "cut") / "metrics.jsonl"
    cut.write_text(cut.read_text()[:-40])
    (make_run(tmp_path / "gone", seed=1) / "metrics.jsonl").unlink()
    runs, _ = read_runs(tmp_path)
    assert [len(run.lines) for run in runs] == [29, 0]


def test_a_recipe_of_ones_own_is_no_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    make_run(tmp_path / "run")
    assert len(read_runs(tmp_path)[0]) == 1
    assert reasons(tmp_path) == {}


def test_a_network_that_is_no_better_than_its_largest_class_has_not_learnt(tmp_path):
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad", 0.1)
    predictions = load_file(bad / "predictions.safetensors")
    predictions["logits"] = torch.zeros_like(predictions["logits"])
    save_file(predictions, bad / "predictions.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that of a temperature without end
        runs, left_out = read_runs(tmp_path)
    assert left_out == []
    assert {run.folder: run.parts["test"].has_learnt for run in runs} == {good: True, bad: False}


def test_runs_in_linked_folders_and_inside_other_runs_are_found(tmp_path):
    make_run(tmp_path / "elsewhere" / "one")
    make_run(tmp_path / "runs")
    make_run(tmp_path / "runs" / "compare" / "second", 0.1)
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "compare" / "round").symlink_to(tmp_path / "runs")
    assert {folder.name for folder, _ in find_runs(tmp_path / "runs")} == {"runs", "second", "one"}
