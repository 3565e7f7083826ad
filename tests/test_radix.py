"""The prefix index against its oracle, and what it promises by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lodestar_fast.core import Event, Router
from tests.index_oracle import PrefixIndex
from tests.oracle import Fixed, make_router

BLOCK = 16
SLOTS = 4


def text(blocks: list[int]) -> bytes:
    return b"".join(bytes([65 + b]) * BLOCK for b in blocks)


# Few distinct blocks and long equal stretches: prompts share ways, fork, and grow.
prompts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20)), min_size=0, max_size=6).map(
    lambda parts: [block for block, count in parts for _ in range(count)]
)


class Agreement(RuleBasedStateMachine):
    """Any sequence of inserts and forgets: same hits and holdings as the oracle."""

    @initialize(
        index_bytes=st.sampled_from([4096, 8000, 20_000, 1 << 20]),
        kv_tokens=st.sampled_from([0, 40, 200]),
    )
    def start(self, index_bytes: int, kv_tokens: int) -> None:
        self.router = make_router(
            Fixed(), SLOTS, block_bytes=BLOCK, index_bytes=index_bytes, kv_tokens=kv_tokens
        )
        stats = self.router.stats()
        self.oracle = PrefixIndex(stats["index_nodes"][1], stats["index_holdings"][1])
        self.capacity = kv_tokens * 4 // BLOCK
        self.budget = index_bytes

    @rule(slot=st.integers(0, SLOTS - 1), prompt=prompts)
    def insert(self, slot: int, prompt: list[int]) -> None:
        hashes = self.router._hash(text(prompt))
        dispatch(self.router, slot, text(prompt))
        if 0 < self.capacity < len(hashes):
            return  # refused by the engine: never there
        path = self.oracle.insert(slot, hashes, self.capacity)
        self.oracle.release(slot, path, self.capacity)

    @rule(prompt=prompts)
    def match(self, prompt: list[int]) -> None:
        hashes = self.router._hash(text(prompt))
        hits = {slot: blocks for slot, (blocks, _) in self.oracle.match(hashes).items()}
        assert self.router._match(text(prompt)) == hits

    @rule(slot=st.integers(0, SLOTS - 1))
    @precondition(lambda self: self.oracle.runs)
    def forget(self, slot: int) -> None:
        self.router.forget_prefixes(slot)
        self.oracle.forget(slot)

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "router"):
            return
        self.router._check()
        stats = self.router.stats()
        assert stats["index_nodes"][0] == len(self.oracle.runs)
        assert stats["index_holdings"][0] == self.oracle.holdings
        assert stats["index_bytes"] <= stats["index_budget_bytes"] <= self.budget
        for slot in range(SLOTS):
            assert self.router.instance(slot)["prefix_blocks"] == self.oracle.blocks(slot)


TestAgreement: Any = Agreement.TestCase
TestAgreement.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def dispatch(router: Router, slot: int, prompt: bytes, seed: bytes = b"") -> None:
    policy = router.policy
    assert isinstance(policy, Fixed)
    policy.want = slot
    ticket = router.route(prompt, 1.0, seed=seed).ticket
    router.observe(ticket, Event.DONE, 1.0)


def test_hits_are_whole_blocks_of_the_longest_shared_prefix() -> None:
    router = make_router(block_bytes=BLOCK)
    dispatch(router, 0, b"x" * 100)
    dispatch(router, 1, b"x" * 40 + b"y" * 60)
    assert router._match(b"x" * 100) == {0: 6, 1: 2}
    assert router._match(b"x" * 47) == {0: 2, 1: 2}
    assert router._match(b"x" * 15) == {}


def test_another_seed_is_another_prefix() -> None:
    router = make_router(block_bytes=BLOCK)
    dispatch(router, 0, b"x" * 64, seed=b"model-a")
    assert router._match(b"x" * 64, b"model-a") == {0: 4}
    assert router._match(b"x" * 64, b"model-b") == {}
    assert router._match(b"x" * 64) == {}


def test_hashes_depend_on_the_key_and_on_every_byte_before() -> None:
    one, other = make_router(seed=1, block_bytes=BLOCK), make_router(seed=2, block_bytes=BLOCK)
    plain = one._hash(b"abcd" * 16)
    assert plain == one._hash(b"abcd" * 16 + b"tail")
    assert set(plain).isdisjoint(other._hash(b"abcd" * 16))
    changed = one._hash(b"abcd" * 8 + b"X" + b"abcd" * 8)
    assert changed[:2] == plain[:2]
    assert set(changed[2:]).isdisjoint(plain)


def test_seeds_of_any_length_differ() -> None:
    router = make_router(block_bytes=BLOCK)
    seeds = [bytes(n) for n in range(40)]
    assert len({tuple(router._hash(b"x" * 32, seed)) for seed in seeds}) == len(seeds)


def test_capacity_keeps_the_front_of_what_came_last() -> None:
    router = make_router(block_bytes=BLOCK, kv_tokens=40)  # 40 tokens of 4 bytes: 10 blocks
    dispatch(router, 0, b"a" * BLOCK * 8)
    dispatch(router, 0, b"b" * BLOCK * 6)
    assert router._match(b"a" * BLOCK * 8) == {0: 4}
    assert router._match(b"b" * BLOCK * 6) == {0: 6}
    dispatch(router, 0, b"c" * BLOCK * 10)
    assert router._match(b"c" * BLOCK * 10) == {0: 10}
    assert router._match(b"b" * BLOCK * 6) == {}


def test_an_engine_without_prefix_caching_holds_nothing() -> None:
    router = make_router(block_bytes=BLOCK)
    dispatch(router, 0, b"x" * 64)
    router.configure_instance(0, kv_tokens=0, prefix_caching=False)
    assert router._match(b"x" * 64) == {}
    dispatch(router, 0, b"x" * 64)
    assert router._match(b"x" * 64) == {}
    router.configure_instance(0, kv_tokens=0, prefix_caching=True)
    dispatch(router, 0, b"x" * 64)
    assert router._match(b"x" * 64) == {0: 4}


def test_removed_instances_leave_nothing_behind() -> None:
    router = make_router(block_bytes=BLOCK, instances=2)
    for slot in (0, 1):
        dispatch(router, slot, b"x" * 640)
    router.remove_instance(0)
    assert router._match(b"x" * 640) == {1: 40}
    router.remove_instance(1)
    assert router.stats()["index_nodes"][0] == router.stats()["index_holdings"][0] == 0


@pytest.mark.parametrize("index_bytes", [4096, 5000, 100_000, 1 << 20])
def test_the_budget_is_never_exceeded(index_bytes: int) -> None:
    router = make_router(block_bytes=BLOCK, index_bytes=index_bytes)
    for i in range(400):
        dispatch(router, i % 3, b"%08d" % i * 200)
        stats = router.stats()
        assert stats["index_bytes"] <= stats["index_budget_bytes"] <= index_bytes
    assert stats["index_evictions"] > 0 or index_bytes == 1 << 20
    router._check()


def test_a_prompt_longer_than_the_whole_budget_is_entered_from_its_front() -> None:
    router = make_router(block_bytes=BLOCK, index_bytes=4096)
    prompt = b"".join(b"%016d" % i for i in range(2000))
    dispatch(router, 0, prompt)
    hit = router._match(prompt)[0]
    assert hit == 16 * router.stats()["index_nodes"][1]
    router._check()


def test_blocks_beyond_the_cap_are_not_indexed() -> None:
    router = make_router(block_bytes=BLOCK, index_bytes=64 << 20)
    prompt = b"x" * (BLOCK * 65536 + 1000)
    dispatch(router, 0, prompt)
    assert router._match(prompt) == {0: 65536}
