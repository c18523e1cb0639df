"""Statistics as pure functions: means with intervals, paired tests, and the number of seeds needed for a difference."""

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
        low: The interval's lower end; NaN for a single value.
        high: Its upper end.
        deviation: The sample standard deviation; NaN for a single value, 0 if all values are equal up to rounding.
        size: The number of values.

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
        """Whether the mean is in the middle of the interval."""
        return math.isclose(self.high - self.mean, self.mean - self.low, abs_tol=1e-9)

    def within(self, lowest: float, highest: float) -> Interval:
        """The interval clipped to possible values.

        Example:
            >>> from composer_ls.lab.compare.statistics import Interval
            >>> Interval(0.9, 0.7, 1.1, 0.1, 3).within(0, 1).high
            1

        """
        if math.isnan(self.low):
            return self
        return self._replace(low=max(self.low, lowest), high=min(self.high, highest))

    def scaled(self, factor: float) -> Interval:
        """The interval in another unit."""
        mean, low, high, deviation = (factor * value for value in self[:4])
        return Interval(mean, low, high, deviation, self.size)


def interval_of_mean(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values, and its interval by Student's t.

    For differences paired by seed this is the interval of the paired t test.

    Args:
        values: At least one value.
        level: The fraction of such intervals that contain the true mean, if the values are normal.

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
    """The two-sided p-value of no difference; NaN if the differences have no spread.

    It is below 0.05 exactly if the 95 % interval excludes 0.

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
    """Holm's adjusted p-values, which control the family-wise error rate. NaN stays NaN and is not counted.

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
    """The number of paired seeds that show a true difference with this probability; ``None`` if more than ``most``.

    Args:
        deviation: The standard deviation of the paired differences.
        difference: The true difference, in the same unit.
        power: The probability that the interval excludes 0.
        level: The interval's level.
        most: The largest number to consider.

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
        tails = stats.nct.sf(critical, count - 1, shift), stats.nct.cdf(-critical, count - 1, shift)
        return bool(np.nansum(tails) >= power)  # the second is NaN where it is too small

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
