"""A comparison in the terminal: nothing is cut, whatever its width, and what to be careful about is said."""

import json
import re

import pytest
from comparison_support import make_comparison
from rich.console import Console
from rich.table import Table

from composer_ls.lab.report.comparison_page import build_report
from composer_ls.lab.report.fitted import fitted
from composer_ls.lab.report.terminal import show


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return build_report(make_comparison(tmp_path_factory.mktemp("runs"), (0.0, 0.1), 3))


def printed(shown, width):
    console = Console(width=width, record=True, force_terminal=False, file=None, quiet=False)
    with console.capture() as captured:
        shown(console)
    return captured.get()


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_no_number_is_cut_at_any_width(comparison, width):
    text = printed(lambda console: show(comparison, console), width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for metric in comparison.columns:
        for smoothing in (0.0, 0.1):
            mean = metric.shown(comparison.mean(metric, "", smoothing).mean)
            assert re.search(rf"(?<![\d.]){re.escape(mean)}(?![\d.])", text), (metric.name, mean)


def test_a_table_that_has_room_stays_a_table():
    table = Table("smoothing", "accuracy", box=None)
    table.add_row("0.1", "98.6")
    assert printed(lambda console: console.print(fitted(table, console)), 40).splitlines()[1].split() == ["0.1", "98.6"]
    assert "accuracy: 98.6" in printed(lambda console: console.print(fitted(table, console)), 16)


def test_what_runs_warn_of_stands_before_what_to_do(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1), 3)
    for file in tmp_path.rglob("result.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"warnings": ["It trained for only 10 steps."]}))
    found = build_report(tmp_path)
    text = " ".join(printed(lambda console: show(found, console), 80).split())
    assert text.startswith("mlp on digits: 1,437 training and 240 test examples, 30 epochs of 22 steps.")
    assert text.index("Be careful all runs: It trained for only 10 steps.") < text.index("What to do")
    page = (tmp_path / "report.html").read_text()
    assert page.index("all runs: It trained for only 10 steps.") < page.index("What to do")
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"] == [
        "all runs: It trained for only 10 steps."
    ]
