"""Error messages for recipes: the key, where it was set, what is allowed, and what was probably meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from composer_ls.lab.recipe.algorithm_arguments import algorithm_names, arguments_of
from composer_ls.lab.recipe.recipe import UNKNOWN_SECTION, recipe_schema

__all__ = ["Override", "explain", "place_of", "told"]

ALIASES = {
    "amp": "precision",
    "arch": "model.name",
    "bs": "data.batch_size",
    "data_dir": "data.root",
    "dataset": "data.name",
    "label_smoothing": "algorithms.label_smoothing.smoothing",
    "lr": "optimizer.learning_rate",
    "ls": "algorithms.label_smoothing.smoothing",
    "max_duration": "duration",
    "network": "model.name",
    "num_workers": "data.workers",
    "smoothing": "algorithms.label_smoothing.smoothing",
    "wd": "optimizer.weight_decay",
}
"""Keys that people often try, and the keys they mean."""

LENGTHS = {"epoch": "ep", "step": "ba", "batch": "ba", "batche": "ba", "iteration": "ba"}
"""Words for the length of a run (without a prefix such as ``max_`` and a plural s) and the unit that they stand for."""


@dataclass(frozen=True)
class Override:
    """A change to a recipe, as the user gave it."""

    text: str
    keys: tuple[str, ...]
    value: Any

    def concerns(self, keys: Sequence[str]) -> bool:
        """Whether it sets the value at this path of keys, a part of that value, or a mapping that contains it."""
        return all(own == other for own, other in zip(self.keys, keys, strict=False))


def explain(error: ValidationError, where: str, overrides: Sequence[Override]) -> str:
    """A message with all mistakes, grouped by the override that caused them, or else by the file."""
    by_place: dict[str, list[str]] = {}
    for problem in error.errors():
        keys, section = place_of(problem["loc"])
        guilty = _guilty(keys, overrides)
        place = f"{where} with {_texts(overrides)}" if not keys and overrides else _place(guilty, where)
        by_place.setdefault(place, []).append(_message(problem, keys, section, guilty))
    return "; ".join(f"{place}: {'; '.join(messages)}" for place, messages in by_place.items())


def told(keys: Sequence[str], message: str, where: str, overrides: Sequence[Override]) -> str:
    """A message about a path of keys, preceded by the override that set it, or else by the file."""
    return f"{_place(_guilty(keys, overrides), where)}: {message}"


def _place(guilty: Override | None, where: str) -> str:
    return f"the override {guilty.text!r}" if guilty else where


def _texts(overrides: Sequence[Override]) -> str:
    return " ".join(override.text for override in overrides)


def _guilty(keys: Sequence[str], overrides: Sequence[Override]) -> Override | None:
    """The last override that set these keys, or None; None too for a mistake of the recipe as a whole."""
    return next((one for one in reversed(overrides) if keys and one.concerns(keys)), None)


def _message(
    problem: Mapping[str, Any], keys: Sequence[str], section: type[BaseModel], override: Override | None
) -> str:
    path, kind, given = ".".join(keys), problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return _unknown(keys, section, given, override)
    if kind == "missing":
        return f"the key {path} is missing"
    if kind == UNKNOWN_SECTION and isinstance(given, Mapping):
        if "name" not in given:
            return f"the key {path}.name is missing"
        expected = " or ".join(problem["ctx"]["names"].rsplit(", ", 1))
        own = "; or give it a target" if path == "data" else ", torchvision/NAME or timm/NAME; or give it a target"
        return f"{path}.name is {given['name']!r}: input should be {expected}{own}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == UNKNOWN_SECTION:
        message = "input should be a valid dictionary"
    message = f"{message[:1].lower()}{message[1:]}"
    if not path:
        return message
    if given is None:
        empty = override is not None and override.text.endswith("=")
        if empty:
            return f"{path} is given no value: {message}"
        quoted = (
            f"""; if it is text, put it in quotes: {path}='"{override.text.partition("=")[2]}"'"""
            if kind == "string_type" and override
            else ""
        )
        return f"{path} is null, which means no value: {message}{quoted}"
    if len(keys) == 2 and keys[0] == "algorithms":
        message = f"its arguments should be a mapping: {_arguments_in_words(keys[1], given)}"
    elif len(keys) == 2 and keys[0] in ("callbacks", "loggers"):
        off = f"{path}=null switches it off" if given is False else f"{path}={{}} takes its defaults"
        message = f"its arguments should be a mapping: {off}"
    elif (kind.startswith("model_") or kind == UNKNOWN_SECTION) and isinstance(given, str):
        message = f"it is a section of the recipe: did you mean {path}.name={given}?"
    elif kind == "string_type" and isinstance(given, (bool, int, float)):
        words = "true or false" if isinstance(given, bool) else "a number"
        text = override.text.partition("=")[2] if override and len(override.keys) == len(keys) else given
        quoted = f"""{path}='"{text}"'""" if override else f'{keys[-1]}: "{text}"'
        message = f"YAML reads it as {words}; if it is text, put it in quotes: {quoted}"
    return f"{path} is {given!r}: {message}"


FIRST_ARGUMENTS = {
    "cutmix": "alpha",
    "label_smoothing": "smoothing",
    "max_sup": "strength",
    "mixup": "alpha",
    "online_label_smoothing": "smoothing",
}
"""The argument that a bare number is meant for."""


def _arguments_in_words(name: str, given: Any) -> str:
    if given is False:
        return f"algorithms.{name}=null switches it off"
    if given is True or name not in algorithm_names() or not arguments_of(name):
        return f"algorithms.{name}={{}} takes its defaults"
    if name in FIRST_ARGUMENTS and isinstance(given, (int, float)):
        return f"did you mean algorithms.{name}.{FIRST_ARGUMENTS[name]}={given}?"
    return f"use algorithms.{name}.ARGUMENT=VALUE, with the arguments {', '.join(arguments_of(name))}"


def _unknown(keys: Sequence[str], section: type[BaseModel], given: Any, override: Override | None) -> str:
    """A message about an unknown key and what was probably meant, written as an override if the key came from one."""
    allowed = list(section.model_fields)
    tail = ""  # what follows the key in the override
    if override:
        rest = "".join(f".{key}" for key in override.keys[len(keys) :])
        tail = rest + "=" + override.text.partition("=")[2]
    key, elsewhere = keys[-1], dict(_keys_of(recipe_schema()))
    alike = difflib.get_close_matches(key, allowed, n=1, cutoff=0.75)
    anywhere = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    near = alike or difflib.get_close_matches(key, allowed, n=1)
    meant = None
    if (length := _length(key, given)) is not None:
        meant = f"duration={length}"
    elif key in algorithm_names() and isinstance(given, dict):
        meant = f"algorithms.{key}{tail}"
    elif key in ALIASES:
        meant = f"{ALIASES[key]}{tail}"
    elif key in FIRST_ARGUMENTS:
        meant = f"algorithms.{key}.{FIRST_ARGUMENTS[key]}{tail}"
    elif anywhere and not (alike and key not in elsewhere) and elsewhere[anywhere[0]] != ".".join(keys):
        meant = f"{elsewhere[anywhere[0]]}{tail}"
    elif near:
        meant = f"{'.'.join([*keys[:-1], near[0]])}{tail}"
    hint = f"did you mean {_settable(meant)}? " if meant else ""
    return f"unknown key {'.'.join(keys)}: {hint}allowed are {', '.join(allowed)}"


def _settable(meant: str) -> str:
    """A suggestion that will not be refused for its key: the last one is put right too, or else left out."""
    path, equals, text = meant.partition("=")
    section, _, last = path.rpartition(".")
    if not section or section.startswith("algorithms") or path in _paths():
        return meant
    beside = [one.rpartition(".")[2] for one in _paths() if one.rpartition(".")[0] == section]
    if last in ALIASES and ALIASES[last] in _paths():
        return f"{ALIASES[last]}{equals}{text}"
    near = difflib.get_close_matches(last, beside, n=1)
    return f"{section}.{near[0]}{equals}{text}" if near else section


def _paths() -> set[str]:
    return {path for _, path in _keys_of(recipe_schema())} | {f"{one}.name" for one in recipe_schema().model_fields}


def _length(key: str, given: Any) -> str | None:
    unit = LENGTHS.get(key.rpartition("_")[2].removesuffix("s"))
    return f"{given}{unit}" if unit and isinstance(given, int) and not isinstance(given, bool) else None


def _keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of all sections, each with its path. Outer sections come last, so their keys take precedence."""
    for name, field in section.model_fields.items():
        for inner in _sections(field.annotation):
            yield from _keys_of(inner, f"{prefix}{name}.")
    for name in section.model_fields:
        if name != "name" or not prefix:
            yield name, f"{prefix}{name}"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    choices = (getattr(one, "__origin__", one) for one in typing.get_args(annotation))  # without a tag
    return [one for one in (annotation, *choices) if _is_section(one)]


def place_of(loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The path of keys to a mistake, and the innermost section with a schema that contains it.

    If a section is one of several alternatives, pydantic puts the name of its task between the keys.
    """
    section: type[BaseModel] = recipe_schema()
    keys, rest = [], [str(part) for part in loc]
    while rest:
        keys.append(rest.pop(0))
        field = section.model_fields.get(keys[-1])
        if field is None:
            break
        choices = _sections(field.annotation)
        if field.discriminator and rest:
            choices = [getattr(recipe_schema().tasks[rest.pop(0)], keys[-1])]
        if not choices or not rest:
            break
        section = choices[0]
    return keys + rest, section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
