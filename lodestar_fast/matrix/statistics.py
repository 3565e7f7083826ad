"""Comparisons paired by seed: intervals, tests, and means over cells. Nothing here knows a policy.

Two policies meet the same requests at the same moments, so what is compared is the logarithm of the
ratio of their two numbers, seed by seed; its mean is the logarithm of a geometric mean of ratios.

    interval()    Student's t over the seeds
    bootstrap()   percentiles of the mean over seeds drawn with replacement; for p99, never over
                  requests, which are not independent
    holm()        p values of many cells, corrected for their number (Holm 1979)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % interval; bounds are NaN where one seed is all."""

    value: float
    low: float
    high: float

    def exp(self) -> Interval:
        return Interval(*map(math.exp, self))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 500):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + top * d or tiny)
            c = 1.0 + top / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def t_tail(t: float, freedom: int) -> float:
    """Two-sided: the chance that Student's t is further from 0 than t."""
    return _beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that so much of the distribution lies within."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - confidence else (low, middle)
    return high


def interval(values: Sequence[float]) -> Interval:
    """The mean with its t interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def p_value(values: Sequence[float]) -> float:
    """Two-sided, that the mean is 0; 1 for a single value, 0 for equal values that are not 0."""
    n = len(values)
    if n < 2:
        return 1.0
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    if variance == 0:
        return float(mean == 0)
    return t_tail(mean / math.sqrt(variance / n), n - 1)


def log_ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """By seed; above 0 where theirs is the larger."""
    return [math.log(a / b) for a, b in zip(theirs, ours, strict=True)]


def bootstrap(values: Sequence[float], median: bool = False) -> Interval:
    """Of the mean (or median) over seeds, the seeds drawn anew; the same bounds on every call."""
    sample = np.asarray(values, dtype=float)
    middle = np.median if median else np.mean
    value = float(middle(sample))
    if len(sample) < 2:
        return Interval(value, math.nan, math.nan)
    draws = np.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))
    return Interval(value, *_bounds(middle(sample[draws], axis=1)))


def over_cells(cells: Sequence[Sequence[float]], median: Sequence[bool] = ()) -> Interval:
    """Mean over cells of each one's mean (or median) over seeds; seeds are drawn anew in each cell.

    The cells are what they are: the interval is about other seeds, not about other cells.
    """
    rng = np.random.default_rng(0)
    value, total = 0.0, np.zeros(RESAMPLES)
    for k, values in enumerate(cells):
        sample = np.asarray(values, dtype=float)
        middle = np.median if median and median[k] else np.mean
        value += float(middle(sample)) / len(cells)
        draws = rng.integers(len(sample), size=(RESAMPLES, len(sample)))
        total += middle(sample[draws], axis=1) / len(cells)
    if all(len(values) < 2 for values in cells):
        return Interval(value, math.nan, math.nan)
    return Interval(value, *_bounds(total))


def _bounds(values: np.ndarray) -> tuple[float, float]:
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [edge, 100 - edge])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: at most 0.05 means so with all comparisons taken together."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted
