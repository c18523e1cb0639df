"""Settings of a comparison: how its recipes differ besides smoothing and the seed, and names for that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from composer_ls.lab.recipe.methods import METHODS, amount_key
from composer_ls.lab.recipe.recipe import Recipe, differing_keys, order_of
from composer_ls.lab.recipe.yaml_text import parse_yaml

__all__ = [
    "SMOOTHING",
    "differing_places",
    "is_place",
    "names_of_settings",
    "other_keys",
    "value_at",
    "without_amounts",
    "without_smoothing",
]

SMOOTHING = "algorithms.label_smoothing.smoothing"
_ORDER = "order"
"""Where :func:`_comparable` puts the order of algorithms, which matters to some."""

# Keys that may differ between machines without changing the experiment.
_PLACES = (
    "seed",
    "description",
    "needs",
    "data.root",
    "data.download",
    "data.workers",
    "device",
    "checkpoints",
    "diagnostics",
)


def other_keys(recipes: Sequence[Recipe]) -> list[str]:
    """The dotted keys in which recipes differ, except smoothing, the seed, and keys about where and how fast they run.

    Example:
        >>> from composer_ls.lab.compare.settings import other_keys
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> plain = load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0"])
        >>> mixed = load_recipe("digits-mlp", ["algorithms.mixup={alpha: 0.2}", "seed=3"])
        >>> other_keys([plain, mixed])
        ['algorithms.mixup']

    """
    contents = [_comparable(recipe) for recipe in recipes]
    orders = [order_of(recipe.algorithms) for recipe in recipes]
    if len({tuple(order) for order in orders}) == len({frozenset(order) for order in orders}):
        for content in contents:
            content.pop(_ORDER, None)  # it follows from which algorithms are on
    differing = {key for content in contents[1:] for key in differing_keys(contents[0], content)}
    shortest: list[str] = []
    for key in sorted(differing):  # a.b stands before a.b.c
        if not any(key.startswith(f"{prefix}.") for prefix in shortest) and not is_place(key):
            shortest.append(key)
    return shortest


def is_place(key: str) -> bool:
    """Whether recipes that differ only in this key are one setting: where and how fast they run, and the seed.

    Example:
        >>> from composer_ls.lab.compare.settings import is_place
        >>> is_place("checkpoints.keep"), is_place("data.batch_size")
        (True, False)

    """
    return any(key == place or key.startswith(f"{place}.") for place in _PLACES)


def differing_places(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys about where and how fast runs run in which two recipes of one setting differ.

    Example:
        >>> from composer_ls.lab.compare.settings import differing_places
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> differing_places(load_recipe("digits-mlp", ["seed=3"]), load_recipe("digits-mlp", ["device=cpu"]))
        ['device']

    """
    return [key for key in differing_keys(_comparable(a), _comparable(b)) if key != "seed" and is_place(key)]


def names_of_settings(recipes: Sequence[Recipe]) -> list[str]:
    """A name for each recipe that says how it differs from the others, besides smoothing and seed; "" if it does not.

    Equal names mean equal settings.

    Example:
        >>> from composer_ls.lab.compare.settings import names_of_settings
        >>> from composer_ls.lab.recipe.reading import load_recipe
        >>> overrides = ["seed=3"], ["algorithms.mixup={alpha: 0.2}"], ["optimizer.learning_rate=0.1"]
        >>> names_of_settings([load_recipe("digits-mlp", some) for some in overrides])
        ['learning_rate 0.002', 'mixup(alpha 0.2), learning_rate 0.002', 'learning_rate 0.1']

    """
    keys = other_keys(recipes)
    last = [key.removesuffix(".name").split(".")[-1] for key in keys]
    short = [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]
    several_methods = {recipe.method for recipe in recipes} - {None, "label_smoothing"}
    names = []
    for recipe in recipes:
        content = _comparable(recipe)
        values = [value_at(content, key) for key in keys]
        parts = [_part(key, name, value) for key, name, value in zip(keys, short, values, strict=True)]
        if several_methods and recipe.method == "label_smoothing" and "label_smoothing" not in content["algorithms"]:
            parts.insert(0, "label_smoothing")
        names.append(", ".join(filter(None, parts)) or ("plain" if keys else ""))
    return names


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its factor, which is not a setting if it is a number, and without algorithms that are off."""
    content = recipe.model_dump()
    algorithms = {name: arguments for name, arguments in content["algorithms"].items() if arguments is not None}
    for method, (argument, default) in METHODS.items():
        given = algorithms.pop(method, None)
        if given is None:
            continue
        factor = given.get(argument, default)
        others = {key: value for key, value in given.items() if key != argument or not isinstance(value, int | float)}
        if others or (method != "label_smoothing" and factor):
            algorithms[method] = others
    order = order_of(content["algorithms"])
    return content | {"algorithms": algorithms} | ({_ORDER: order} if order != sorted(order) else {})


def without_smoothing(recipe: Recipe) -> str:
    """A key that is equal for recipes that differ only in smoothing, the seed, or where and how fast they run."""
    content = _comparable(recipe)
    for method in METHODS:
        content["algorithms"].pop(method, None)
    order = [name for name in content.pop(_ORDER, []) if name not in METHODS]
    if order != sorted(order):
        content[_ORDER] = order
    for place in _PLACES:
        section, _, key = place.rpartition(".")
        (content[section] if section else content).pop(key, None)
    return json.dumps(content, sort_keys=True, default=str)


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of a recipe's content, or ``None``."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def without_amounts(override: str) -> str:
    """An override without the factors of methods that smooth, which ``compare`` sets; "" if nothing else is in it.

    Example:
        >>> from composer_ls.lab.compare.settings import without_amounts
        >>> without_amounts("algorithms.max_sup={strength: 0.2, ignore_index: 0}")
        'algorithms.max_sup={"ignore_index": 0}'

    """
    key, _, text = override.partition("=")
    key = key.strip()
    for amount in map(amount_key, METHODS):
        if key == amount:
            return ""
        if not amount.startswith(f"{key}."):
            continue
        *above, last = amount.removeprefix(f"{key}.").split(".")
        value = parse_yaml(text, "an override")
        inner = value_at(value, ".".join(above)) if above else value
        if isinstance(inner, dict) and last in inner:
            del inner[last]
            text = json.dumps(value)
            override = f"{key}={text}"
    return override


def _part(key: str, name: str, value: Any) -> str:
    if key == _ORDER:
        return "" if value is None else f"order {', '.join(value)}"
    of_algorithms = key.startswith("algorithms.") and key.count(".") == 1
    if of_algorithms and value is None:
        return ""
    if isinstance(value, Mapping):
        arguments = [f"{k} {_text(v)}" for k, v in value.items() if of_algorithms or v is not None]
        return f"{name}({', '.join(arguments)})" if arguments else name
    return f"{name} {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value)
