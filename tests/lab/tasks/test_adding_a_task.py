"""A task is added from outside the package as the guide says, with the guide's own files."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from composer_ls.errors import InputError
from composer_ls.lab.tasks import registry

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "examples" / "guides" / "adding-a-task.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The guide's folder, installed as ``pip install --editable`` does: with the metadata that name its entry point."""
    folder = tmp_path_factory.mktemp("rows")
    for name, text in re.findall(r"```(?:py|yaml|toml)\n# (\S+)\n(.*?)```", GUIDE, re.S):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "egg_info"]
    subprocess.run(build, cwd=folder, check=True)
    assert "rows = rows_task" in (folder / "rows_task.egg-info" / "entry_points.txt").read_text()
    return folder


def composer_ls(folder, *arguments):
    paths = os.pathsep.join([str(ROOT), str(folder)])
    command = [sys.executable, "-m", "composer_ls", *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)


def test_the_guides_task_is_trained_and_compared(installed):
    run = composer_ls(installed, "compare", "rows.yaml", "--seeds", "2", "--jobs", "1", "--out", "all")
    assert run.returncode == 0, run.stderr
    results = [json.loads(file.read_text()) for file in sorted((installed / "all").rglob("result.json"))]
    assert len(results) == 4
    assert all(result["task"] == "rows" and result["metrics"]["accuracy"] > 0.6 for result in results)
    assert results[0]["units"] == {"accuracy": "fraction", "nll": "nats"}
    page = (installed / "all" / "report.html").read_text(encoding="utf-8")
    for words in ("most probable grower", "NLL (nats)", "test NLL", "wines"):
        assert words in page


def test_a_mistake_in_the_guides_recipe_is_told_with_the_keys_of_its_task(installed):
    run = composer_ls(installed, "train", "rows.yaml", "data.batchsize=3", "model.name=percepton")
    assert run.returncode == 2
    assert "unknown key data.batchsize: did you mean data.batch_size=3? allowed are name, batch_size" in run.stderr
    assert "'perceptron'" in run.stderr


def test_a_task_that_cannot_be_used_is_named_with_the_way_out(tmp_path, monkeypatch):
    def entries(group):
        return [EntryPoint("toy", "toy_task", group)]

    monkeypatch.setattr(registry, "entry_points", entries)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"the task in toy_task cannot be used, because toy_task.schema.SCHEMA .*uninstall it"
    ):
        registry._packages.__wrapped__()
    (tmp_path / "toy_task").mkdir()
    (tmp_path / "toy_task" / "schema.py").write_text("from composer_ls.lab.tasks.segmentation.schema import SCHEMA\n")
    with pytest.raises(
        InputError, match=r"composer_ls.lab.tasks.segmentation and toy_task both have task segmentation"
    ):
        registry._packages.__wrapped__()
