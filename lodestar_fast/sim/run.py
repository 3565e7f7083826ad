"""The closed loop in virtual time: the real router and learner, simulated engines.

    requests --> router.route() --> engine.submit()          at arrival
                 router.observe() <-- engine.step()          iteration end + delay
                 router.report()  <-- gauges                 every scrape_seconds
                 tick(router, learner)                       every tick_seconds

The router is as blind as behind the proxy: it sees its own dispatches at once, a token `delay`
seconds after the iteration that made it, and an engine's gauges only as of the last scrape. Nothing
here decides anything; nothing in the router or the learner can tell this driver from the proxy. A
run is a pure function of its arguments: same seed, same outcomes.

What goes wrong in a fleet (sim/faults.py plans it) does so as the proxy would see it: an engine
that crashes takes its requests with it, refuses new ones at once and is not scraped; one that comes
back has an empty cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isnan
from typing import Any, Protocol

from lodestar_fast.clock import VirtualClock
from lodestar_fast.core.policies import ExpectedCompletion, Policy
from lodestar_fast.core.router import Decision, Event, Router
from lodestar_fast.errors import NoInstanceError
from lodestar_fast.learner import Learner, tick
from lodestar_fast.sim.delivery import deliver
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.events import Events
from lodestar_fast.sim.gpus import EngineSpec
from lodestar_fast.sim.jobs import NAN, Job, Outcome, fits
from lodestar_fast.sim.later import ROUND_SECONDS, Later

MOST_SLOTS = 1024  # the core's own limit (csrc/lodestar.h)


def most_engines(engines: int) -> int:
    """How many a fleet of that size may grow to."""
    return min(MOST_SLOTS, max(64, 2 * engines))


class Ticking(Protocol):
    """What a Governor is to the simulation: the owner of policy, learner and watchdog."""

    def tick(self, router: Router, now: float) -> Any: ...


class Source(Protocol):
    """What arrives where that depends on what was answered: sim/sessions."""

    def begin(self) -> Sequence[tuple[float, Job]]: ...
    def follow(self, job: Job, now: float) -> tuple[float, Job] | None: ...


class Watching(Protocol):
    """Told of each request at the moment at which the router knows."""

    def reported(self, slot: int) -> None: ...
    def dispatched(self, index: int, slot: int) -> None: ...
    def first_token(self, index: int, slot: int) -> None: ...
    def ended(self, index: int, slot: int, failed: bool) -> None: ...


class Simulation:
    """One run. Make it, call run() once.

    engines: the fleet, slot i of the router is engine i. delay: seconds between the end of an
    iteration and the router's seeing its tokens. jitter: spread of the engines' iteration times.
    calls: (time, call) to be made with this Simulation at that time: faults, joins, drains.
    timer: read around each decision, for Outcome.decision; no result depends on it. probe: called
    with (self, index, decision) after a decision, before the engine gets the request; must change
    nothing. governor: ticks in place of policy and learner. watcher: told of each request.
    round_seconds: what a round of the learner takes. source: in place of jobs, which are then
    those that came, in order.
    decisions: how many the router keeps (router.decisions). slo: the seconds of TTFT and of TPOT
    that a request asks for; 0: it does not. patience: seconds after which a client without a first
    token leaves. prices: of an hour, by GPU.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        specs: Sequence[EngineSpec],
        policy: Policy,
        learner: Learner | None = None,
        *,
        seed: int = 0,
        delay: float = 0.01,
        scrape_seconds: float = 0.1,
        tick_seconds: float = 1.0,
        jitter: float = 0.0,
        calls: Iterable[tuple[float, Callable[[Simulation], None]]] = (),
        timer: Callable[[], float] | None = None,
        probe: Callable[[Simulation, int, Decision], None] | None = None,
        governor: Ticking | None = None,
        watcher: Watching | None = None,
        round_seconds: float = ROUND_SECONDS,
        source: Source | None = None,
        decisions: int = 0,
        slo: Callable[[Job], tuple[float, float]] | None = None,
        patience: float = inf,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self.clock = VirtualClock()
        slots = most_engines(len(specs))
        self.jobs = jobs if source is None else []
        self._source = source
        self.delay, self.patience = delay, patience
        self._slo, self._prices = slo, prices or {}
        self.router = Router(
            policy, seed=seed, max_instances=slots, decisions=decisions, prefix_marks=decisions > 0
        )
        self.learner = Later(learner, self.clock, round_seconds) if learner else None
        self.governor = governor
        self.engines: list[Engine] = []
        self.outcomes: list[Outcome] = []
        self.arriving: int | None = None  # the job that is being routed
        self.scrape_seconds = scrape_seconds
        self.scrape_loss = 0.0  # share of reports that do not arrive
        self._events = Events(self.clock)
        self._seed, self._jitter = seed, jitter
        self._tick = tick_seconds
        self._timer, self._probe, self._watcher = timer, probe, watcher
        self._lossy = random.Random(seed)  # which reports are lost
        self._frozen: dict[int, tuple[int, int, float]] = {}  # by slot: what it keeps reporting
        self._down: set[int] = set()  # crashed slots
        self._draining: set[int] = set()
        self._live: list[set[int]] = []  # by slot: jobs in its engine
        self._lost_preemptions = 0  # of engines that crashed
        self._planned: list[bool] = []  # by slot: the end of its running iteration is
        self._tickets: list[int] = []  # by job
        self._open = 0
        for spec in specs:
            self.add(spec)
        for time, call in calls:
            self._events.at(time, call, self)

    def add(self, spec: EngineSpec) -> int:
        """An engine joins now; its slot."""
        slot = len(self.engines)
        engine = self._make(spec, slot)
        assert slot == self.router.add_instance(
            f"{spec.gpu}-{slot}", kv_tokens=spec.kv_tokens, prefix_caching=spec.prefix_caching
        )
        self._tell(slot, spec)
        self.router.set_price(slot, self._prices.get(spec.gpu, 0.0))
        self.engines.append(engine)
        self._planned.append(False)
        self._live.append(set())
        return slot

    def _tell(self, slot: int, spec: EngineSpec) -> None:
        """The one policy that is told what an engine costs."""
        if isinstance(policy := self.router.policy, ExpectedCompletion):
            policy.know(slot, spec.c / 1e3, spec.w / 1e3)

    def _make(self, spec: EngineSpec, slot: int) -> Engine:
        return Engine(spec, seed=self._seed * 1000 + slot, jitter=self._jitter)

    # -- what may happen to an engine --

    def crash(self, slot: int) -> None:
        """The engine is gone, its requests with it. The router hears of them after the delay."""
        old = self.engines[slot]
        self._lost_preemptions += old.preemptions
        self.engines[slot] = self._make(old.spec, slot)  # empty, and not used until it is up
        self._planned[slot] = False
        self._down.add(slot)
        self._frozen.pop(slot, None)
        self.router.set_routable(slot, False)  # the first refused connection says so
        lost = sorted(self._live[slot])
        self._live[slot].clear()
        for index in lost:
            self._fail_later(index, "engine crashed")

    def drain(self, slot: int) -> None:
        """No new requests for it; those it has go on."""
        self._draining.add(slot)
        self.router.set_routable(slot, False)

    def up(self, slot: int) -> None:
        """A crashed engine is back with an empty cache; a draining one takes requests again."""
        if slot in self._down:
            self._down.remove(slot)
            self.router.forget_prefixes(slot)
        self._draining.discard(slot)
        self.router.set_routable(slot, True)

    def replace(self, slot: int, spec: EngineSpec) -> None:
        """Another engine stands behind the slot, empty; the requests of the old one are lost."""
        self.crash(slot)
        self.engines[slot] = self._make(spec, slot)
        self.router.configure_instance(
            slot, kv_tokens=spec.kv_tokens, prefix_caching=spec.prefix_caching
        )
        self._tell(slot, spec)
        self.up(slot)

    def routable(self) -> list[int]:
        """Slots that may be chosen."""
        out = self._down | self._draining
        return [slot for slot in range(len(self.engines)) if slot not in out]

    def freeze(self, slot: int) -> None:
        """From now on its telemetry is what it is now, whatever it does."""
        self._frozen[slot] = self._gauges(slot)

    def thaw(self, slot: int) -> None:
        self._frozen.pop(slot, None)

    def waiting(self, slot: int) -> set[int]:
        """Jobs there of which no token has been seen."""
        return {index for index in self._live[slot] if isnan(self.outcomes[index].ttft)}

    @property
    def preemptions(self) -> int:
        """Of all engines so far."""
        return self._lost_preemptions + sum(engine.preemptions for engine in self.engines)

    def stop(self) -> None:
        """End the run after the present call; what has not ended stays without an end."""
        self._open = 0

    # -- the loop --

    def run(self) -> list[Outcome]:
        """Until the last job is done; outcomes in the order of the jobs."""
        self._open = len(self.jobs)
        self._tickets = [0] * self._open
        if self.jobs:
            self._events.at(self.jobs[0].arrival, self._arrive, 0)
        for wait, job in self._source.begin() if self._source else ():
            self._expect(wait, job)
        self._events.at(self.scrape_seconds, self._report)
        if self.learner is not None or self.governor is not None:
            self._events.at(self._tick, self._learn)
        while self._open and self._events.step():
            pass
        return self.outcomes

    def _expect(self, wait: float, job: Job) -> None:
        self._open += 1
        self._events.at(self.clock.now() + wait, self._come, job)

    def _come(self, job: Job) -> None:
        assert isinstance(self.jobs, list)
        self.jobs.append(job._replace(arrival=self.clock.now()))
        self._tickets.append(0)
        self._arrive(len(self.jobs) - 1)

    def _arrive(self, index: int) -> None:
        now, job = self.clock.now(), self.jobs[index]
        if index + 1 < len(self.jobs):
            self._events.at(self.jobs[index + 1].arrival, self._arrive, index + 1)
        self.arriving = index
        timer, prompt = self._timer, job.prompt
        began = timer() if timer else NAN
        try:
            ttft, tpot = self._slo(job) if self._slo else (-1.0, -1.0)
            d = self.router.route(prompt, now, job.prompt_tokens, slo_ttft=ttft, slo_tpot=tpot)
        except NoInstanceError:
            self.outcomes.append(
                Outcome(index, now, -1, -1, NAN, job.prompt_tokens, job.output_tokens)
            )
            self._fail_later(index, "no instance")
            return
        took = timer() - began if timer else NAN
        self._tickets[index] = d.ticket
        self.outcomes.append(
            Outcome(
                index,
                now,
                d.slot,
                int(d.reason),
                d.predicted,
                job.prompt_tokens,
                job.output_tokens,
                hit_tokens=d.hit_tokens,
                decision=took,
            )
        )
        if self._probe:
            self._probe(self, index, d)
        if self._watcher:
            self._watcher.dispatched(index, d.slot)
        engine = self.engines[d.slot]
        if not fits(engine.spec, job):
            self._fail_later(index, "longer than the cache")
            return
        engine.submit(index, job.hashes, job.prompt_tokens, job.output_tokens, now)
        self._live[d.slot].add(index)
        self._plan(d.slot)
        if self.patience < inf:
            self._events.at(now + self.patience, self._leave, index)

    def _leave(self, index: int) -> None:
        """The client has waited for a first token for as long as it would."""
        o = self.outcomes[index]
        if index not in self._live[o.slot] or not isnan(o.ttft):
            return
        self.engines[o.slot].cancel(index, self.clock.now())
        self._live[o.slot].discard(index)
        o.error = "client left"
        self.router.observe(self._tickets[index], Event.ABANDONED, self.clock.now())
        self._end(index, failed=True)

    def _fail_later(self, index: int, error: str) -> None:
        """The router learns after the delay that a request failed."""
        self._events.at(self.clock.now() + self.delay, self._fail, index, error)

    def _fail(self, index: int, error: str) -> None:
        self.outcomes[index].error = error
        self.router.observe(self._tickets[index], Event.FAILED, self.clock.now())
        self._end(index, failed=True)

    def _end(self, index: int, failed: bool) -> None:
        self._open -= 1
        if self._source and (coming := self._source.follow(self.jobs[index], self.clock.now())):
            self._expect(*coming)
        if self._watcher and (slot := self.outcomes[index].slot) >= 0:
            self._watcher.ended(index, slot, failed)

    def _plan(self, slot: int) -> None:
        """See to it that the end of an engine's running iteration is on the heap, once."""
        engine = self.engines[slot]
        if not self._planned[slot] and (end := engine.next_time()) < float("inf"):
            self._planned[slot] = True
            self._events.at(end, self._step, slot, engine)

    def _step(self, slot: int, engine: Engine) -> None:
        if engine is not self.engines[slot]:
            return  # it crashed in the middle of this iteration
        now = self.clock.now()
        self._planned[slot] = False
        made = engine.step(now)
        for rid, cached in engine.finished.items():
            self.outcomes[rid].cached_tokens = cached
            self._live[slot].discard(rid)
        if made:
            self._events.at(now + self.delay, self._deliver, made)
        self._plan(slot)

    def _deliver(self, made: list[tuple[int, int, bool]]) -> None:
        """The tokens of one iteration, one a request, reach the router."""
        deliver(self.router, made, self._tickets, self.clock.now(), self._began, self._ended)

    def _began(self, index: int, now: float) -> None:
        o = self.outcomes[index]
        if o.error:
            return  # its client has left while the token was on its way
        o.ttft = now - o.arrival
        self.router.observe(self._tickets[index], Event.FIRST_TOKEN, now)
        if self._watcher:
            self._watcher.first_token(index, o.slot)

    def _ended(self, index: int, now: float) -> None:
        o, observe, ticket = self.outcomes[index], self.router.observe, self._tickets[index]
        o.e2e = now - o.arrival
        observe(ticket, Event.USAGE, now, o.prompt_tokens, cached=o.cached_tokens)
        observe(ticket, Event.DONE, now, o.output_tokens)
        self._end(index, failed=False)

    def _gauges(self, slot: int) -> tuple[int, int, float]:
        engine = self.engines[slot]
        return engine.running, engine.waiting, engine.kv_usage

    def _report(self) -> None:
        now = self.clock.now()
        for slot in range(len(self.engines)):
            if slot in self._down:
                continue
            if self.scrape_loss and self._lossy.random() < self.scrape_loss:
                continue
            self.router.report(slot, now, *(self._frozen.get(slot) or self._gauges(slot)))
            if self._watcher and slot not in self._frozen:
                self._watcher.reported(slot)
        self._events.at(now + self.scrape_seconds, self._report)

    def _learn(self) -> None:
        now = self.clock.now()
        if self.governor is not None:
            self.governor.tick(self.router, now)
        elif self.learner is not None:
            tick(self.router, self.learner)
        self._events.at(now + self._tick, self._learn)
