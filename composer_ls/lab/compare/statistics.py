"""Means with intervals, paired differences, and how many seeds a difference takes to be seen: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Interval", "holm", "interval_of_mean", "paired_p_value", "seeds_needed"]

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: The mean.
        low: The interval's lower end; NaN for one value, of which nothing can be said.
        high: Its upper end.
        deviation: The sample standard deviation; NaN for one value, 0 if all are the same but for rounding.
        size: How many values.

    """

    mean: float
    low: float
    high: float
    deviation: float
    size: int

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def is_symmetrical(self) -> bool:
        """Whether the mean is in the middle, so that the interval is the mean ± half its width."""
        return math.isclose(self.high - self.mean, self.mean - self.low, abs_tol=1e-9)

    def within(self, lowest: float, highest: float) -> Interval:
        """The same without what is not possible.

        Example:
            >>> from composer_ls.lab.compare.statistics import Interval
            >>> Interval(0.9, 0.7, 1.1, 0.1, 3).within(0, 1).high
            1

        """
        if math.isnan(self.low):
            return self
        return self._replace(low=max(self.low, lowest), high=min(self.high, highest))

    def scaled(self, factor: float) -> Interval:
        """The same in another unit."""
        mean, low, high, deviation = (factor * value for value in self[:4])
        return Interval(mean, low, high, deviation, self.size)


def interval_of_mean(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values and its interval by Student's t.

    Of differences paired by seed it is the interval of the paired t test.

    Args:
        values: At least one.
        level: The part of such intervals that hold the true mean, if the values are normal.

    Example:
        >>> from composer_ls.lab.compare.statistics import interval_of_mean
        >>> found = interval_of_mean([1.0, 2.0, 3.0])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)

    References:
        Student, 1908, "The probable error of a mean", Biometrika 6.

    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    deviation = float(np.std(values, ddof=1))
    if deviation <= 1e-12 * max(1, *map(abs, values)):
        return Interval(mean, mean, mean, 0.0, len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, deviation, len(values))


def paired_p_value(difference: Interval) -> float:
    """The two-sided p-value of no difference; NaN where there is no spread to judge by.

    It is below 0.05 exactly where the 95 % interval excludes 0.

    Example:
        >>> from composer_ls.lab.compare.statistics import interval_of_mean, paired_p_value
        >>> round(paired_p_value(interval_of_mean([1.0, 2.0, 3.0])), 4)
        0.0742

    """
    if not difference.deviation > 0:
        return math.nan
    statistic = difference.mean / (difference.deviation / math.sqrt(difference.size))
    return float(2 * stats.t.sf(abs(statistic), difference.size - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: those below 0.05 hold together with 95 % confidence. NaN stays NaN and does not count.

    Example:
        >>> from composer_ls.lab.compare.statistics import holm
        >>> holm([0.01, 0.04, 0.5])
        [0.03, 0.08, 0.5]

    References:
        Holm, 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    """
    adjusted = list(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted


def seeds_needed(
    deviation: float, difference: float, power: float = 0.8, level: float = LEVEL, most: int = 10_000
) -> int | None:
    """How many paired seeds show a true difference with this probability; ``None`` for more than ``most``.

    Args:
        deviation: The standard deviation of the paired differences.
        difference: The true difference, in the same unit.
        power: The probability that the interval excludes 0.
        level: The interval's level.
        most: Where to stop looking.

    Example:
        >>> from composer_ls.lab.compare.statistics import seeds_needed
        >>> seeds_needed(1.0, 1.0)  # as in Cohen's tables for an effect of one deviation
        10

    References:
        Cohen, 1988, "Statistical power analysis for the behavioral sciences", chapter 2.

    """

    def enough(count: int) -> bool:
        critical = stats.t.ppf((1 + level) / 2, count - 1)
        shift = abs(difference) / deviation * math.sqrt(count)
        return bool(stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(-critical, count - 1, shift) >= power)

    if deviation == 0:
        return 2
    low, high = 1, 2  # low is not enough
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
