"""The router: counters through a request's life, samples, what it believes, what it refuses."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lodestar_fast import features
from lodestar_fast.core import Decision, Event, Reason, Router
from lodestar_fast.core.policies import LeastRequest, Lodestar
from lodestar_fast.core.view import RouterView
from lodestar_fast.errors import NoInstanceError
from tests.oracle import Fixed, Model, Spy, make_router

PROMPT = b"0123456789abcdef" * 64  # 1024 bytes: 16 blocks, 256 tokens


def samples(router: Router) -> Any:
    """What drain() gives, as a structured array."""
    batch = router.drain()
    if not batch:
        return np.empty(0, features.sample_dtype())
    magic, format_, schema, n, size = struct.unpack_from("<IIQII", batch)
    assert (magic, format_, schema) == (0x4C53534D, 2, features.SCHEMA_HASH)
    assert size == features.sample_dtype().itemsize and len(batch) == 24 + n * size
    return np.frombuffer(batch, features.sample_dtype(), offset=24)


# -- a request's life --


def test_counters_follow_a_streamed_request() -> None:
    router = make_router(instances=1)
    ticket = router.route(PROMPT, 1.0).ticket
    state = router.instance(0)
    assert (state["inflight"], state["prefill_requests"], state["decode_requests"]) == (1, 1, 0)
    assert state["prefill_own_tokens"] == state["prefill_prompt_tokens"] == 256
    router.observe(ticket, Event.FIRST_TOKEN, 1.5)
    state = router.instance(0)
    assert (state["inflight"], state["prefill_requests"], state["decode_requests"]) == (1, 0, 1)
    assert (state["prefill_own_tokens"], state["decode_context_tokens"]) == (0, 256)
    router.observe(ticket, Event.TOKENS, 1.6, tokens=3)
    assert router.instance(0)["decode_context_tokens"] == 259
    router.observe(ticket, Event.DONE, 2.0, tokens=10)
    state = router.instance(0)
    assert (state["inflight"], state["decode_context_tokens"], state["done"]) == (0, 0, 1)
    router._check()


def test_a_request_that_is_not_streamed_waits_until_its_end() -> None:
    router = make_router(instances=1)
    ticket = router.route(PROMPT, 1.0, streaming=False).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 1.5)
    assert router.stats()["observes_ignored"] == 1
    assert router.instance(0)["prefill_requests"] == 1
    router.observe(ticket, Event.DONE, 3.0, tokens=5)
    assert router.instance(0)["inflight"] == router.instance(0)["speed_labels"] == 0
    (row,) = samples(router)
    assert np.isnan(row["ttft"]) and row["e2e"] == 2.0 and row["output_tokens"] == 5


def test_it_leaves_prefill_when_its_time_is_up_or_a_later_one_has_begun() -> None:
    router = make_router(instances=1)
    first = router.route(PROMPT, 1.0, streaming=False).ticket
    router.route(PROMPT, 1.01, streaming=False)  # behind 256 tokens of 0.12 ms each
    assert router.instance(0)["prefill_requests"] == 2
    router.route(b"", 1.06, 1)  # 20 ms idle and 31 ms of computing have passed
    assert (router.instance(0)["prefill_requests"], router.instance(0)["decode_requests"]) == (2, 1)
    later = router.route(b"", 1.06, 1).ticket
    router.observe(later, Event.FIRST_TOKEN, 1.07)
    assert router.instance(0)["prefill_requests"] == 1  # streamed ones say so themselves
    assert router.instance(0)["decode_context_tokens"] == 256 + 256 + 1
    router.observe(first, Event.DONE, 2.0, tokens=5)
    assert router.instance(0)["decode_requests"] == 2
    rows = samples(router)
    assert np.isnan(rows["tpot"][-1]) and np.isnan(rows["ttft"][-1])
    router._check()


def test_tokens_that_come_with_the_first_are_no_interval() -> None:
    router = make_router(instances=1)
    ticket = router.route(PROMPT, 1.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 1.5)
    router.observe(ticket, Event.TOKENS, 1.5, tokens=3)
    assert router.ring(0, "inter_token") == []
    router.observe(ticket, Event.TOKENS, 1.75, tokens=1)
    assert router.ring(0, "inter_token") == [0.25]


@pytest.mark.parametrize("event", [Event.DONE, Event.FAILED, Event.ABANDONED, Event.TIMEOUT])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_final_event_closes_the_ticket(event: Event, streamed: bool) -> None:
    router = make_router(instances=1)
    ticket = router.route(PROMPT, 1.0).ticket
    if streamed:
        router.observe(ticket, Event.FIRST_TOKEN, 1.5)
    router.observe(ticket, event, 2.0)
    assert router.instance(0)["inflight"] == router.stats()["tickets_open"] == 0
    assert router.instance(0)[event.name.lower()] == 1
    for late in Event:
        router.observe(ticket, late, 3.0, tokens=1)
    assert router.stats()["observes_ignored"] == len(Event)
    router._check()


@pytest.mark.parametrize("ticket", [0, -1, 1, 1 << 32, (1 << 32) + 99, (1 << 62) + 1])
def test_tickets_that_never_were_are_ignored(ticket: int) -> None:
    router = make_router()
    router.observe(ticket, Event.DONE, 1.0)
    assert router.stats()["observes_ignored"] == 1


def test_nonsense_is_ignored_and_counted() -> None:
    router = make_router(instances=1)
    ticket = router.route(PROMPT, 1.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, math.nan)
    assert router.instance(0)["prefill_requests"] == 1
    router.observe(ticket, Event.FIRST_TOKEN, 1.2)
    before = router.instance(0)["decode_context_tokens"]
    router.observe(ticket, Event.TOKENS, 1.5, tokens=-1)
    router.observe(ticket, Event.TOKENS, 1.5, tokens=10**12)
    router.observe(ticket, Event.TOKENS, 1.5, tokens=0)
    router.observe(ticket, Event.USAGE, 1.5, tokens=0, cached=5)
    router.observe(ticket, Event.USAGE, 1.5, tokens=10**12)
    router.observe(ticket, 99, 1.5)  # type: ignore[arg-type]
    assert router.stats()["observes_ignored"] == 7
    assert router.instance(0)["decode_context_tokens"] == before
    router._check()


def test_a_full_table_routes_without_tracking() -> None:
    router = make_router(instances=1, max_tickets=2)
    tickets = [router.route(PROMPT, 1.0).ticket for _ in range(4)]
    assert tickets[2:] == [0, 0] and 0 not in tickets[:2]
    assert router.stats()["tickets_full"] == 2
    assert router.instance(0)["inflight"] == 2
    router.observe(tickets[0], Event.DONE, 2.0)
    again = router.route(PROMPT, 2.0).ticket
    assert again not in (0, *tickets)
    router._check()


def test_removing_an_instance_with_open_tickets_is_safe() -> None:
    router = make_router(instances=2)
    waiting, decoding = (router.route(PROMPT, 1.0).ticket for _ in range(2))
    router.observe(decoding, Event.FIRST_TOKEN, 1.5)
    router.remove_instance(0)
    assert router.slots() == [1]
    assert router.add_instance("next") == 0
    for ticket in (waiting, decoding):
        router.observe(ticket, Event.FIRST_TOKEN, 2.0)
        router.observe(ticket, Event.TOKENS, 2.0, tokens=5)
        router.observe(ticket, Event.DONE, 3.0)
    state = router.instance(0)
    assert state["inflight"] == state["decode_context_tokens"] == state["done"] == 0
    assert router.stats()["tickets_open"] == 0
    router._check()


class Life(RuleBasedStateMachine):
    """Any order of events, removals and additions keeps every counter the sum of what is open."""

    @initialize(tickets=st.integers(1, 20))
    def start(self, tickets: int) -> None:
        self.router = make_router(LeastRequest(), 3, max_tickets=tickets, max_samples=16)
        self.now, self.tickets = 0.0, [0]

    @rule(size=st.integers(0, 2000), streaming=st.booleans(), gap=st.floats(-1, 1))
    def route(self, size: int, streaming: bool, gap: float) -> None:
        self.now += gap
        if self.router.slots():
            decision = self.router.route(b"x" * size, self.now, streaming=streaming)
            self.tickets.append(decision.ticket)

    @rule(pick=st.integers(0), event=st.sampled_from(Event), tokens=st.integers(-1, 50))
    def observe(self, pick: int, event: Event, tokens: int) -> None:
        ticket = self.tickets[pick % len(self.tickets)]
        self.router.observe(ticket, event, self.now, tokens, cached=tokens)

    @rule(pick=st.integers(0))
    def remove(self, pick: int) -> None:
        if slots := self.router.slots():
            self.router.remove_instance(slots[pick % len(slots)])

    @rule()
    def add(self) -> None:
        self.router.add_instance("again")

    @rule()
    def drain(self) -> None:
        assert np.isfinite(samples(self.router)["x"]).all()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "router"):
            self.router._check()

    def teardown(self) -> None:
        for ticket in getattr(self, "tickets", []):
            self.router.observe(ticket, Event.ABANDONED, self.now)
        if hasattr(self, "router"):
            assert self.router.stats()["tickets_open"] == 0
            assert all(self.router.instance(i)["inflight"] == 0 for i in self.router.slots())


TestLife: Any = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


# -- samples --


def test_a_streamed_request_makes_two_samples_with_the_row_that_decided() -> None:
    spy = Spy()
    router = make_router(spy, instances=1)
    ticket = router.route(PROMPT, 1.0).ticket
    row = list(spy.seen[0].values())
    router.observe(ticket, Event.FIRST_TOKEN, 1.5)
    router.observe(ticket, Event.USAGE, 1.6, tokens=250, cached=32)
    router.observe(ticket, Event.DONE, 3.5, tokens=5)
    first, last = samples(router)
    assert first["x"].tolist() == last["x"].tolist() == row
    assert (first["event"], first["ttft"], first["dispatched"]) == (Event.FIRST_TOKEN, 0.5, 1.0)
    assert np.isnan(first["e2e"]) and np.isnan(first["tpot"]) and np.isnan(first["predicted"])
    assert first["cached_tokens"] == 0xFFFFFFFF and first["prompt_tokens"] == 256
    assert (last["event"], last["e2e"], last["tpot"]) == (Event.DONE, 2.5, 0.5)
    assert np.isnan(last["ttft"])
    assert (last["cached_tokens"], last["prompt_tokens"], last["output_tokens"]) == (32, 250, 5)
    assert np.isnan(first["propensity"]) and first["reason"] == Reason.HEURISTIC
    assert router.drain() == b""


@pytest.mark.parametrize("event", [Event.FAILED, Event.ABANDONED, Event.TIMEOUT])
def test_an_end_before_the_first_token_is_a_censored_sample(event: Event) -> None:
    router = make_router(instances=1)
    router.observe(router.route(PROMPT, 1.0).ticket, event, 4.0)
    (row,) = samples(router)
    assert (row["event"], row["ttft"], row["e2e"]) == (event, 3.0, 3.0)


def test_old_samples_give_way_and_are_counted() -> None:
    router = make_router(instances=1, max_samples=3)
    for i in range(5):
        router.observe(router.route(PROMPT, float(i)).ticket, Event.DONE, float(i))
    stats = router.stats()
    assert (stats["samples"], stats["samples_dropped"], stats["samples_waiting"]) == (5, 2, 3)
    assert samples(router)["dispatched"].tolist() == [2, 3, 4]
    router.observe(router.route(PROMPT, 9.0).ticket, Event.DONE, 9.0)
    assert samples(router)["dispatched"].tolist() == [9]


def test_samples_and_histograms_carry_the_prediction() -> None:
    policy = Lodestar()
    model = Model(None, version=7)
    model.linear[:] = 0
    model.linear[features.INDEX["base"]] = 0.25
    policy.load(model.blob())
    router = make_router(policy, instances=1)
    decision = router.route(PROMPT, 1.0)
    assert (decision.predicted, decision.reason) == (0.25, Reason.ONLY_ONE)
    router.observe(decision.ticket, Event.FIRST_TOKEN, 1.75)
    (row,) = samples(router)
    assert (row["predicted"], row["weights_version"]) == (0.25, 7)
    stats = router.stats()
    assert sum(stats["predicted_ttft"][1]) == sum(stats["prediction_error"][1]) == 1
    assert stats["predicted_ttft"][2] == 0.25 and stats["prediction_error"][2] == 0.5
    assert router.instance(0)["ttft"][2] == 0.75
    bounds, counts, _ = router.instance(0)["ttft"]
    assert counts[bounds.index(1.0)] == 1 and len(counts) == len(bounds) + 1


def test_a_bucket_includes_its_bound() -> None:
    router = make_router(instances=1)
    router.observe(router.route(PROMPT, 1.0).ticket, Event.FIRST_TOKEN, 1.5)
    bounds, counts, _ = router.instance(0)["ttft"]
    assert counts[bounds.index(0.5)] == 1


# -- refusals --


@pytest.mark.parametrize(
    "options",
    [
        {"block_bytes": 15},
        {"index_bytes": 100},
        {"ring": 0},
        {"max_instances": 0},
        {"max_instances": 1025},
        {"max_tickets": 0},
        {"max_samples": -1},
    ],
    ids=str,
)
def test_sizes_out_of_range_name_themselves(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Router(Fixed(), **options)  # type: ignore[arg-type]


def test_a_router_needs_a_policy() -> None:
    with pytest.raises(TypeError):
        Router(None)  # type: ignore[arg-type]
    router = make_router()
    with pytest.raises(TypeError):
        router.policy = "random"  # type: ignore[assignment]
    router.policy = LeastRequest()
    assert router.stats()["policy"] == "least_request"


@pytest.mark.parametrize("slot", [-1, 3, 10**6])
def test_unknown_slots_are_refused(slot: int) -> None:
    router = make_router(instances=3)
    for call in (router.remove_instance, router.forget_prefixes, router.instance):
        with pytest.raises(ValueError, match="slot"):
            call(slot)
    with pytest.raises(ValueError, match="slot"):
        router.set_routable(slot, True)
    with pytest.raises(ValueError, match="slot"):
        router.configure_instance(slot, kv_tokens=1, prefix_caching=True)


def test_slots_are_taken_up_to_the_cap_and_used_again() -> None:
    router = make_router(instances=2, max_instances=2)
    with pytest.raises(ValueError, match="max_instances"):
        router.add_instance("one more")
    router.remove_instance(0)
    assert router.add_instance("again") == 0


def test_routing_needs_an_instance() -> None:
    router = make_router(LeastRequest(), instances=0)
    with pytest.raises(NoInstanceError):
        router.route(PROMPT, 1.0)
    router.add_instance("a")
    router.add_instance("b")
    assert router.route(PROMPT, 1.0, avoid=[0]).slot == 1
    assert router.route(PROMPT, 1.0, avoid={1, 77, -5}).slot == 0
    with pytest.raises(NoInstanceError):
        router.route(PROMPT, 1.0, avoid=(0, 1))
    router.set_routable(0, False)
    assert router.route(PROMPT, 1.0).slot == 1
    with pytest.raises(NoInstanceError):
        router.route(PROMPT, 1.0, avoid=[1])
    router.set_routable(0, True)
    assert router.route(PROMPT, 1.0, avoid=[1]).slot == 0


def test_bad_arguments_of_route_change_nothing() -> None:
    router = make_router(LeastRequest(), instances=1)
    with pytest.raises(ValueError, match="now"):
        router.route(PROMPT, math.inf)
    with pytest.raises(ValueError, match="prompt_tokens"):
        router.route(PROMPT, 1.0, prompt_tokens=-1)
    for prompt, seed in (("text", b""), (PROMPT, "text"), (None, b"")):
        with pytest.raises((TypeError, BufferError)):
            router.route(prompt, 1.0, seed=seed)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        router.route(PROMPT, 1.0, avoid=[0, "b"])  # type: ignore[list-item]
    assert router.route(PROMPT, 1.0).slot == 0
    assert router.stats()["tickets_open"] == 1


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_prompts_are_any_buffer(kind: Any) -> None:
    router = make_router(instances=1)
    router.route(PROMPT, 1.0, seed=b"s")
    assert router.route(kind(PROMPT), 1.0, seed=kind(b"s")).hit_blocks == 16


def test_buffers_are_let_go() -> None:
    router, prompt, seed = make_router(instances=1), bytearray(PROMPT), bytearray(b"s")
    router.route(prompt, 1.0, seed=seed)
    with pytest.raises(TypeError):
        router.route(prompt, 1.0, seed="text")  # type: ignore[arg-type]
    prompt.append(1)  # BufferError if someone still held them
    seed.append(1)


def test_decisions_come_from_route_only() -> None:
    with pytest.raises(TypeError):
        Decision()
    decision = make_router().route(PROMPT, 1.0)
    with pytest.raises(AttributeError):
        decision.slot = 1  # type: ignore[misc]
    assert "slot=0" in repr(decision) and "HEURISTIC" in repr(decision)


def test_a_view_is_only_the_reading_half_of_a_router() -> None:
    with pytest.raises(TypeError, match="only a Router"):
        RouterView()
