"""The prefix index by itself, all its operations, against its oracle: same hits, same paths, same
evictions, whatever the order.

What a router does with them is in test_radix.py and test_truth.py; many more steps, under
sanitizers and without a model this exact, in csrc_fuzz_index.c.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests import index_oracle

CSRC = Path(__file__).parent.parent / "csrc"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
SLOTS = 3


class CPath(ctypes.Structure):
    """struct ls_path."""

    _fields_ = [("tail", c_uint64), ("node", c_uint32), ("blocks", c_uint32)]
    _fields_ += [("stamp", c_uint32), ("before", c_uint32), ("turned", c_uint64)]


class CHit(ctypes.Structure):
    """struct ls_hit."""

    _fields_ = [("blocks", c_uint32), ("stamp", c_uint32)]


class CStats(ctypes.Structure):
    """struct ls_index_stats."""

    _fields_ = [("budget_bytes", c_size_t), ("used_bytes", c_size_t), ("nodes", c_uint32)]
    _fields_ += [("holdings", c_uint32), ("max_nodes", c_uint32), ("max_holdings", c_uint32)]
    _fields_ += [("evictions", c_uint64)]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "new": (c_void_p, [c_size_t, c_uint32]),
    "free": (None, [c_void_p]),
    "match": (c_uint32, [c_void_p, POINTER(c_uint64), c_uint32, POINTER(CHit)]),
    "insert": (None, [c_void_p, c_uint32, POINTER(c_uint64), c_uint32, c_uint64]),
    "path": (CPath, [c_void_p]),
    "release": (None, [c_void_p, c_uint32, POINTER(CPath), c_uint64]),
    "spend": (None, [c_void_p, c_uint32, c_uint64, c_uint64]),
    "withdraw": (None, [c_void_p, c_uint32, POINTER(CPath), c_uint32]),
    "outlive": (None, [c_void_p, c_uint32, c_uint32]),
    "forget": (None, [c_void_p, c_uint32]),
    "blocks": (c_uint64, [c_void_p, c_uint32]),
    "stats": (None, [c_void_p, POINTER(CStats)]),
    "check": (c_int, [c_void_p]),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    """The functions ls_index_*, by the rest of their names."""
    if CC is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("index") / "index.so"
    sources = [str(CSRC / "radix.c"), str(CSRC / "truth.c")]
    subprocess.run(
        [CC, "-std=c11", "-O1", "-shared", "-fPIC", *sources, "-o", str(path)], check=True
    )
    library, functions = ctypes.CDLL(str(path)), {}
    for name, (result, arguments) in SIGNATURES.items():
        function = functions[name] = getattr(library, f"ls_index_{name}")
        function.restype, function.argtypes = result, arguments
    return functions


# Few distinct blocks and long equal stretches: prompts share ways, fork, and grow.
prompts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20)), max_size=6).map(
    lambda parts: bytes(block for block, count in parts for _ in range(count))
)
slots = st.integers(0, SLOTS - 1)
which = st.integers(0, 1000)  # of the running ones, modulo how many there are


def chained(prompt: bytes) -> list[int]:
    """A name for each prefix; few distinct upper halves, so that the table has clusters."""
    digests = (blake2b(prompt[: i + 1], digest_size=5).digest() for i in range(len(prompt)))
    return [d[0] % 8 << 32 | int.from_bytes(d[1:], "big") for d in digests]


class Operations(RuleBasedStateMachine):
    """Any sequence of operations; after each, the books of both are the same."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.functions, self.ix = functions, None
        self.running: list[tuple[int, CPath, index_oracle.Path, int]] = []

    @initialize(
        budget=st.sampled_from([4096, 8000, 1 << 20]), capacity=st.sampled_from([0, 10, 40, 200])
    )
    def start(self, budget: int, capacity: int) -> None:
        self.ix = self.functions["new"](budget, SLOTS)
        self.budget, self.capacity = budget, capacity
        stats = self.stats()
        self.oracle = index_oracle.PrefixIndex(stats.max_nodes, stats.max_holdings)

    def call(self, name: str, *args: Any) -> Any:
        return self.functions[name](self.ix, *args)

    def stats(self) -> CStats:
        stats = CStats()
        self.call("stats", byref(stats))
        return stats

    @rule(slot=slots, prompt=prompts)
    def insert(self, slot: int, prompt: bytes) -> None:
        hashes = chained(prompt)
        hit, _ = self.oracle.match(hashes).get(slot, (0, 0))
        self.call("insert", slot, (c_uint64 * len(hashes))(*hashes), len(hashes), self.capacity)
        path, expected = self.call("path"), self.oracle.insert(slot, hashes, self.capacity)
        for name, _ in CPath._fields_:
            assert getattr(path, name) == getattr(expected, name), name
        self.running.append((slot, path, expected, hit))

    @rule(prompt=prompts)
    def match(self, prompt: bytes) -> None:
        hashes, hits = chained(prompt), (CHit * SLOTS)()
        self.call("match", (c_uint64 * len(hashes))(*hashes), len(hashes), hits)
        found = {slot: (hit.blocks, hit.stamp) for slot, hit in enumerate(hits) if hit.blocks}
        assert found == self.oracle.match(hashes)

    @precondition(lambda self: self.running)
    @rule(which=which, computed=st.booleans())
    def end(self, which: int, computed: bool) -> None:
        """As a request does: once, and if it never was computed, what it brought is taken back."""
        slot, path, expected, hit = self.running.pop(which % len(self.running))
        if not computed:
            self.call("withdraw", slot, byref(path), hit)
            self.oracle.withdraw(slot, expected, hit)
        self.call("release", slot, byref(path), self.capacity)
        self.oracle.release(slot, expected, self.capacity)

    @precondition(lambda self: self.running)
    @rule(which=which)
    def outlive(self, which: int) -> None:
        slot, path, _, _ = self.running[which % len(self.running)]
        self.call("outlive", slot, path.before)
        self.oracle.outlive(slot, path.before)

    @precondition(lambda self: self.capacity)
    @rule(slot=slots, blocks=st.integers(0, 60))
    def spend(self, slot: int, blocks: int) -> None:
        self.call("spend", slot, blocks, self.capacity)
        self.oracle.spend(slot, blocks, self.capacity)

    @rule(slot=slots)
    def forget(self, slot: int) -> None:
        self.call("forget", slot)
        self.oracle.forget(slot)

    @invariant()
    def books_agree(self) -> None:
        if self.ix is None:
            return
        stats = self.stats()
        assert self.call("check") == 0
        assert stats.used_bytes <= stats.budget_bytes <= self.budget
        assert (stats.nodes, stats.holdings, stats.evictions) == (
            len(self.oracle.runs),
            self.oracle.holdings,
            self.oracle.evictions,
        )
        for slot in range(SLOTS):
            assert self.call("blocks", slot) == self.oracle.blocks(slot)

    def teardown(self) -> None:
        self.call("free")


def test_any_order_of_operations_agrees_with_the_oracle(
    index: dict[str, Callable[..., Any]],
) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Operations(index),
        settings=settings(max_examples=80, stateful_step_count=40, deadline=None),
    )
