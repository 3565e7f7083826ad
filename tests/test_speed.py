"""The estimate of each instance's speed against its oracle, which starts from the labels anew."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar_fast.core import Event
from tests.oracle import Speeds, Spy, make_router, work

SLOTS = 3
# One round: a slot, seconds from dispatch to first token, tokens of the requests that come
# together, and how much later than the first of them the others were dispatched.
rounds = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.floats(0.003, 5),
        st.lists(st.integers(1, 5000), min_size=1, max_size=3),
        st.floats(0, 0.9),
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(rounds=rounds, overlap=st.floats(0, 0.5))
def test_speeds_agree_with_the_oracle(
    rounds: list[tuple[int, float, list[int], float]], overlap: float
) -> None:
    spy, oracle = Spy(), Speeds()
    router = make_router(spy, instances=SLOTS)
    at = 0.0
    for turn, (slot, seconds, tokens, later) in enumerate(rounds, 1):
        spy.want = slot
        now = at - overlap * seconds  # it may have waited behind the one before
        starts = [now + seconds * later * i / len(tokens) for i in range(len(tokens))]
        requests = list(zip(starts, tokens, strict=True))
        tickets = [router.route(b"", at, prompt_tokens=n).ticket for at, n in requests]
        at = now + seconds
        for ticket in tickets:
            router.observe(ticket, Event.FIRST_TOKEN, at)
            router.observe(ticket, Event.DONE, at)
        oracle.note(slot, at, [(start, work(n)) for start, n in requests])
        check = 1e6 * turn  # long after: what was learned is in use
        router.observe(router.route(b"", check).ticket, Event.ABANDONED, check)
        speeds = oracle.shrunk(range(SLOTS))
        for each, speed in speeds.items():
            assert router.instance(each)["speed"] == pytest.approx(speed, rel=1e-9)


def test_a_joiner_starts_from_what_the_others_are_like() -> None:
    spy, oracle = Spy(), Speeds()
    router, now = make_router(spy, instances=2), 0.0
    for slot in [0] * 30 + [1] * 2:
        spy.want = slot
        ticket = router.route(b"", now, prompt_tokens=1000).ticket
        router.observe(ticket, Event.FIRST_TOKEN, now + 0.02)
        router.observe(ticket, Event.DONE, now + 0.02)
        oracle.note(slot, now + 0.02, [(now, work(1000))])
        now += 1
        router.observe(router.route(b"", now).ticket, Event.ABANDONED, now)
        speeds = oracle.shrunk(range(2))
    assert router.instance(1)["speed"] == pytest.approx(speeds[1], rel=1e-9)
    assert router.instance(1)["speed"] < 0.00003
