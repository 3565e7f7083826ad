"""What the rows say: ratios with intervals, gaps to the clairvoyant, losses, recovery.

A ratio is theirs over ours: above 1 Lodestar is the faster one. Over seeds it is a geometric mean,
at saturation a median, since there the same policy differs several times between seeds. The best
heuristic of a cell is chosen in hindsight: the one with the least mean over the seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from lodestar_fast.matrix.cells import CLAIRVOYANT, FALLBACK, OURS, PUBLISHED, Cell
from lodestar_fast.matrix.measure import COLD, WINDOW, Row
from lodestar_fast.matrix.statistics import (
    Interval,
    bootstrap,
    holm,
    interval,
    log_ratios,
    over_cells,
    p_value,
)

LOST = 1.01  # times the other's: from here on a cell counts as lost
TIE = 1.2  # at saturation
ALPHA = 0.05
NEAR = 0.10  # of the final level: where learning and recovery end
SMOOTH = 3  # windows that are averaged before that is asked
COLLAPSE = 2.0  # times the fallback's mean TTFT, same cell and seed
HEADLINE = ("paper", "mixed", "real")  # blocks that means over cells are taken of
BEST = "best heuristic"

Value = Callable[[Row], float | None]


def mean_ttft(row: Row) -> float | None:
    return row.ttft[0] if row.ttft else None


def p99_ttft(row: Row) -> float | None:
    return row.ttft[3] if row.ttft else None


def mean_tpot(row: Row) -> float | None:
    return row.tpot[0] if row.tpot else None


def in_time(row: Row) -> float | None:
    return row.in_time


@dataclass(frozen=True)
class Comparison:
    """With one other policy in one cell. p: adjusted for the number of cells."""

    cell: Cell
    other: str
    seeds: int
    mean: Interval  # ratio of mean TTFT
    p99: Interval
    p: float = 1.0

    @property
    def verdict(self) -> str:
        """won, lost, or tie: not decided, or too near to 1 to matter."""
        if self.cell.saturated:
            low, high = 1 / TIE, TIE
            return "won" if self.mean.value >= high else "lost" if self.mean.value <= low else "tie"
        if self.p > ALPHA:
            return "tie"
        return "won" if self.mean.value > 1 else "lost" if self.mean.value < 1 / LOST else "tie"


class Findings:
    """All that is asked of a set of rows. cells: those that have rows of ours."""

    def __init__(self, cells: Iterable[Cell], rows: Iterable[Row]) -> None:
        self.rows: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            if row.ttft:
                self.rows[row.cell][row.policy][row.seed] = row
        self.cells = [cell for cell in cells if self.rows[cell.name][OURS]]
        self.headline = [cell for cell in self.cells if cell.block in HEADLINE]

    # -- one cell --

    def seeds(self, cell: Cell, *policies: str) -> list[int]:
        """Those that all of them have."""
        have = [self.rows[cell.name][policy].keys() for policy in policies]
        return sorted(set.intersection(*map(set, have))) if have else []

    def values(self, cell: Cell, policy: str, value: Value, seeds: Sequence[int]) -> list[float]:
        found = [value(self.rows[cell.name][policy][seed]) for seed in seeds]
        return [v for v in found if v is not None]

    def level(self, cell: Cell, policy: str, value: Value = mean_ttft) -> float | None:
        """Over the seeds that it shares with ours: mean, at saturation median."""
        values = self.values(cell, policy, value, self.seeds(cell, policy, OURS))
        return (median(values) if cell.saturated else fmean(values)) if values else None

    def heuristics(self, cell: Cell) -> list[str]:
        """Baselines with as many seeds as ours."""
        ours = len(self.rows[cell.name][OURS])
        return [
            policy
            for policy in self.rows[cell.name]
            if not policy.startswith((OURS, CLAIRVOYANT))
            and len(self.seeds(cell, policy, OURS)) == ours
        ]

    def best(self, cell: Cell) -> str | None:
        """The heuristic that one should have chosen."""
        levels = {p: self.level(cell, p) or math.inf for p in self.heuristics(cell)}
        return min(levels, key=lambda p: levels[p]) if levels else None

    def other(self, cell: Cell, name: str) -> str | None:
        """A policy that the cell has; BEST is looked up."""
        policy = self.best(cell) if name == BEST else name
        return policy if policy and self.seeds(cell, policy, OURS) else None

    def logs(self, cell: Cell, policy: str, value: Value = mean_ttft) -> list[float]:
        """Of the ratios theirs over ours, by seed."""
        seeds = self.seeds(cell, policy, OURS)
        pairs = [
            (value(self.rows[cell.name][policy][s]), value(self.rows[cell.name][OURS][s]))
            for s in seeds
        ]
        known = [(a, b) for a, b in pairs if a and b]
        return log_ratios([a for a, _ in known], [b for _, b in known])

    def compare(self, cell: Cell, name: str) -> Comparison | None:
        policy = self.other(cell, name)
        if policy is None:
            return None
        logs = self.logs(cell, policy)
        mean = bootstrap(logs, median=True) if cell.saturated else interval(logs)
        p99 = bootstrap(self.logs(cell, policy, p99_ttft), median=cell.saturated)
        return Comparison(cell, policy, len(logs), mean.exp(), p99.exp(), p_value(logs))

    def gap(self, cell: Cell, name: str) -> float | None:
        """(theirs - ours) / (theirs - clairvoyant); None where the clairvoyant wins nothing."""
        policy = self.other(cell, name)
        theirs = self.level(cell, policy) if policy else None
        ours, best = self.level(cell, OURS), self.level(cell, CLAIRVOYANT)
        if theirs is None or ours is None or best is None or theirs <= best:
            return None
        return (theirs - ours) / (theirs - best)

    # -- over cells --

    def comparisons(self, name: str, cells: Sequence[Cell] | None = None) -> list[Comparison]:
        """With one other in every cell that has it; p values adjusted over these."""
        found = [self.compare(cell, name) for cell in (self.headline if cells is None else cells)]
        some = [c for c in found if c is not None]
        adjusted = holm([c.p for c in some])
        return [
            Comparison(c.cell, c.other, c.seeds, c.mean, c.p99, p)
            for c, p in zip(some, adjusted, strict=True)
        ]

    def geometric(self, name: str, value: Value = mean_ttft, block: str = "") -> Interval | None:
        """Over the headline cells, or one block of them."""
        some = [cell for cell in self.headline if block in ("", cell.block)]
        cells = [cell for cell in some if self.other(cell, name)]
        if not cells:
            return None
        logs = [self.logs(cell, self.other(cell, name) or "", value) for cell in cells]
        mean = over_cells(logs, [cell.saturated for cell in cells]).exp()
        # A cell with one seed would be entered as if it had no spread.
        single = any(len(some) < 2 for some in logs)
        return Interval(mean.value, math.nan, math.nan) if single else mean

    def closed_gap(self, name: str) -> float | None:
        """Over the headline cells, in logarithms: what ours wins of what the clairvoyant wins."""
        won = possible = 0.0
        for cell in self.headline:
            policy = self.other(cell, name)
            if policy is None or not self.seeds(cell, CLAIRVOYANT, OURS):
                continue
            middle = median if cell.saturated else fmean
            ours = middle(self.logs(cell, policy))
            won += ours
            possible += ours - middle(self.logs(cell, CLAIRVOYANT))
        return won / possible if possible > 0 else None

    # -- in the course of a run --

    def course(self, cell: Cell, policy: str, reference: str = CLAIRVOYANT) -> list[float]:
        """By window: mean over seeds of log(policy / reference); NaN where there is nothing."""
        seeds = self.seeds(cell, policy, reference)
        if not seeds:
            return []
        rows = self.rows[cell.name]
        lines = [
            [
                math.log(a / b) if a and b else math.nan
                for a, b in zip(rows[policy][s].windows, rows[reference][s].windows, strict=True)
            ]
            for s in seeds
        ]
        table = np.array(lines)
        known = np.isfinite(table)
        counts = known.sum(axis=0)
        sums = np.where(known, table, 0.0).sum(axis=0)
        return [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]

    def together(self, policy: str) -> list[float]:
        """The mean of such courses over the headline cells, as long as the shortest."""
        courses = [line for cell in self.headline if (line := self.course(cell, policy))]
        length = min(map(len, courses), default=0)
        columns = zip(*(line[:length] for line in courses), strict=True)
        known = [[v for v in column if v == v] for column in columns]
        return [fmean(column) if column else math.nan for column in known]

    def settled(
        self, cell: Cell, policy: str, start: float = 0.0, end: float = math.inf
    ) -> float | None:
        """Seconds after start from which its distance to the clairvoyant stays what it is finally.

        Finally: in the last third of what lies between start and end. Distance: the ratio of mean
        TTFT in 30 s; stays: within 10 %. None if it never does, or too little is known.
        """
        last = None if end == math.inf else int(end // WINDOW)
        return settled(self.course(cell, policy)[int(start // WINDOW) : last])

    def worst_window(self, cell: Cell, cold: bool) -> tuple[float, float] | None:
        """Ours over the fallback's in the worst ten seconds: median over the seeds, and largest.

        cold: of the first minute; else of what comes after it.
        """
        split = int(COLD // WINDOW)
        rows = self.rows[cell.name]
        worst = []
        for seed in self.seeds(cell, OURS, FALLBACK):
            pairs = list(zip(rows[OURS][seed].windows, rows[FALLBACK][seed].windows, strict=True))
            part = pairs[:split] if cold else pairs[split:]
            ratios = [ours / theirs for ours, theirs in part if ours and theirs]
            if ratios:
                worst.append(max(ratios))
        return (median(worst), max(worst)) if worst else None

    def collapses(self) -> tuple[int, list[Row], float]:
        """Runs of ours, those in which it collapsed, and the worst ratio to the fallback."""
        runs, fallen, worst = 0, [], 0.0
        for cell in self.cells:
            for seed in self.seeds(cell, OURS, FALLBACK):
                row = self.rows[cell.name][OURS][seed]
                theirs = mean_ttft(self.rows[cell.name][FALLBACK][seed])
                ratio = (mean_ttft(row) or 0.0) / (theirs or math.inf)
                runs += 1
                worst = max(worst, ratio)
                if ratio > COLLAPSE:
                    fallen.append(row)
        return runs, fallen, worst


def settled(course: Sequence[float]) -> float | None:
    """Seconds until a course of windows, three at a time, stays within 10 % of its last third."""
    if len(course) < 2 * SMOOTH:
        return None
    ahead = [
        float(np.nanmean(part)) if np.isfinite(part).any() else math.nan
        for k in range(len(course) - SMOOTH + 1)
        if len(part := np.array(course[k : k + SMOOTH]))
    ]
    tail = np.array(course[-(len(course) // 3) :])
    if not np.isfinite(tail).any():
        return None
    final = float(np.nanmean(tail))
    last = -1  # the last that is too far away
    for k, value in enumerate(ahead):
        if not abs(value - final) <= math.log1p(NEAR):
            last = k
    return None if last == len(ahead) - 1 else (last + 1) * WINDOW


def published(findings: Findings) -> bool:
    """Whether the published system is among the rows."""
    return any(findings.seeds(cell, PUBLISHED, OURS) for cell in findings.cells)
