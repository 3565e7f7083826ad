"""The statistics against numbers from tables and from hand calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lodestar_fast.matrix.statistics import (
    RESAMPLES,
    Interval,
    bootstrap,
    holm,
    interval,
    log_ratios,
    over_cells,
    p_value,
    t_quantile,
    t_tail,
)


@pytest.mark.parametrize(
    "freedom, t",  # of the printed tables, two-sided 95 %
    [(1, 12.706), (2, 4.303), (4, 2.776), (7, 2.365), (19, 2.093), (120, 1.980)],
)
def test_quantiles_are_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=6e-4)
    assert t_tail(t_quantile(freedom), freedom) == pytest.approx(0.05, abs=1e-9)


def test_tails_in_closed_form() -> None:
    """One degree of freedom is Cauchy; two have a root."""
    for t in (0.0, 0.3, 1.0, 2.5, 40.0):
        assert t_tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)
        assert t_tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)


def test_interval_by_hand() -> None:
    # Mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5), t of 4 degrees 2.7764.
    found = interval([1, 2, 3, 4, 5])
    assert found == pytest.approx((3.0, 3 - 1.96324, 3 + 1.96324), abs=1e-4)
    one = interval([2.0])
    assert one.value == 2.0 and math.isnan(one.low) and math.isnan(one.high)


def test_p_value_by_hand() -> None:
    # t = 3 / sqrt(0.5) = 4.2426 with 4 degrees of freedom.
    assert p_value([1, 2, 3, 4, 5]) == pytest.approx(0.013237, abs=1e-5)
    assert p_value([0.5, -0.5]) == pytest.approx(1.0)
    assert p_value([2.0]) == 1.0
    assert p_value([0.0, 0.0]) == 1.0 and p_value([0.1, 0.1]) == 0.0


def test_holm_by_hand() -> None:
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, each at least the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_ratios_are_paired() -> None:
    logs = log_ratios([200, 300], [100, 100])
    assert np.exp(np.mean(logs)) == pytest.approx(math.sqrt(6))
    with pytest.raises(ValueError):
        log_ratios([1.0], [1.0, 2.0])


def test_bootstrap_of_two_values_has_three_means() -> None:
    """0, 1/2 and 1, of chances 1/4, 1/2, 1/4: the 2.5th percentile is 0, the 97.5th 1."""
    assert bootstrap([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert bootstrap([0.0, 1.0]) == bootstrap([0.0, 1.0])


def test_bootstrap_agrees_with_t_on_many_values() -> None:
    values = np.random.default_rng(3).normal(1.0, 0.5, 200).tolist()
    t, drawn = interval(values), bootstrap(values)
    assert drawn.value == pytest.approx(t.value)
    width = t.high - t.low
    assert drawn.low == pytest.approx(t.low, abs=0.1 * width)
    assert drawn.high == pytest.approx(t.high, abs=0.1 * width)
    assert RESAMPLES >= 1000


def test_bootstrap_of_the_median_ignores_one_that_is_far_off() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 100.0, 1.0]
    found = bootstrap(values, median=True)
    assert found.value == 1.0 and found.high < 2.0


def test_means_over_cells() -> None:
    found = over_cells([[0.0, 2.0], [4.0, 4.0]])
    assert found.value == pytest.approx(2.5)  # of 1 and 4
    assert found.low == pytest.approx(2.0) and found.high == pytest.approx(3.0)
    medians = over_cells([[0.0, 0.0, 9.0], [4.0, 4.0, 4.0]], [True, False])
    assert medians.value == pytest.approx(2.0)
    single = over_cells([[1.0], [3.0]])
    assert single.value == 2.0 and math.isnan(single.low)
