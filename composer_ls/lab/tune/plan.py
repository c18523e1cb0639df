"""What a search is asked to do, and the recipes of its trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer_ls.errors import InputError
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.recipe.recipe import Recipe
from composer_ls.lab.tasks.metric import Metric
from composer_ls.lab.tasks.registry import task_report
from composer_ls.lab.tune.space import Dimension, search_space

__all__ = ["HELD_OUT", "TunePlan", "make_tune_plan"]

HELD_OUT = "data.validation=0.1"
"""What is held out to judge on if the recipe holds out nothing."""


@dataclass(frozen=True)
class TunePlan:
    """A search.

    Attributes:
        name: The recipe as it was given: a shipped name or a path.
        given: The user's changes to it.
        overrides: The same, and what the search adds to them.
        recipe: The recipe with ``overrides``: the one that trials try to beat.
        space: What is varied.
        purpose: The metric to be best in.
        trials: How many trials there are to be, including earlier ones.
        seeds: How many fresh seeds the comparison at the end has.
        out: The folder.
        notes: Messages about how arguments were interpreted.

    """

    name: str
    given: tuple[str, ...]
    overrides: tuple[str, ...]
    recipe: Recipe
    space: tuple[Dimension, ...]
    purpose: Metric
    trials: int
    seeds: int
    out: Path
    notes: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal if two searches share a journal."""
        content = json.dumps([self.recipe.identity(), self.purpose.key, [str(one) for one in self.space]])
        recipe, purpose, space = json.loads(content)
        return {"recipe": recipe, "for": purpose, "vary": space}

    @property
    def progress_key(self) -> str | None:
        """The key of the metric in ``metrics.jsonl``; ``None`` if it is not measured during training."""
        curves = task_report(self.recipe.task).curves
        return next((one.of("validation").key for one in curves if one.metric == self.purpose.key), None)

    def extremes(self) -> list[PlannedRun]:
        """The recipe as it was, and with each end of what is varied, as runs to check but not to do."""
        changes = [[], *([f"{one.key}={end}"] for one in self.space for end in one.ends)]
        return [self.run("", some, self.recipe.seed, self.out) for some in changes]

    def run(
        self,
        name: str,
        changes: Sequence[str],
        seed: int,
        folder: Path,
        watch: Callable[[Mapping[str, float]], bool] | None = None,
    ) -> PlannedRun:
        """A run of the recipe with changes, such as those of a trial."""
        overrides = [*self.overrides, *changes, f"seed={seed}"]
        arguments = ("train", self.name, *overrides, "--out", str(folder))
        return PlannedRun(name, load_recipe(self.name, overrides), arguments, folder, watch)


def make_tune_plan(
    name: str,
    overrides: Sequence[str],
    purpose: str | None,
    trials: int,
    vary: Sequence[str],
    seeds: int,
    out: Path | None,
) -> TunePlan:
    """Plan a search.

    Args:
        name: A shipped recipe's name or a path.
        overrides: Changes to it, ``key.path=value``.
        purpose: The key of the metric to be best in; ``None`` for the task's first one.
        trials: How many trials there are to be.
        vary: What to vary, besides the smoothing factor; see :func:`~composer_ls.lab.tune.space.search_space`.
        seeds: How many fresh seeds to compare on at the end.
        out: The folder; ``None`` for one below ``runs`` that depends on the recipe, the metric and what is varied.

    Raises:
        InputError: A number is too small, a range is wrong, or no validation part can be held out.
        RecipeError: The recipe, an override, or an end of a range cannot be used.

    """
    if trials < 2:
        raise InputError(f"--trials is {trials}, but must be at least 2")
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}, but must be at least 1")
    recipe = load_recipe(name, overrides)
    metric = task_report(recipe.task).metric(purpose)
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if not hasattr(recipe.data, "validation"):
        raise InputError(
            f"tune judges on a validation part, and the data of {recipe.task} has none (it has no data.validation): use "
            f"`composer-ls compare {name}` with the values that you have in mind"
        )
    own_function = getattr(recipe.data, "target", None)  # returns the validation part too
    if recipe.data.validation is None and own_function is None:
        added = (HELD_OUT,)
        notes = (f"the recipe holds out no validation part to judge on, so {HELD_OUT} is added",)
        recipe = load_recipe(name, [*overrides, *added])
    space = search_space(recipe, vary)
    plan = TunePlan(
        name, tuple(overrides), (*overrides, *added), recipe, space, metric, trials, seeds, Path("runs"), notes
    )
    plan.extremes()
    if out is None:
        fingerprint = hashlib.sha256(json.dumps(plan.identity, sort_keys=True).encode()).hexdigest()[:8]
        out = Path("runs") / f"tune-{recipe.name}-{fingerprint}"
    return replace(plan, out=out.expanduser())
