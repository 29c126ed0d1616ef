"""Means with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

FEWEST = 6  # values that an interval is given for, a choice of this project: of five, it is wider than it is of use
RESAMPLES = 1999  # of the bootstrap: the 50th from either end then lies at 2.5%
AT_ONCE = 1 << 21  # drawn numbers that are held at once


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution, from 5 degrees of freedom on within 0.02%.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5: the normal quantile and four terms in 1/freedom.
    """
    x = NormalDist().inv_cdf(0.975)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom**power for power, term in enumerate(terms, 1))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and Student's 95% interval of it: mean -+ t s / sqrt(n), with the standard deviation s of n - 1.

    It covers the mean of normal values in 95% of all cases at every n. The percentile bootstrap does so in 87% at n = 6
    and 90% at 10 (Hesterberg, The American Statistician 69(4), 2015, tells why); of skewed values both cover
    it less often, and Student's the more often of the two. Of the differences of pairs it is that of the paired t test.

    Returns:
        Mean, lower and upper limit; no limits (None) for fewer than :data:`FEWEST` values or where one is infinite.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < FEWEST or not math.isfinite(mean):
        return mean, None, None
    half = t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float | None, float | None]:
    """Mean and the 95% interval of it by the studentised bootstrap (bootstrap-t).

    Values are drawn with replacement 1,999 times; of each draw, t = (mean of the draw - mean) / its own standard error.
    The limits are mean - t s / sqrt(n) at the 97.5% and the 2.5% quantile of these t, which take the place of Student's
    quantiles and lean as the values lean (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5;
    Hall, Annals of Statistics 16(3), 1988: its error of coverage falls with 1/n, that of Student's and the percentile
    interval of skewed values with 1/sqrt(n) on each side). A draw of equal values has no spread: its t is infinite, on
    the side of these values, or 0 if they are the mean. Where so many values are equal that a limit is infinite,
    Student's takes its place.

    Args:
        values: One for every image, each averaged over seeds, so that images alone are drawn.
        seed: Of the draws; the same values have the same interval.

    Returns:
        As :func:`mean_interval`.
    """
    values = np.asarray(values, np.float64)
    mean, number = float(values.mean()), len(values)
    if number < FEWEST or not math.isfinite(mean):
        return mean, None, None
    away = values - mean
    error = float(values.std(ddof=1)) / math.sqrt(number)
    if not error:
        return mean, mean, mean
    generator, found = np.random.default_rng(seed), []
    for start in range(0, RESAMPLES, step := max(1, AT_ONCE // number)):
        drawn = away[generator.integers(number, size=(min(step, RESAMPLES - start), number))]
        means, errors = drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(number)
        means[abs(means) <= 1e-9 * error] = 0  # what is left of equal values is rounding
        spread = errors > 1e-9 * error
        infinite = np.where(means == 0, 0, np.copysign(np.inf, means))
        found.append(np.divide(means, errors, where=spread, out=infinite))
    quantiles, rank = np.sort(np.concatenate(found)), round((RESAMPLES + 1) * 0.025)
    limits = [mean - float(quantiles[place]) * error for place in (-rank, rank - 1)]
    student = mean_interval(values)[1:]
    low, high = (one if math.isfinite(one) else other for one, other in zip(limits, student, strict=True))
    return mean, low, high
