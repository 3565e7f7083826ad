"""The clairvoyant greedy router: for each request, what would really happen on each engine.

It knows what no router can: the true state of every engine, output lengths, jitter to come. Each
engine is forked exactly, the request appended, and the fork run to its first token; the earliest
wins. It is greedy, so not the optimum: it takes the least for this request, whatever that costs
those that come later. Its distance to a policy is what better knowledge of the moment could gain.

The same question, asked at a decision of another policy, gives that decision's regret.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from lodestar_fast.core.enums import Reason
from lodestar_fast.core.policies import Candidates, Policy
from lodestar_fast.core.router import Decision
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.jobs import Job, fits
from lodestar_fast.sim.run import Simulation

INF = float("inf")


def first_token(engine: Engine, index: int, job: Job, now: float, limit: float = INF) -> float:
    """When the job's first token would come if it went to this engine now; inf if after limit.

    Exact if nothing comes after it; what does is served later, but may make an iteration longer in
    which this one's last tokens are computed. The engine is not changed.
    """
    busy = engine.next_time()
    if not fits(engine.spec, job) or limit < busy < INF:  # it joins the next iteration at best
        return INF
    twin = engine.copy()
    twin.submit(index, job.hashes, job.prompt_tokens, job.output_tokens, now)
    return twin.first_token(index, limit)


def first_tokens(
    engines: Iterable[Engine], index: int, job: Job, now: float, limit: float = INF
) -> tuple[float, list[float]]:
    """The earliest first token up to limit, and each engine's, inf where it is not the earliest."""
    times = []
    for engine in engines:
        times.append(first_token(engine, index, job, now, limit))
        limit = min(limit, times[-1])
    return limit, [time if time <= limit else INF for time in times]


class Oracle(Policy):
    """Clairvoyant greedy over a Simulation, which is to be set as `world` before it runs.

    patience: seconds that it looks ahead; of first tokens that are further away it knows nothing,
    predicts none, and takes the least work.
    """

    name = "oracle"
    world: Simulation

    def __init__(self, patience: float = INF) -> None:
        self._patience = patience

    def engine(self, slot: int, now: float) -> Engine:
        """What it takes for the engine of that slot."""
        return self.world.engines[slot]

    def pick(self, c: Candidates) -> int:
        """The earliest first token; of equal ones the instance with the fewest in flight."""
        world = self.world
        assert world.arriving is not None
        index = world.arriving
        job, now = world.jobs[index], world.clock.now()
        # The least loaded first: what it promises lets most others be given up early.
        order = sorted(range(c.n), key=lambda i: (c.queued_tokens(i), c.inflight(i)))
        engines = (self.engine(c.slot(i), now) for i in order)
        best, times = first_tokens(engines, index, job, now, now + self._patience)
        c.reason = Reason.HEURISTIC
        if min(times) == INF:
            return order[0]
        c.predicted = best + world.delay - now
        ties = [i for i, time in zip(order, times, strict=True) if time == best]
        return min(ties, key=lambda i: (c.inflight(i), i))


class Regret:
    """A probe for Simulation: what a share of decisions cost, in seconds of that request's TTFT.

    Of each sampled decision the first token on the chosen engine, less the earliest on any.
    """

    def __init__(self, seed: int, share: float = 0.05) -> None:
        self.seconds: list[tuple[float, float]] = []  # (time of the decision, regret)
        self._share = share
        self._draw = random.Random(seed)

    def __call__(self, world: Simulation, index: int, decision: Decision) -> None:
        if self._draw.random() >= self._share:
            return
        job, now = world.jobs[index], world.clock.now()
        chosen = first_token(world.engines[decision.slot], index, job, now)
        if chosen == INF:
            return  # it will fail; no first token to compare
        others = (world.engines[slot] for slot in world.routable() if slot != decision.slot)
        best, _ = first_tokens(others, index, job, now, chosen)
        self.seconds.append((now, chosen - best))
