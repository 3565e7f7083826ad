"""The engine model: schedules computed by hand, refusals, prompt hashes."""

from __future__ import annotations

import math
from array import array

import pytest

from lodestar_fast.sim.blocks import BlockPool, hash_prompt
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.gpus import spec
from tests.engine_oracle import chain, check_books, drain, steps, unit

UNIT = unit()


# time


def test_a_lone_request_takes_what_the_formula_says() -> None:
    a30 = spec("a30")
    engine = Engine(a30)
    engine.submit(1, [], 5000, 3, 10.0)
    end = 10.0
    for tokens, pairs in ((2048, 2048**2 / 2), (2048, 2048 * 3072), (904, 904 * (4096 + 452))):
        end += a30.iteration_seconds(tokens, pairs, 0, 1)
        assert engine.next_time() == pytest.approx(end, abs=1e-12)
        out = engine.step(engine.next_time())
    assert out == [(1, 1, False)]
    assert end == pytest.approx(10.0 + a30.idle_ttft(5000))
    assert engine.next_time() == pytest.approx(end + a30.iteration_seconds(1, 0, 5001, 1))
    assert steps(engine, 2) == [[(1, 2, False)], [(1, 3, True)]]
    assert engine.next_time() == math.inf


def test_a_late_step_does_not_delay_the_next_iteration() -> None:
    engine = Engine(UNIT)
    engine.submit(1, [], 10, 5, 0.0)
    assert engine.step(1.7) == [(1, 1, False)]
    assert engine.next_time() == 2.0


def test_slow_multiplies_iterations_that_start_later() -> None:
    engine = Engine(UNIT)
    engine.submit(1, [], 10, 5, 0.0)
    engine.slow = 3.0
    assert engine.next_time() == 1.0
    engine.step(1.0)
    assert engine.next_time() == 4.0


def test_jitter_is_seeded_and_has_the_stated_spread() -> None:
    def ends(seed: int) -> list[float]:
        engine = Engine(UNIT, seed, 0.05)
        engine.submit(1, [], 10, 2000, 0.0)
        times = [0.0]
        while engine.next_time() < math.inf:
            times.append(engine.next_time())
            engine.step(times[-1])
        return [math.log(b - a) for a, b in zip(times, times[1:], strict=False)]

    logs = ends(7)
    assert logs == ends(7) != ends(8)
    mean = sum(logs) / len(logs)
    assert mean == pytest.approx(0, abs=0.005)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    assert spread == pytest.approx(0.05, rel=0.1)


def test_an_idle_engine_starts_when_asked_and_never_before_its_last_iteration() -> None:
    engine = Engine(UNIT)
    engine.submit(1, [], 10, 1, 0.0)
    engine.step(1.0)
    engine.submit(2, [], 10, 1, 5.0)
    assert engine.next_time() == 6.0


# scheduling, V1


def test_two_prompts_share_chunks_of_the_budget() -> None:
    engine = Engine(unit(max_batched_tokens=100))
    engine.submit(1, [], 150, 2, 0.0)
    engine.submit(2, [], 80, 2, 0.0)
    # 1: 100 of request 1; 2: its last 50 + 50 of request 2; 3: a decode + 30; 4: a decode.
    assert steps(engine, 4) == [[], [(1, 1, False)], [(1, 2, True), (2, 1, False)], [(2, 2, True)]]


def test_decodes_come_before_prefill_in_the_budget() -> None:
    engine = Engine(unit(max_batched_tokens=16))
    engine.submit(1, [], 16, 9, 0.0)
    engine.step(1.0)
    engine.submit(2, [], 31, 1, 1.5)
    # Request 2 gets 15 tokens beside each decode, so its 31 take three iterations.
    assert steps(engine, 4) == [
        [(1, 2, False)],
        [(1, 3, False)],
        [(1, 4, False)],
        [(1, 5, False), (2, 1, True)],
    ]


def test_the_batch_holds_no_more_than_max_seqs() -> None:
    engine = Engine(unit(max_seqs=2))
    for rid in range(3):
        engine.submit(rid, [], 10, 2, 0.0)
    engine.step(1.0)
    assert (engine.running, engine.waiting) == (2, 1)
    assert steps(engine, 2) == [[(0, 2, True), (1, 1, False)], [(1, 2, True), (2, 1, False)]]


def test_a_blocked_head_of_line_blocks_the_small_one_behind() -> None:
    engine = Engine(unit(kv_tokens=16 * 10))
    engine.submit(1, [], 96, 60, 0.0)  # six blocks, growing to ten
    engine.submit(2, [], 80, 2, 0.5)  # five blocks: must wait
    engine.submit(3, [], 16, 2, 0.6)  # would fit
    engine.step(1.0)
    assert (engine.running, engine.waiting) == (1, 2)


# prefix cache


