"""The learned policy: which candidate a model makes it take, and when the heuristic stands."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.core import Event, Reason, Router
from lodestar_fast.core.policies import Lodestar
from tests.oracle import Model, make_router, weighted
from tests.test_decisions import rows_of

PROMPT = b"abcdefgh" * 64  # 512 bytes: 128 tokens


def test_lodestar_is_cold_without_weights_and_goes_by_physics() -> None:
    router = make_router(Lodestar(), instances=2)
    router.route(b"", 0.0, prompt_tokens=1000, avoid=[1])
    for _ in range(10):
        ticket = router.route(b"", 0.0, prompt_tokens=1, avoid=[0]).ticket
        router.observe(ticket, Event.FIRST_TOKEN, 0.0)
    # LMETRIC: (1000 + 1000) 2 against 1000 x 11. By time: 2,000 tokens against 1,000.
    decision = router.route(b"", 0.0, prompt_tokens=1000)
    assert (decision.slot, decision.reason) == (1, Reason.COLD)
    assert np.isnan(decision.predicted)
    assert router.route(b"", 0.0, prompt_tokens=1, avoid=[1]).reason == Reason.ONLY_ONE


def test_lodestar_follows_the_model_beyond_the_margin() -> None:
    router = make_router(weighted(base=0.1, reported_waiting=1.0), instances=2)
    router.report(1, 0.0, 0, 16, 0)  # slot 1 predicted 1.1 s, slot 0 0.1 s
    router.route(b"", 0.0, avoid=[1])  # one in flight: LMETRIC prefers slot 1
    decision = router.route(b"", 0.0)
    assert (decision.slot, decision.reason) == (0, Reason.LEARNED)
    assert decision.predicted == pytest.approx(0.1)


def test_lodestar_lets_the_heuristic_stand_inside_the_margin() -> None:
    policy = weighted(policy=Lodestar(spare_weight=0), base=1.0, reported_waiting=1.0)
    router = make_router(policy, instances=2)
    router.report(1, 0.0, 0, 1, 0)  # 1.0625 against 1.0 seconds: 6 %
    router.route(b"", 0.0, avoid=[1])
    decision = router.route(b"", 0.0)
    assert (decision.slot, decision.reason) == (1, Reason.GUARD)
    assert decision.predicted == pytest.approx(1.0625)


def test_lodestar_agreeing_with_the_heuristic_is_learned() -> None:
    router = make_router(weighted(queue_seconds=1.0, own_seconds=1.0), instances=2)
    router.route(PROMPT, 0.0, avoid=[1])
    assert router.route(PROMPT + PROMPT, 0.0).reason == Reason.LEARNED


def test_lodestar_says_when_the_row_is_outside_the_range() -> None:
    model = Model([4])
    model.range_high[features.INDEX["prompt_tokens"]] = 1000 / 4096
    policy = Lodestar()
    policy.load(model.blob())
    router = make_router(policy, instances=2)
    assert router.route(b"", 0.0, prompt_tokens=900).reason != Reason.OUT_OF_RANGE
    assert router.route(b"", 0.0, prompt_tokens=1100).reason == Reason.OUT_OF_RANGE


@pytest.mark.parametrize(("load_weight", "slot"), [(0.005, 1), (0.0, 0)])
def test_lodestar_counts_what_own_work_costs_those_who_decode(
    load_weight: float, slot: int
) -> None:
    """Slot 0 decodes 40 requests, slot 1 one. LMETRIC prefers slot 0, for slot 1 has a queue."""
    policy = Lodestar(load_weight=load_weight, wait_weight=0.0, spare_weight=0.0)
    weighted(policy=policy, base=0.001)
    router = make_router(policy, instances=2)
    for _ in range(40):
        ticket = router.route(b"", 0.0, avoid=[1]).ticket
        router.observe(ticket, Event.FIRST_TOKEN, 0.0)
    router.route(b"", 0.0, prompt_tokens=200_000, avoid=[0])
    assert router.route(b"", 0.0, prompt_tokens=4000).slot == slot


@pytest.mark.parametrize(("wait_weight", "slot"), [(0.2, 1), (0.0, 0)])
def test_lodestar_counts_what_own_work_costs_those_who_wait(wait_weight: float, slot: int) -> None:
    """Slot 0 has three short requests waiting, slot 1 a long one: the longer queue, less delay."""
    policy = Lodestar(load_weight=0.0, wait_weight=wait_weight, crowd_weight=0, spare_weight=0)
    router = make_router(weighted(policy=policy, own_seconds=1.0, queue_seconds=0.1), instances=2)
    for _ in range(3):
        router.route(b"", 0.0, prompt_tokens=100, avoid=[1])
    router.route(b"", 0.0, prompt_tokens=9000, avoid=[0])
    assert router.route(b"", 0.0, prompt_tokens=8000).slot == slot


@pytest.mark.parametrize(("crowd_weight", "idle", "slot"), [(0.2, 0, 1), (0, 0, 0), (0.2, 4, 0)])
def test_lodestar_keeps_prefixes_in_place_when_all_have_queues(
    crowd_weight: float, idle: int, slot: int
) -> None:
    """The holder waits longer; only a crowd makes the saved work worth it."""
    policy = Lodestar(
        wait_weight=0.0, crowd_weight=crowd_weight, spare_weight=0.0, affinity_weight=0.0
    )
    weighted(policy=policy, queue_seconds=1.0, own_seconds=1.0, reported_waiting=80.0)
    router = make_router(policy, instances=2 + idle)
    others = [range(1, 2 + idle), [0, *range(2, 2 + idle)]]
    prompt = b"p" * 8000
    for _ in range(8):
        router.route(b"", 0.0, prompt_tokens=500, avoid=others[0])
        router.route(prompt, 0.0, prompt_tokens=2000, avoid=others[1])
    for _ in range(6):
        router.route(b"", 0.0, prompt_tokens=700, avoid=others[1])
    for free in range(2, 2 + idle):
        router.report(free, 0.0, 0, 16, 0)  # the model would never choose it
    assert router.route(prompt, 0.0, prompt_tokens=2000).slot == slot


@pytest.mark.parametrize(
    ("affinity_weight", "share", "longer", "slo", "slot"),
    [
        (1.0, 1.0, 0.04, 0.0, 0),  # 0.24 s for 0.20 s: predictions are off by as much
        (0.0, 1.0, 0.04, 0.0, 1),
        (1.0, 1.0, 0.08, 0.0, 1),  # that is a gain
        (1.0, 0.25, 0.04, 0.0, 1),  # it holds a quarter of the prompt only
        (1.0, 1.0, 0.04, 9.0, 1),  # with an SLO, where least is taken from those who have none
    ],
)
def test_lodestar_moves_no_prefix_for_what_predictions_may_be_off(
    affinity_weight: float, share: float, longer: float, slo: float, slot: int
) -> None:
    """Slot 0 holds the prefix; on slot 1 it would be computed again, and be a little quicker.
    Nine of ten first tokens come within exp(0.25) of the prediction."""
    policy = Lodestar(margin=1.0, explore_share=0.0, affinity_weight=affinity_weight)
    policy = weighted(policy=policy, base=0.2, reported_waiting=1.0)
    router = make_router(policy, instances=2)
    prompt = b"p" * 8000
    ticket = router.route(prompt[: int(8000 * share)], 0.0, avoid=[1]).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 0.1)
    router.observe(ticket, Event.DONE, 0.2)
    router.report(0, 0.2, 0, 16 * longer, 0)
    assert router.route(prompt, 0.3, prompt_tokens=2000, slo_ttft=slo).slot == slot


def turns(router: Router, n: int, now: float) -> tuple[Counter[tuple[int, int]], float]:
    """n requests, one a second, answered at once: choices by slot and reason, and the time."""
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(n):
        now += 1.0
        decision = router.route(b"", now, prompt_tokens=1000)
        seen[decision.slot, decision.reason] += 1
        router.observe(decision.ticket, Event.FIRST_TOKEN, now + 0.12)
        router.observe(decision.ticket, Event.DONE, now + 0.12)
    return seen, now


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_lodestar_tries_an_idle_engine_within_its_budget(share: float) -> None:
    """Slot 1 is believed to be 0.5 s slower: at 1 % of 0.1 s a request, one try in 500."""
    policy = weighted(policy=Lodestar(explore_share=share), base=0.1, reported_waiting=8.0)
    router = make_router(policy, instances=2)
    router.report(1, 0.0, 0, 1, 0)
    seen, _ = turns(router, 2100, 0.0)
    assert seen.pop((1, Reason.EXPLORE), 0) == (4 if share else 0)
    assert {slot for slot, _ in seen} == {0}
    assert router.stats()["decisions"]["explore"] == (4 if share else 0)
    assert policy.spent == pytest.approx(2.0 if share else 0.0, rel=1e-3)
    assert policy.spent + policy.saved == pytest.approx(share * 0.1 * 2100, rel=1e-3)


def test_lodestar_leaves_an_engine_alone_that_it_has_just_measured_or_that_works() -> None:
    policy = weighted(base=0.1, reported_waiting=0.32)
    router = make_router(policy, instances=2)
    router.report(1, 0.0, 0, 1, 0)  # 0.02 s: twenty requests pay for it
    seen, now = turns(router, 300, 0.0)
    assert 3 <= seen[1, Reason.EXPLORE] <= 5  # once a minute
    busy = router.route(b"", now, avoid=[0])
    seen, now = turns(router, 300, now)
    assert not seen[1, Reason.EXPLORE]
    router.observe(busy.ticket, Event.DONE, now)


def test_who_has_an_slo_tries_nothing() -> None:
    router = make_router(weighted(base=0.1, reported_waiting=0.32), instances=2)
    router.report(1, 0.0, 0, 1, 0)
    turns(router, 55, 0.0)
    for now in range(100, 400):
        decision = router.route(b"", now, prompt_tokens=1000, slo_ttft=1.0)
        assert decision.reason != Reason.EXPLORE
        router.observe(decision.ticket, Event.DONE, now)


def test_what_is_logged_of_a_try_is_that_it_was_certain() -> None:
    policy = weighted(base=0.1, reported_waiting=0.32)
    router = make_router(policy, instances=2, decisions=1000)
    router.report(1, 0.0, 0, 1, 0)
    turns(router, 300, 0.0)
    tries = [row for row in rows_of(router) if row["reason"] == "explore"]
    assert tries
    for row in tries:
        assert row["chosen"] == 1
        assert [c["odds"] for c in row["candidates"]] == [0, 1]


def test_lodestar_avoids_a_full_kv_cache() -> None:
    router = make_router(weighted(base=1.0), instances=0)
    router.add_instance("small", kv_tokens=1000)
    router.add_instance("large", kv_tokens=100_000)
    decision = router.route(b"", 0.0, prompt_tokens=980)  # 1.26 against 1.0
    assert (decision.slot, decision.reason) == (1, Reason.LEARNED)


def test_lodestar_expects_answers_to_fill_a_kv_cache() -> None:
    """Both have room for the prompts. With answers of 600 tokens the small one soon has not."""
    for answer, slot in ((0.0, 0), (600.0, 1)):
        model = Model(None)
        model.linear[:] = 0
        model.linear[features.INDEX["base"]] = 1.0
        model.linear[features.INDEX["reported_waiting"]] = 2.0
        model.answer = answer
        policy = Lodestar(spare_weight=0.0)
        policy.load(model.blob())
        router = make_router(policy, instances=0)
        router.add_instance("small", kv_tokens=2500)
        router.add_instance("large", kv_tokens=100_000)
        router.report(1, 0.0, 0, 1, 0)  # 1.125 s there, 1.0 s here
        for _ in range(9):
            ticket = router.route(b"", 0.0, prompt_tokens=10, avoid=[1]).ticket
            router.observe(ticket, Event.FIRST_TOKEN, 0.0)
            ticket = router.route(b"", 0.0, prompt_tokens=10, avoid=[0]).ticket
            router.observe(ticket, Event.FIRST_TOKEN, 0.0)
        assert router.route(b"", 0.0, prompt_tokens=300).slot == slot


def test_lodestar_spares_the_answers_under_way_where_engines_are_about_equal() -> None:
    """Slot 0 writes eight answers, slot 1 one and is slower by a quarter, or twice as slow."""
    chosen = {}
    for spare_weight in (0.0, 0.5):
        for waiting in (2, 8):
            policy = Lodestar(load_weight=0.0, spare_weight=spare_weight)
            router = make_router(
                weighted(policy=policy, base=0.8, reported_waiting=1.6), instances=2
            )
            for k in range(9):
                ticket = router.route(b"", 0.0, avoid=[1 if k < 8 else 0]).ticket
                router.observe(ticket, Event.FIRST_TOKEN, 0.0)
            router.report(1, 0.0, 0, waiting, 0)  # 1.0 s or 1.6 s for 0.8 s
            chosen[spare_weight, waiting] = router.route(b"", 0.0, prompt_tokens=100).slot
    assert chosen == {(0.0, 2): 0, (0.0, 8): 0, (0.5, 2): 1, (0.5, 8): 0}


@pytest.mark.parametrize(("tokens", "slot"), [(20, 0), (500, 1)])
def test_lodestar_takes_short_prompts_that_wait_for_no_crowd(tokens: int, slot: int) -> None:
    """12 wait on slot 0, 8 on slot 1, which is 0.25 s slower: worth it if all have queues."""
    policy = Lodestar(wait_weight=0.0, spare_weight=0.0, load_weight=0.0)
    weighted(policy=policy, base=0.05, own_seconds=1.0, reported_waiting=4.0)
    router = make_router(policy, instances=2)
    router.report(1, 0.0, 0, 1, 0)
    for k in range(20):
        router.route(b"", 0.0, prompt_tokens=tokens, avoid=[int(k < 12)])
    assert router.route(b"", 0.0, prompt_tokens=1000).slot == slot


@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0.9},
        {"load_weight": -1.0},
        {"wait_weight": -1.0},
        {"crowd_weight": float("nan")},
        {"spare_weight": -1.0},
        {"affinity_weight": -1.0},
        {"kv_weight": float("nan")},
        {"explore_share": 1.1},
        {"explore_share": float("nan")},
    ],
    ids=str,
)
def test_lodestar_refuses_weights_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Lodestar(**options)
