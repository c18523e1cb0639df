"""``composer-ls recipes``: list the shipped recipes."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add ``recipes`` to the command line."""
    app.command()(recipes)


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
