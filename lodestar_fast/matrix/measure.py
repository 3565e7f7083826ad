"""One run of a cell: a policy and a seed, to the numbers that are kept of it.

A Row is what a table, a figure or a test can want of a run, and no more: some hundred bytes in the
results file. Times of requests are gone; what is left of time are the means of ten-second windows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from lodestar_fast.matrix.cells import CLAIRVOYANT, Cell
from lodestar_fast.matrix.workloads import Workload, draw, export, source
from lodestar_fast.report import prediction_error
from lodestar_fast.sim.bounds import lower_bounds
from lodestar_fast.sim.jobs import Job
from lodestar_fast.simulate.plan import Measured, Plan, fleet, run_one
from lodestar_fast.simulate.saturation import saturation
from lodestar_fast.slo import Goals
from lodestar_fast.summary import Record, run_summary
from lodestar_fast.watchdog import DEMOTED, TRIAL

WINDOW = 10.0  # seconds
LEAST = 10  # requests in a window that is worth a mean
COLD = 60.0  # seconds: the beginning of a run, reported apart
CACHE = ("kv_scale", "engine")  # changes after which saturation is measured anew
SATURATION_SEED, SATURATION_SECONDS = 1, 300.0


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run. Milliseconds; null where nothing was measured. what: a hash of all that it follows
    from but the code; code: of that.

    windows: mean TTFT of what arrived in each ten seconds; null with fewer than ten requests.
    predicted: median factor between predicted and real TTFT, and the share within a factor of two.
    """

    cell: str
    seconds: float
    policy: str
    seed: int
    rate: float
    what: str
    code: str
    cpu: float  # seconds that the run took
    requests: int
    failed: int
    ttft: tuple[float, ...] | None  # mean, p50, p90, p99
    tpot: tuple[float, float] | None  # mean, p99
    e2e: float | None
    hits: float | None  # share of prompt tokens
    in_time: float | None
    preempted: int
    cold: float | None
    converged: float | None  # seconds
    windows: tuple[float | None, ...]
    learned: float | None = None  # share of decisions
    predicted: tuple[float, float] | None = None
    demoted: int = 0  # how often the watchdog took it off
    trials: int = 0  # how often it was tried against the fallback
    bound: float | None = None  # no router can have a lower mean; in the clairvoyant's row only


def plan_of(cell: Cell, events: str | None = None) -> Plan:
    """The Plan of a cell; its requests come from draw()."""
    return Plan(fleet=cell.fleet, trace=cell.work.source, events=events, **dict(cell.changes))


@lru_cache(maxsize=1)  # the policies of a cell and a seed follow each other
def jobs_of(work: Workload, seed: int, rate: float, seconds: float, traces: Path) -> list[Job]:
    return draw(work, seed, rate, seconds, traces)


def run_cell(cell: Cell, policy: str, seed: int, jobs: list[Job], traces: Path) -> Measured:
    """Raises ConfigError."""
    if cell.work.users:
        trace = str(traces / f"{cell.work.source}.jsonl.gz")
        plan = replace(plan_of(cell), trace=trace, users=cell.work.users, seconds=cell.seconds)
        return run_one(plan, seed, policy)
    if not cell.events:
        return run_one(plan_of(cell), seed, policy, jobs=jobs)
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        events.write_text("\n".join(cell.events))
        return run_one(plan_of(cell, str(events)), seed, policy, jobs=jobs)


