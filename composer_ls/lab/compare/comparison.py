"""A comparison of runs by setting, smoothing and seed: means, paired differences and verdicts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from composer_ls.errors import InputError
from composer_ls.lab.compare.measured_runs import LeftOut, Run
from composer_ls.lab.compare.same_data import on_the_same_data
from composer_ls.lab.compare.settings import differing_places, names_of_settings, without_smoothing
from composer_ls.lab.compare.statistics import Interval, holm, interval_of_mean, paired_p_value, seeds_needed
from composer_ls.lab.tasks.metric import STEP_TIME, Metric
from composer_ls.lab.tasks.registry import task_report
from composer_ls.lab.tasks.task_report import TaskReport

__all__ = ["FEWEST", "Comparison", "Difference", "Verdict", "compare_runs", "listed"]

FEWEST = 3
"""The minimum number of seeds for a verdict. With two, intervals are too wide to be useful."""
NOT_HELD_OUT = (
    "it has no validation part, by which most of the other runs are judged: run it again with data.validation"
)
MOST = 1000
"""The largest number of seeds that is ever suggested."""


@dataclass(frozen=True)
class Difference:
    """A metric's paired difference between a smoothing factor and no smoothing.

    Attributes:
        setting: The setting's name.
        smoothing: The factor that is compared with 0.
        metric: The metric.
        interval: The interval of the differences by seed, in displayed units; ``None`` if no seed has both runs.
        corrected_p: Holm's p-value, or NaN if there is none. For the metric that the comparison is for, the correction
            covers this metric's differences only; for other metrics it covers all differences, and is doubled.

    """

    setting: str
    smoothing: float
    metric: Metric
    interval: Interval | None
    corrected_p: float = math.nan

    @property
    def outcome(self) -> str:
        """``helps`` or ``hurts`` if that is shown after the correction; otherwise the reason why not.

        Other values are ``may help`` or ``may hurt`` (shown only without the correction), ``small``, ``unclear``,
        ``constant``, ``equal``, ``few`` (seeds) and ``no pair``.
        """
        if self.interval is None:
            return "no pair"
        mean, low, high, deviation, size = self.interval
        if size < FEWEST:
            return "few"
        if deviation == 0:
            return "constant" if abs(mean) > 1e-9 else "equal"
        if low > 0 or high < 0:
            better = (mean > 0) == self.metric.higher_is_better
            if self.corrected_p < 0.05:
                return "helps" if better else "hurts"
            return "may help" if better else "may hurt"
        return "small" if max(-low, high) < self.metric.worth else "unclear"

    @property
    def numbers(self) -> str:
        """The mean and interval as text, such as ``+0.31 points [0.05, 0.57]``."""
        if self.interval is None:
            return ""
        mean = " ".join(filter(None, [self.metric.shown(self.interval.mean, sign=True), self.metric.unit]))
        if self.outcome in {"few", "constant", "equal"}:
            return mean
        return f"{mean} [{self.metric.shown(self.interval.low)}, {self.metric.shown(self.interval.high)}]"

    @property
    def conclusion(self) -> str:
        """What the interval implies, in words to follow the numbers."""
        worth = " ".join(filter(None, [f"{self.metric.worth:g}", self.metric.unit]))
        return {
            "helps": "helps",
            "hurts": "hurts",
            "may help": "a hint that it helps",
            "may hurt": "a hint that it hurts",
            "small": f"no difference as large as {worth}",
            "unclear": "no evidence either way",
            "constant": "no verdict",
            "equal": "no difference at any seed",
            "few": "nothing can be said from so few seeds",
            "no pair": "no seed was run both with and without smoothing",
        }[self.outcome]

    @property
    def reservation(self) -> str:
        """A caveat to add to the conclusion, or ""."""
        if self.outcome in {"may help", "may hurt"}:
            return "not shown after correction"
        if self.outcome == "constant":
            return "the same at every seed: no spread to judge by"
        if self.outcome == "unclear":
            assert self.interval is not None
            needed = seeds_needed(self.interval.deviation, self.metric.worth, most=MOST)
            worth = " ".join(filter(None, [f"{self.metric.worth:g}", self.metric.unit]))
            return f"{worth} would take {f'about {needed}' if needed else f'over {MOST:,}'} seeds to show"
        return ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one metric in one setting: a sentence about all smoothing factors.

    Attributes:
        setting: The setting's name.
        metric: The metric.
        differences: One per factor, in ascending order.

    """

    setting: str
    metric: Metric
    differences: tuple[Difference, ...]

    @property
    def sentence(self) -> str:
        """The sentence, such as ``accuracy +0.31 points [0.05, 0.57], 5 seeds: helps``."""
        if len(self.differences) == 1:
            (only,) = self.differences
            numbers = f" {only.numbers}, {_seeds(only)}" if only.interval else ""
            reservation = f" ({only.reservation})" if only.reservation else ""
            return f"{self.metric.name}{numbers}: {only.conclusion}{reservation}"
        seeds = {_seeds(difference) for difference in self.differences}
        head = f"{self.metric.name}, {seeds.pop()}" if len(seeds) == 1 else self.metric.name
        by_conclusion: dict[str, list[str]] = {}
        for one in self.differences:
            remarks = "; ".join(filter(None, [one.numbers, _seeds(one) if seeds else "", one.reservation]))
            by_conclusion.setdefault(one.conclusion, []).append(f"{one.smoothing:g} ({remarks})")
        clauses = [f"{conclusion} at {listed(factors)}" for conclusion, factors in by_conclusion.items()]
        return f"{head}: {'; '.join(clauses)}"

    @property
    def tone(self) -> str:
        """``good`` if some factor helps and none hurts, ``bad`` the other way round, ``mixed``, or ``none``."""
        outcomes = {difference.outcome for difference in self.differences}
        if {"helps", "hurts"} <= outcomes:
            return "mixed"
        return "good" if "helps" in outcomes else "bad" if "hurts" in outcomes else "none"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _seeds(difference: Difference) -> str:
    size = difference.interval.size if difference.interval else 0
    return f"{size} seed{'' if size == 1 else 's'}"


