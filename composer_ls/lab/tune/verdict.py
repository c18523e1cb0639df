"""The end of a search: whether the gain of its best trial holds over seeds that played no part in the choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from composer_ls.errors import InputError
from composer_ls.lab.compare.comparison import Comparison, Difference, listed
from composer_ls.lab.compare.measured_runs import LeftOut, Run, read_run
from composer_ls.lab.compare.planned_runs import PlannedRun
from composer_ls.lab.compare.same_data import data_differences
from composer_ls.lab.compare.statistics import Interval
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.files import told_if_unwritable, write_text
from composer_ls.lab.tasks.registry import task_report
from composer_ls.lab.tune.plan import TunePlan
from composer_ls.lab.tune.study import Search

__all__ = ["BEST", "SUMMARY", "Verdict", "comparison_runs", "judge", "write_verdict"]

SUMMARY, BEST = "tune.json", "best.yaml"
"""The files that a search writes: its result, and the recipe of its best trial."""


@dataclass(frozen=True)
class Verdict:
    """What a search found.

    Attributes:
        plan: The search.
        search: Its trials.
        comparison: The best trial's recipe against the recipe as it was, over fresh seeds; ``None`` if the best is the
            recipe as it was, or if one of the two has no finished run.
        left_out: Runs over fresh seeds that could not be used.
        unknown: The reason why nothing is known about the gain, as a clause; "" if there is none.

    """

    plan: TunePlan
    search: Search
    comparison: Comparison | None
    left_out: tuple[LeftOut, ...] = ()
    unknown: str = ""

    @property
    def difference(self) -> Difference | None:
        """The difference in the metric that the search was for, over the fresh seeds, on the validation part."""
        return _difference(self.comparison, self.plan)

    @property
    def on_test(self) -> Difference | None:
        """The same on the test part, which played no part in anything."""
        return _difference(self.comparison.on_test, self.plan) if self.comparison is not None else None

    @property
    def holds(self) -> bool | None:
        """Whether the gain is shown by the fresh seeds; ``None`` if there are too few of them, or there was no gain."""
        if self.difference is None or self.difference.outcome in {"few", "no pair"}:
            return None
        return self.difference.outcome == "helps"

    @property
    def headline(self) -> str:
        """What to do, in a sentence without a full stop."""
        name, difference = self.plan.purpose.name, self.difference
        if self.unknown:
            return f"Whether the gain holds is not known, because {self.unknown}"
        if difference is None or difference.interval is None:
            return "No trial was better than the recipe as it was: keep it"
        size = difference.interval.size
        seeds = f"{size} fresh seed{'' if size == 1 else 's'}"
        numbers = f"{name} {difference.numbers}"
        if difference.outcome == "few":
            return f"Whether the gain holds cannot be said from {seeds} ({numbers}): use --seeds 5"
        if self.holds:
            return f"The gain holds over {seeds}: {numbers}. Use {self.plan.out / BEST}"
        words = "it is worse" if difference.outcome == "hurts" else difference.conclusion
        reservation = f"; {difference.reservation}" if difference.reservation else ""
        return f"The gain does not hold over {seeds}: {numbers} ({words}{reservation}). Keep the recipe as it was"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else to know, as sentences without full stops."""
        if self.comparison is None or not self.holds:
            return ()
        worse = [
            metric.name
            for metric in self.comparison.task.metrics
            if self.comparison.differences["", 1.0, metric.key].outcome == "hurts"
        ]
        price = f"It makes {listed(worse)} worse" if worse else ""
        test = ""
        if self.on_test is not None and self.on_test.interval is not None:
            test = f"On the test examples, which played no part in this, the difference is {self.on_test.numbers}"
        return tuple(filter(None, [price, test]))

    def as_dict(self) -> dict[str, Any]:
        """The contents of ``tune.json``, in the metric's own units (accuracy as a fraction)."""
        best = self.search.ranking[0]
        return {
            **self.plan.identity,
            "part": "validation",
            "trials": [
                {
                    "trial": one.number,
                    "state": _STATES[one.state],
                    "value": one.value if one.state == TrialState.COMPLETE else None,
                    "changes": one.user_attrs.get("overrides", []),
                }
                for one in self.search.trials
            ],
            "best": {"trial": best.number, "changes": self.search.changes(best)},
            "holds": self.holds,
            "difference": _numbers(self.difference),
            "difference_on_test": _numbers(self.on_test),
            "left_out": [
                {"folder": str(one.folder.relative_to(self.plan.out)), "reason": one.reason} for one in self.left_out
            ],
            "text": ". ".join([self.headline, *self.remarks, ""]).strip(),
        }


