"""What the data path counts, as metrics.py reads it."""

from __future__ import annotations

import math

import pytest

from lodestar_fast.proxy.counters import OUTCOMES, Counters, Histogram


def test_histogram() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.5, 1000.0, -1.0, math.nan):
        histogram.observe(seconds)
    assert histogram.snapshot() == ((1.0, 2.0), [3, 1, 2], 1005.5)


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0), tuple(map(float, range(40)))])
def test_bounds_are_checked(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="bounds"):
        Histogram(bounds)


def test_requests_are_counted_by_closed_sets() -> None:
    counters = Counters()
    counters.finish("/v1/completions", 200, "completed", 0.1)
    counters.finish("/v1/completions", 204, "completed", 0.1)
    counters.finish("/invented/by/a/client", 404, "completed", 0.1)
    counters.finish("/another", 0, "client_abort", 0.1)
    counters.finish("/another", 777, "engine_error", 0.1)
    assert counters.snapshot()["requests"] == {
        ("/v1/completions", "2xx", "completed"): 2,
        ("other", "4xx", "completed"): 1,
        ("other", "none", "client_abort"): 1,
        ("other", "none", "engine_error"): 1,
    }
    assert sum(counters.snapshot()["request_seconds"][1]) == 5


def test_outcomes_are_those_of_the_interface() -> None:
    assert OUTCOMES == ("completed", "engine_error", "router_error", "shed", "client_abort")
    with pytest.raises(ValueError, match="unknown outcome"):
        Counters().finish("/health", 200, "fine", 0.1)


def test_retries_are_counted_by_reason() -> None:
    counters = Counters()
    for reason in ("connect", "busy", "connect"):
        counters.add_retry(reason)
    assert counters.snapshot()["retries"] == {"connect": 2, "busy": 1}
