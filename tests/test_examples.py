"""The examples run."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hand_written_loop.py", *arguments])
    runpy.run_path(str(EXAMPLES / "hand_written_loop.py"), run_name="__main__")
    return capsys.readouterr().out


def test_the_hand_written_loop_learns(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "--model", "mlp", "--epochs", "3").splitlines()
    assert len(lines) == 3
    assert float(lines[-1].split()[4]) > 0.8


def test_the_hand_written_loop_compares_itself_with_the_trainer(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "--model", "mlp", "--compare", "--batch-size", "16").splitlines()
    assert lines[0].startswith("mlp, batch 16, ")
    assert float(lines[1].split("ratio ")[1]) > 0