@dataclass(frozen=True)
class Comparison:
    """Finished runs of one recipe.

    Attributes:
        folder: The folder that contains them.
        task: The report definition of their task.
        runs: The runs by the setting's name, smoothing and seed.
        left_out: Run folders that could not be used.
        purpose: The metric that the comparison is for.

    """

    folder: Path
    task: TaskReport
    runs: Mapping[str, Mapping[float, Mapping[int, Run]]]
    left_out: Sequence[LeftOut]
    purpose: Metric

    def __iter__(self) -> Iterator[tuple[str, float, Mapping[int, Run]]]:
        """Each setting and smoothing with its runs by seed."""
        for setting, factors in self.runs.items():
            for smoothing, seeds in factors.items():
                yield setting, smoothing, seeds

    @property
    def part(self) -> str:
        """The part of the data on which runs are judged: ``validation`` if every run has one, else ``test``."""
        return next(run.part for _, _, runs in self for run in runs.values())

    @cached_property
    def on_test(self) -> Comparison | None:
        """The same comparison on the test part, or ``None`` if that is the judged part."""
        if self.part == "test":
            return None
        runs = {
            setting: {
                factor: {seed: replace(run, part="test") for seed, run in seeds.items()}
                for factor, seeds in factors.items()
            }
            for setting, factors in self.runs.items()
        }
        return replace(self, runs=runs)

    def mean(self, metric: Metric, setting: str, smoothing: float) -> Interval:
        """A metric's mean over seeds, in displayed units."""
        runs = self.runs[setting][smoothing].values()
        return _interval([run.values[metric.key] for run in runs], 0, metric.highest).scaled(metric.scale)

    def difference(self, metric: Metric, setting: str, smoothing: float) -> Interval | None:
        """A metric's mean difference from no smoothing over seeds that have both runs, in displayed units."""
        runs, baseline = self.runs[setting][smoothing], self.runs[setting].get(0.0, {})
        common = [seed for seed in runs if seed in baseline]
        if not common or smoothing == 0:
            return None
        values = [runs[seed].values[metric.key] - baseline[seed].values[metric.key] for seed in common]
        return _interval(values, -metric.highest, metric.highest).scaled(metric.scale)

    @cached_property
    def differences(self) -> dict[tuple[str, float, str], Difference]:
        """Every paired difference by setting, smoothing and the metric's key."""
        found = [
            Difference(setting, smoothing, metric, self.difference(metric, setting, smoothing))
            for setting, smoothing, _ in self
            for metric in self.task.metrics
            if smoothing != 0
        ]
        p_values = [
            math.nan if one.interval is None or one.outcome == "few" else paired_p_value(one.interval) for one in found
        ]
        # Doubled, because the purpose is tested too: so fewer than 5 % of comparisons contain a wrong "helps".
        corrected = [min(1.0, 2 * p) if p == p else p for p in holm(p_values)]
        primary = [index for index, one in enumerate(found) if one.metric == self.purpose]
        for index, p in zip(primary, holm([p_values[index] for index in primary]), strict=True):
            corrected[index] = p
        return {
            (one.setting, one.smoothing, one.metric.key): replace(one, corrected_p=p)
            for one, p in zip(found, corrected, strict=True)
        }

    @property
    def tests(self) -> int:
        """The number of differences with an interval."""
        return sum(not math.isnan(one.corrected_p) for one in self.differences.values())

    def verdicts(self, setting: str) -> list[Verdict]:
        """One verdict per metric, or none if there are no runs with or none without smoothing."""
        factors = [smoothing for smoothing in self.runs[setting] if smoothing != 0]
        if not factors or 0.0 not in self.runs[setting]:
            return []
        return [
            Verdict(setting, metric, tuple(self.differences[setting, smoothing, metric.key] for smoothing in factors))
            for metric in self.task.metrics
        ]

    def warnings(self, setting: str) -> list[str]:
        """Warnings about metrics that get worse, such as ``NLL gets worse at 0.1 and 0.2``."""
        texts = []
        for verdict in self.verdicts(setting):
            worse = [f"{one.smoothing:g}" for one in verdict.differences if one.outcome == "hurts"]
            if worse:
                texts.append(f"{verdict.metric.name} gets worse at {listed(worse)}")
        return texts

    @property
    def columns(self) -> tuple[Metric, ...]:
        """The columns of a table."""
        return (*self.task.metrics, STEP_TIME)


