"""Plans the runs of a comparison: one per setting, factor and seed, each with its recipe and folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from composer_ls.errors import InputError, RecipeError
from composer_ls.lab.compare.measured_runs import LeftOut, find_runs
from composer_ls.lab.compare.settings import SMOOTHING, differing_places, is_place, names_of_settings, value_at
from composer_ls.lab.recipe.methods import METHODS, amount_key, given_amount
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.recipe.recipe import Recipe, differing_keys
from composer_ls.lab.recipe.yaml_text import parse_yaml
from composer_ls.lab.run_folder.folder import RunFolder

__all__ = ["Axis", "Plan", "PlannedRun", "make_plan", "parse_axis", "parse_methods", "parse_smoothing"]

NONE = "none"
"""The name of no smoothing among methods."""


@dataclass(frozen=True)
class Axis:
    """A key of the recipe besides smoothing, and the values that it takes."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        name: A display name that says how it differs from the others.
        recipe: Its recipe.
        arguments: The arguments of ``composer-ls`` that run it.
        folder: Its run folder, which may exist already.
        watch: Called in the run's process with each line of its ``metrics.jsonl``; stops the run by returning True. It is
            sent to that process, so it must be possible to pickle it.

    """

    name: str
    recipe: Recipe
    arguments: tuple[str, ...]
    folder: Path
    watch: Callable[[Mapping[str, float]], bool] | None = None

    @property
    def command(self) -> str:
        """The command that runs it."""
        return shlex.join(["composer-ls", *self.arguments])

    @property
    def finished(self) -> bool:
        """Whether it is finished, as far as this user may know."""
        return os.path.isfile(RunFolder(self.folder, self.recipe).result_file)


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison, ordered by seed, so that an interrupted comparison has complete pairs.

    Attributes:
        recipe: The base recipe.
        out: The folder of all runs.
        runs: The runs, seed by seed.
        notes: Messages about how arguments were interpreted.

    """

    recipe: Recipe
    out: Path
    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...]


