"""Means with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

FEWEST = 6  # values that an interval is given for, a choice of this project: of five, it is wider than it is of use


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
