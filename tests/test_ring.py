"""The rings of recent measurements against a list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar_fast.core import Event
from tests.oracle import make_router


@settings(deadline=None)
@given(
    capacity=st.integers(1, 12),
    gaps=st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=60),
)
def test_a_ring_holds_the_newest_values_and_their_mean(capacity: int, gaps: list[float]) -> None:
    router = make_router(instances=1, ring=capacity)
    ticket = router.route(b"", 0.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 0.0)
    now, seen = 0.0, []
    for gap in gaps:
        if now + gap > now:  # tokens of one instant say nothing of an iteration's length
            seen.append(np.float32((now + gap) - now))
        now += gap
        router.observe(ticket, Event.TOKENS, now, 1)
    newest = [float(value) for value in seen[::-1][:capacity]]
    assert router.ring(0, "inter_token") == newest
    mean = sum(newest) / len(newest) if newest else 0.0
    # A value that left a full ring may leave its rounding behind, until the next turn.
    slack = 1e-15 * sum(map(float, seen[-2 * capacity :]))
    assert router.instance(0)["recent_inter_token"] == pytest.approx(mean, rel=1e-12, abs=slack)


def test_tokens_that_arrive_together_share_their_gap() -> None:
    router = make_router(instances=1)
    ticket = router.route(b"", 0.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 1.0)
    router.observe(ticket, Event.TOKENS, 3.0, tokens=4)
    assert router.ring(0, "inter_token") == [0.5]


def test_each_instance_has_rings_of_its_own() -> None:
    router = make_router(instances=2)
    ticket = router.route(b"", 0.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 0.25)
    assert router.ring(0, "ttft") == [0.25]
    assert router.ring(1, "ttft") == []
    assert router.instance(1)["recent_ttft"] == 0.0


def test_a_slot_taken_anew_starts_empty() -> None:
    router = make_router(instances=1)
    router.observe(router.route(b"", 0.0).ticket, Event.FIRST_TOKEN, 0.25)
    router.remove_instance(0)
    assert router.add_instance("next") == 0
    assert router.ring(0, "ttft") == []
    assert router.instance(0)["ttft"][1] == [0] * 17
