"""Advice from a comparison: which smoothing factor to use, or that none is shown to help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from composer_ls.lab.compare.comparison import FEWEST, Comparison, Difference, listed
from composer_ls.lab.compare.statistics import holm, interval_of_mean, paired_p_value

__all__ = ["RULE", "Advice", "advise", "smallest_not_worse"]

RULE = (
    "Smoothing is recommended only if it is shown to help the metric that the comparison is for, after Holm's correction. "
    "Of the factors that help, the recommendation is the smallest one that is not shown to be worse than the best."
)


@dataclass(frozen=True)
class Advice:
    """The advice for one setting.

    Attributes:
        setting: The setting's name.
        verdict: ``use`` a factor; ``keep`` the current training, because no factor is shown to help; or ``unknown``, if
            there are too few runs.
        differences: The differences in the metric that the comparison is for, one per factor, on the judged part.
        smoothing: The factor to use; ``None`` unless the verdict is ``use``.
        temperature: The temperature that calibrates the recommended network (the one without smoothing if no factor is
            recommended), as a geometric mean over seeds. ``None`` if unknown.
        part: The part of the data on which runs are judged.
        worse: Names of other metrics that are shown to get worse with the factor.
        maybe_worse: Names of other metrics for which there is a hint that they get worse.
        on_test: The difference on the test part, if another part was judged.
        learnt: Whether any of the networks is better than one that always answers with the largest class.
        same_seeds: Whether every factor, 0 included, has the same seeds.

    """

    setting: str
    verdict: str
    differences: tuple[Difference, ...]
    smoothing: float | None
    temperature: float | None
    part: str
    worse: tuple[str, ...]
    maybe_worse: tuple[str, ...]
    on_test: Difference | None
    learnt: bool = True
    same_seeds: bool = True

    @property
    def chosen(self) -> Difference | None:
        """The difference that the recommended factor makes to the metric."""
        return next((one for one in self.differences if one.smoothing == self.smoothing), None)

    @property
    def headline(self) -> str:
        """The advice in a sentence, without a full stop."""
        if not self.learnt:
            return (
                "Nothing can be said yet: no network here is better than one that always answers with the largest class. "
                "Train longer, or with other settings, before you compare"
            )
        if self.verdict == "unknown":
            return (
                f"Nothing can be said yet: run at least {FEWEST} seeds, preferably 5, both with and without smoothing"
            )
        name = self.differences[0].metric.name
        if self.chosen is not None:
            return f"Use smoothing {self.chosen.smoothing:g} for {name}: {_numbers(self.chosen)}"
        hurts = self._at("hurts")
        warning = f", and avoid {listed(hurts)}, which hurt{'s' if len(hurts) == 1 else ''} it" if hurts else ""
        return f"Nothing is shown to help {name}: keep what you have{warning}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Additional remarks, as sentences without full stops."""
        return tuple(filter(None, [self._hint(), self._price(), self._seeds(), self._scaling(), self._where()]))

    def _at(self, outcome: str) -> list[str]:
        return [f"{one.smoothing:g}" for one in self.differences if one.outcome == outcome]

    def _hint(self) -> str:
        hints = [one for one in self.differences if one.outcome == "may help"]
        if self.verdict != "keep" or not hints:
            return ""
        return f"There is a hint that {listed([f'{one.smoothing:g} helps ({_numbers(one)})' for one in hints])}, which more seeds would show or refute"

    def _price(self) -> str:
        hint = f"there is a hint that it makes {listed(self.maybe_worse)} worse" if self.maybe_worse else ""
        if not self.worse:
            return hint[:1].upper() + hint[1:]
        return f"It makes {listed(self.worse)} worse" + (f", and {hint}" if hint else "")

    def _seeds(self) -> str:
        if self.same_seeds:
            return ""
        return "Not every factor has every seed, so compare the differences rather than the means"

    def _scaling(self) -> str:
        if self.temperature is None:
            return ""
        whose = "" if self.smoothing is not None else " without smoothing"
        return f"To calibrate the network{whose}, divide its logits by {self.temperature:.2f}"

    def _where(self) -> str:
        if self.verdict == "unknown":
            return ""
        if self.part == "test":
            return (
                "This was chosen on the same test examples on which it is reported"
                if self.chosen
                else "This was judged on the test examples themselves"
            )
        if self.on_test is not None and self.on_test.interval is not None:
            return f"On the test examples, which played no part in this, the difference is {self.on_test.numbers}"
        return "This was judged on the validation examples; the test examples played no part"

    def as_dict(self) -> dict[str, Any]:
        """The entry for ``summary.json``, in the metric's own units (accuracy as a fraction)."""
        return {
            "setting": self.setting,
            "verdict": self.verdict,
            "smoothing": self.smoothing,
            "difference": _interval(self.chosen),
            "difference_on_test": _interval(self.on_test),
            "gets_worse": list(self.worse),
            "may_get_worse": list(self.maybe_worse),
            "temperature": self.temperature,
            "text": ". ".join([self.headline, *self.remarks, ""]).strip(),
            "factors": [
                {
                    "smoothing": one.smoothing,
                    "outcome": one.outcome,
                    "corrected_p": None if math.isnan(one.corrected_p) else one.corrected_p,
                    "difference": _interval(one),
                }
                for one in self.differences
            ],
        }


