"""Intervals of means: against scipy, and how often they cover the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sdakd.files.intervals import FEWEST, bootstrap_interval, mean_interval


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


# ---------------------------------------------- the studentised bootstrap -------------------------------------------


def simulated(draw, truth, number, sets=2000):
    """How often Student's, the studentised bootstrap's and scipy's BCa interval cover a known mean."""
    generator = np.random.default_rng(number)
    values = draw(generator, (sets, number))
    intervals = {'student': [mean_interval(one)[1:] for one in values]}
    intervals['bootstrap'] = [bootstrap_interval(one)[1:] for one in values]
    found = stats.bootstrap((values,), np.mean, axis=1, method='BCa', n_resamples=499, random_state=generator, batch=50)
    intervals['BCa'] = np.stack(found.confidence_interval, 1)
    return {name: np.mean([low <= truth <= high for low, high in each]) for name, each in intervals.items()}


@pytest.mark.parametrize('number', [6, 10, 20])
def test_studentised_bootstrap_covers_normal_values_as_often_as_students(number):
    """2,000 sets of normal values, whose share has a standard deviation of 0.5%."""
    covered = simulated(lambda generator, shape: generator.normal(28, 3, shape), 28, number)
    assert covered['bootstrap'] == pytest.approx(0.95, abs=0.018)


@pytest.mark.parametrize(('number', 'share'), [(6, 0.93), (10, 0.94), (20, 0.94)])
def test_studentised_bootstrap_covers_skewed_values_best(number, share):
    """Exponential values: Student's covers the truth in 89% to 92% of the cases, BCa in 83% to 91%."""
    covered = simulated(lambda generator, shape: generator.exponential(2, shape), 2, number)
    assert covered['bootstrap'] == pytest.approx(share, abs=0.018)
    assert covered['bootstrap'] > covered['student'] > covered['BCa']


def test_studentised_bootstrap_is_its_definition():
    values = np.random.default_rng(3).gamma(2, 1, 12)
    random, drawn = np.random.RandomState(5), []
    for _ in range(40_000):
        one = values[random.randint(0, 12, 12)]
        drawn.append((one.mean() - values.mean()) / (one.std(ddof=1) / math.sqrt(12)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    expected = values.mean() - high * stats.sem(values), values.mean() - low * stats.sem(values)
    found = np.mean([bootstrap_interval(values, seed)[1:] for seed in range(20)], 0)
    assert found == pytest.approx(expected, rel=0.01)


def test_studentised_bootstrap_leans_as_the_values_do_and_repeats_itself():
    values = np.random.default_rng(1).exponential(1, 15)
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(values.mean()) and high - mean > mean - low
    assert bootstrap_interval(values) == (mean, low, high)
    scaled = bootstrap_interval(-3 * values + 7)  # another unit, and the other direction
    assert scaled == pytest.approx((7 - 3 * mean, 7 - 3 * high, 7 - 3 * low), rel=1e-2)
    many = np.random.default_rng(2).normal(28, 3, 3000)
    assert bootstrap_interval(many) == pytest.approx(mean_interval(many), abs=0.015)


def test_studentised_bootstrap_of_few_infinite_and_equal_values():
    for number in range(1, FEWEST):
        assert bootstrap_interval(range(number)) == (pytest.approx((number - 1) / 2), None, None)
    assert bootstrap_interval([*range(6), math.inf]) == (math.inf, None, None)
    assert bootstrap_interval([2.0] * 6) == (2.0, 2.0, 2.0)
    _, low, high = bootstrap_interval([0.1, 0.1, 0.1, 0.1, 0.1, 1])  # a third of the draws holds a single value
    assert math.isfinite(low) and math.isfinite(high) and low <= 0.25 <= high


@pytest.mark.parametrize('values', [[0, 0, 0, 1, 2, 3], [0.1, 0.2, 0.2, 0.2, 0.3, 0.7], [5, 5, 5, 5, 5, 6]])
def test_draws_of_equal_values_count(values):
    """Against all 6 ** 6 draws, each as likely; a spread of 0 divides as IEEE 754 says."""
    values = np.asarray(values)
    draws = values[np.array(list(itertools.product(range(6), repeat=6)))]
    with np.errstate(divide='ignore', invalid='ignore'):
        t = (draws.mean(1) - values.mean()).round(12) / (draws.std(1, ddof=1) / math.sqrt(6)).round(12)
    low, high = np.quantile(np.nan_to_num(t, nan=0, posinf=np.inf, neginf=-np.inf), [0.025, 0.975], method='nearest')
    expected = [values.mean() - high * stats.sem(values), values.mean() - low * stats.sem(values)]
    found = np.median([bootstrap_interval(values, seed)[1:] for seed in range(21)], 0)
    student = mean_interval(values)[1:]
    expected = [one if math.isfinite(one) else other for one, other in zip(expected, student, strict=True)]
    assert found == pytest.approx(expected, rel=0.05)


def test_limits_lie_on_both_sides_of_a_mean_of_equal_values():
    """A third of the draws is all 0: the mean itself was the upper limit when they were left out."""
    mean, low, high = bootstrap_interval([0, 0, 0, 0, 0, 1])
    assert low < mean and high == pytest.approx(mean + stats.t.ppf(0.975, 5) / 6, rel=1e-3)
    mirrored = bootstrap_interval([0, 0, 0, 0, 0, -1])
    assert mirrored == pytest.approx((-mean, -high, -low), rel=0.05)
    assert bootstrap_interval([7, 7, 7, 7, 7, 8]) == pytest.approx((7 + mean, 7 + low, 7 + high))
