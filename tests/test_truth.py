"""What corrects the prefix index: answers, failures, what engines say they found."""

from __future__ import annotations

import pytest

from lodestar_fast.core import Event, Router
from tests.oracle import Fixed, make_router

BLOCK = 16


def send(router: Router, prompt: bytes, *, answered: int = 0, cached: int = -1) -> None:
    """A request from dispatch to end: tokens answered, prompt tokens that were cached."""
    ticket = router.route(prompt, 1.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 1.0)
    router.observe(ticket, Event.USAGE, 1.0, len(prompt) // 4, cached)
    router.observe(ticket, Event.DONE, 1.0, answered)


def held(router: Router, prompt: bytes) -> int:
    return router._match(prompt).get(0, 0)


def test_answers_take_room_beside_prompts() -> None:
    router = make_router(instances=1, block_bytes=BLOCK, kv_tokens=40)  # 10 blocks
    send(router, b"a" * BLOCK * 6, answered=20)  # and 5 blocks of answer
    send(router, b"b" * BLOCK)
    assert held(router, b"a" * BLOCK * 6) == 4
    assert router.instance(0)["prefix_blocks"] == 5
    send(router, b"c" * BLOCK * 9)
    assert (held(router, b"a" * BLOCK * 6), held(router, b"b" * BLOCK)) == (0, 1)
    router._check()


def test_blocks_of_what_runs_are_given_up_last() -> None:
    router = make_router(instances=1, block_bytes=BLOCK, kv_tokens=40)
    ticket = router.route(b"a" * BLOCK * 4, 1.0).ticket
    for i in range(3):
        send(router, b"%d" % i * BLOCK * 5)
    assert held(router, b"a" * BLOCK * 4) == 4
    router.observe(ticket, Event.DONE, 2.0)  # and is the most recent now
    send(router, b"x" * BLOCK * 6)
    assert held(router, b"a" * BLOCK * 4) == 4
    send(router, b"y" * BLOCK * 6)
    assert held(router, b"a" * BLOCK * 4) == 0
    router._check()


@pytest.mark.parametrize("event", [Event.FAILED, Event.ABANDONED])
def test_what_was_never_computed_is_withdrawn(event: Event) -> None:
    router = make_router(instances=1, block_bytes=BLOCK)
    send(router, b"a" * BLOCK * 3)
    longer = b"a" * BLOCK * 3 + b"b" * BLOCK * 40
    router.observe(router.route(longer, 1.0).ticket, event, 1.5)
    assert held(router, longer) == 3
    ticket = router.route(longer, 2.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 2.5)  # this time it was
    router.observe(ticket, event, 3.0)
    assert held(router, longer) == 43
    router._check()


def test_a_prompt_longer_than_the_cache_pushes_nothing_out() -> None:
    router = make_router(instances=1, block_bytes=BLOCK, kv_tokens=40)
    send(router, b"a" * BLOCK * 5)
    send(router, b"b" * BLOCK * 5)
    refused = b"a" * BLOCK * 5 + b"c" * BLOCK * 6
    router.observe(router.route(refused, 1.0).ticket, Event.FAILED, 1.0)
    assert held(router, refused) == held(router, b"b" * BLOCK * 5) == 5
    send(router, refused, cached=0)  # served after all: one that says nothing true of its cache
    assert held(router, b"b" * BLOCK * 5) == 5
    send(router, b"d" * BLOCK)  # nor was it used: what is older goes first
    assert (held(router, refused), held(router, b"b" * BLOCK * 5)) == (4, 5)
    router._check()


def test_what_another_request_computes_stays() -> None:
    router = make_router(instances=1, block_bytes=BLOCK)
    first, _ = (router.route(b"a" * BLOCK * 20, 1.0).ticket for _ in range(2))
    router.observe(first, Event.FAILED, 1.5)
    assert held(router, b"a" * BLOCK * 20) == 20


def test_a_hit_that_was_none_takes_what_is_older_with_it() -> None:
    router = make_router(instances=1, block_bytes=BLOCK)
    old, middle, new = (bytes([c]) * BLOCK * 20 for c in b"omn")
    for prompt in (old, middle, new):
        send(router, prompt, cached=0)
    send(router, middle, cached=0)  # believed, and not there
    assert held(router, old) == 0
    assert held(router, middle) == held(router, new) == 20  # one computed anew, one is younger
    assert 80 <= router.instance(0)["learned_kv_tokens"] < 160
    send(router, old, cached=80)  # more than believed
    assert held(router, old) == 20
    router.configure_instance(0, kv_tokens=4000, prefix_caching=True)
    assert router.instance(0)["learned_kv_tokens"] == 0
    router._check()


def test_small_differences_teach_nothing() -> None:
    router = make_router(Fixed(), instances=1, block_bytes=BLOCK, kv_tokens=4000)
    prompt = b"a" * BLOCK * 100
    for cached in (0, 392, 400, 395):
        send(router, prompt, cached=cached)
    assert router.instance(0)["learned_kv_tokens"] == 0
    assert held(router, prompt) == 100


def test_a_secret_key_names_prefixes_otherwise() -> None:
    plain, one, other = (make_router(key=key) for key in (None, b"1" * 64, b"2" * 64))
    again = make_router(key=b"1" * 64, seed=5)
    prompt = b"x" * 1000
    assert one._hash(prompt) == again._hash(prompt)
    names = [set(router._hash(prompt)) for router in (plain, one, other)]
    assert not (names[0] & names[1] or names[1] & names[2] or names[0] & names[2])
    with pytest.raises(ValueError, match="key: 5 bytes"):
        make_router(key=b"short")
