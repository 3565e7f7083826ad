"""How much load a fleet can take: the rate that `--load` is a share of.

The highest Poisson rate at which the clairvoyant greedy router keeps up: in the last third of a run
99 % as many requests end as arrive, but for what chance does to such a count. No policy can be
expected to stand more, and the number does not depend on those that are compared. Where a queue has
become so long that a tenth of the requests see no first token within a patience of ten times what
is usual and ten seconds, the rate is too much without further ado, for the clairvoyant would have
to look ever further ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

from lodestar_fast.core.router import Decision
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.jobs import fits, make_jobs
from lodestar_fast.sim.oracle import Oracle
from lodestar_fast.sim.run import Simulation
from lodestar_fast.simulate.plan import Plan, fleet, workload

KEEPS_UP = 0.99
CHANCE = 2.0  # standard deviations
PATIENCE_SECONDS, PATIENCE_FACTOR = 10.0, 10.0  # and so many idle TTFTs of the mean request
IMPATIENT = 0.1
PRECISION = 1.02  # between a rate that is kept up with and one that is not
BEGIN = 0.6  # of what prefill alone would allow: where the search starts
SECONDS = 300.0  # of a run, where --seconds says nothing
LEAST = 30  # arrivals in the last third
PROBED = 500  # requests whose lengths say where to begin


def idle_seconds(plan: Plan, seed: int) -> list[float]:
    """Mean idle TTFT of the workload, without a cache, on each engine of the fleet."""
    requests = workload(replace(plan, rate=None, seconds=None), seed).requests[:PROBED]
    specs = fleet(plan)
    mean = {spec: fmean(spec.idle_ttft(r.prompt_tokens) for r in requests) for spec in set(specs)}
    return [mean[spec] for spec in specs]


def keeps_up(plan: Plan, seed: int, rate: float) -> bool:
    """Whether the clairvoyant router stands that rate, without faults."""
    seconds = plan.seconds or SECONDS
    jobs = make_jobs(workload(replace(plan, rate=rate, seconds=seconds), seed).requests)
    oracle = Oracle(PATIENCE_SECONDS + PATIENCE_FACTOR * max(idle_seconds(plan, seed)))
    impatient = 0

    def give_up(world: Simulation, index: int, decision: Decision) -> None:
        nonlocal impatient
        if decision.predicted != decision.predicted:  # NaN; or nothing can ever hold it
            impatient += any(fits(engine.spec, jobs[index]) for engine in world.engines)
        if impatient > IMPATIENT * len(jobs):
            world.stop()

    world = Simulation(
        jobs,
        fleet(plan),
        oracle,
        seed=seed,
        delay=plan.delay,
        scrape_seconds=seconds,
        jitter=plan.jitter,
        calls=[(seconds, Simulation.stop)],
        probe=give_up,
    )
    oracle.world = world
    outcomes = world.run()
    if world.clock.now() < jobs[-1].arrival:
        return False
    start = seconds * 2 / 3
    served = [o for o in outcomes if not o.error]
    arrived = sum(o.arrival >= start for o in served)
    if arrived < LEAST:
        raise ConfigError(
            f"--load: only {arrived} requests that fit a cache arrive in the last third of "
            f"{seconds:g} s at {rate:.3g} a second: too few to find saturation"
        )
    ended = sum(o.arrival + o.e2e >= start for o in served)  # false where e2e is NaN
    # The shortfall is how many more are under way at the end than were at the start: two numbers
    # that vary about as Poisson's do, so that one burst before the end is not taken for a trend.
    before = sum(o.arrival < start and not o.arrival + o.e2e < start for o in served)
    under_way = 2 * before + arrived - ended
    return arrived - ended <= (1 - KEEPS_UP) * arrived + CHANCE * math.sqrt(under_way)


def saturation(plan: Plan, seed: int, note: Callable[[str], None]) -> float:
    """Requests a second, by bisection to 2 %. note: told of each step."""
    # As if there were no decodes; but those there are take some, and too low is found out sooner.
    rate = BEGIN * sum(1 / seconds for seconds in idle_seconds(plan, seed))

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