def parse_smoothing(text: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Smoothing factors from ``0,0.05,0.1``, sorted and without duplicates, and a note if that changed them.

    Raises:
        InputError: One of them is not a number in [0, 1].

    Example:
        >>> from composer_ls.lab.compare.planned_runs import parse_smoothing
        >>> parse_smoothing("0.1,0,0.1")
        ((0.0, 0.1), ('--smoothing 0.1,0,0.1 is read as 0,0.1, sorted and without duplicates',))

    """
    given = []
    for part in text.split(","):
        try:
            factor = float(part)
        except ValueError:
            factor = math.nan
        if not 0 <= factor <= 1:
            raise InputError(
                f"--smoothing has {part.strip()!r}, but factors are numbers in [0, 1], separated by commas, as in 0,0.05,0.1"
            )
        given.append(abs(factor))
    factors = tuple(sorted(set(given)))
    if list(factors) == given:
        return factors, ()
    return factors, (f"--smoothing {text} is read as {','.join(map(decimal, factors))}, sorted and without duplicates",)


def parse_axis(text: str) -> tuple[Axis, tuple[str, ...]]:
    """A key and its values from ``KEY=[V1, V2]``, and a note if there was a duplicate value.

    Raises:
        InputError: The text does not have this form, or compare varies the key anyway.

    Example:
        >>> from composer_ls.lab.compare.planned_runs import parse_axis
        >>> parse_axis("algorithms.cutmix=[null, {alpha: 1.0}]")[0]
        Axis(key='algorithms.cutmix', values=(None, {'alpha': 1.0}))

    """
    key, equals, values = text.partition("=")
    key = key.strip()
    try:
        parsed = parse_yaml(values, "--vary")
    except RecipeError:
        parsed = None
    if not equals or not key or not isinstance(parsed, list) or not parsed:
        raise InputError(
            f"--vary {text!r} is not KEY=[V1, V2], a key of the recipe with a YAML list of values, such as "
            f"'algorithms.cutmix=[null, {{alpha: 1.0}}]'"
        )
    if key in {SMOOTHING, "seed"}:
        option = "--smoothing" if key == SMOOTHING else "--seeds"
        raise InputError(f"--vary {key}: compare varies this key anyway, with {option}")
    if key in {"name", "description", "needs"}:
        raise InputError(f"--vary {key}: this key only describes the recipe, so there is nothing to compare")
    if is_place(key):
        raise _same_setting(key)
    values_once: dict[str, Any] = {}
    for value in parsed:
        by_name = key != "algorithms"  # whose order may matter
        values_once.setdefault(json.dumps(_plain(value), sort_keys=by_name, default=str), value)
    once = list(values_once.values())
    notes = () if len(once) == len(parsed) else (f"--vary {key} has a duplicate value, which is used once",)
    return Axis(key, tuple(once)), notes


def _same_setting(keys: str) -> InputError:
    return InputError(
        f"--vary {keys}: compare takes runs that differ only in this for runs of the same setting, because it is about where "
        f"and how they run: make two comparisons, each with its own --out"
    )


def parse_methods(text: str) -> tuple[str, ...]:
    """Methods from ``none,label_smoothing,max_sup``.

    Raises:
        InputError: One of them is unknown.

    Example:
        >>> from composer_ls.lab.compare.planned_runs import parse_methods
        >>> parse_methods("none,max_sup")
        ('none', 'max_sup')

    """
    methods = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for method in methods:
        if method not in {NONE, *METHODS}:
            raise InputError(
                f"--methods has {method!r}, but methods are {', '.join([NONE, *METHODS])}, separated by commas"
            )
    return methods


def make_plan(
    recipe: str,
    overrides: Sequence[str],
    smoothing: str,
    seeds: int,
    vary: Sequence[str],
    out: Path | None,
    methods: str | None = None,
) -> Plan:
    """Plan a comparison, and find the runs that already exist in its folder.

    Args:
        recipe: A shipped recipe's name or a path.
        overrides: Changes to it, ``key.path=value``.
        smoothing: Smoothing factors, separated by commas.
        seeds: The number of seeds: the recipe's own and those after it.
        vary: Additional axes, each ``KEY=[V1, V2]``.
        out: The folder; ``None`` for one below ``runs`` that depends on the recipe and the axes.
        methods: Methods of smoothing, separated by commas, each with every factor above 0. ``none`` adds the factor 0. By
            default the recipe's own, or label smoothing if it does not smooth.

    Raises:
        InputError: Factors or axes are wrong, or the folder contains runs of another recipe.
        RecipeError: A recipe, an override or a value cannot be used.

    """
    factors, notes = parse_smoothing(smoothing)
    base = load_recipe(recipe, overrides)
    several = (base.method or "label_smoothing",) if methods is None else parse_methods(methods)
    factors = tuple(sorted({*factors, *([0.0] if NONE in several else [])}))
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}, but must be at least 1")
    axes = []
    for text in vary:
        axis, more = parse_axis(text)
        axes.append(axis)
        notes += more
    others = [f"algorithms.{method}" for method in METHODS if method in several and method != "label_smoothing"]
    amounts = {amount_key(method) for method in several if method != NONE}
    _refuse_clashes(axes, amounts | {SMOOTHING}, overrides)
    _refuse_other_methods(base, several, overrides)
    notes += _own_smoothing_left_out(base, several, factors)
    if out is None:
        key = json.dumps(
            [
                load_recipe(recipe, [*overrides, f"{SMOOTHING}=0", "seed=0"]).identity(),
                sorted([*(a.key for a in axes), *others]),
            ]
        )
        out = Path("runs") / f"compare-{base.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    out = out.expanduser()  # which a shell does not in --out=~/runs
    changes = [
        [
            *(f"{axis.key}={json.dumps(value)}" for axis, value in zip(axes, values, strict=True)),
            *method_overrides,
            f"seed={seed}",
        ]
        for seed in range(base.seed, base.seed + seeds)
        for values in product(*(axis.values for axis in axes))
        for method_overrides in _of_methods(several, factors, base)
    ]
    recipes = [load_recipe(recipe, [*overrides, *some]) for some in changes]
    there = _found(out, base, [*(axis.key for axis in axes), *others])
    taken = set(there.values())
    planned: set[str] = set()
    places: dict[tuple[str, float, int], Recipe] = {}
    runs = []
    for one, some, setting, slug in zip(recipes, changes, *_names(recipes), strict=True):
        identity = _identity(one)
        if identity in planned:  # without smoothing, the other arguments of label_smoothing have no effect
            continue
        planned.add(identity)
        first = places.setdefault((setting, one.smoothing, one.seed), one)
        if differing := differing_places(first, one):  # as from --vary data=[{root: a}, {root: b}]
            raise _same_setting(", ".join(differing))
        name = ", ".join(filter(None, [setting, f"smoothing {decimal(one.smoothing)}", f"seed {one.seed}"]))
        folder = there.get(identity) or _free(
            out / slug / f"smoothing-{decimal(one.smoothing)}" / f"seed-{one.seed}", taken
        )
        taken.add(folder)
        runs.append(PlannedRun(name, one, ("train", recipe, *overrides, *some, "--out", str(folder)), folder))
    return Plan(base, out, tuple(runs), notes)


def _of_methods(methods: Sequence[str], factors: Sequence[float], base: Recipe) -> list[list[str]]:
    """The overrides for no smoothing, if a factor is 0, and for each method with each other factor."""
    pairs = [("label_smoothing", 0.0)] if 0.0 in factors else []
    pairs += [(method, factor) for method in methods if method != NONE for factor in factors if factor]
    changes = []
    for method, factor in pairs:
        on = [name for name in METHODS if base.algorithms.get(name) is not None and name != method]
        own = f"{amount_key(method)}={decimal(factor)}"
        changes.append([*(f"algorithms.{name}=null" for name in on), own])
    return changes


def decimal(value: float) -> str:
    """A number without an exponent, as YAML reads it back."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _refuse_clashes(axes: Sequence[Axis], amounts: set[str], overrides: Sequence[str]) -> None:
    keys = [axis.key for axis in axes]
    for axis in axes:
        if any(_amounts_in(axis.key, value, amounts) for value in axis.values):
            raise InputError(
                f"--vary {axis.key} sets factors, as --smoothing does: leave them out of it, and give all to --smoothing"
            )
    for index, key in enumerate(keys):
        for other in keys[:index]:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise InputError(f"--vary {other} and --vary {key} set the same key: give one list with all values")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in {*amounts, *keys}:
            option = "--smoothing" if key in amounts else f"--vary {key}"
            raise InputError(f"the override {override!r} and {option} set the same key: leave one of them out")
        if inside := _amounts_in(key, parse_yaml(override.partition("=")[2], "an override"), amounts):
            raise InputError(f"the override {override!r} sets {inside[0]}, as --smoothing does: leave it out there")


def _refuse_other_methods(base: Recipe, methods: Sequence[str], overrides: Sequence[str]) -> None:
    for name in METHODS:
        if name in methods or base.algorithms.get(name) is None:
            continue
        inside = [one for one in overrides if f"{one.partition('=')[0].strip()}.".startswith(f"algorithms.{name}.")]
        if inside:
            raise InputError(
                f"the override {inside[0]!r} is about {name}, which is off in all runs, because they smooth by "
                f"{', '.join(methods)}: add {name} to --methods, or leave the override out"
            )


def _own_smoothing_left_out(base: Recipe, methods: Sequence[str], factors: Sequence[float]) -> tuple[str, ...]:
    """A note if no run smooths as the recipe itself does."""
    own = base.method
    if own is None:
        return ()
    value = given_amount(own, base.algorithms[own])
    if own not in methods:
        return (f"the recipe's own {own} is off in all runs; --methods {own} compares it",)
    if not isinstance(value, (int, float)):
        return (
            f"no run has the recipe's own {amount_key(own)}={json.dumps(_plain(value))}, because compare takes "
            f"constant factors, here {', '.join(map(decimal, factors))}; to compare it, train such runs with composer-ls train "
            f"into folders inside one, and give that to composer-ls report",
        )
    if value not in factors:
        amount = decimal(value)
        return (f"no run has the recipe's own {METHODS[own][0]} of {amount}; --smoothing 0,{amount} compares it",)
    return ()


def _amounts_in(key: str, value: Any, amounts: set[str]) -> list[str]:
    """Which of the keys in ``amounts`` a mapping for a shorter key sets."""
    inner = [amount for amount in sorted(amounts) if amount.startswith(f"{key}.")]
    return [amount for amount in inner if value_at(value, amount.removeprefix(f"{key}.")) is not None]


def _names(recipes: Sequence[Recipe]) -> tuple[list[str], list[str]]:
    """The name of each recipe's setting, and a version of it for folder names."""
    names = names_of_settings(recipes)
    slugs: dict[str, str] = {}
    for name in names:
        if name not in slugs:
            slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:80]
            number = sum(other == slug or other.startswith(f"{slug}~") for other in slugs.values())
            slugs[name] = f"{slug}~{number + 1}" if number else slug
    return names, [slugs[name] for name in names]


