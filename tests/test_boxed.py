"""Least squares within limits, against what its solution must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from lodestar_fast.learner.boxed import solve_boxed


@pytest.mark.parametrize("seed", range(8))
def test_no_coordinate_can_be_better_within_its_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, n = 40, 7
    x = rng.normal(size=(rows, n))
    a, b = x.T @ x + np.eye(n), x.T @ rng.normal(size=rows) * 3
    low, high = np.full(n, -0.1), np.array([0.1, 0.2, np.inf, np.inf, 0.1, -0.05, 0.3])
    found = np.clip(np.zeros(n), low, high)
    solve_boxed(a, b, low, high, found, 1000, 1e-12)
    slope = a @ found - b
    assert (found >= low).all() and (found <= high).all()
    # Downhill leads out of the limits wherever there is a slope.
    assert (slope[found < high] > -1e-9).all() and (slope[found > low] < 1e-9).all()
    assert (found == low).any() and ((low < found) & (found < high)).any()


def test_it_goes_on_from_where_it_was_and_stops_when_told() -> None:
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 0.0])
    low, high = np.full(2, -9.0), np.full(2, 9.0)
    once, twice = np.zeros(2), np.zeros(2)
    solve_boxed(a, b, low, high, once, 1, 0.0)
    assert once.tolist() == [1.5, -0.75]
    solve_boxed(a, b, low, high, once, 1, 0.0)
    solve_boxed(a, b, low, high, twice, 2, 0.0)
    assert once.tolist() == twice.tolist() == [1.875, -0.9375]
    solve_boxed(a, b, low, high, twice, 50, 1.0)  # nothing moves by as much: one sweep more
    assert twice.tolist() == [1.96875, -0.984375]


def test_what_is_no_number_is_no_solution_either() -> None:
    found = np.zeros(2)
    solve_boxed(np.eye(2), np.array([np.nan, 1.0]), np.zeros(2), np.ones(2), found, 40, 1e-7)
    assert np.isnan(found[0]) and np.isnan(found[1])


def test_sizes_must_agree() -> None:
    square, pair = np.eye(2), np.zeros(2)
    for a, b, x in (
        (np.eye(3), pair, pair),
        (square, np.zeros(3), pair),
        (square, pair, np.ones(3)),
    ):
        with pytest.raises(ValueError, match="sizes"):
            solve_boxed(a, b, pair, pair + 1, x, 1, 0.0)