def row_of(
    cell: Cell, rate: float, policy: str, seed: int, what: str, code: str, traces: Path
) -> Row:
    """Run it. Raises ConfigError."""
    jobs = [] if cell.work.users else jobs_of(cell.work, seed, rate, cell.seconds, traces)
    began = time.process_time()
    done = run_cell(cell, policy, seed, jobs, traces)
    cpu = time.process_time() - began
    specs = fleet(plan_of(cell))
    run = run_summary(
        done.records,
        policy=policy,
        seed=seed,
        trace=cell.work.source,
        rate=rate,
        preemptions=done.preemptions,
        in_time=Goals(specs).met,
        warm_up=done.warm_up,
    )
    ttft, tpot = run["ttft_ms"], run["tpot_ms"]
    known = ttft["mean"] is not None
    error = prediction_error([r for r in done.records if r.arrival >= done.warm_up])
    return Row(
        cell=cell.name,
        seconds=cell.seconds,
        policy=policy,
        seed=seed,
        rate=rate,
        what=what,
        code=code,
        cpu=round(cpu, 2),
        requests=run["requests"],
        failed=run["failed"],
        ttft=tuple(_short(ttft[k]) for k in ("mean", "p50", "p90", "p99")) if known else None,
        tpot=(
            (_short(tpot["mean"], 2), _short(tpot["p99"], 2)) if tpot["mean"] is not None else None
        ),
        e2e=None if run["e2e_ms"]["mean"] is None else _short(run["e2e_ms"]["mean"]),
        hits=run["hit_ratio"],
        in_time=run["slo_attainment"],
        preempted=run["preemptions"],
        cold=_mean([r for r in done.records if r.arrival < COLD]),
        converged=run["convergence_s"],
        windows=windows(done.records, cell.seconds),
        learned=run["learned_share"] or None,
        predicted=(round(error[0], 3), round(error[1], 3)) if error else None,
        demoted=sum(change.state == DEMOTED for change in done.watchdog or ()),
        trials=sum(change.state == TRIAL for change in done.watchdog or ()),
        bound=_bound(cell, jobs, done.warm_up) if policy == CLAIRVOYANT else None,
    )


def _bound(cell: Cell, jobs: list[Job], warm_up: float) -> float | None:
    """The larger lower bound of the mean TTFT, in ms; none where engines or arrivals vary."""
    plan = plan_of(cell)
    if plan.jitter or cell.events or not jobs:
        return None
    bounds = lower_bounds(jobs, fleet(plan), warm_up)
    return _short((max(bounds.values()) + plan.delay) * 1e3) if bounds else None


def _short(value: float, digits: int = 1) -> float:
    return round(value, digits)


def _mean(records: Sequence[Record]) -> float | None:
    values = [r.ttft for r in records if r.ttft is not None and not r.error]
    return _short(float(np.mean(values)) * 1e3) if values else None


def windows(records: Sequence[Record], seconds: float) -> tuple[float | None, ...]:
    """Mean TTFT in ms by ten seconds of arrival."""
    by_window: list[list[Record]] = [[] for _ in range(int(np.ceil(seconds / WINDOW)))]
    for record in records:
        by_window[int(record.arrival // WINDOW)].append(record)
    return tuple(_mean(some) if len(some) >= LEAST else None for some in by_window)


# -- saturation ------------------------------------------------------------------------------------


class Capacity(msgspec.Struct, frozen=True):
    """What a fleet stands of a source: requests a second for one `unit`."""

    fleet: str
    source: str
    changes: str  # of engines
    saturation: float
    cpu: float


def capacity_of(cell: Cell, name: str) -> tuple[str, str, str]:
    """What its saturation depends on: fleet, source, changed engines."""
    engines = [pair for pair in cell.changes if pair[0] in CACHE]
    return cell.unit or cell.fleet, name, repr(engines) if engines else ""


def find_capacity(cell: Cell, name: str, traces: Path) -> Capacity:
    """By bisection, of a source of the cell. Raises ConfigError."""
    began = time.process_time()
    fleet_name, _, changes = capacity_of(cell, name)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "source.jsonl"
        export(source(name, traces), trace)
        kept = {k: v for k, v in cell.changes if k in CACHE}
        plan = Plan(fleet=fleet_name, trace=str(trace), seconds=SATURATION_SECONDS, **kept)
        rate = saturation(plan, SATURATION_SEED, lambda _: None)
    return Capacity(
        fleet_name, name, changes, round(rate, 3), round(time.process_time() - began, 2)
    )
