"""``composer-ls diagnose``: what smoothing did inside runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from composer_ls.errors import InputError

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add ``diagnose`` to the command line."""
    app.command(epilog=EXAMPLE)(diagnose)


EXAMPLE = """
**Example**

`composer-ls train digits-mlp diagnostics='{mutual_information: {}}' --out smoothed`

`composer-ls train digits-mlp diagnostics='{mutual_information: {}}' algorithms.label_smoothing.smoothing=0 --out hard`

`composer-ls diagnose hard smoothed --out page.html`
"""


def diagnose(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("diagnose.html"),
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Three classes to project, or two. Default: those of each run's recipe."),
    ] = None,
) -> None:
    """Show what smoothing did inside runs, side by side on one page.

    Projections and mutual information need runs of recipes with `diagnostics`.
    """
    from composer_ls.lab.report.diagnosis_page import diagnose as write_page

    try:
        chosen = None if classes is None else [int(label) for label in classes.split(",")]
    except ValueError:
        raise InputError(f"--classes is {classes!r}, but must be two or three numbers, as in --classes 0,1,2") from None
    out = out.expanduser()  # which a shell does not in --out=~/page.html
    diagnosed = write_page(runs, out, chosen)
    Console().print(Text(f"{out}: {', '.join(run.name for run in diagnosed)}"), soft_wrap=True)
