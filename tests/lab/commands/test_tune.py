"""tune on the command line, end to end."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare import local_engine
from composer_ls.lab.recipe.reading import load_recipe


def run(*arguments):
    """The exit status of a command."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.slow
def test_a_search_ends_with_a_comparison_and_is_not_done_twice(tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    command = ["tune", "digits-mlp", "duration=2ep", "eval_interval=1ep", "--for", "nll", "--trials", "3"]
    command += ["--seeds", "3", "--jobs", "2", "--out", str(out)]
    assert run(*command) == 0
    first = capfd.readouterr()
    assert "holds out no validation part to judge on, so data.validation=0.1 is added" in first.err
    assert "[3/3] finished: trial" in first.err
    assert "over 3 fresh seeds" in first.err
    words = " ".join(first.out.split())
    assert "3 trials: 3 finished" in words
    assert "What to do The gain " in words
    written = json.loads((out / "tune.json").read_text())
    best = min(written["trials"], key=lambda trial: trial["value"])
    assert written["best"]["trial"] == best["trial"]
    assert load_recipe(out / "best.yaml").smoothing != 0.1
    monkeypatch.setattr(local_engine, "_start", lambda _: pytest.fail("something was run"))
    assert run(*command) == 0
    second = capfd.readouterr()
    assert "all 3 trials are already over" in second.err
    assert second.out == first.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-mpl"], "did you mean digits-mlp"),
        (["digits-mlp", "--trials", "1"], "--trials is 1, but must be at least 2"),
        (["digits-mlp", "--seeds", "0"], "--seeds is 0"),
        (["digits-mlp", "--jobs", "0"], "--jobs is 0"),
        (["digits-mlp", "--for", "bleu"], "--for is 'bleu', but must be accuracy, nll"),
        (["digits-mlp", "--vary", "optimizer.learning_rat=0.1..1"], "unknown key optimizer.learning_rat"),
        (["digits-mlp", "--vary", "optimizer.momentum=0.5..1"], "optimizer.momentum=1"),
        (["camvid-unet"], "tune judges on a validation part, and the data of segmentation has none"),
    ],
)
def test_a_mistake_is_one_paragraph_and_status_2_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("tune", *arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("composer-ls: ")
    assert message in text
    assert text.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_package_to_install_is_named(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "composer_ls.lab.commands.tune.find_spec", lambda name: None if name == "optuna" else found(name)
    )
    assert run("tune", "digits-mlp") == 2
    assert "composer-ls tune needs Optuna: pip install 'composer_ls[tune]'" in capsys.readouterr().err


def test_the_command_line_starts_without_optuna():
    code = "import sys; from composer_ls.lab.commands import cli; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
