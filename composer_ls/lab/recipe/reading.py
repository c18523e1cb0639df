"""Reading a recipe: its file, overrides, and messages that name the key and the way out."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.recipe import Recipe, recipe_schema

__all__ = ["load_recipe", "parse_yaml", "place_of", "recipe_path", "shipped_recipes"]


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The path of every shipped recipe by its name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"), key=lambda path: path.stem)}


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe given as a shipped name or as a path.

    Raises:
        RecipeError: There is no such recipe; near matches are named.

    """
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise RecipeError(f"there is no recipe file {path}; `composer-ls recipes` lists the shipped ones")
    near = difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"there is no recipe {str(name)!r}: {hint}the shipped ones are {', '.join(shipped)}")


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``optimizer.learning_rate=0.2``, whose values are YAML.

    Raises:
        RecipeError: No such recipe, broken YAML, an unknown key or a wrong value; the message names file, line or key.

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
        raise RecipeError(f"{path} holds {type(content).__name__}, but a recipe is a mapping from keys to values")
    for override in overrides:
        _apply_override(content, override)
    return _validated(content, str(path))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which tells where a value is that looks like a number and is none, such as 00.5dur."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            problem = f"{node.value!r} cannot be read as the number or date that it looks like: put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def parse_yaml(text: str, where: str) -> Any:
    """What YAML says, with PyYAML's safe loader.

    Args:
        text: The YAML.
        where: Where it stands, for messages: a file or an override.

    Raises:
        RecipeError: It is not valid; the message gives the line and the column.

    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not key.path=value, as in optimizer.learning_rate=0.2")
    value = parse_yaml(text, f"the override {override!r}")
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


def _validated(content: dict[str, Any], where: str) -> Recipe:
    try:
        return recipe_schema().model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Mapping[str, Any]) -> str:
    keys, section = place_of(problem["loc"])
    path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        allowed = list(section.model_fields)
        near = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key {path}: {hint}allowed are {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"the key {path} is missing"
    if problem["type"] == "union_tag_not_found":
        return f"the key {path}.name is missing"
    if problem["type"] == "union_tag_invalid":
        expected = " or ".join(problem["ctx"]["expected_tags"].rsplit(", ", 1))
        return f"{path}.name is {problem['input']['name']!r}: input should be {expected}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path} is {problem['input']!r}: {message[:1].lower()}{message[1:]}" if path else message


def place_of(loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a mistake, and the section that it is in, or that section around it that has a schema.

    Where a section is one of several, pydantic puts the ``name`` that has told which between the keys.
    """
    section: type[BaseModel] = recipe_schema()
    keys, rest = [], [str(part) for part in loc]
    while rest:
        keys.append(rest.pop(0))
        field = section.model_fields.get(keys[-1])
        if field is None:
            break
        choices = [one for one in (field.annotation, *typing.get_args(field.annotation)) if _is_section(one)]
        if field.discriminator and rest:
            name = rest.pop(0)
            choices = [one for one in choices if name in typing.get_args(one.model_fields["name"].annotation)]
        if not choices or not rest:
            break
        section = choices[0]
    return keys + rest, section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