def compare_runs(
    folder: Path, runs: Sequence[Run], left_out: Sequence[LeftOut], purpose: str | None = None
) -> Comparison:
    """The comparison of runs by setting, smoothing and seed, judged on the validation part if all have one.

    Args:
        folder: The folder that contains them.
        runs: The finished runs, at least one.
        left_out: Run folders that could not be used.
        purpose: The key of the metric that the comparison is for. ``None``: the task's first metric.

    Raises:
        InputError: There are no runs, they are of several recipes, or their task has no such metric.

    """
    if not runs:
        unusable = "".join(f"; {one.folder}: {one.reason}" for one in left_out[:3])
        raise InputError(
            f"there are no finished runs in {folder.absolute()}{unusable}: create some with `composer-ls compare`, or with "
            f"`composer-ls train RECIPE --out {folder}/NAME`"
        )
    kinds = sorted({(run.recipe.name, run.recipe.task) for run in runs})
    if len(kinds) > 1:
        names = [name if len({task for _, task in kinds}) == 1 else f"{name} for {task}" for name, task in kinds]
        raise InputError(
            f"{folder.absolute()} holds runs of several recipes ({', '.join(names)}), which cannot be compared by seed: "
            f"give a folder with runs of one recipe"
        )
    task = task_report(runs[0].recipe.task)
    metric = task.metric(purpose)
    left_out, judged = list(left_out), [run for run in runs if "validation" in run.parts]
    part = "validation" if 2 * len(judged) > len(runs) else "test"
    if part == "validation":
        left_out += [LeftOut(run.folder, NOT_HELD_OUT) for run in runs if "validation" not in run.parts]
    else:
        judged = list(runs)
    sorted_runs: dict[str, dict[float, dict[int, Run]]] = {}
    for setting, run in sorted(
        zip(names_of_settings([run.recipe for run in judged]), judged, strict=True),
        key=lambda pair: (_natural(pair[0]), pair[1].recipe.smoothing, pair[1].recipe.seed, pair[1].folder),
    ):
        seeds = sorted_runs.setdefault(setting, {}).setdefault(run.recipe.smoothing, {})
        if run.recipe.seed in seeds:
            left_out.append(LeftOut(run.folder, _same_as(run, seeds[run.recipe.seed])))
        else:
            seeds[run.recipe.seed] = replace(run, part=part)
    comparable: dict[str, dict[float, dict[int, Run]]] = {}
    for setting, factors in _with_baselines(sorted_runs).items():
        comparable[setting], others = on_the_same_data(factors)
        left_out += [one for one in others if one.folder not in {known.folder for known in left_out}]
    return Comparison(folder, task, comparable, left_out, metric)


def _same_as(run: Run, other: Run) -> str:
    places = differing_places(run.recipe, other.recipe)
    if not places:
        return f"it is the same run as {other.folder}"
    return (
        f"it has the setting and the seed of {other.folder} and differs only in {listed(places)}, which compare does not take "
        f"for a setting"
    )


def _interval(values: Sequence[float], lowest: float, highest: float) -> Interval:
    """The mean and its interval, clipped to possible values; without the interval if there are too few values."""
    found = interval_of_mean(values)
    return found.within(lowest, highest) if found.size >= FEWEST else found._replace(low=math.nan, high=math.nan)


def _with_baselines(
    runs: dict[str, dict[float, dict[int, Run]]],
) -> dict[str, dict[float, dict[int, Run]]]:
    """Let settings that differ only in how they smooth share their runs without smoothing, which are no setting then."""
    used: set[str] = set()
    baselines: dict[str, dict[int, Run]] = {}
    for factors in runs.values():
        for seed, run in factors.get(0.0, {}).items():
            baselines.setdefault(without_smoothing(run.recipe), {}).setdefault(seed, run)
    for setting, factors in runs.items():
        any_run = next(iter(next(iter(factors.values())).values()))
        shared = baselines.get(without_smoothing(any_run.recipe), {})
        if 0.0 not in factors and shared:
            runs[setting] = {0.0: shared, **factors}
            used.add(without_smoothing(any_run.recipe))
    return {
        setting: factors
        for setting, factors in runs.items()
        if [*factors] != [0.0] or not used & {without_smoothing(run.recipe) for run in factors[0.0].values()}
    }


def _natural(name: str) -> tuple[bool, list[tuple[bool, float, str]]]:
    """A sort key that puts "plain" first and sorts numbers in names by size."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", name)
    return name != "plain", [
        (bool(index % 2), float(part) if index % 2 else 0.0, part) for index, part in enumerate(parts)
    ]
