"""Disks that become full or read-only, and run folders that vanish: what was finished is kept, and the next run goes on."""

import contextlib
import errno
import json
import resource
import shutil
import subprocess

import pytest
from comparison_support import make_run
from safetensors.torch import load_file

from composer_ls.errors import RunFolderError
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training import metrics_file
from composer_ls.lab.training.train import train

RECIPE = load_recipe(
    "digits-mlp", ["duration=4ep", "data.batch_size=256", "eval_interval=4ep", "checkpoints.interval=2ep"]
)
CHECKPOINT = 1_043_352  # bytes
HOW = r"cannot be written any more \({reason}.*repeat the command, which continues from the last checkpoint"


def run(path, **options):
    return train(RECIPE, RunFolder(path, RECIPE), progress=False, **options)


def names(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    return run(path)["metrics"], names(path)


@contextlib.contextmanager
def largest_file(size):
    """The system refuses to write more than so many bytes to any file, in the middle of a write."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("part", [0.1, 0.99])
def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(tmp_path, undisturbed, part):
    with largest_file(int(part * CHECKPOINT)), pytest.raises(RunFolderError, match=HOW.format(reason="File too large")):
        run(tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert run(tmp_path)["metrics"] == undisturbed[0]
    assert names(tmp_path) == undisturbed[1]


@pytest.mark.parametrize("what", ["recipe", "predictions", "weights", "result"])
def test_a_disk_that_is_full_when_a_file_is_written(tmp_path, monkeypatch, undisturbed, what):
    write = getattr(RunFolder, f"write_{what}")

    def full(self, *content):
        with largest_file(500):
            write(self, *content)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, f"write_{what}", full)
        with pytest.raises(RunFolderError, match=HOW.format(reason="File too large")):
            run(tmp_path)
    assert not (tmp_path / "result.json").exists()
    epochs = (
        [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        if what != "recipe"
        else []
    )
    steps = []
    assert run(tmp_path, each_line=lambda line: steps.append(line["batch"]))["metrics"] == undisturbed[0]
    assert not (steps and epochs), "what was trained is not trained again"
    assert names(tmp_path) == undisturbed[1]


def mounted(path, size):
    """Whether a disk of its own could be mounted there, which takes permissions."""
    path.mkdir()
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True
    ).returncode


@pytest.mark.parametrize("size", [100_000, CHECKPOINT + 300_000])
def test_a_small_disk(tmp_path, monkeypatch, undisturbed, size):
    disk, reason = tmp_path / "disk", "No space left on device"
    if not mounted(disk, size):  # the limit of a process is as near as one comes to it
        reason = "File too large"
    try:
        limit = contextlib.nullcontext() if reason.startswith("No") else largest_file(min(size, CHECKPOINT - 1))
        with limit, pytest.raises(RunFolderError, match=HOW.format(reason=reason)):
            run(disk / "run")
        kept = [file.name for file in disk.rglob("latest-rank0.pt")]
        shutil.copytree(disk / "run", tmp_path / "run", symlinks=True)  # room is made
    finally:
        subprocess.run(["umount", disk], capture_output=True, check=False)
    assert reason.startswith("File") or kept == ([] if size < CHECKPOINT else ["latest-rank0.pt"])
    steps = []
    assert run(tmp_path / "run", each_line=lambda line: steps.append(line["epoch"]))["metrics"] == undisturbed[0]
    assert steps == ([3, 4] if kept else [1, 2, 3, 4])
    assert names(tmp_path / "run") == undisturbed[1]


def on_epoch(monkeypatch, epoch, happens):
    write_line = metrics_file.MetricsFile.write_line

    def written(self, state):
        if int(state.timestamp.epoch) == epoch:
            happens()
        write_line(self, state)

    monkeypatch.setattr(metrics_file.MetricsFile, "write_line", written)


def test_a_disk_that_becomes_read_only(tmp_path, monkeypatch, undisturbed):
    def broken():
        raise OSError(errno.EROFS, "Read-only file system", "metrics.jsonl")

    with monkeypatch.context() as patch:
        on_epoch(patch, 3, broken)
        with pytest.raises(RunFolderError, match=HOW.format(reason="Read-only file system: metrics.jsonl")):
            run(tmp_path)
    steps = []
    assert run(tmp_path, each_line=lambda line: steps.append(line["epoch"]))["metrics"] == undisturbed[0]
    assert steps == [3, 4]
    assert names(tmp_path) == undisturbed[1]


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_run_folder_that_vanishes(tmp_path, monkeypatch, undisturbed, epoch):
    with monkeypatch.context() as patch:
        on_epoch(patch, epoch, lambda: shutil.rmtree(tmp_path / "run"))
        with pytest.raises(RunFolderError, match=HOW.format(reason="it has disappeared")):
            run(tmp_path / "run")
    assert run(tmp_path / "run")["metrics"] == undisturbed[0]
    assert names(tmp_path / "run") == undisturbed[1]


def test_what_a_kill_leaves_of_a_write_is_swept_and_the_rest_stays(tmp_path):
    for name in (".recipe.yaml.123", ".predictions.safetensors.9", ".notes", "notes.7"):
        (tmp_path / name).touch()
    (tmp_path / ".model.42").mkdir()
    (tmp_path / ".model.42" / "config.json").touch()
    RunFolder(tmp_path, RECIPE).sweep()
    assert names(tmp_path) == [".notes", "notes.7"]


@pytest.mark.parametrize("name", ["ein Lauf – 実験 'x' é", "n" * 200, "a{b} [c] %s $HOME"])
def test_any_name_of_a_folder_will_do(tmp_path, undisturbed, name):
    for _ in range(2):
        assert run(tmp_path / name / "run")["metrics"] == undisturbed[0]
    assert names(tmp_path / name / "run") == undisturbed[1]
    (only,), left_out = read_runs(tmp_path)
    assert only.folder == tmp_path / name / "run"
    assert not left_out
    assert load_file(tmp_path / name / "run" / "predictions.safetensors")


def test_a_result_of_a_newer_version_is_read_as_far_as_it_is_known(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    newer = {
        "versions": {"composer_ls": "99.0"},
        "novelty": [1],
        "metrics": {"accuracy": 0.5, "novel": 0.25},
        "units": {},
    }
    (folder / "result.json").write_text(json.dumps(result | newer))
    runs, left_out = read_runs(tmp_path)
    assert (len(runs), left_out) == (1, [])
    (folder / "result.json").write_text(json.dumps({"schema": 2, "values": []}))
    _, (other,) = read_runs(tmp_path)
    assert other.reason == "its result.json is damaged (it has no metrics)"
    with pytest.raises(RunFolderError, match=r"result.json cannot be read \(it has no metrics\): add --overwrite"):
        RunFolder(folder, load_recipe("digits-mlp")).result()
