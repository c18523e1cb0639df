"""Reads a recipe from its file, applies overrides, and checks the result."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.algorithm_arguments import algorithm_mistakes
from composer_ls.lab.recipe.composer_parts import part_mistakes
from composer_ls.lab.recipe.mistakes import Override, explain, told
from composer_ls.lab.recipe.recipe import Recipe, recipe_schema
from composer_ls.lab.recipe.yaml_text import parse_yaml

__all__ = ["load_recipe", "recipe_path", "shipped_recipes"]


def recipe_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The path of every shipped recipe by its name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"), key=lambda path: path.stem)}


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe given as a shipped name or as a path.

    Raises:
        RecipeError: There is no such recipe; the message suggests similar names.

    """
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise RecipeError(f"there is no recipe file {path}; `composer-ls recipes` lists the shipped ones")
    near = _light([one for one in shipped if str(name) and str(name).lower() in one])
    near = near or difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"there is no recipe {str(name)!r}: {hint}the shipped ones are {', '.join(shipped)}")


def _light(names: Sequence[str]) -> list[str]:
    """The recipes among ``names`` that a laptop can train, or all of them if there are none."""
    recipes = [load_recipe(name) for name in names]
    light = [one.name for one in recipes if "GPU" not in one.needs and int(one.duration.removesuffix("ep")) <= 100]
    return light or list(names)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``optimizer.learning_rate=0.2``, whose values are YAML.

    Raises:
        RecipeError: There is no such recipe, the YAML is invalid, a key is unknown or a value is wrong; the message
            names the file, line or key.

    Example:
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0.2"]).smoothing
        0.2

    """
    path = recipe_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise RecipeError(f"{path} contains {type(content).__name__}, but a recipe is a mapping from keys to values")
    changes = [_apply_override(content, override) for override in overrides]
    return _validated(content, f"the recipe {name}" if str(name) in shipped_recipes() else str(path), changes)


def _apply_override(content: dict[str, Any], override: str) -> Override:
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not key.path=value, as in optimizer.learning_rate=0.2")
    value = parse_yaml(text, f"the override {override!r}")
    if json.dumps(value, default=str).count("#") < text.count("#"):
        raise RecipeError(
            f"the override {override!r} holds a comment, which begins with # after a space: put the value into quotes, as in "
            f"{path}='\"{text}\"', if that is a part of it"
        )
    place = content
    for depth, key in enumerate(keys[:-1], 1):
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise RecipeError(
                f"the override {override!r} goes into {'.'.join(keys[:depth])}, which is a value, not a mapping"
            )
    place[keys[-1]] = value
    _replace_the_choice(content, keys, value)
    return Override(override, tuple(keys), value)


def _replace_the_choice(content: dict[str, Any], keys: list[str], value: Any) -> None:
    """Let a name in ``data`` or ``model`` replace a target and its arguments, and a target replace a name."""
    if len(keys) != 2 or keys[0] not in {"data", "model"} or value is None:
        return
    if keys[1] == "target" and ":" in str(value):  # elsewhere it is a language
        content[keys[0]]["name"] = "target"
    elif keys[1] == "name" and value != "target" and content[keys[0]].get("target") is not None:
        del content[keys[0]]["target"]
        content[keys[0]].pop("arguments", None)


def _validated(content: dict[str, Any], where: str, overrides: Sequence[Override]) -> Recipe:
    try:
        recipe = recipe_schema().model_validate(content)
    except ValidationError as error:
        raise RecipeError(explain(error, where, overrides)) from error
    mistakes = (
        algorithm_mistakes(recipe.algorithms),
        part_mistakes("callbacks", recipe.callbacks),
        part_mistakes("loggers", recipe.loggers),
    )
    for keys, message in itertools.chain(*mistakes):
        raise RecipeError(told(keys, message, where, overrides))
    return recipe
