"""Does it ever collapse? Short runs of fleets, requests and faults drawn at random.

A cell of the matrix is a place that somebody thought of. Here a seed draws everything: the engines
and how far their costs and caches are from the table, what arrives and in which bursts, a load from
idle to well beyond saturation, how stale the reports are, and one thing that goes wrong meanwhile.
Lodestar learns from cold in each. A run has collapsed if its mean TTFT, cold start included, is
over twice that of the better of two heuristics on the same requests: `lmetric`, and
`expected_completion`, which is told each engine's true costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import msgspec

from lodestar_fast.matrix.cells import FALLBACK, OURS, Cell
from lodestar_fast.matrix.code import code_version
from lodestar_fast.matrix.measure import jobs_of, plan_of, run_cell
from lodestar_fast.matrix.tables import Table
from lodestar_fast.matrix.workloads import Workload, source
from lodestar_fast.sim.gpus import GPUS, EngineSpec
from lodestar_fast.simulate.plan import fleet

RIVALS = (FALLBACK, "expected_completion")
COLLAPSE = 2.0  # times the better one's mean TTFT
SECONDS = (60.0, 120.0)
ENGINES = (2, 12)
LOADS = (0.3, 1.0)  # of what a rough estimate says that the fleet stands: it is off by half
COSTS = (0.8, 1.25)
LEAST_REQUESTS, MOST_REQUESTS = 200, 4000
SOURCES = (
    *("conversation", "toolagent", "azure_conv", "azure_code", "sharegpt", "mixed"),
    *("sharing10", "sharing50", "sharing70", "servegen_small", "servegen_mid"),
)
FAULTS = ("no fault", "slow", "crash", "join", "drain", "freeze", "surge", "switch", "hot")
FOR_A_WHILE = {
    "slow": ('"slot":{},"slow":3.0', '"slot":{},"slow":1.0'),
    "crash": ('"crash":{}', '"up":{}'),
    "drain": ('"drain":{}', '"up":{}'),
    "freeze": ('"freeze":{}', '"thaw":{}'),
}
PROBED = 500  # requests whose lengths the estimate is made of
WORST = 10


class Draw(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a seed. ttft: mean by policy, ms. code: of ours."""

    seed: int
    code: str
    what: str
    requests: int
    ttft: dict[str, float]
    cpu: float = 0.0
    demoted: int = 0

    @property
    def ratio(self) -> float:
        """Of ours to the better of the others."""
        return self.ttft[OURS] / min(self.ttft[rival] for rival in RIVALS)


def code() -> str:
    return code_version(OURS)


def drawn(seed: int, traces: Path) -> tuple[Cell, float]:
    """What is run, and its requests a second. Depends on nothing else, on any machine."""
    draw = Random(f"robust {seed}")
    kinds = draw.sample(sorted(GPUS), draw.choice((1, 2, 2, 3)))
    size = draw.randint(max(ENGINES[0], len(kinds)), ENGINES[1])
    counts = [1] * len(kinds)
    for _ in range(size - len(kinds)):
        counts[draw.randrange(len(kinds))] += 1
    changes: dict[str, Any] = {
        "coefficients": tuple((name, round(draw.uniform(*COSTS), 3)) for name in "wcak"),
        "kv_scale": draw.choice((0.5, 1.0, 1.0, 2.0)),
        "jitter": draw.choice((0.0, 0.05, 0.15)),
        "delay": draw.choice((0.002, 0.01, 0.01, 0.1)),
    }
    cell = Cell(
        f"draw {seed}",
        "robustness",
        "+".join(f"{n}x{kind}" for n, kind in zip(counts, kinds, strict=True)),
        Workload(draw.choice(SOURCES), cv=draw.choice((1.0, 1.0, 4.0))),
        draw.uniform(*LOADS),
        note=draw.choice(FAULTS),
        changes=tuple(changes.items()),
    )
    rate = cell.load * stands(fleet(plan_of(cell)), cell.work.source, traces)
    seconds = max(draw.uniform(*SECONDS), LEAST_REQUESTS / rate)
    stale = ('{"t":0,"scrape_s":1.0}', '{"t":0,"scrape_loss":0.05}') * (draw.random() < 0.5)
    start, end = round(0.3 * seconds, 1), round(0.65 * seconds, 1)
    events, work = [*stale], cell.work
    if cell.note in FOR_A_WHILE:
        slot = draw.randrange(size)
        for time_, what in zip((start, end), FOR_A_WHILE[cell.note], strict=True):
            events.append(f'{{"t":{time_},{what.format(slot)}}}')
    elif cell.note == "join":
        events.append(f'{{"t":{start},"join":"{draw.choice(kinds)}"}}')
    elif cell.note == "surge":
        work = replace(work, surge=(start, end, 1.3))
    elif cell.note == "switch":
        others = [name for name in SOURCES if name != work.source]
        work = replace(work, then=draw.choice(others), at=start)
    elif cell.note == "hot":
        work = replace(work, hot=(start, end, 0.4, 4096))
    cell = replace(cell, seconds=round(seconds, 1), events=tuple(events), work=work)
    return cell, min(rate, MOST_REQUESTS / seconds)


