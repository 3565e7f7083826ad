"""What one run of a simulation is made of, and how to make it, in this process or another.

A Plan is everything but the policy and the seed: small, immutable, the same in every worker. From
the three a run follows entirely, whoever makes it and whenever.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from lodestar_fast.config import LearnerConfig
from lodestar_fast.core.enums import Reason
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import POLICIES, Policy
from lodestar_fast.core.router import Router
from lodestar_fast.errors import ConfigError, InvariantError
from lodestar_fast.governor import Governor
from lodestar_fast.learner import Learner
from lodestar_fast.learner.ablation import Ablation
from lodestar_fast.sim.faults import Call, read_events, read_faults
from lodestar_fast.sim.gpus import MODEL, EngineSpec, parse_fleet
from lodestar_fast.sim.jobs import Job, Outcome, make_jobs
from lodestar_fast.sim.later import ROUND_SECONDS
from lodestar_fast.sim.logged import read_any
from lodestar_fast.sim.oracle import Oracle, Regret
from lodestar_fast.sim.references import AltruisticOracle, StaleOracle
from lodestar_fast.sim.run import MOST_SLOTS, Simulation
from lodestar_fast.sim.sessions import Sessions
from lodestar_fast.sim.shapes import heated, sharing_ratio, switched
from lodestar_fast.sim.workload import Trace
from lodestar_fast.simulate.prices import bill
from lodestar_fast.slo import Asked, Goals
from lodestar_fast.summary import Record

TRACE = str(files("lodestar_fast") / "data" / "mooncake_conversation.jsonl.gz")
ORACLE = Oracle.name
PAPER = "lodestar-paper"
ABLATED = Ablation.__struct_fields__
TOLD = "told"  # a setting of lodestar's: each request asks for what counts as in time
CLAIRVOYANTS = {kind.name: kind for kind in (Oracle, StaleOracle, AltruisticOracle)}
SIMULATED = (*CLAIRVOYANTS, PAPER)  # policies that are only here ...
WATCHERS = (PAPER, StaleOracle.name)  # ... and of them, those that are told of each request
LEARNED, FALLBACK = "lodestar", "lmetric"  # as the proxy has them (build.py)
WARM_UP = 0.1  # of a run: what arrives in it is in no latency
STEPS = 50  # of progress in a run

# What the watchdog does stands in the results, with its time; it need not be on stderr too.
logging.getLogger("lodestar_fast").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Plan:
    """Units: seconds, requests a second, tokens."""

    fleet: str
    trace: str = TRACE
    model: str = MODEL
    rate: float | None = None
    time_scale: float = 1.0
    seconds: float | None = None
    block_tokens: int = 0
    max_input: int = 0
    output_scale: float = 1.0
    coefficients: tuple[tuple[str, float], ...] = ()
    events: str | None = None
    scrape_interval: float = 0.1
    delay: float = 0.01
    jitter: float = 0.0
    asked: Asked | None = None  # SLOs of single requests
    users: int = 0  # closed loop: so many at a time; 0: an open one
    learner: str = "mlp"
    learner_seconds: float = ROUND_SECONDS
    watchdog: bool = True  # takes the learned policy off while it does harm, as in the proxy
    regret: bool = False
    cv: float = 1.0  # of the gaps between arrivals that are redrawn
    sharing: tuple[float, ...] = ()  # SharingRatio of these shares, in place of the trace
    switch: tuple[float, str] | None = None  # from when on which trace takes over
    hot: tuple[float, float, float, int] | None = None  # as in sim/shapes.heated()
    patience: float | None = None  # of clients, for a first token
    prices: tuple[tuple[str, float], ...] = ()  # of an hour, by GPU
    kv_scale: float = 1.0  # factor on every engine's KV cache
    engine: tuple[tuple[str, Any], ...] = ()  # fields of EngineSpec, the same for every engine

    @property
    def factors(self) -> Mapping[str, float]:
        return dict(self.coefficients)


class Change(NamedTuple):
    """Of what the watchdog thinks: seconds, its state from then on, and why."""

    t: float
    state: str
    why: str


class Governed(Governor):
    """A governor that keeps what its watchdog did."""

    def __init__(self, policy: Guarded) -> None:
        super().__init__(policy)
        self.changes: list[Change] = []

    def tick(self, router: Router, now: float) -> int | None:
        before = self.watchdog.state, self.watchdog.why
        version = super().tick(router, now)
        if before != (after := (self.watchdog.state, self.watchdog.why)):
            self.changes.append(Change(round(now, 3), *after))
        return version


@dataclass
class Measured:
    """One run. span: arrival of its last request, seconds. watchdog: None if it did not watch."""

    policy: str
    seed: int
    records: list[Record]
    span: float
    preemptions: int
    watchdog: list[Change] | None = None
    regret: list[float] = field(default_factory=list)  # seconds, of the sampled decisions
    bill: float | None = None  # price of an hour of the engines in use; None: nothing has one

    @property
    def warm_up(self) -> float:
        """When latencies begin to count."""
        return WARM_UP * self.span


def fleet(plan: Plan) -> list[EngineSpec]:
    """Raises ConfigError for a fleet that cannot be."""
    specs = parse_fleet(plan.fleet, model=plan.model, **dict(plan.engine))
    if len(specs) > MOST_SLOTS:
        raise ConfigError(f"--fleet {plan.fleet!r}: more than {MOST_SLOTS} engines")
    return [
        replace(spec, kv_tokens=int(spec.kv_tokens * plan.kv_scale)).scaled(**plan.factors)
        for spec in specs
    ]


def events(plan: Plan, specs: Sequence[EngineSpec]) -> list[Call]:
    """What happens to that fleet. Raises ConfigError."""
    return read_events(plan.events, specs, plan.factors, plan.model) if plan.events else []


def ever(plan: Plan, specs: Sequence[EngineSpec]) -> list[EngineSpec]:
    """Every engine that is there at some time: the fleet, and what joins or takes a place."""
    faults = read_faults(plan.events, specs, plan.model) if plan.events else []
    later = [fault.value for fault in faults if fault.action in ("join", "replace")]
    return [*specs, *(spec.scaled(**plan.factors) for spec in later)]


@lru_cache(maxsize=2)
def _trace(
    path: str, block_tokens: int, max_input: int, output_scale: float, sessions: bool
) -> Trace:
    trace = read_any(path, sessions).rescaled(block_tokens, max_input, output_scale)
    if not trace.requests:
        raise ConfigError(f"--max-input: no request of {path} is left")
    return trace


@lru_cache(maxsize=2)
def workload(plan: Plan, seed: int) -> Trace:
    """The requests with their arrivals. Raises ConfigError.

    A trace that has too few for the rate and the seconds is repeated, with other prefix blocks.
    """
    trace = sharing_ratio(plan.sharing) if plan.sharing else _read(plan, plan.trace)
    if plan.users:
        return trace  # its arrivals are made as the run goes
    if plan.rate is not None:
        if plan.seconds is not None:
            most = 1.1 * plan.rate * plan.seconds + 100
            if plan.cv > 1:  # six standard deviations of a count in bursts
                most += 6 * plan.cv * (plan.rate * plan.seconds) ** 0.5
            trace = trace.extended(int(most))
        trace = trace.timed(seed, plan.rate, plan.seconds, plan.cv)
    else:
        trace = trace.timed(seed).slowed(plan.time_scale, plan.seconds)
    if plan.switch:
        at, path = plan.switch
        trace = switched(trace, at, _read(plan, path))
    return replace(trace, requests=heated(trace.requests, plan.hot, seed)) if plan.hot else trace


def _read(plan: Plan, path: str) -> Trace:
    return _trace(path, plan.block_tokens, plan.max_input, plan.output_scale, plan.users > 0)


@lru_cache(maxsize=1)  # all policies of one seed are run after another
def jobs_of(plan: Plan, seed: int) -> list[Job]:
    return [] if plan.users else make_jobs(workload(plan, seed).requests)


def settings(name: str) -> tuple[str, dict[str, Any]]:
    """A policy as it is named on the command line: `lmetric`, or with settings of its own, as in
    `prefix_threshold:threshold=0.2` or `lodestar:margin=1.2:round_seconds=5`.

    Raises ConfigError.
    """
    policy, *parts = name.split(":")
    values: dict[str, Any] = {}
    for part in parts:
        key, _, text = part.partition("=")
        try:
            values[key] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            values[key] = text
    return policy, values


def make_policy(name: str) -> tuple[Policy, dict[str, Any]]:
    """A policy by its name with settings, and those settings that are the learner's, or TOLD.

    Raises ConfigError.
    """
    policy, values = settings(name)
    ours = (*LearnerConfig.__struct_fields__, *ABLATED, TOLD) if policy == LEARNED else ()
    own = {k: v for k, v in values.items() if k not in ours}
    kind = _class(policy)
    try:
        chooser = kind(**own)
    except TypeError as e:
        _, _, unknown = str(e).partition("unexpected keyword argument ")
        said = f"{policy} has no setting {unknown}" if unknown else str(e)
        raise ConfigError(f"--policy: {name}: {said}") from None
    except ValueError as e:
        raise ConfigError(f"--policy: {name}: {e}") from None
    if own and _ignores_settings(kind):
        raise ConfigError(f"--policy: {name}: {policy} has no settings")
    return chooser, {k: v for k, v in values.items() if k in ours}


def _class(policy: str) -> type[Policy]:
    """Raises ConfigError if torch is needed and missing."""
    if policy in CLAIRVOYANTS:
        return CLAIRVOYANTS[policy]
    if policy == PAPER:
        try:
            from lodestar_fast.sim.paper.policy import Paper
        except ModuleNotFoundError as e:
            raise ConfigError(
                f"--policy: {PAPER}: {e.name} is not installed "
                "(pip install 'lodestar-fast[learner]')"
            ) from None
        return Paper
    return POLICIES[policy]


def _ignores_settings(policy: type[Policy]) -> bool:
    """An extension type that declares no arguments takes any, and does nothing with them."""
    try:
        policy(**{"": None})
    except TypeError:
        return False
    return True


def _sessions(plan: Plan, seed: int, specs: Sequence[EngineSpec]) -> Sessions:
    trace = workload(plan, seed)
    return Sessions(trace, plan.users, seed, plan.seconds or 0.0, specs[0].block)


def make_learner(plan: Plan, tuning: Mapping[str, Any] | None = None) -> Learner:
    """tuning: fields of LearnerConfig and Ablation.

    Raises ConfigError, also if torch is needed and missing.
    """
    from lodestar_fast.learner.thread import InlineLearner

    values = {"model": plan.learner, **(tuning or {})}
    without = {k: values.pop(k) for k in ABLATED if k in values}
    try:
        config = msgspec.convert(values, LearnerConfig)
        ablation = msgspec.convert(without, Ablation)
    except msgspec.ValidationError as e:
        raise ConfigError(f"--policy: {LEARNED}: {e}") from None
    try:
        return InlineLearner(config, ablation=ablation)
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"--learner {plan.learner}: {e.name} is not installed "
            "(pip install 'lodestar-fast[learner]'); --learner linear does without torch"
        ) from None


def run_one(
    plan: Plan,
    seed: int,
    policy: str,
    timer: Callable[[], float] | None = None,
    progress: Callable[[float], None] | None = None,
    jobs: list[Job] | None = None,
) -> Measured:
    """One policy, one seed. timer: measures decisions; progress: told the share that is done.

    jobs: in place of those that the plan and the seed make.
    """
    jobs = jobs or jobs_of(plan, seed)
    specs = fleet(plan)
    span = jobs[-1].arrival if jobs else plan.seconds or 0.0
    calls = events(plan, specs)
    if progress:
        calls += [
            (span * k / STEPS, lambda _, share=k / STEPS: progress(share))  # type: ignore[misc]
            for k in range(1, STEPS + 1)
        ]
    regret = Regret(seed) if plan.regret else None
    chooser, tuning = make_policy(policy)
    slo = _asked(plan.asked) if plan.asked and plan.asked.told else None
    if tuning.pop(TOLD, False):
        goals = Goals(specs)
        slo = lambda job: goals.of(job.prompt_tokens)  # noqa: E731
    in_world: Any = chooser if chooser.name in SIMULATED else None
    learner = make_learner(plan, tuning) if chooser.name == LEARNED else None
    governor = None
    if learner and plan.watchdog:
        chooser = Guarded(chooser, POLICIES[FALLBACK]())
        governor = Governed(chooser)
    world = Simulation(
        jobs,
        specs,
        chooser,
        learner,
        seed=seed,
        delay=plan.delay,
        patience=plan.patience or math.inf,
        prices=dict(plan.prices),
        scrape_seconds=plan.scrape_interval,
        jitter=plan.jitter,
        round_seconds=plan.learner_seconds,
        calls=calls,
        timer=timer,
        probe=regret,
        governor=in_world if chooser.name == PAPER else governor,
        watcher=in_world if chooser.name in WATCHERS else None,
        source=None if jobs else _sessions(plan, seed, specs),
        slo=slo,
    )
    if in_world:
        in_world.world = world
    if governor:
        governor.learner = world.learner
    outcomes = world.run()
    # What the guard caught would be a fallback's decision in the proxy; here nothing may hide it.
    guarded = governor.policy.last_error if governor else ""
    if error := guarded or world.router.stats()["policy_error"]:
        raise InvariantError(f"policy {policy}: {error}")
    records = []
    outcomes.reverse()
    while outcomes:  # one goes as the other comes: there may be millions
        records.append(_record(outcomes.pop(), world.jobs))
    done = Measured(policy, seed, records, span, world.preemptions)
    if plan.prices:
        specs = [engine.spec for engine in world.engines]
        done.bill = bill(records, specs, dict(plan.prices), span)
    if governor:
        done.watchdog = governor.changes
    if regret:
        done.regret = [cost for time, cost in regret.seconds if time >= done.warm_up]
    return done


def _asked(asked: Asked) -> Callable[[Job], tuple[float, float]]:
    return lambda job: asked.of(job.request.index)


def _record(o: Outcome, jobs: Sequence[Job]) -> Record:
    return Record(
        jobs[o.index].request.index,
        o.arrival,
        o.prompt_tokens,
        output_tokens=o.output_tokens,
        cached_tokens=o.cached_tokens,
        ttft=_known(o.ttft),
        tpot=_known(o.tpot),
        e2e=_known(o.e2e),
        error=o.error,
        instance=_name(o.slot) if o.slot >= 0 else "",
        reason=Reason(o.reason).name.lower() if o.reason >= 0 else "",
        predicted=_known(o.predicted),
        decision=_known(o.decision),
    )


_name = lru_cache(maxsize=MOST_SLOTS)(str)  # the same object for all requests of a slot


def _known(value: float) -> float | None:
    return value if value == value else None
