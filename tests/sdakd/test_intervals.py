"""Intervals of means: against scipy, and how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from sdakd.files.intervals import FEWEST, mean_interval


@pytest.mark.parametrize('number', [6, 7, 10, 19, 40, 1000])
def test_interval_agrees_with_scipy(number):
    values = np.random.default_rng(number).normal(28, 3, number)
    expected = stats.t.interval(0.95, number - 1, values.mean(), stats.sem(values))
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(expected, abs=2e-4 * (expected[1] - expected[0]))


def test_interval_of_differences_is_that_of_the_paired_t_test():
    values = np.random.default_rng(6).normal(28, 3, 14)
    others = values + np.random.default_rng(7).normal(-0.5, 0.1, 14)
    expected = stats.ttest_rel(others, values).confidence_interval()
    assert mean_interval(others - values)[1:] == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_interval_of_many_values_agrees_with_the_bootstrap():
    values = np.random.default_rng(5).normal(28, 3, 400)
    expected = stats.bootstrap((values,), np.mean, method='BCa', random_state=0).confidence_interval
    assert mean_interval(values)[1:] == pytest.approx((expected.low, expected.high), abs=0.03)


@pytest.mark.parametrize('number', [6, 10, 20, 40])
def test_interval_covers_the_mean_in_95_percent_of_all_cases(number):
    """4,000 sets of normal values: the share is within 1.2% of 95%, three and a half of its own standard deviations."""
    sets = np.random.default_rng(number).normal(28, 3, (4000, number))
    covered = [low <= 28 <= high for _, low, high in map(mean_interval, sets)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_no_interval_of_few_or_infinite_values():
    values = np.random.default_rng(8).normal(28, 3, FEWEST)
    assert FEWEST == 6 and None not in mean_interval(values)
    for number in range(1, FEWEST):
        assert mean_interval(values[:number]) == (pytest.approx(values[:number].mean()), None, None)
    assert mean_interval([*values, math.inf]) == (math.inf, None, None)
    assert mean_interval([2.0] * 6) == (2.0, 2.0, 2.0)