def stands(specs: Sequence[EngineSpec], name: str, traces: Path) -> float:
    """Roughly, requests a second: prefill without a cache, and decoding in a cache that is full."""
    requests = source(name, traces).requests[:PROBED]
    output = fmean(r.output_tokens for r in requests)
    context = fmean(r.prompt_tokens for r in requests) + output / 2
    rate = 0.0
    for spec in specs:
        prefill = fmean(spec.idle_ttft(r.prompt_tokens) for r in requests)
        batch = max(1.0, min(float(spec.max_seqs), spec.kv_tokens / context))
        step = spec.iteration_seconds(int(batch), 0, batch * context, int(batch))
        rate += 1 / (prefill + output * step / batch)
    return rate


def run_draw(seed: int, traces: Path) -> Draw:
    """Raises ConfigError."""
    began = time.process_time()
    cell, rate = drawn(seed, traces)
    jobs = jobs_of(cell.work, seed, rate, cell.seconds, traces)
    means, demoted = {}, 0
    for policy in (OURS, *RIVALS):
        done = run_cell(cell, policy, seed, jobs, traces)
        means[policy] = round(fmean(r.ttft for r in done.records if r.ttft is not None) * 1e3, 2)
        demoted += sum(change.state == "demoted" for change in done.watchdog or ())
    return Draw(
        seed,
        code(),
        described(cell, rate),
        len(jobs),
        means,
        round(time.process_time() - began, 2),
        demoted,
    )


def described(cell: Cell, rate: float) -> str:
    work, changes = cell.work, dict(cell.changes)
    parts = [cell.fleet, f"{work.source} at {rate:.3g} req/s for {cell.seconds:g} s"]
    parts += [f"CV {work.cv:g}"] * (work.cv != 1)
    parts += [f"cache x {changes['kv_scale']:g}"] * (changes["kv_scale"] != 1)
    parts += ["scraped once a second"] * any("scrape_s" in line for line in cell.events)
    parts.append(f"then {work.then}" if work.then else cell.note)
    return ", ".join(parts)


def table(draws: Iterable[Draw]) -> Table:
    """The worst ones, and of how many."""
    current = sorted(draws, key=lambda d: -d.ratio)
    rows = [
        [f"{d.seed}: {d.what}", f"{d.ratio:.2f}", *(f"{d.ttft[p]:,.0f}" for p in (OURS, *RIVALS))]
        for d in current[:WORST]
    ]
    note = (
        f"{len(current)} runs, in {collapsed(current)} of them a collapse: a mean TTFT over "
        f"{COLLAPSE:g} times the better heuristic's; ms. Slower than it in "
        f"{sum(d.ratio > 1 for d in current)}. The worst are shown, by seed."
    )
    return Table("Drawn at random", ("seed", "ratio", OURS, *RIVALS), rows, note, prose=True)


def collapsed(draws: Iterable[Draw]) -> int:
    return sum(draw.ratio > COLLAPSE for draw in draws)