def _numbers(difference: Difference) -> str:
    size = difference.interval.size if difference.interval else 0
    return f"{difference.numbers}, {size} seeds"


def _interval(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None or difference.interval is None:
        return None
    mean, low, high, _, size = difference.interval.scaled(1 / difference.metric.scale)
    known = not math.isnan(low)
    return {"mean": mean, "low": low if known else None, "high": high if known else None, "seeds": size}


def advise(comparison: Comparison, setting: str) -> Advice:
    """The advice for a setting by the rule in :data:`RULE`. The test part is not used if there is a validation part."""
    metric = comparison.purpose
    differences = tuple(
        comparison.differences[setting, factor, metric.key] for factor in comparison.runs[setting] if factor != 0
    )
    helping = [one.smoothing for one in differences if one.outcome == "helps"]
    smoothing = None
    if helping:
        sign = 1 if metric.higher_is_better else -1
        scores = {
            factor: {seed: sign * run.values[metric.key] for seed, run in comparison.runs[setting][factor].items()}
            for factor in helping
        }
        smoothing = smallest_not_worse(scores)
    learnt = any(
        run.parts[run.part].has_learnt for seeds in comparison.runs[setting].values() for run in seeds.values()
    )
    if not learnt:
        helping, smoothing = [], None
    judged = learnt and any(one.outcome not in {"few", "no pair"} for one in differences)
    price = {
        outcome: tuple(
            other.name
            for other in comparison.task.metrics
            if smoothing is not None and comparison.differences[setting, smoothing, other.key].outcome == outcome
        )
        for outcome in ("hurts", "may hurt")
    }
    on_test = None
    if smoothing is not None and comparison.on_test is not None:
        on_test = comparison.on_test.differences[setting, smoothing, metric.key]
    return Advice(
        setting,
        "use" if helping else "keep" if judged else "unknown",
        differences,
        smoothing,
        _temperature(comparison, setting, smoothing or 0.0),
        comparison.part,
        price["hurts"],
        price["may hurt"],
        on_test,
        learnt,
        len({frozenset(seeds) for seeds in comparison.runs[setting].values()}) == 1,
    )


def smallest_not_worse(scores: Mapping[float, Mapping[int, float]], level: float = 0.05) -> float:
    """The smallest factor that is not shown to be worse than the best by Holm's correction of paired t tests.

    Args:
        scores: The scores of each factor by seed; higher is better. The best factor has the highest mean over the seeds
            that all factors have.
        level: The probability of wrongly finding any factor worse, if the best were chosen beforehand.

    Example:
        >>> from composer_ls.lab.compare.advice import smallest_not_worse
        >>> smallest_not_worse({0.05: {0: 1.0, 1: 1.1}, 0.1: {0: 3.0, 1: 3.2}, 0.2: {0: 3.1, 1: 3.0}})
        0.1

    """
    factors = sorted(scores)
    shared = set.intersection(*map(set, scores.values()))  # lacking a hard seed makes no factor better
    best = max(factors, key=lambda factor: fmean(scores[factor][seed] for seed in shared or scores[factor]))
    others = [factor for factor in factors if factor != best]
    p_values = [_p_value(scores[best], scores[factor]) for factor in others]
    worse = {factor for factor, p in zip(others, holm(p_values), strict=True) if p < level}
    return min(factor for factor in factors if factor not in worse)


def _p_value(best: Mapping[int, float], other: Mapping[int, float]) -> float:
    gains = [best[seed] - other[seed] for seed in best if seed in other]
    if gains and fmean(gains) <= 0:
        return 1.0  # "best" over fewer seeds, and not better over these
    return paired_p_value(interval_of_mean(gains)) if gains else math.nan


def _temperature(comparison: Comparison, setting: str, smoothing: float) -> float | None:
    runs: Sequence[Any] = list(comparison.runs[setting].get(smoothing, {}).values())
    found = [run.temperature for run in runs if run.temperature is not None]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else None
