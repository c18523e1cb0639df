"""Intervals, p-values and powers against scipy's own tests and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from composer_ls.lab.compare.statistics import holm, interval_of_mean, paired_p_value, seeds_needed


def test_the_interval_of_paired_differences_is_scipys():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=8), generator.normal(0.3, size=8)
    found = interval_of_mean(list(a - b))
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half == pytest.approx((high - low) / 2)
    assert paired_p_value(found) == pytest.approx(theirs.pvalue)


def test_the_p_value_is_below_a_twentieth_exactly_where_the_interval_excludes_0():
    generator = np.random.default_rng(1)
    for shift in np.linspace(0, 3, 200):
        found = interval_of_mean(list(generator.normal(shift, 1, size=3)))
        assert (paired_p_value(found) < 0.05) == (found.low > 0 or found.high < 0)


def test_of_one_value_there_is_no_interval():
    found = interval_of_mean([3.0])
    assert (found.mean, found.size) == (3, 1)
    assert math.isnan(found.low)
    assert math.isnan(paired_p_value(found))


@pytest.mark.parametrize("value", [0.0, 0.3, -1 / 360])
def test_equal_values_have_no_spread_even_after_rounding(value):
    found = interval_of_mean([value, value + 1e-17, value * (1 + 1e-15)])
    assert found.deviation == 0
    assert found.low == found.high == found.mean == pytest.approx(value, abs=1e-15)
    assert math.isnan(paired_p_value(found))


def test_scaling_scales_everything_but_the_count():
    found = interval_of_mean([1.0, 2.0, 4.0])
    assert found.scaled(100) == pytest.approx(interval_of_mean([100.0, 200.0, 400.0]))


def test_intervals_hold_the_true_mean_in_19_of_20_cases():
    generator = np.random.default_rng(2)
    draws = [interval_of_mean(list(generator.normal(size=4))) for _ in range(2000)]
    assert np.mean([low <= 0 <= high for _, low, high, _, _ in draws]) == pytest.approx(0.95, abs=0.015)


def test_holm_equals_the_definition_and_passes_nan_over():
    assert holm([0.01, 0.02, 0.03]) == [0.03, 0.04, 0.04]
    adjusted = holm([0.5, math.nan, 0.01])
    assert adjusted[0] == 0.5
    assert math.isnan(adjusted[1])
    assert adjusted[2] == 0.02
    assert holm([]) == []


def test_the_seeds_needed_give_the_power_and_one_fewer_does_not():
    generator = np.random.default_rng(3)
    needed = seeds_needed(1.0, 0.8)

    def power(count):
        samples = generator.normal(0.8, 1, size=(20_000, count))
        return (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()

    assert power(needed) > 0.79
    assert power(needed - 1) < 0.81
    assert power(needed - 2) < 0.79


def test_seeds_needed_at_its_ends():
    assert seeds_needed(0, 0.1) == 2
    assert seeds_needed(1.0, 30.0) == 2  # where the other tail is too small for SciPy
    assert seeds_needed(1e-3, 1) == 2
    assert seeds_needed(1, 1e-4) is None
    counts = [seeds_needed(1, difference) for difference in (2, 1, 0.5, 0.2, 0.1, 0.05)]
    assert counts == sorted(counts)
