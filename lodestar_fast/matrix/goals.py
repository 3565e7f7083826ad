"""What was aimed at, and what came out: the first table of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean

from lodestar_fast.matrix.cells import CLAIRVOYANT, FALLBACK, OURS, PUBLISHED, TOLD, Cell
from lodestar_fast.matrix.findings import (
    BEST,
    LOST,
    Findings,
    in_time,
    mean_tpot,
    p99_ttft,
    settled,
)
from lodestar_fast.matrix.tables import NONE, PREFIX, Table, seconds, share, times

KEPT = 2 / 3  # of a margin, in logarithms, that a change of the cell may leave


def goals(found: Findings) -> Table:
    rows: list[tuple[str, str, str]] = []

    def ratio(name: str, rival: str, goal: str, block: str = "") -> None:
        mean = found.geometric(rival, block=block)
        p99 = found.geometric(rival, p99_ttft, block)
        rows.append((name, goal, f"{times(mean)} / {times(p99)}"))

    ratio("against AIBrix prefix-cache, mean / P99 TTFT", PREFIX, "1.7 / 1.8")
    ratio("the same, the paper's cells only", PREFIX, "1.41 / 1.47", "paper")
    ratio(f"against {PUBLISHED}", PUBLISHED, "1.25 / 1.25")
    ratio("against the best heuristic of each cell, in hindsight", BEST, "1.06 / -")
    for rival in (PUBLISHED, BEST):
        compared = found.comparisons(rival)
        lost = [f"{c.cell.name} ({c.mean.value:.2f})" for c in compared if c.verdict == "lost"]
        under = [c.cell.name for c in compared if c.mean.value < 1 / 1.01]
        text = f"{len(lost)} of {len(compared)}" + (f": {', '.join(lost)}" if lost else "")
        text += f"; {len(under)} by more than 1 %, certain or not" if len(under) > len(lost) else ""
        rows.append((f"cells lost to {rival}", "0", text if compared else NONE))
    for rival, goal in ((PREFIX, "92 %"), (BEST, "50 %")):
        gap = share(found.closed_gap(rival))
        rows.append((f"of what the clairvoyant gains over {rival}", goal, gap))
    rows += [*_saturated(found), *_service(found), *_course(found)]
    rows += [*_changed(found), *_large(found)]
    runs, fallen, worst = found.collapses()
    rows.append(
        (
            f"runs in which it collapsed (twice the mean TTFT of {FALLBACK})",
            "0 of 500",
            f"{len(fallen)} of {runs}; the worst {worst:.2f} times",
        )
    )
    watched = [row for cell in found.cells for row in found.rows[cell.name][OURS].values()]
    demoted = sum(row.demoted > 0 for row in watched)
    tried = sum(row.trials > 0 for row in watched)
    rows.append(
        (
            "runs in which the watchdog took it off, or tried it against the fallback",
            "0",
            f"{demoted} and {tried} of {len(watched)}",
        )
    )
    note = (
        "Geometric means over the cells of the blocks paper, mixed and real, with 95 % intervals "
        "from a bootstrap over the seeds of each cell. Gains are compared as logarithms, over all "
        "cells."
    )
    return Table("Goals", ("claim", "goal", "measured"), rows, note, prose=True)


def _slower(found: Findings, cells: Iterable[Cell], rival: str) -> str:
    """By cell, Lodestar's mean TTFT over the rival's."""
    compared = [c for cell in cells if (c := found.compare(cell, rival))]
    return ", ".join(f"{1 / c.mean.value:.2f} ({c.cell.name})" for c in compared)


def _saturated(found: Findings) -> list[tuple[str, str, str]]:
    """What is left to gain where the queues are longest."""
    text = _slower(found, [c for c in found.headline if c.saturated], CLAIRVOYANT)
    return [("at 97 % of saturation, mean TTFT over the clairvoyant's", "1.4", text)] * bool(text)


def _changed(found: Findings) -> list[tuple[str, str, str]]:
    """Robustness cells, overload among them."""
    by_name = {cell.name: cell for cell in found.cells}
    changed = [cell for cell in found.cells if cell.base in by_name]
    rows: list[tuple[str, str, str]] = []
    for rival in (PREFIX, PUBLISHED, BEST):
        pairs = [[found.compare(c, rival) for c in (x, by_name[x.base])] for x in changed]
        known = [(here, there) for here, there in pairs if here and there]
        short = [
            f"{here.cell.name} ({here.mean.value:.2f}, was {there.mean.value:.2f})"
            for here, there in known
            if math.log(here.mean.value) < KEPT * math.log(there.mean.value) - math.log(LOST)
        ]
        if known:
            name = f"changed cells that lose over a third of the margin over {rival}"
            rows.append((name, "0", f"{_listed(short)} of {len(known)}"))
    if text := _slower(found, [c for c in changed if c.work.surge], BEST):
        rows.append(("in overload, mean TTFT over the best heuristic's", "1.1", text))
    return rows


def _large(found: Findings) -> list[tuple[str, str, str]]:
    """Fleets of many engines."""
    rows: list[tuple[str, str, str]] = []
    for cell in found.cells:
        if cell.block == "scale":
            compared = [found.compare(cell, rival) for rival in (PREFIX, PUBLISHED, BEST)]
            text = " / ".join(times(c.mean if c else None) for c in compared)
            name = f"{cell.name}: against {PREFIX}, {PUBLISHED}, best heuristic"
            rows.append((name, "1.7 / 1.25 / 1.06", text))
    return rows


def _service(found: Findings) -> list[tuple[str, str, str]]:
    """TPOT, preemptions, what was in time: cells in which it is worse."""
    slower, preempted = [], []
    for cell in found.headline:
        if (seeds := found.seeds(cell, OURS, FALLBACK)) == []:
            continue
        ours, theirs = (found.values(cell, p, mean_tpot, seeds) for p in (OURS, FALLBACK))
        if ours and theirs and sum(ours) > 1.005 * sum(theirs):
            slower.append(f"{cell.name} ({sum(ours) / sum(theirs):.2f})")
        mine, its = (
            sum(found.values(cell, p, lambda r: r.preempted, seeds)) for p in (OURS, FALLBACK)
        )
        if mine > its:
            preempted.append(f"{cell.name} ({mine:.0f} for {its:.0f})")
    return [
        (f"cells with more TPOT than {FALLBACK}, by over half a percent", "0", _listed(slower)),
        (f"cells with more preemptions than {FALLBACK}", "0", _listed(preempted)),
        *_timely(found),
    ]


def _timely(found: Findings) -> list[tuple[str, str, str]]:
    """Served in time, told what that is and not told, against the best rule of each cell."""
    rows = []
    for policy, name, goal in (
        (TOLD, "told what counts as in time (an SLO)", "0"),
        (OURS, "untold", "-"),
    ):
        late, cells, ours, theirs = [], 0, 0.0, 0.0
        for cell in found.headline:
            seeds = found.seeds(cell, policy, OURS)
            levels = {
                p: fmean(found.values(cell, p, in_time, seeds) or [0.0])
                for p in (policy, *found.heuristics(cell))
                if seeds
            }
            if len(levels) < 2:
                continue
            mine = levels.pop(policy)
            best = max(levels.values())
            cells, ours, theirs = cells + 1, ours + mine, theirs + best
            if mine < best - 0.001:
                late.append(f"{cell.name} ({mine:.1%} for {best:.1%})")
        if cells:
            text = f"{_listed(late)} of {cells}; mean {ours / cells:.1%} for {theirs / cells:.1%}"
            rows.append((f"cells with less in time than by the best heuristic, {name}", goal, text))
    return rows


def _listed(names: list[str]) -> str:
    return f"{len(names)}" + (f": {', '.join(names)}" if names else "")


def _course(found: Findings) -> list[tuple[str, str, str]]:
    times_of = {c.name: found.settled(c, OURS) for c in found.headline}
    slow = [f"{n} ({seconds(s)} s)" for n, s in times_of.items() if s is None or s > 20]
    after = {}
    for cell in found.cells:
        for k, mark in enumerate(cell.marks):
            end = cell.marks[k + 1] if k + 1 < len(cell.marks) else float("inf")
            after[f"{cell.name} at {mark:.0f}"] = found.settled(cell, OURS, mark, end)
    late = [f"{n} ({seconds(s)} s)" for n, s in after.items() if s is None or s > 20]
    both = [found.worst_window(cell, cold) for cell in found.headline for cold in (True, False)]
    worst = [w for w in both if w]
    together = settled(found.together(OURS))
    rows = [
        (
            "within 10 % of the final level, all cells together",
            "20 s",
            "never" if together is None else f"{together:.0f} s",
        ),
        (
            "cells not within 10 % of the final level after 20 s",
            "0",
            f"{_listed(slow)} of {len(times_of)}",
        ),
        ("changes not recovered from in 20 s", "0", f"{_listed(late)} of {len(after)}"),
    ]
    if worst:
        typical, most = max(w[0] for w in worst), max(w[1] for w in worst)
        rows.append(
            (
                f"worst ten seconds of all, over {FALLBACK} in the same ten",
                "1.2",
                f"{typical:.2f} median over seeds of the worst cell; {most:.2f} in the worst run",
            )
        )
    return rows
