"""How much load a fleet can take: the rate that `--load` is a share of.

The highest Poisson rate at which the clairvoyant greedy router keeps up: of what arrives in the
last third of a run, 99 % as many requests end in it. No policy can be expected to stand more, and
the number does not depend on those that are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.oracle import Oracle
from lodestar_fast.sim.run import Simulation, make_jobs
from lodestar_fast.simulate.plan import Plan, fleet, workload

KEEPS_UP = 0.99
PRECISION = 1.02  # between a rate that is kept up with and one that is not
SECONDS = 300.0  # of a run, where --seconds says nothing
LEAST = 30  # arrivals in the last third
PROBED = 500  # requests whose lengths say where to begin


def keeps_up(plan: Plan, seed: int, rate: float) -> bool:
    """Whether the clairvoyant router stands that rate, without faults."""
    seconds = plan.seconds or SECONDS
    jobs = make_jobs(workload(replace(plan, rate=rate, seconds=seconds), seed).requests)
    oracle = Oracle()
    world = Simulation(
        jobs,
        fleet(plan),
        oracle,
        seed=seed,
        delay=plan.delay,
        scrape_seconds=seconds,
        jitter=plan.jitter,
        calls=[(seconds, Simulation.stop)],
    )
    oracle.world = world
    outcomes = world.run()
    start = seconds * 2 / 3
    arrived = sum(o.arrival >= start and not o.error for o in outcomes)
    if arrived < LEAST:
        raise ConfigError(
            f"--load: only {arrived} requests that fit a cache arrive in the last third of "
            f"{seconds:g} s at {rate:.3g} a second: too few to find saturation"
        )
    ended = sum(o.arrival + o.e2e >= start for o in outcomes)  # false where e2e is NaN
    return ended >= KEEPS_UP * arrived


def saturation(plan: Plan, seed: int, note: Callable[[str], None]) -> float:
    """Requests a second, by bisection to 2 %. note: told of each step."""
    requests = workload(replace(plan, rate=None, seconds=None), seed).requests[:PROBED]
    idle = [sum(s.idle_ttft(r.prompt_tokens) for r in requests) for s in fleet(plan)]
    rate = sum(len(requests) / seconds for seconds in idle)  # prefill alone, and no cache

    def stands(rate: float) -> bool:
        answer = keeps_up(plan, seed, rate)
        note(f"saturation: {rate:.3g} req/s is {'kept up with' if answer else 'too much'}")
        return answer

    low = high = rate
    if stands(rate):
        while stands(high := 1.5 * low):
            low = high
    else:
        while not stands(low := high / 1.5):
            high = low
    while high > PRECISION * low:
        middle = (low * high) ** 0.5
        if stands(middle):
            low = middle
        else:
            high = middle
    return low
