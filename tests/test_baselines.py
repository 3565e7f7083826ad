"""Each baseline on a case small enough to compute by hand; what all policies share is in
test_policies.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lodestar_fast.core import POLICIES, Event, Policy, Router
from lodestar_fast.core.policies import ExpectedCompletion
from tests.oracle import make_router

PROMPT = b"abcdefgh" * 64  # 512 bytes: 128 tokens


def send(router: Router, slot: int, prompt: bytes = b"", tokens: int = 1, now: float = 0.0) -> int:
    """Dispatch a request to a slot; its ticket."""
    others = [other for other in router.slots() if other != slot]
    return router.route(prompt, now, tokens, avoid=others).ticket


def decode(router: Router, slot: int, tokens: int = 1, gap: float = 0.0, now: float = 0.0) -> int:
    """A request that streams its answer, with a mean time between tokens if one is given."""
    ticket = send(router, slot, tokens=tokens, now=now)
    router.observe(ticket, Event.FIRST_TOKEN, now)
    if gap:
        router.observe(ticket, Event.TOKENS, now + gap, tokens=1)
    return ticket


def done(router: Router, slot: int, prompt: bytes, now: float = 0.0) -> None:
    """The instance has computed a prompt, and is idle again."""
    ticket = send(router, slot, prompt, tokens=len(prompt) // 4, now=now)
    router.observe(ticket, Event.DONE, now)


def make(name: str, instances: int = 2, kv_tokens: int = 0, **options: Any) -> Router:
    return make_router(POLICIES[name](**options), instances, kv_tokens=kv_tokens)


def choices(router: Router, prompt: bytes = b"", n: int = 12, **given: Any) -> set[int]:
    """Where a request would go, asked several times; each ends at once."""
    slots = set()
    for _ in range(n):
        decision = router.route(prompt, 0.0, **given)
        slots.add(decision.slot)
        router.observe(decision.ticket, Event.FAILED, 0.0)
    return slots


def test_least_kv_takes_the_larger_of_report_and_own_count() -> None:
    router = make("least_kv", kv_tokens=1000)
    router.report(0, 0.0, 0, 0, 0.5)
    router.report(1, 0.0, 0, 0, 0.3)
    assert choices(router) == {1}
    send(router, 1, tokens=600)  # since the report
    assert choices(router) == {0}


def test_least_prefill_tokens_counts_what_is_not_computed() -> None:
    router = make("least_prefill_tokens")
    send(router, 0, tokens=100)
    for _ in range(5):
        decode(router, 1, tokens=1000)
    assert choices(router) == {1}


def test_least_latency_adds_queue_prefill_and_decode() -> None:
    # 0.12 ms a token: 1000 queued tokens are 0.12 s; 200 tokens at 1 ms more each are 0.2 s.
    router = make("least_latency")
    send(router, 0, tokens=1000)
    decode(router, 1, gap=0.001)
    assert choices(router) == {0}
    router = make("least_latency", output_tokens=100.0)
    send(router, 0, tokens=1000)
    decode(router, 1, gap=0.001)
    assert choices(router) == {1}


def test_throughput_weighs_prompts_twice_and_forgets() -> None:
    router = make("throughput")
    send(router, 0, tokens=900)  # 2 x 900 / 10 s = 180 tokens a second
    decode(router, 1, gap=0.01)  # 100 tokens a second, and 2 x 1 / 10
    assert router.route(b"", 0.0, 1).slot == 1
    assert router.route(b"", 60.0, 1).slot == 0


def test_vllm_dp_counts_waiting_four_times() -> None:
    router = make("vllm_dp")
    send(router, 0)  # 4
    for _ in range(3):
        decode(router, 1)  # 3
    assert choices(router) == {1}
    decode(router, 1)
    decode(router, 1)  # 5
    assert choices(router) == {0}


def test_prefix_cache_without_a_hit_takes_the_least_loaded() -> None:
    router = make("prefix_cache", instances=3)
    for slot in (0, 0, 1, 2, 2, 2):
        send(router, slot)
    assert choices(router, PROMPT) == {1}


@pytest.mark.parametrize(("threshold", "slot"), [(0.2, 0), (0.3, 1)])
def test_prefix_threshold(threshold: float, slot: int) -> None:
    router = make("prefix_threshold", threshold=threshold)
    done(router, 0, PROMPT[:128])  # a quarter of it
    send(router, 0)
    assert choices(router, PROMPT) == {slot}


def test_preble_exploits_a_long_prefix_until_its_holder_costs_too_much() -> None:
    for more, slot in ((100, 0), (300, 1)):
        router = make("preble")
        send(router, 1, tokens=100)
        done(router, 0, PROMPT)  # 128 tokens
        send(router, 0, tokens=more)
        # Slot 1 has cost 100, with the whole prompt 228: the holder may have 342.
        assert router.route(PROMPT, 0.0, 128).slot == slot


def test_preble_explores_by_cost_with_the_prompt() -> None:
    router = make("preble")
    send(router, 0, tokens=100)
    assert router.route(b"", 0.0, 50).slot == 1  # now 100 and 50
    assert router.route(b"", 0.0, 60).slot == 1  # and 110
    assert router.route(b"", 0.0, 60).slot == 0


def test_cache_aware_balances_matches_and_fills_the_smallest() -> None:
    router = make("cache_aware")
    done(router, 0, PROMPT)
    done(router, 1, PROMPT[:64])
    assert choices(router, PROMPT) == {0}
    assert choices(router, b"unseen" * 100) == {1}
    for _ in range(33):
        send(router, 0)
    assert choices(router, PROMPT) == {1}


def test_llmd_weighted_sums_normalised_scores() -> None:
    router = make("llmd_weighted", kv_tokens=10_000)
    done(router, 0, PROMPT[:192])  # 0.375 of it: 0.75 of the score, against 1 of an idle queue
    assert choices(router, PROMPT) == {0}
    send(router, 0)
    assert choices(router, PROMPT) == {1}
    done(router, 0, PROMPT)
    assert choices(router, PROMPT) == {0}


def test_llmd_sticky_leaves_a_saturated_holder_for_fewest_uncached_tokens() -> None:
    router = make("llmd_sticky", instances=3)
    done(router, 0, PROMPT)
    send(router, 1, tokens=2000)
    for _ in range(5):
        send(router, 0, tokens=100)
    assert choices(router, PROMPT) == {0}
    send(router, 2, tokens=600)
    send(router, 0, tokens=100)  # six wait: 600 tokens and 1 of its own, 2000 + 128, 600 + 128
    assert choices(router, PROMPT) == {0}
    send(router, 0, tokens=400)
    assert choices(router, PROMPT) == {2}


def test_mooncake_takes_the_least_time_and_may_fetch_a_prefix() -> None:
    router = make("mooncake")
    done(router, 0, PROMPT)  # 127 of its 128 tokens may count
    send(router, 0, tokens=100)  # 101 tokens there, 128 on slot 1
    assert choices(router, PROMPT, prompt_tokens=128) == {0}
    router = make("mooncake", transfer=0.00001)  # 1.27 ms for 127 tokens: 10.6 tokens' time
    done(router, 0, PROMPT)
    send(router, 0, tokens=100)
    assert choices(router, PROMPT, prompt_tokens=128) == {1}


def test_dynamo_adds_blocks_to_compute_and_blocks_held() -> None:
    for context, slot in ((250, 0), (150, 1)):
        router = make("dynamo")
        send(router, 0, tokens=100)  # to compute, and held: 200
        decode(router, 1, tokens=context)
        assert choices(router) == {slot}
    router = make("dynamo", overlap_weight=3.0)
    send(router, 0, tokens=100)  # 400
    decode(router, 1, tokens=250)
    assert choices(router) == {1}


def test_dynamo_draws_by_cost_where_there_is_a_temperature() -> None:
    router, counts = make("dynamo", temperature=1.0), Counter[int]()
    send(router, 0, tokens=100)
    for _ in range(2000):
        decision = router.route(b"", 0.0)
        counts[decision.slot] += 1
        router.observe(decision.ticket, Event.FAILED, 0.0)
    assert counts[0] / 2000 == pytest.approx(0.269, abs=0.03)  # 1 / (1 + e)


def test_expected_completion_knows_the_hardware() -> None:
    policy = ExpectedCompletion()
    router = make_router(policy, 2)
    policy.know(0, 0.001, 0.0)
    policy.know(1, 0.0001, 0.05)
    assert choices(router, prompt_tokens=50) == {0}  # 50 ms against 55
    assert choices(router, prompt_tokens=60) == {1}  # 60 against 56
    for wrong in ((-1, 1.0, 0.0), (1024, 1.0, 0.0), (0, 0.0, 0.0), (0, 1.0, -1.0)):
        with pytest.raises(ValueError, match="slot"):
            policy.know(*wrong)


def test_session_affinity_keeps_sessions_and_spreads_those_of_a_slot_that_left() -> None:
    router = make("session_affinity", instances=5, bound=100.0)
    names = [b"session %d" % i for i in range(200)]

    def homes() -> dict[bytes, int]:
        return {name: min(choices(router, n=2, session=name)) for name in names}

    before = homes()
    assert min(Counter(before.values()).values()) > 20
    assert before == homes()
    router.set_routable(2, False)
    after = homes()
    assert all(after[name] == slot for name, slot in before.items() if slot != 2)
    assert {after[name] for name, slot in before.items() if slot == 2} == {0, 1, 3, 4}


def test_session_affinity_bounds_the_load() -> None:
    router = make("session_affinity", instances=4)
    counts = Counter(router.route(PROMPT, 0.0).slot for _ in range(40))  # all of one session
    assert max(counts.values()) <= 13  # 1.25 x 40 / 4, rounded up


def test_the_first_block_stands_for_a_session_that_nobody_named() -> None:
    router = make("session_affinity", instances=5)
    assert len(choices(router, PROMPT)) == 1
    assert len({min(choices(router, b"%064d" % i, n=1)) for i in range(50)}) == 5


OPTIONS: list[tuple[str, dict[str, float]]] = [
    ("least_latency", {"output_tokens": -1.0}),
    ("throughput", {"seconds": 0.0}),
    ("prefix_threshold", {"threshold": 1.1}),
    ("preble", {"rebalance": 0.5}),
    ("cache_aware", {"balance_rel": 0.9}),
    ("llmd_weighted", {"prefix": -1.0}),
    ("llmd_sticky", {"kv": 0.0}),
    ("mooncake", {"transfer": float("nan")}),
    ("dynamo", {"temperature": -0.1}),
    ("session_affinity", {"bound": 0.99}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, float]) -> None:
    make_it: Any = POLICIES[name]
    policy: Policy = make_it()
    option = next(iter(options))
    assert getattr(policy, option) >= 0
    with pytest.raises(ValueError, match=option):
        make_it(**options)
