"""The requests of the matrix: sources of requests, and how they arrive.

A source is an endless supply of requests without times: a released trace, rescaled, or one that is
made here after a published description. draw() takes from a source as many as a cell's rate and
length need and gives them arrivals: Poisson, with Gamma gaps, at a trace's own times; with a surge,
with a switch to another source, or with a prefix that is suddenly popular.

Every seed begins at another place of its source, so that the spread over seeds is one of workloads
too and not of arrivals only. Everything is a pure function of the arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.shapes import apart, heated, sharing_ratio, with_sharing
from lodestar_fast.sim.workload import Request, Trace, read_trace
from lodestar_fast.simulate.plan import TRACE

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, spread evenly however many there are
SESSIONS = "agentic_coding_sessions"
SHARING = {"sharing0": 0.0, "sharing5": 0.05, "sharing10": 0.1, "sharing30": 0.3}
SHARING |= {"sharing50": 0.5, "sharing70": 0.7}
MIXED = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Workload:
    """What arrives. Times in seconds from the first arrival.

    then: another source that takes over at `at`. cv: coefficient of variation of the gaps between
    arrivals; 1 is Poisson. own_times: the source's own arrivals, stretched to the rate. surge:
    from, to, factor on the rate. hot: from, to, share of the requests, tokens of their prefix.
    users: closed loop, so many sessions at a time; nothing else counts then.
    """

    source: str
    then: str = ""
    at: float = 0.0
    cv: float = 1.0
    own_times: bool = False
    surge: tuple[float, float, float] | None = None
    hot: tuple[float, float, float, int] | None = None
    users: int = 0

    @property
    def sources(self) -> list[str]:
        return [name for name in (self.source, self.then) if name]


# -- sources ---------------------------------------------------------------------------------------


def _file(name: str, *sizes: float) -> Callable[[Path], Trace]:
    """A trace of the traces folder, rescaled: block tokens, longest input, factor on outputs."""

    def load(folder: Path) -> Trace:
        trace = read_trace(folder / f"{name}.jsonl.gz")
        return trace.rescaled(int(sizes[0]), int(sizes[1]), sizes[2]) if sizes else trace

    return load


def _packaged(*sizes: float) -> Callable[[Path], Trace]:
    def load(folder: Path) -> Trace:
        trace = read_trace(TRACE)
        return trace.rescaled(int(sizes[0]), int(sizes[1]), sizes[2]) if sizes else trace

    return load


def _sharing(*shares: float) -> Callable[[Path], Trace]:
    return lambda folder: sharing_ratio(shares)


def _azure(name: str, share: float) -> Callable[[Path], Trace]:
    return lambda folder: with_sharing(_file(name)(folder), share)


SOURCES: dict[str, Callable[[Path], Trace]] = {
    "conversation": _packaged(50, 10_000, 0.5),
    "conversation_full": _packaged(),
    "toolagent": _file("toolagent_like", 100, 10_000, 0.5),
    "azure_conv": _azure("azure2023_conv", 0.5),
    "azure_code": _azure("azure2023_code", 0.3),
    "sharegpt": _file("sharegpt_lengths"),
    "servegen_small": _file("servegen_small_hour"),
    "servegen_mid": _file("servegen_mid_day"),
    "agentic": _file("agentic_coding_open"),
    SESSIONS: lambda folder: read_trace(folder / f"{SESSIONS}.jsonl.gz", True),
    "mixed": _sharing(*MIXED),
    **{name: _sharing(share) for name, share in SHARING.items()},
}


@lru_cache(maxsize=4)
def source(name: str, folder: Path) -> Trace:
    """Raises ConfigError if its trace is not in the folder."""
    return changed(SOURCES[name](folder), name=name)


def export(trace: Trace, path: Path) -> None:
    """As a trace file, for `lodestar simulate --trace`, without the trace's place for a seed."""
    lines = [msgspec.json.encode({"meta": {"block_size": trace.block_tokens or None}})]
    for r in trace.requests:
        row: dict[str, Any] = {"t": r.arrival, "in": r.prompt_tokens, "out": r.output_tokens}
        row |= {"h": r.runs} if r.runs else {}
        row |= {"cid": r.tenant, "pl": r.tenant_tokens} if r.tenant >= 0 else {}
        lines.append(msgspec.json.encode(row))
    path.write_bytes(b"\n".join(lines) + b"\n")


# -- arrivals --------------------------------------------------------------------------------------


def draw(work: Workload, seed: int, rate: float, seconds: float, folder: Path) -> list[Job]:
    """The requests of a run with their arrivals, from 0 to before `seconds`.

    rate: requests a second, outside a surge. Raises ConfigError.
    """
    if work.own_times:
        requests = _own_times(work, seed, rate, seconds, folder)
    else:
        times = list(_arrivals(work, seed, rate, seconds))
        switch = sum(t < work.at for t in times) if work.then else len(times)
        first = _place(source(work.source, folder), seed, switch)
        second = _place(source(work.then, folder), seed, len(times) - switch) if work.then else []
        requests = [*first, *apart(first, second)]
        requests = [replace(r, arrival=t) for r, t in zip(requests, times, strict=True)]
    if work.hot:
        return make_jobs(heated(requests, work.hot, seed))
    return make_jobs(requests)


def _arrivals(work: Workload, seed: int, rate: float, seconds: float) -> Iterator[float]:
    rng = random.Random(f"arrivals {seed}")
    shape = 1 / work.cv**2
    t = 0.0
    while (now := _surged(t, work.surge)) < seconds:
        yield now
        t += rng.gammavariate(shape, 1 / (shape * rate))


def _surged(t: float, surge: tuple[float, float, float] | None) -> float:
    """When what would come at t comes, if from start to end all comes so many times as fast."""
    if surge is None or t < surge[0]:
        return t
    start, end, factor = surge
    return min(start + (t - start) / factor, end) + max(0.0, t - start - (end - start) * factor)


def _own_times(
    work: Workload, seed: int, rate: float, seconds: float, folder: Path
) -> list[Request]:
    """From the seed's place on; bursts and drift as they are, stretched to that rate on average."""
    trace = source(work.source, folder)
    stretch = len(trace.requests) / trace.seconds / rate
    trace = trace.extended(len(trace.requests) + 1)  # twice, so that the end has a continuation
    first = _start(len(trace.requests) // 2, seed)
    begin = trace.requests[first].arrival
    moved = (replace(r, arrival=(r.arrival - begin) * stretch) for r in trace.requests[first:])
    return [r for r in moved if r.arrival < seconds]


def _start(count: int, seed: int) -> int:
    return int(seed * GOLDEN % 1 * count)


def _place(trace: Trace, seed: int, count: int) -> list[Request]:
    """So many requests from the seed's place on, the trace being a circle."""
    start = _start(len(trace.requests), seed)
    return list(trace.extended(start + count).requests[start : start + count])


def missing(work: Workload, folder: Path) -> str:
    """Why a workload cannot be made here; empty if it can."""
    for name in work.sources:
        try:
            source(name, folder)
        except ConfigError as e:
            return str(e)
    return ""
