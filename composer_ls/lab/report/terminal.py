"""A comparison for the terminal: a table, and the verdicts."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from composer_ls.lab.compare.advice import advise
from composer_ls.lab.compare.comparison import Comparison
from composer_ls.lab.report.comparison_page import cell, heading, nothing_to_compare

__all__ = ["show"]

_STYLES = {"good": "green", "bad": "red", "mixed": "yellow", "none": ""}


def show(comparison: Comparison, console: Console) -> None:
    """Print the table of means, for each setting what follows, and what to do."""
    console.print(_table(comparison))
    for setting in comparison.runs:
        verdicts = comparison.verdicts(setting)
        lines = [Text(heading(comparison, setting), style="bold")]
        lines += [Text(f"Warning: {warning}", style="bold red") for warning in comparison.warnings(setting)]
        lines += [Text(verdict.sentence, style=_STYLES[verdict.tone]) for verdict in verdicts]
        if not verdicts:
            lines = [Text(nothing_to_compare(comparison, setting))]
        console.print(Padding(Group(*lines), (1, 0, 0, 0)))
    if comparison.tests:
        console.print(
            Padding(
                Text(
                    f"Differences by seed from no smoothing on the {comparison.part} examples, with 95 % intervals: {comparison.tests} "
                    f"of them, of which about {comparison.tests / 20:g} would exclude 0 by chance. Helps and hurts are said after "
                    f"Holm's correction: of {comparison.purpose.name} for its own differences, of the other metrics for twice the number of all.",
                    style="dim",
                ),
                (1, 0, 0, 0),
            )
        )
    for setting in comparison.runs:
        advice = advise(comparison, setting)
        lines = [Text("What to do" + (f", {setting}" if setting else ""), style="bold"), Text(f"{advice.headline}.")]
        console.print(Padding(Group(*lines, *(Text(f"{remark}.") for remark in advice.remarks)), (1, 0, 0, 0)))


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("smoothing", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for metric in comparison.columns:
        words = metric.heading.replace("Brier score", "Brier").replace(", ", "\n").replace(" (", "\n(")
        table.add_column(words, justify="right", no_wrap=True)
    before = ""
    for setting, smoothing, runs in comparison:
        if setting != before:
            table.add_row(Text(setting, style="bold"))
            before = setting
        cells = [cell(comparison, metric, setting, smoothing) for metric in comparison.columns]
        table.add_row(f"{smoothing:g}", str(len(runs)), *(mean for mean, _ in cells))
        if any(interval for _, interval in cells):
            table.add_row("", "", *(Text(interval.replace("± ", "±"), style="dim") for _, interval in cells))
    return table