def _free(folder: Path, taken: set[Path]) -> Path:
    number, free = 1, folder
    while free in taken:
        number += 1
        free = folder.with_name(f"{folder.name}~{number}")
    return free


def _found(out: Path, base: Recipe, keys: Sequence[str]) -> dict[str, Path]:
    """The folders of the runs in ``out`` by their identity. A finished run takes precedence over others.

    Raises:
        InputError: There are runs of another recipe.

    """
    found: dict[str, Path] = {}
    for folder, recipe in find_runs(out):
        if isinstance(recipe, LeftOut):
            continue  # the report names it
        differing = [key for key in _differing(base, recipe) if not any(_covers(own, key) for own in keys)]
        if differing:
            raise InputError(
                f"{out.absolute()} holds runs of another recipe ({folder.name} differs in {', '.join(differing)}): choose "
                f"another folder with --out DIR"
            )
        identity = _identity(recipe)
        if identity not in found or RunFolder(folder, recipe).result_file.is_file():
            found[identity] = folder
    return found


def _differing(base: Recipe, other: Recipe) -> list[str]:
    def content(recipe: Recipe) -> dict[str, Any]:
        content = recipe.model_dump(exclude={"seed"})
        algorithms = {
            name: dict(arguments) for name, arguments in content["algorithms"].items() if arguments is not None
        }
        algorithms.setdefault("label_smoothing", {})["smoothing"] = 0
        return content | {"algorithms": algorithms}

    return differing_keys(content(base), content(other))


def _covers(axis: str, key: str) -> bool:
    return key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}.")


def _identity(recipe: Recipe) -> str:
    return json.dumps(_plain(recipe.identity()), sort_keys=True)


def _plain(value: Any) -> Any:
    """A normal form, with numbers as floats and durations without leading zeros, so that equal values compare equal.

    Examples are 1, 1.0 and "1e0" (which YAML 1.1 reads as text), and 2ep and 02ep.
    """
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (duration := re.fullmatch(r"(\d+(?:\.\d+)?)(ep|ba|sp|dur)", value)):
        return f"{float(duration[1]):g}{duration[2]}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else value