_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def comparison_runs(plan: TunePlan, search: Search) -> tuple[PlannedRun, ...]:
    """The runs over fresh seeds, those after the recipe's own: the recipe as it was and the best trial's, seed by seed.

    There are none if the best trial is the recipe as it was.

    Raises:
        InputError: No trial is finished.

    """
    if not search.ranking:
        raise InputError(
            f"no trial of {search.file} is finished, so there is nothing to compare: see the logs in "
            f"{plan.out / 'trials'}, and add --trials for more"
        )
    best = search.ranking[0]
    changes = search.changes(best)
    if load_recipe(plan.name, [*plan.overrides, *changes]).identity() == plan.recipe.identity():
        return ()
    folder = plan.out / "comparison"
    return tuple(
        plan.run(f"{name}, seed {seed}", some, seed, folder / place / f"seed-{seed}")
        for seed in range(plan.recipe.seed + 1, plan.recipe.seed + 1 + plan.seeds)
        for name, some, place in (
            ("recipe as it was", [], "recipe"),
            (f"trial {best.number}", changes, f"trial-{best.number}"),
        )
    )


def judge(plan: TunePlan, search: Search, runs: Sequence[PlannedRun]) -> Verdict:
    """The verdict from the finished runs over fresh seeds."""
    before: dict[int, Run] = {}
    after: dict[int, Run] = {}
    left_out: list[LeftOut] = []
    for planned in runs:
        side = before if planned.folder.parent.name == "recipe" else after
        try:
            side[planned.recipe.seed] = read_run(planned.folder, planned.recipe)
        except LeftOut as reason:
            left_out.append(reason)
    for seed in set(before) & set(after):
        sides = after[seed], before[seed]
        held_out = all("validation" in run.parts for run in sides)
        if held_out and (differing := data_differences(*sides, "validation", others=False)):
            why = f"it is judged on other data than the recipe as it was: {', '.join(differing)}"
            left_out.append(LeftOut(after.pop(seed).folder, why))
    if not runs:
        return Verdict(plan, search, None)
    unknown = _unknown(search, before, after, left_out)
    if not before or not after:
        return Verdict(plan, search, None, tuple(left_out), unknown)
    # The two sides take the places of "no smoothing" and "smoothing", so that the statistics are those of compare.
    places: dict[float, dict[int, Run]] = {0.0: before, 1.0: after}
    task = task_report(plan.recipe.task)
    comparison = Comparison(plan.out, task, {"": places}, left_out, plan.purpose)
    return Verdict(plan, search, comparison, tuple(left_out), unknown)


def _unknown(search: Search, before: Mapping[int, Run], after: Mapping[int, Run], left_out: Sequence[LeftOut]) -> str:
    """The reason why no seed has both runs, or "" if one has."""
    if set(before) & set(after):
        return ""
    trial = f"trial {search.ranking[0].number}"
    if before and after:
        return f"no fresh seed has a finished run of both {trial} and the recipe as it was ({_first(left_out)})"
    whose = trial if before else "the recipe as it was" if after else f"{trial} or of the recipe as it was"
    missing = [one for one in left_out if (one.folder.parent.name != "recipe") == bool(before) or not (before or after)]
    return f"none of the fresh runs of {whose} finished ({_first(missing)})"


def _first(left_out: Sequence[LeftOut]) -> str:
    return f"{left_out[0].folder.parent.name}/{left_out[0].folder.name}: {left_out[0].reason}"


def write_verdict(verdict: Verdict) -> None:
    """Write ``tune.json``, and the best trial's recipe without the validation part that the search added."""
    plan, best = verdict.plan, verdict.search.ranking[0]
    with told_if_unwritable(plan.out):
        write_text(plan.out / SUMMARY, json.dumps(verdict.as_dict(), indent=2) + "\n")
        recipe = load_recipe(plan.name, [*plan.given, *verdict.search.changes(best)])
        write_text(plan.out / BEST, recipe.to_yaml())


def _difference(comparison: Comparison | None, plan: TunePlan) -> Difference | None:
    return None if comparison is None else comparison.differences["", 1.0, plan.purpose.key]


def _numbers(difference: Difference | None) -> dict[str, float | int | None] | None:
    if difference is None or difference.interval is None:
        return None
    own: Interval = difference.interval.scaled(1 / difference.metric.scale)
    known = own.low == own.low
    return {
        "mean": own.mean,
        "low": own.low if known else None,
        "high": own.high if known else None,
        "seeds": own.size,
    }
