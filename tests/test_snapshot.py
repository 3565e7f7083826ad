"""The prefix index as bytes, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar_fast.core import Router
from lodestar_fast.core.snapshot import Restore, Snapshot
from tests.oracle import Fixed, make_router
from tests.test_radix import dispatch, prompts, text

BLOCK = 16


def records(router: Router, room: int = 1 << 14) -> bytes:
    taken, parts = Snapshot(router), []
    while not taken.done:
        parts.append(taken.slice(room))
    return b"".join(parts)


def give_back(data: bytes, router: Router, slots: dict[int, int], blocks: int = 4096) -> None:
    restore = Restore(data)
    while restore.step(router, slots, blocks):
        router._check()
    router._check()


@settings(max_examples=60, deadline=None)
@given(
    entered=st.lists(st.tuples(st.integers(0, 2), prompts), max_size=12),
    forgotten=st.sets(st.integers(0, 2), max_size=1),
    blocks=st.integers(1, 50),
    kv_tokens=st.sampled_from([0, 160]),
)
def test_what_comes_back_is_what_was_there(
    entered: list[tuple[int, list[int]]], forgotten: set[int], blocks: int, kv_tokens: int
) -> None:
    old = make_router(Fixed(), block_bytes=BLOCK, kv_tokens=kv_tokens)
    for slot, prompt in entered:
        dispatch(old, slot, text(prompt))
    for slot in forgotten:
        old.forget_prefixes(slot)
    new = make_router(Fixed(), block_bytes=BLOCK, kv_tokens=kv_tokens)
    turned = {0: 2, 1: 0, 2: 1}  # the same engines, on other slots
    give_back(records(old), new, turned, blocks)
    for _, prompt in entered:
        hits = old._match(text(prompt))
        assert new._match(text(prompt)) == {turned[slot]: n for slot, n in hits.items()}
    for was, now in turned.items():
        there = old.instance(was)["prefix_blocks"]
        assert new.instance(now)["prefix_blocks"] == there


def test_the_order_of_use_comes_back_too() -> None:
    old, new = (make_router(Fixed(), 1, block_bytes=BLOCK, kv_tokens=40) for _ in range(2))
    for prompt in (b"a" * 64, b"b" * 64, b"a" * 64):
        dispatch(old, 0, prompt)
    give_back(records(old), new, {0: 0})
    dispatch(new, 0, b"c" * 64)  # takes the place of what was used least recently
    assert new._match(b"a" * 64) == {0: 4}
    assert new._match(b"b" * 64) == {0: 2}


def test_engines_that_are_not_named_get_nothing() -> None:
    old, new = make_router(Fixed(), block_bytes=BLOCK), make_router(Fixed(), block_bytes=BLOCK)
    for slot in range(3):
        dispatch(old, slot, b"a" * 64)
    give_back(records(old), new, {1: 1})
    assert new._match(b"a" * 64) == {1: 4}
    new.configure_instance(2, kv_tokens=0, prefix_caching=False)
    give_back(records(old), new, {2: 2})
    assert new._match(b"a" * 64) == {1: 4}
    with pytest.raises(ValueError, match="slot"):
        Restore(records(old)).step(new, {0: 7})


def test_a_router_with_less_room_takes_the_most_recent() -> None:
    old = make_router(Fixed(), 1, block_bytes=BLOCK)
    for i in range(200):
        dispatch(old, 0, b"%4d" % i * 64)
    new = make_router(Fixed(), 1, block_bytes=BLOCK, index_bytes=8000)
    give_back(records(old), new, {0: 0})
    assert new._match(b" 199" * 64) == {0: 16}
    assert new._match(b"   1" * 64) == {}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_records_are_refused_or_harmless(data: st.DataObject) -> None:
    old, new = make_router(Fixed(), block_bytes=BLOCK), make_router(Fixed(), block_bytes=BLOCK)
    for slot, prompt in ((0, b"a" * 600), (1, b"a" * 300 + b"b" * 300), (2, b"a" * 900)):
        dispatch(old, slot, prompt)
    whole = bytearray(records(old))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        give_back(bytes(whole[:cut]), new, {0: 0, 1: 1, 2: 2})
    except ValueError:
        assert not new._match(b"a" * 600)


def test_arguments() -> None:
    router = make_router()
    with pytest.raises(ValueError, match="room"):
        Snapshot(router).slice(100)
    assert records(router) == b""
    assert Restore(b"").step(router, {0: 0}) == 0
    with pytest.raises(ValueError, match="records"):
        Restore(b"x" * 40)
