"""Requests that share prefixes, drawn from a seed, for tests of the simulator."""

from __future__ import annotations

import random

from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.workload import Request


def conversations(count: int, rate: float, seed: int = 3, *, output: int, turns: int) -> list[Job]:
    """Poisson arrivals, rate a second; three in five begin like one of twelve conversations.

    Prompts have below `turns` blocks of 64 tokens and a rest, answers below `output` tokens.
    """
    rng = random.Random(seed)
    requests, now = [], 0.0
    for k in range(count):
        now += rng.expovariate(rate)
        blocks = rng.randrange(1, turns)
        runs = (1000 * rng.randrange(12), blocks) if rng.random() < 0.6 else ()
        prompt = 64 * blocks + rng.randrange(1, 60)
        requests.append(Request(k, now, prompt, rng.randrange(1, output), 64, runs))
    return make_jobs(requests)
