"""The engine model under random calls: agreement with the oracle, books, copies."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.gpus import EngineSpec, spec
from tests.engine_oracle import Oracle, chain, check_books, drain, steps, unit

SMALL = [
    unit(kv_tokens=16 * 24, max_batched_tokens=48, max_seqs=4),
    spec("a30", kv_tokens=16 * 24, max_batched_tokens=48, max_seqs=4),
    spec("l20", kv_tokens=4 * 40, max_batched_tokens=20, max_seqs=5, block=4),
    spec("v100", kv_tokens=16 * 24, max_batched_tokens=100, max_seqs=4),
    spec("v100", kv_tokens=16 * 110, max_batched_tokens=100, max_seqs=8, prefix_caching=True),
    spec("a30", kv_tokens=16 * 24, prefix_caching=False),
]


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 2**32), which=st.sampled_from(SMALL))
def test_random_sequences_agree_with_the_oracle(seed: int, which: EngineSpec) -> None:
    rng = random.Random(seed)
    engine, oracle, now, live, rid = Engine(which), Oracle(which), 0.0, [], 0
    for _ in range(rng.randint(1, 120)):
        move = rng.random()
        if move < 0.4:
            # Prefixes from a small tree, so that sharing, splitting and eviction all happen.
            name, share = rng.randint(1, 3), rng.randint(0, 8)
            prompt = rng.randint(1, 10 * which.block)
            keys = chain(name, share) + chain(100 + rid, 10)
            keys = keys[: prompt // which.block]
            output = rng.randint(1, 40)
            arguments = (rid, keys, prompt, output, now)
            if prompt + output - 1 <= which.blocks * which.block * 0.98:
                engine.submit(*arguments)
                oracle.submit(*arguments)
                live.append(rid)
                rid += 1
        elif move < 0.5 and live:
            gone = live.pop(rng.randrange(len(live)))
            assert engine.cancel(gone, now) == oracle.cancel(gone)
        elif engine.next_time() < math.inf:
            now = engine.next_time()
            assert now == pytest.approx(oracle.end, rel=1e-12)
            oracle.end = now  # the last bit of a sum may differ
            assert engine.step(now) == oracle.step()
        assert (engine.next_time() == math.inf) == (oracle.end == math.inf)
        assert (engine.running, engine.waiting) == (len(oracle.active), len(oracle.queue))
        assert engine.preemptions == oracle.preemptions
        assert engine.pool.used == which.blocks - len(oracle.unused)
        for job in oracle.active:
            assert engine.cached_tokens(job.rid) == job.cached
    check_books(engine.pool)
    drain(engine)
    assert (engine.running, engine.waiting, engine.pool.used) == (0, 0, 0)
    check_books(engine.pool)


@settings(deadline=None)  # a busy machine is no failure
@given(seed=st.integers(0, 2**32), which=st.sampled_from(SMALL))
def test_a_copy_goes_on_alike_and_apart(seed: int, which: EngineSpec) -> None:
    rng = random.Random(seed)
    engine = Engine(which, seed, 0.1)
    for rid in range(12):
        engine.submit(rid, chain(rng.randint(1, 2), 5), 5 * which.block, rng.randint(1, 30), 0.0)
    steps(engine, rng.randint(0, 8))
    engine.cancel(rng.randrange(12), engine.next_time())
    twin = engine.copy()
    apart = engine.copy()
    apart.submit(99, [], 10, 5, 0.0)
    for rid in rng.sample(range(12), 6):  # running, waiting or gone
        apart.cancel(rid, apart.next_time())
    drain(apart)
    assert apart.pool.used == apart.waiting == 0
    check_books(apart.pool)
    assert twin.next_time() == engine.next_time()
    first, second = drain(engine), drain(twin)
    assert first == second
    assert engine.pool.eviction_order() == twin.pool.eviction_order()
    for name in ("preemptions", "prompt_tokens", "generation_tokens", "prefix_hits"):
        assert getattr(engine, name) == getattr(twin, name)
