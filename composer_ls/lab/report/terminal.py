"""Prints a comparison in the terminal: a table, the verdicts, and advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from composer_ls.lab.compare.advice import advise
from composer_ls.lab.compare.comparison import Comparison
from composer_ls.lab.compare.measured_runs import Run
from composer_ls.lab.compare.setup import cautions
from composer_ls.lab.report.comparison_page import cell, heading, nothing_to_compare, runs_of, setups
from composer_ls.lab.report.fitted import fitted

__all__ = ["show"]

_STYLES = {"good": "green", "bad": "red", "mixed": "yellow", "none": ""}


def show(comparison: Comparison, console: Console) -> None:
    """Print the setup, the means, the verdicts of each setting, warnings and advice."""
    runs = runs_of(comparison)
    console.print(*map(Text, setups(runs)), sep="\n")
    for setting, factors in comparison.runs.items():
        _print(console, [Text(setting, style="bold")] if setting else [])
        console.print(fitted(_table(comparison, setting, factors), console))
    for setting in comparison.runs:
        verdicts = comparison.verdicts(setting)
        lines = [Text(heading(comparison, setting), style="bold")]
        lines += [Text(f"Warning: {warning}", style="bold red") for warning in comparison.warnings(setting)]
        lines += [Text(verdict.sentence, style=_STYLES[verdict.tone]) for verdict in verdicts]
        if not verdicts:
            lines = [Text(nothing_to_compare(comparison, setting))]
        _print(console, lines)
    if comparison.tests:
        words = (
            f"Paired differences from no smoothing on the {comparison.part} examples, with 95 % intervals. There are "
            f"{comparison.tests} of them, and about {comparison.tests / 20:g} would exclude 0 by chance. So “helps” and “hurts” "
            f"are reported only after Holm's correction, which asks for more evidence the more differences are tested."
        )
        _print(console, [Text(words, style="dim")])
    careful = cautions([run.result for run in runs])
    if careful:
        _print(console, [Text("Be careful", style="bold red"), *map(Text, careful)])
    for setting in comparison.runs:
        advice = advise(comparison, setting)
        lines = [Text("What to do" + (f", {setting}" if setting else ""), style="bold"), Text(f"{advice.headline}.")]
        _print(console, [*lines, *(Text(f"{remark}.") for remark in advice.remarks)])


def _print(console: Console, lines: Iterable[Text]) -> None:
    """Print a paragraph after an empty line."""
    console.print(Padding(Group(*lines), (1, 0, 0, 0)))


def _table(comparison: Comparison, setting: str, factors: Mapping[float, Mapping[int, Run]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("smoothing", "seeds"):
        table.add_column(name, no_wrap=True)
    for metric in comparison.columns:
        words = metric.heading.replace("Brier score", "Brier").replace(", ", "\n").replace(" (", "\n(")
        table.add_column(words, justify="right", no_wrap=True)
    for smoothing, runs in factors.items():
        cells = []
        for metric in comparison.columns:
            mean, interval = cell(comparison, metric, setting, smoothing)
            cells.append("\n".join(filter(None, [mean, interval.replace("± ", "±").replace(", ", ",\n")])))
        table.add_row(f"{smoothing:g}", str(len(runs)), *cells)
    return table
