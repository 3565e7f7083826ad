"""Objectives of the whole service: what a mix, a price, a bound on the answer and a default SLO
choose, and that it is what the rewards of the same names call good."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast import features
from lodestar_fast.core import Event, Reason, Router
from lodestar_fast.core.policies import Lodestar
from lodestar_fast.decisions.rewards import REWARDS, Measured, Weights
from tests.oracle import make_router
from tests.test_aims import model, weighted

DECODE = features.INDEX["decode_requests"]
SMALL: dict[str, Any] = {
    "decisions": 1,
    "index_bytes": 1 << 20,
    "max_tickets": 64,
    "max_samples": 64,
}
PLAIN = dict.fromkeys(
    ("load_weight", "wait_weight", "crowd_weight", "spare_weight", "kv_weight"), 0.0
)


def last(router: Router) -> dict[str, Any]:
    assert router.decisions is not None
    row: dict[str, Any] = json.loads(router.decisions.last(1).rows()[0] + b"}")
    return row


def busy(router: Router, slot: int, requests: int, tokens: int = 10) -> None:
    """Have so many answers under way on an instance."""
    for other in router.slots():
        router.set_routable(other, other == slot)
    for _ in range(requests):
        d = router.route(b"x" * 64, 0.0, tokens)
        router.observe(d.ticket, Event.FIRST_TOKEN, 0.0)
    for other in router.slots():
        router.set_routable(other, True)


@pytest.mark.parametrize("reward", ["ttft", "ttft+tpot", "e2e", "cost"])
@given(
    tokens=st.integers(100, 5000),
    pace=st.floats(0.0, 0.05),
    answer=st.floats(1.0, 500.0),
    weights=st.tuples(st.floats(0.01, 2), st.floats(0.01, 5)),
    prices=st.lists(st.floats(0, 10), min_size=3, max_size=3),
    crowds=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_scores_are_rewards_of_what_is_predicted(
    reward: str,
    tokens: int,
    pace: float,
    answer: float,
    weights: tuple[float, float],
    prices: list[float],
    crowds: list[int],
) -> None:
    """But for what a choice costs others, which no measurement of one request shows."""
    w = Weights(*weights)
    options: dict[str, Any] = {"objective": "ttft" if reward == "cost" else reward}
    options |= {"tpot_weight": w.tpot, "price_weight": w.price if reward == "cost" else 0.0}
    m = model(decode_requests=0.1)
    m.answer = answer
    m.tpot[features.INDEX["base"]] = 1e-3
    m.tpot[DECODE] = pace
    router = make_router(weighted(m, **options, **PLAIN), 3, **SMALL)
    for slot, (price, crowd) in enumerate(zip(prices, crowds, strict=True)):
        router.set_price(slot, price)
        busy(router, slot, crowd)
    router.route(b"z" * 64, 0.0, tokens)
    row = last(router)
    for c, price in zip(row["candidates"], prices, strict=True):
        own = c["x"][features.INDEX["own_seconds"]]
        answering = c["inflight"] - c["waiting"]
        rest = (answer - 1) * c["tpot"] if "tpot" in c else 0.0
        taken = own + rest / (answering + 1)
        measured = Measured(c["predicted"], c["predicted"] + rest, 0.0, taken, price)
        delays = {"ttft+tpot": w.tpot, "e2e": 1.0}.get(reward, 0.0) * 0.5 * own * answering
        assert c["score"] == pytest.approx(-REWARDS[reward].of(measured, w) + delays, rel=1e-4)


def scores(row: dict[str, Any]) -> list[float]:
    return [c["score"] for c in row["candidates"]]


def test_a_mix_lies_between_the_first_token_and_the_last() -> None:
    """One engine answers at once and slowly, the other the other way around."""
    chosen = {}
    for objective, weight in (("ttft", 0.3), ("ttft+tpot", 0.01), ("ttft+tpot", 0.9), ("e2e", 0.3)):
        m = model(decode_requests=0)
        m.tpot[DECODE] = 0.1  # 16 answers are 0.1 s a token more
        policy = weighted(m, objective=objective, tpot_weight=weight, margin=1.0, **PLAIN)
        router = make_router(policy, 2)
        busy(router, 0, 4)  # slow to go on
        router.set_routable(0, False)
        router.route(b"q" * 64, 0.0, 4000)  # slow to begin
        router.set_routable(0, True)
        chosen[objective, weight] = router.route(b"z" * 64, 0.0, 100).slot
    assert chosen == {
        ("ttft", 0.3): 0,
        ("ttft+tpot", 0.01): 0,
        ("ttft+tpot", 0.9): 1,
        ("e2e", 0.3): 1,
    }


def test_a_request_for_a_short_answer_is_not_sent_where_long_ones_end_early() -> None:
    m = model()
    m.tpot[DECODE] = 0.1
    router = make_router(weighted(m, objective="e2e", margin=1.0, **PLAIN), 2, decisions=1)
    busy(router, 0, 4)
    router.set_routable(0, False)
    router.route(b"q" * 64, 0.0, 4000)
    router.set_routable(0, True)
    told = {}
    for most in (0, 1, 2, 119, 120, 5000):
        d = router.route(b"z" * 64, 0.0, 10, max_tokens=most)
        told[most] = last(router)["answer"]
        router.observe(d.ticket, Event.FAILED, 0.0)
        assert (d.slot == 0) == (most in (1, 2))
    assert told == {0: 120, 1: 1, 2: 2, 119: 119, 120: 120, 5000: 120}
    for most in (-1, 10**9):
        with pytest.raises(ValueError, match="max_tokens"):
            router.route(b"z", 0.0, max_tokens=most)


def test_the_cheaper_of_equals_and_the_dear_one_where_it_must() -> None:
    m = model()
    m.upper = (0.0, 0.0)
    router = make_router(weighted(m, price_weight=0.1, **PLAIN), 2, decisions=1)
    router.set_price(0, 1.0)
    router.set_price(1, 4.0)
    assert {router.route(b"z" * 64, 0.0, 1).slot for _ in range(5)} == {0}
    # 3,000 tokens are 0.36 s: the cheap one would be late.
    busy(router, 0, 1, 10)
    router.set_routable(1, False)
    router.route(b"q" * 64, 0.0, 3000)
    router.set_routable(1, True)
    assert router.route(b"z" * 64, 0.0, 10, slo_ttft=0.2).slot == 1
    assert router.route(b"z" * 64, 0.0, 10, slo_ttft=2.0).slot == 0
    row = last(router)
    assert [c["price"] for c in row["candidates"]] == [1.0, 4.0]


@given(price=st.floats(0, 100), more=st.floats(0, 100), weight=st.floats(0, 10))
def test_no_score_falls_with_a_price(price: float, more: float, weight: float) -> None:
    for slo in (0.0, 5.0):
        router = make_router(weighted(model(), price_weight=weight, objective="e2e"), 2, **SMALL)
        got = []
        for asked in (price, price + more):
            router.set_price(0, asked)
            d = router.route(b"z" * 64, 0.0, 500, slo_ttft=slo)
            got.append(scores(last(router))[0])
            router.observe(d.ticket, Event.FAILED, 0.0)
            router.forget_prefixes(d.slot)
        assert got[1] >= got[0]


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_cannot_be_is_refused(price: float) -> None:
    with pytest.raises(ValueError, match="price"):
        make_router().set_price(0, price)
    for weight in ("tpot_weight", "price_weight"):
        with pytest.raises(ValueError, match=weight):
            Lodestar(**{weight: price})


def test_a_default_slo_holds_where_the_request_says_nothing() -> None:
    router = make_router(weighted(model()), 2, decisions=1, slo_ttft=0.5, slo_tpot=0.04)
    asked = {}
    for name, slos in {
        "nothing": {},
        "both": {"slo_ttft": 0.1, "slo_tpot": 0.02},
        "one": {"slo_ttft": 0.1},
        "none": {"slo_ttft": 0.0, "slo_tpot": 0.0},
    }.items():
        router.route(b"z" * 64, 0.0, 100, **slos)
        row = last(router)
        asked[name] = row.get("slo_ttft"), row.get("slo_tpot")
    assert asked == {
        "nothing": (0.5, 0.04),
        "both": (0.1, 0.02),
        "one": (0.1, 0.04),
        "none": (None, None),
    }
    with pytest.raises(ValueError, match="slo_tpot"):
        make_router(slo_tpot=-1.0)


@pytest.mark.parametrize(("asks", "explores"), [({}, True), ({"slo_ttft": 0.5}, False)])
def test_a_default_slo_does_not_forbid_to_look_at_an_idle_engine(
    asks: dict[str, float], explores: bool
) -> None:
    """One that is believed slow would stay so for ever; who asked to be in time is not sent."""
    m = model()
    router = make_router(weighted(m, explore_share=1.0), 2, slo_ttft=0.5)
    reasons = set()
    for k in range(200):
        now = k * 1.0
        d = router.route(b"z" * 64, now, 100, **asks)
        router.observe(d.ticket, Event.FIRST_TOKEN, now + (0.9 if d.slot else 0.05))
        router.observe(d.ticket, Event.DONE, now + 0.95)
        reasons.add(d.reason)
    assert (Reason.EXPLORE in reasons) == explores
