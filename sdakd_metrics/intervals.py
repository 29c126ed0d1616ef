"""Means with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float | None, float | None]:
    """Mean and 95% percentile bootstrap interval: the images of a set are drawn again, with replacement, 2,000 times.

    The same seed and number of values give the same draws, so two models are compared on the same resampled sets
    (Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).

    Returns:
        Mean, lower and upper limit; no limits (None) for a single value or where one is infinite.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(mean):
        return mean, None, None
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    rows = max(1, 1_000_000 // len(values))  # the draws of a large set are not held all at once
    for start in range(0, RESAMPLES, rows):
        draws = generator.integers(len(values), size=(min(rows, RESAMPLES - start), len(values)))
        means[start : start + rows] = values[draws].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return mean, float(low), float(high)
