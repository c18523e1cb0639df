"""The command line: composer-ls train | compare | report | translate | bench | recipes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import composer_ls
from composer_ls.errors import InputError
from composer_ls.lab.commands.bench import add_to as add_bench
from composer_ls.lab.commands.compare import add_to as add_compare
from composer_ls.lab.commands.translate import add_to as add_translate

__all__ = ["app", "main"]

app = typer.Typer(
    help="Label smoothing for Composer: train with it from a recipe.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"composer_ls {composer_ls.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="Show the version.")] = False,
) -> None:
    del debug, version  # main and the callback see to them


@app.command(
    epilog="""
**Examples**

`composer-ls train digits-mlp`

`composer-ls train digits-mlp algorithms.label_smoothing.smoothing=0 seed=3`

`composer-ls train cifar10-resnet20 data.download=true algorithms.mixup='{alpha: 0.2}'`

`composer-ls train cifar10-resnet20 data.name=imagefolder data.root=DIR duration=1ep`

`composer -n 2 -m composer_ls train digits-mlp` (two processes)
"""
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name (see `composer-ls recipes`) or a path to one.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, as `key.path=value`; values are YAML.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE-FINGERPRINT.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start afresh, losing what the folder holds.")] = False,
) -> None:
    """Train as a recipe says, and leave a run folder.

    A run that was killed goes on from its last checkpoint; a finished one is not run again.
    """
    from composer_ls.lab.recipe.reading import load_recipe
    from composer_ls.lab.run_folder.folder import RunFolder

    resolved = load_recipe(recipe, overrides or [])
    folder = RunFolder(out, resolved)
    if not overwrite:
        folder.check()
    result = None if overwrite else folder.result()
    was_finished = result is not None
    if result is None:
        from composer_ls.lab.training.train import train as run  # imports Composer, which takes seconds

        result = run(resolved, folder, overwrite=overwrite)
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console()
    console.print(_result_table(result, folder.path))
    if was_finished:
        note = f"This run was finished at {result['finished']} and was not run again; --overwrite does that."
        console.print(note, soft_wrap=True)


add_compare(app)
add_bench(app)
add_translate(app)


@app.command()
def recipes(
    show: Annotated[str | None, typer.Option(metavar="NAME", help="Print the YAML of one recipe.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
) -> None:
    """List the shipped recipes: what each is and what it needs."""
    from composer_ls.lab.recipe.reading import load_recipe, recipe_path, shipped_recipes
    from composer_ls.lab.recipe.recipe import recipe_schema

    if show is not None:
        print(recipe_path(show).read_text(encoding="utf-8"), end="")
        return
    if schema:
        print(json.dumps(recipe_schema().model_json_schema(), indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.add_column("what it needs", overflow="fold")
    for name in shipped_recipes():
        recipe = load_recipe(name)
        table.add_row(Text(name, style="bold"), Text(recipe.description), Text(recipe.needs))
    Console().print(table)


@app.command(
    epilog="""
**Example**

`composer-ls train digits-mlp diagnostics='{mutual_information: {}}' --out smoothed`

`composer-ls train digits-mlp diagnostics='{mutual_information: {}}' algorithms.label_smoothing.smoothing=0 --out hard`

`composer-ls diagnose hard smoothed --out page.html`
"""
)
def diagnose(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("diagnose.html"),
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Three classes to project. Default: those of each run's recipe.")
    ] = None,
) -> None:
    """Show what smoothing did inside runs, side by side on one page.

    Projections and mutual information need runs of recipes with `diagnostics`.
    """
    from composer_ls.lab.report.diagnosis_page import diagnose as write_page

    try:
        chosen = None if classes is None else [int(label) for label in classes.split(",")]
    except ValueError:
        raise InputError(f"--classes is {classes!r}, but must be three numbers, as in --classes 0,1,2") from None
    diagnosed = write_page(runs, out, chosen)
    Console().print(Text(f"{out}: {', '.join(run.name for run in diagnosed)}"), soft_wrap=True)


_METRICS = {
    "bleu": "BLEU",
    "brier": "Brier score",
    "ece": "ECE (15 bins)",
    "mean_iou": "mIoU",
    "nll": "NLL (nats)",
}


def _result_table(result: dict[str, Any], folder: Path) -> Table:
    rows = [
        *((_METRICS.get(name, name), f"{value:.4f}") for name, value in result["metrics"].items()),
        ("smoothing", f"{result['smoothing']:g}"),
        ("seconds of training", f"{result['train_seconds']:.1f}"),
        ("run folder", str(folder)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False, title=result["name"], title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in what was given becomes one paragraph and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # wherever it stands
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="composer-ls")
    except InputError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(f"composer-ls: {error}"))
        raise SystemExit(2) from None
