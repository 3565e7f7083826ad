"""Two more clairvoyants, to tell what the first one's advantage is made of.

StaleOracle     the same foresight on what was true at the last scrape: the price of staleness
                alone. It does not even know its own dispatches since then, as a router that lives
                on metrics would not.
AltruisticOracle  counts what a request does to others, too: if it does better than the greedy one,
                that was myopic.

Either is set as `world`, as an Oracle is; a StaleOracle also as the Simulation's watcher.
"""

from __future__ import annotations

from lodestar_fast.core.enums import Reason
from lodestar_fast.core.policies import Candidates
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.jobs import Job
from lodestar_fast.sim.oracle import INF, Oracle, first_token


class StaleOracle(Oracle):
    """Clairvoyant greedy over the engines as they were when their last report arrived."""

    name = "oracle-stale"

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, Engine] = {}  # by slot, moved on as if nothing had come since

    def reported(self, slot: int) -> None:
        self._seen[slot] = self.world.engines[slot].copy()

    def dispatched(self, index: int, slot: int) -> None:
        pass

    def first_token(self, index: int, slot: int) -> None:
        pass

    def ended(self, index: int, slot: int, failed: bool) -> None:
        pass

    def engine(self, slot: int, now: float) -> Engine:
        """The engine as it is believed to be now; a new one before its first report."""
        if slot not in self._seen:
            self._seen[slot] = Engine(self.world.engines[slot].spec)
        believed = self._seen[slot]
        while (end := believed.next_time()) <= now:
            believed.step(end)
        return believed


class AltruisticOracle(Oracle):
    """Least harm: own TTFT + what it adds to the TTFT of requests there + weight x added TPOT.

    weight: seconds of TTFT that a second of TPOT is worth, summed over the requests that decode
    there. What is added is found by running each engine with the request and without, until it and
    all that waited before it have begun: later harm, by its own decoding, is not counted.
    """

    name = "oracle-altruistic"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= weight < INF:
            raise ValueError(f"weight: {weight} is not a number from 0")
        self._weight = weight

    def pick(self, c: Candidates) -> int:
        world = self.world
        assert world.arriving is not None
        index = world.arriving
        job, now = world.jobs[index], world.clock.now()
        order = sorted(range(c.n), key=lambda i: (c.queued_tokens(i), c.inflight(i)))
        best, choice = INF, order[0]
        for i in order:
            slot = c.slot(i)
            engine = world.engines[slot]
            # Its own TTFT alone rules most engines out, at half the cost.
            own = first_token(engine, index, job, now, now + best)
            if own == INF:
                continue
            cost = own - now + self._harm(engine, index, job, now, world.waiting(slot))
            if cost < best:
                best, choice = cost, i
                c.predicted = own + world.delay - now
        c.reason = Reason.HEURISTIC
        return choice

    def _harm(self, engine: Engine, index: int, job: Job, now: float, waiting: set[int]) -> float:
        """Seconds. waiting: jobs there that have not begun."""
        if not engine.running and not engine.waiting:
            return 0.0
        with_it, without = engine.copy(), engine.copy()
        with_it.submit(index, job.hashes, job.prompt_tokens, job.output_tokens, now)
        first: dict[int, float] = {}
        newest: dict[int, tuple[int, float]] = {}  # of what decodes: tokens, and when
        missing = waiting | {index}
        while missing and (end := with_it.next_time()) < INF:
            for rid, generated, _ in with_it.step(end):
                missing.discard(rid)
                if generated == 1:
                    first[rid] = end
                else:
                    newest[rid] = generated, end
        first.pop(index, None)
        newest.pop(index, None)
        start = dict.fromkeys(newest, 0)  # tokens before the first one seen here
        open_ = first.keys() | newest.keys()
        harm = 0.0
        while open_ and (end := without.next_time()) < INF:
            for rid, generated, _ in without.step(end):
                if generated == 1 and rid in first:
                    harm += first[rid] - end
                elif rid in start and not start[rid]:
                    start[rid] = generated - 1
                count, late = newest.get(rid, (1, end))
                if rid in open_ and generated == count:
                    open_.discard(rid)
                    if rid in start:
                        left = self.world.jobs[rid].output_tokens - start[rid]
                        harm += self._weight * (late - end) / max(left, 1)
        return harm
