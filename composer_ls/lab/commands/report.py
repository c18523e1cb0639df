"""``composer-ls report``: the report of runs that already exist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from composer_ls.errors import InputError

__all__ = ["Purpose", "add_to", "show_report"]


def add_to(app: typer.Typer) -> None:
    """Add ``report`` to the command line."""
    app.command()(report)


Purpose = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="METRIC",
        help="The metric to choose smoothing by: accuracy, nll, brier, ece, ece_scaled or aurc for a classifier. Decide before "
        "you look at results. Default: accuracy, mean_iou or bleu, depending on the task.",
        show_default=False,
    ),
]


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that contains run folders, at any depth.")],
    purpose: Purpose = None,
) -> None:
    """Write summary.csv, summary.json and report.html for the finished runs in a folder, and print verdicts and advice.

    All metrics except BLEU are computed again from the saved predictions.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.absolute()}: give the folder that `composer-ls compare` created")
    show_report(folder, Console(), purpose)


def show_report(folder: Path, console: Console, purpose: str | None) -> None:
    """Build the report of a folder and print its table, verdicts and files."""
    from composer_ls.lab.report.comparison_page import FILES, build_report
    from composer_ls.lab.report.terminal import show

    comparison = build_report(folder, purpose)
    show(comparison, console)
    console.print()
    for one in comparison.left_out:
        console.print(Text(f"left out: {one.folder}: {one.reason}", style="yellow"), soft_wrap=True)
    for name in FILES:
        console.print(Text(str(folder / name)), soft_wrap=True)