def test_a_prefix_is_shared_once_full_but_the_last_token_is_computed() -> None:
    engine = Engine(UNIT)
    engine.submit(1, chain(1, 4), 64, 1, 0.0)
    engine.submit(2, chain(1, 4), 64, 1, 0.5)
    engine.submit(3, chain(1, 4) + chain(2, 1), 90, 1, 0.5)
    engine.step(1.0)
    assert engine.cached_tokens(1) == 0
    engine.step(2.0)
    assert (engine.cached_tokens(2), engine.cached_tokens(3)) == (48, 64)
    assert (engine.prefix_queries, engine.prefix_hits) == (64 + 64 + 90, 48 + 64)


def test_blocks_in_the_making_cannot_be_hit() -> None:
    engine = Engine(unit(max_batched_tokens=32))
    engine.submit(1, chain(1, 4), 64, 1, 0.0)
    engine.submit(2, chain(1, 4), 64, 1, 0.5)
    engine.step(1.0)  # 32 of request 1 are known now; the rest takes the whole next budget
    engine.step(2.0)
    assert engine.cached_tokens(2) == 48
    engine.step(3.0)
    assert engine.next_time() == math.inf


def test_output_blocks_are_not_another_requests_hits() -> None:
    engine = Engine(UNIT)
    engine.submit(1, [], 16, 100, 0.0)
    drain(engine)
    assert engine.pool.cached == (16 + 99) // 16
    engine.submit(1, [], 64, 1, 200.0)  # same id, no hashes
    assert engine.cached_tokens(1) == 0


def test_eviction_takes_the_least_recently_used_tail_first() -> None:
    engine = Engine(unit(kv_tokens=16 * 6))
    engine.submit(1, chain(1, 2), 32, 1, 0.0)
    drain(engine)
    engine.submit(2, chain(2, 2), 32, 1, 2.0)
    drain(engine)
    engine.submit(3, chain(1, 2), 33, 1, 4.0)  # a hit makes chain 1 the newest
    drain(engine)
    assert engine.pool.eviction_order() == [0, 0, *chain(2, 2)[::-1], *chain(1, 2)[::-1]]
    engine.submit(4, chain(4, 3), 48, 1, 6.0)
    drain(engine)
    assert not engine.pool.contains(chain(2, 2)[1])
    assert engine.pool.contains(chain(2, 2)[0])
    check_books(engine.pool)


def test_hits_that_nobody_references_do_not_count_as_room() -> None:
    engine = Engine(unit(kv_tokens=16 * 6))
    engine.submit(1, chain(1, 3), 48, 1, 0.0)
    drain(engine)
    engine.submit(2, [], 48, 40, 2.0)
    engine.submit(3, chain(1, 3), 80, 1, 2.5)  # three hits and two more blocks: five of three left
    engine.step(3.0)
    assert (engine.running, engine.waiting) == (1, 1)
    check_books(engine.pool)


def test_without_prefix_caching_nothing_is_kept() -> None:
    engine = Engine(unit(prefix_caching=False))
    for rid in range(2):
        engine.submit(rid, chain(1, 4), 64, 1, 2.0 * rid)
        drain(engine)
    assert (engine.pool.cached, engine.prefix_queries) == (0, 0)


# preemption


def test_the_latest_request_is_preempted_and_recomputed_from_its_cached_blocks() -> None:
    engine = Engine(unit(kv_tokens=16 * 5))
    engine.submit(1, chain(1, 2), 32, 20, 0.0)
    engine.submit(2, chain(2, 2), 32, 20, 0.0)
    engine.step(1.0)  # request 2 enters with two blocks; request 1 then decodes into a third
    assert steps(engine, 1) == [[(1, 2, False), (2, 1, False)]]
    # Request 2 needs its third block, and none is left: it preempts itself.
    assert (engine.running, engine.waiting, engine.preemptions) == (1, 1, 1)
    assert engine.pool.cached == 2
    out = drain(engine)
    assert out[-1] == (2, 20, True)
    assert [count for rid, count, _ in out if rid == 2] == list(range(2, 21))
    assert engine.cached_tokens(2) == 0  # what it had at first admission
    assert engine.generation_tokens == 40
    assert engine.prompt_tokens == 64


def test_v1_admits_nobody_in_an_iteration_that_preempts() -> None:
    engine = Engine(unit(kv_tokens=16 * 5))
    engine.submit(1, [], 32, 20, 0.0)
    engine.submit(2, [], 32, 20, 0.0)
    engine.submit(3, [], 16, 1, 0.5)
    steps(engine, 2)
    assert engine.preemptions == 1
    assert (engine.running, engine.waiting) == (1, 2)


# V0


def test_v0_prefills_whole_prompts_alone_and_decodes_wait() -> None:
    engine = Engine(unit(chunked=False, max_batched_tokens=100, prefix_caching=False))
    engine.submit(1, [], 90, 3, 0.0)
    engine.step(1.0)  # the first token; a decode starts
    engine.submit(2, [], 60, 2, 1.2)
    engine.submit(3, [], 40, 2, 1.3)
    engine.submit(4, [], 500, 2, 1.4)  # over the budget: alone
    assert steps(engine, 4) == [
        [(1, 2, False)],
        [(2, 1, False), (3, 1, False)],
        [(4, 1, False)],
        [(1, 3, True), (2, 2, True), (3, 2, True), (4, 2, True)],
    ]


