"""The command line ``composer-ls``: its options, its commands, and how it reports errors."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import composer_ls
from composer_ls.errors import InputError
from composer_ls.lab.commands import (
    bench,
    compare,
    diagnose,
    export,
    predict,
    recipes,
    report,
    train,
    translate,
    tune,
)

__all__ = ["app", "main"]

app = typer.Typer(
    help="Label smoothing for Composer: train from recipes, compare runs, and look at the results.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"composer_ls {composer_ls.__version__}")
        print(f"composer {version('mosaicml')}\ntorch {version('torch')}\npython {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and everything that Composer prints.")
    ] = False,
    versions: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the versions.")
    ] = False,
) -> None:
    context.obj = debug


for command in (train, compare, tune, report, recipes, diagnose, predict, export, translate, bench):
    command.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Wrong input is reported as one paragraph, with exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # at any position
    try:
        rest = [argument for argument in arguments if argument != "--debug"]
        app(["--debug", *rest] if debug else rest, prog_name="composer-ls")
    except InputError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"composer-ls: {error}"))
        raise SystemExit(2) from None
