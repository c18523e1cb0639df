"""The callbacks and loggers of Composer that a recipe can name, and their arguments, found without importing Composer."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "Kind",
    "arguments_in",
    "composers_folder",
    "near",
    "part_arguments",
    "part_mistakes",
    "part_places",
    "truths_in",
]

Kind = Literal["callbacks", "loggers"]

BASES = {"callbacks": "Callback", "loggers": "LoggerDestination"}

LEFT_OUT = frozenset({"in_memory", "progress_bar"})
"""Loggers that a recipe cannot name: what one holds is lost with the process, and the other is always there."""


def part_mistakes(kind: Kind, mapping: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The mistakes in a recipe's ``callbacks`` or ``loggers``, each as a path of keys and a message.

    Example:
        >>> from composer_ls.lab.recipe.composer_parts import part_mistakes
        >>> [message[:64] for _, message in part_mistakes("callbacks", {"speed_monitr": {}})]
        ['unknown key callbacks.speed_monitr: did you mean speed_monitor? ']

    """
    known = sorted(part_places(kind))
    for name, arguments in mapping.items():
        if name not in known:
            message = f"unknown key {kind}.{name}: {near(name, known)}allowed are {', '.join(known)}"
            yield (kind, name), message
            continue
        allowed = part_arguments(kind, name)
        for key in arguments or {}:
            if key not in allowed and "**" not in allowed:
                message = (
                    f"unknown key {kind}.{name}.{key}: {near(key, allowed)}allowed are {', '.join(allowed) or 'none'}"
                )
                yield (kind, name, key), message
            elif isinstance(arguments[key], str) and key in truths_in(_part_source(kind, name)):
                path = f"{kind}.{name}.{key}"
                yield (kind, name, key), f"{path} is {arguments[key]!r}, but must be true or false"


@functools.cache
def part_places(kind: Kind) -> dict[str, tuple[str, str]]:
    """The module and the class of each callback or logger, by the name that recipes use."""
    places = {}
    for file in sorted((composers_folder() / kind).glob("*.py")):
        name = file.stem.removesuffix("_logger")
        source = _class_in(file, BASES[kind])
        if source is not None and name not in LEFT_OUT:
            places[name] = (f"composer.{kind}.{file.stem}", source.name)
    return places


@functools.cache
def part_arguments(kind: Kind, name: str) -> tuple[str, ...]:
    """The arguments of a callback or logger, read from its source."""
    return arguments_in(_part_source(kind, name))


@functools.cache
def _part_source(kind: Kind, name: str) -> ast.ClassDef:
    module, _ = part_places(kind)[name]
    source = _class_in(composers_folder() / kind / f"{module.rpartition('.')[2]}.py", BASES[kind])
    assert source is not None
    return source


def composers_folder() -> Path:
    """The folder of Composer's package."""
    found = importlib.util.find_spec("composer")  # does not import it
    assert found is not None, "Composer is one of our requirements"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def arguments_in(source: ast.ClassDef) -> tuple[str, ...]:
    """The arguments that a class takes, from its source; the last is ``**`` if it takes any others."""
    for statement in source.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            named = tuple(one.arg for one in (*statement.args.args[1:], *statement.args.kwonlyargs))
            return named if statement.args.kwarg is None else (*named, "**")
    return ()


def truths_in(source: ast.ClassDef) -> set[str]:
    """The arguments of a class that are true or false by their default or annotation. Text would count as true there."""
    found = set()
    for statement in source.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args
            named, only = arguments.args, arguments.kwonlyargs
            defaults = [*[None] * (len(named) - len(arguments.defaults)), *arguments.defaults, *arguments.kw_defaults]
            for one, default in zip([*named, *only], defaults, strict=True):
                kinds = set(re.findall(r"\w+", ast.unparse(one.annotation))) if one.annotation is not None else set()
                by_default = isinstance(default, ast.Constant) and isinstance(default.value, bool)
                if "str" not in kinds and (by_default or "bool" in kinds):
                    found.add(one.arg)
    return found


def near(key: str, known: Sequence[str]) -> str:
    """A question about what was probably meant, or ""."""
    alike = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {alike[0]}? " if alike else ""


def _class_in(file: Path, base: str) -> ast.ClassDef | None:
    """The class in a file that derives from ``base``."""
    for one in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(one, ast.ClassDef) and base in {getattr(one_base, "id", "") for one_base in one.bases}:
            return one
    return None