def test_v0_keeps_a_hundredth_of_the_blocks_for_decodes() -> None:
    engine = Engine(unit(chunked=False, kv_tokens=1600, prefix_caching=False))
    with pytest.raises(ValueError, match="never fit a cache of 1584"):
        engine.submit(1, [], 1590, 1, 0.0)
    engine.submit(1, [], 1584, 1, 0.0)
    assert drain(engine) == [(1, 1, True)]


# cancelling


def test_cancel_frees_blocks_in_every_state() -> None:
    engine = Engine(unit(max_batched_tokens=64, max_seqs=2))
    engine.submit(1, chain(1, 2), 32, 9, 0.0)
    engine.step(1.0)
    engine.submit(2, chain(2, 20), 320, 9, 1.5)
    engine.submit(3, chain(3, 2), 32, 9, 1.5)
    engine.step(2.0)  # 1 decodes, 2 is in the middle of its prefill, 3 waits
    assert [engine.cancel(rid, 2.5) for rid in (3, 2, 1, 1, 99)] == [True, True, True, False, False]
    assert (engine.running, engine.waiting, engine.pool.used) == (0, 0, 0)
    assert engine.next_time() == 3.0  # the GPU is at it
    assert engine.step(3.0) == []
    assert engine.next_time() == math.inf
    check_books(engine.pool)
    engine.submit(3, [], 5, 1, 4.0)  # an id may come back
    assert drain(engine) == [(3, 1, True)]


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, [], 0, 1, 0.0), "at least one token"),
        ((1, [], 1, 0, 0.0), "at least one token"),
        ((1, [], 36_000, 2, 0.0), "never fit"),
        ((1, [], 2**62, 2**62, 0.0), "never fit"),
        ((7, [], 10, 1, 0.0), "already here"),
        ((1, [], 10, 1, 1.5), "an iteration ends at 1.0"),
        ((1, [], 10, 1, math.nan), "up to nan"),
    ],
)
def test_submit_refuses_and_changes_nothing(arguments: tuple[object, ...], message: str) -> None:
    engine = Engine(UNIT)
    engine.submit(7, [], 10, 1, 0.0)
    with pytest.raises(ValueError, match=message):
        engine.submit(*arguments)  # type: ignore[arg-type]
    assert drain(engine) == [(7, 1, True)]


def test_submit_takes_hashes_as_lists_and_arrays_and_refuses_what_is_neither() -> None:
    engine = Engine(UNIT)
    engine.submit(1, array("Q", chain(1, 2)), 32, 1, 0.0)
    engine.submit(2, chain(1, 2), 33, 1, 0.0)
    for bad in ([-1], ["x"], [2**64], array("b", [1])):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            engine.submit(3, bad, 32, 1, 0.0)
    drain(engine)
    assert engine.prefix_hits == 32


def test_step_refuses_a_time_at_which_nothing_ends() -> None:
    engine = Engine(UNIT)
    for now in (0.0, math.inf):
        with pytest.raises(ValueError, match="nothing ends"):
            engine.step(now)
    engine.submit(1, [], 1, 1, 0.0)
    for now in (0.9, math.nan):
        with pytest.raises(ValueError, match="nothing ends"):
            engine.step(now)


def test_bad_jitter_and_pool_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="jitter"):
        Engine(UNIT, 0, 1.0)
    for total in (0, 1 << 29):
        with pytest.raises(ValueError, match="block"):
            BlockPool(total)


# hashes


def test_hashes_chain_over_full_blocks() -> None:
    text = bytes(range(256))
    hashes = hash_prompt(text)
    assert len(hashes) == 4
    assert 0 not in hashes
    assert hash_prompt(text[:200]) == hashes[:3]
    assert hash_prompt(b"!" + text[1:])[3] != hashes[3]  # what comes before counts
    assert len(set(hash_prompt(bytes(64 * 1000)))) == 1000
    assert len(hash_prompt(b"")) == 0
    for size in (0, 12, -8):
        with pytest.raises(ValueError, match="multiple of 8"):
            hash_prompt(text, size)


def test_first_token_is_where_stepping_finds_it() -> None:
    engine = Engine(unit(max_batched_tokens=8))
    for rid, prompt in enumerate((20, 9, 30)):
        engine.submit(rid, [], prompt, 3, 0.0)
    twin = engine.copy()
    seen = {rid: end for end, rid, generated in _tokens(engine) if generated == 1}
    assert twin.copy().first_token(2, math.inf) == seen[2] > seen[1]
    assert twin.copy().first_token(2, seen[2]) == seen[2]
    assert twin.copy().first_token(2, seen[1]) == math.inf
    assert twin.copy().first_token(7, math.inf) == math.inf  # of nobody: until it is idle
    left = twin.copy()
    left.first_token(1, math.inf)
    assert left.generation_tokens and left.next_time() > seen[1]


def _tokens(engine: Engine) -> list[tuple[float, int, int]]:
    out = []
    while (end := engine.next_time()) < math.inf:
        out += [(end, rid, generated) for rid, generated, _ in engine.step(end)]
    return out
