"""What every policy must do, what each one claims, and that a bad one cannot break the router."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from lodestar_fast.core import POLICIES, Candidates, Event, Policy, Reason, Router
from lodestar_fast.core.policies import Lmetric, PrefixCache
from tests.oracle import make_router, weighted


class Longest(Policy):
    """A rule in Python, as an experiment would have it: most tokens held."""

    name = "longest"

    def pick(self, c: Candidates) -> int:
        c.reason = Reason.HEURISTIC
        best = max(c.hit_tokens(i) for i in range(c.n))
        held = [i for i in range(c.n) if c.hit_tokens(i) == best]
        return held[int(c.random() * len(held))]


MAKERS: dict[str, Callable[[], Policy]] = {
    **POLICIES,
    "longest": Longest,
    "lodestar-linear": weighted,
    "lodestar-mlp": lambda: weighted([16, 16]),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def drive(router: Router, steps: int, seed: int = 0, avoid: tuple[int, ...] = ()) -> list[int]:
    """Random load: prompts that share prefixes, requests that last a while. The slots chosen."""
    draw, now, running, slots = random.Random(seed), 0.0, [], []
    for _ in range(steps):
        now += draw.expovariate(50)
        while running and draw.random() < 0.4:
            ticket = running.pop(draw.randrange(len(running)))
            router.observe(ticket, Event.FIRST_TOKEN, now)
            router.observe(ticket, Event.DONE, now + 0.01, tokens=draw.randrange(1, 50))
        prompt = b"%03d" % draw.randrange(8) * draw.randrange(1, 400)
        decision = router.route(prompt, now, avoid=avoid)
        running.append(decision.ticket)
        slots.append(decision.slot)
    router._check()
    return slots


# -- every policy --


@each
def test_chooses_candidates_only(make: Callable[[], Policy]) -> None:
    router = make_router(make(), instances=6)
    router.set_routable(2, False)
    assert set(drive(router, 300, avoid=(4,))) <= {0, 1, 3, 5}
    assert router.stats()["decisions"]["error"] == 0


@pytest.mark.parametrize("name", POLICIES)
def test_uses_every_instance_under_load(name: str) -> None:
    assert set(drive(make_router(POLICIES[name](), instances=4), 400)) == {0, 1, 2, 3}


@each
def test_takes_the_only_candidate(make: Callable[[], Policy]) -> None:
    assert set(drive(make_router(make(), instances=1), 50)) == {0}


@each
def test_same_seed_same_choices(make: Callable[[], Policy]) -> None:
    runs = [drive(make_router(make(), instances=5, seed=7), 300) for _ in range(2)]
    assert runs[0] == runs[1]


@each
def test_names_of_instances_do_not_matter(make: Callable[[], Policy]) -> None:
    plain, renamed = (make_router(make(), instances=0, seed=7) for _ in range(2))
    for i in range(5):
        plain.add_instance(f"i{i}")
        renamed.add_instance(f"other-{9 - i}")
    assert drive(plain, 300) == drive(renamed, 300)


@each
def test_gives_a_reason(make: Callable[[], Policy]) -> None:
    router = make_router(make(), instances=3)
    drive(router, 100)
    reasons = router.stats()["decisions"]
    assert sum(reasons.values()) == 100 and reasons["error"] == 0


@each
def test_the_largest_fleet_fits(make: Callable[[], Policy]) -> None:
    router = make_router(make(), instances=1024, max_instances=1024, index_bytes=1 << 20)
    assert len(drive(router, 20)) == 20


def test_the_table_names_every_policy_and_documents_it() -> None:
    assert list(POLICIES) == [
        *("round_robin", "random", "least_request", "power_of_two", "least_kv"),
        *("least_prefill_tokens", "least_latency", "throughput", "vllm_dp", "prefix_cache"),
        *("prefix_threshold", "preble", "cache_aware", "llmd_weighted", "llmd_sticky"),
        *("session_affinity", "lmetric", "mooncake", "dynamo", "expected_completion", "lodestar"),
    ]
    for name, policy in POLICIES.items():
        text = inspect.getdoc(policy) or ""
        assert policy.name == name and "Cost:" in text and "Weak when:" in text
        assert policy().version == 0


# -- each heuristic's claim --


def idle_choices(policy: Policy, n: int = 400, instances: int = 4) -> Counter[int]:
    """Where requests go that end before the next one comes."""
    router, slots = make_router(policy, instances=instances), []
    for i in range(n):
        decision = router.route(b"", float(i))
        router.observe(decision.ticket, Event.DONE, float(i))
        slots.append(decision.slot)
    return Counter(slots)


@pytest.mark.parametrize("name", ["random", "least_request", "power_of_two", "lmetric", "lodestar"])
def test_ties_are_broken_at_random(name: str) -> None:
    counts = idle_choices(POLICIES[name]())
    assert len(counts) == 4 and max(counts.values()) < 150


def test_round_robin_goes_on_from_the_last_slot() -> None:
    router = make_router(POLICIES["round_robin"](), instances=4)
    assert [router.route(b"", 0.0).slot for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    router.set_routable(2, False)
    assert [router.route(b"", 0.0).slot for _ in range(3)] == [3, 0, 1]


def test_least_request_evens_out_what_is_in_flight() -> None:
    router = make_router(POLICIES["least_request"](), instances=5)
    slots = [router.route(b"", 0.0).slot for _ in range(50)]
    assert set(Counter(slots).values()) == {10}


def test_power_of_two_never_takes_the_most_loaded() -> None:
    router = make_router(POLICIES["power_of_two"](), instances=3)
    for _ in range(30):
        router.route(b"", 0.0, avoid=(0, 1))
    assert 2 not in {router.route(b"", 0.0).slot for _ in range(20)}


def loaded(policy: Policy, load: dict[int, int]) -> Router:
    """A router whose slots have so many requests in flight, none of them with a prompt."""
    router = make_router(policy, instances=len(load))
    for slot, n in load.items():
        for _ in range(n):
            router.route(b"", 0.0, avoid=set(load) - {slot})
    return router


PROMPT = b"abcdefgh" * 64


def test_prefix_cache_prefers_the_longest_hit() -> None:
    router = loaded(PrefixCache(), {0: 3, 1: 3, 2: 3})
    router.route(PROMPT[:128], 0.0, avoid=(0, 2))
    router.route(PROMPT, 0.0, avoid=(0, 1))
    for slot in (0, 0, 1):  # even again: 5, 5, 4
        router.route(b"", 0.0, avoid={0, 1, 2} - {slot})
    assert router.route(PROMPT, 0.0).slot == 2


def test_prefix_cache_passes_over_a_holder_that_is_busier_than_the_rest() -> None:
    router = loaded(PrefixCache(), {0: 1, 1: 1, 2: 1, 3: 7})
    router.route(PROMPT, 0.0, avoid=(0, 1, 2))
    router.route(PROMPT[:128], 0.0, avoid=(0, 2, 3))
    assert router.route(PROMPT, 0.0).slot == 1  # a shorter hit, within a standard deviation


def test_prefix_cache_balances_when_load_is_apart() -> None:
    router = loaded(PrefixCache(), {0: 0, 1: 6, 2: 9})
    router.route(PROMPT, 0.0, avoid=(0, 2))  # the holder is not too busy itself
    assert router.route(PROMPT, 0.0).slot == 0


def test_lmetric_multiplies_work_ahead_and_batch() -> None:
    for prompt_tokens, slot in ((990, 1), (1010, 0)):
        router = make_router(Lmetric(), instances=2)
        router.route(b"", 0.0, prompt_tokens=1000, avoid=[1])
        for _ in range(3):
            ticket = router.route(b"", 0.0, prompt_tokens=1, avoid=[0]).ticket
            router.observe(ticket, Event.FIRST_TOKEN, 0.0)
        # slot 0: (1000 + p) 2; slot 1: p 4. Equal at p = 1000.
        assert router.route(b"", 0.0, prompt_tokens=prompt_tokens).slot == slot


# -- bad policies --


class Bad(Policy):
    """Does what its argument says."""

    name = "bad"

    def __init__(self, act: Callable[[Candidates], object]) -> None:
        self.act = act

    def pick(self, c: Candidates) -> int:
        return self.act(c)  # type: ignore[return-value]


def fail(c: Candidates) -> int:
    raise RuntimeError("on purpose")


def no_such_reason(c: Candidates) -> int:
    c.reason = len(Reason)
    return 0


def choose(i: int) -> Callable[[Candidates], int]:
    def act(c: Candidates) -> int:
        c.reason = Reason.HEURISTIC
        return i

    return act


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (fail, "RuntimeError: on purpose"),
        (lambda c: 0, "ValueError: bad gave no reason"),
        (no_such_reason, f"ValueError: {len(Reason)} is no Reason"),
        (choose(-1), "IndexError: bad picked -1 of 3"),
        (choose(3), "IndexError: bad picked 3 of 3"),
        (lambda c: None, "TypeError"),
        (lambda c: c.slot(3), "IndexError: candidate 3 of 3"),
        (lambda c: c.feature(0, "nothing"), "KeyError"),
        (lambda c: router_of_test.route(b"", 0.0), "RuntimeError"),
        (lambda c: router_of_test.remove_instance(0), "RuntimeError"),
    ],
)
def test_a_bad_policy_is_overruled(act: Callable[[Candidates], object], text: str) -> None:
    global router_of_test
    router = router_of_test = make_router(Bad(act), instances=3)
    decisions = [router.route(b"", 0.0) for _ in range(9)]
    assert {d.reason for d in decisions} == {Reason.ERROR}
    assert set(Counter(d.slot for d in decisions).values()) == {3}  # fewest requests in flight
    assert router.stats()["policy_error"].startswith(text)
    router._check()


def test_a_policy_whose_version_makes_no_sense_is_a_bad_one() -> None:
    class Negative(Bad):
        version = -1

    def predict(c: Candidates) -> int:
        c.reason, c.predicted = Reason.LEARNED, 0.5
        return 0

    router = make_router(Negative(predict), instances=2)
    assert router.route(b"", 0.0).reason == Reason.ERROR
    assert router.stats()["policy_error"].startswith("OverflowError")


def test_an_abstract_policy_is_a_bad_one() -> None:
    router = make_router(Policy(), instances=2)
    assert router.route(b"", 0.0).reason == Reason.ERROR
    assert router.stats()["policy_error"] == "NotImplementedError: Policy.pick"


def test_interrupts_are_not_swallowed_and_leave_the_router_usable() -> None:
    def interrupt(c: Candidates) -> int:
        raise KeyboardInterrupt

    router = make_router(Bad(interrupt), instances=2)
    with pytest.raises(KeyboardInterrupt):
        router.route(b"", 0.0)
    router.policy = Lmetric()
    assert router.route(b"", 0.0).reason == Reason.HEURISTIC
    assert router.stats()["tickets_open"] == 1


def test_candidates_are_worthless_outside_pick() -> None:
    kept: list[Candidates] = []

    def keep(c: Candidates) -> int:
        kept.append(c)
        c.reason = Reason.HEURISTIC
        assert c.reason == Reason.HEURISTIC and c.prompt_tokens == 1
        assert c.waiting(0) == c.inflight(0) == 0 and 0 <= c.random() < 1
        return 0

    make_router(Bad(keep), instances=2).route(b"", 0.0)
    for use in (kept[0].random, lambda: kept[0].slot(0), lambda: Lmetric().pick(kept[0])):
        with pytest.raises(RuntimeError, match="only inside pick"):
            use()
    assert kept[0].n == 0


def test_predictions_that_are_no_number_count_as_none() -> None:
    def predict(c: Candidates) -> int:
        c.reason, c.predicted = Reason.LEARNED, float("inf")
        return 0

    router = make_router(Bad(predict), instances=2)
    assert np.isnan(router.route(b"", 0.0).predicted)
    assert sum(router.stats()["predicted_ttft"][1]) == 0
