"""The tables of the report, from the findings: the same rows for HTML, Markdown and the README."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from lodestar_fast.matrix.cells import (
    CLAIRVOYANT,
    FALLBACK,
    OURS,
    PUBLISHED,
    SATURATED,
    TOLD,
    VARIANTS,
    Cell,
)
from lodestar_fast.matrix.findings import (
    BEST,
    Comparison,
    Findings,
    Value,
    in_time,
    mean_tpot,
    mean_ttft,
    p99_ttft,
)
from lodestar_fast.matrix.statistics import Interval

PREFIX = "prefix_cache"
RIVALS = (PREFIX, FALLBACK, "expected_completion", BEST, PUBLISHED, CLAIRVOYANT)
NONE = "-"
Show = Callable[[Findings, Cell], str]


@dataclass(frozen=True)
class Table:
    """Cells are plain text; note stands below. strong: (row, column) of what stands out."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[tuple[int, int]] = frozenset()
    prose: bool = False  # sentences, not numbers

    def markdown(self) -> str:
        """Without the title."""
        lines = ["| " + " | ".join(self.head) + " |", "| --- " * len(self.head) + "|"]
        for i, row in enumerate(self.rows):
            texts = [f"**{t}**" if (i, k) in self.strong else t for k, t in enumerate(row)]
            lines.append("| " + " | ".join(texts) + " |")
        return "\n".join([*lines, "", self.note] if self.note else lines)


# -- numbers for people ----------------------------------------------------------------------------


def ms(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def times(ratio: Interval | None) -> str:
    """1.41 (1.38 to 1.44); without an interval where there is none, or none to speak of."""
    if ratio is None:
        return NONE
    if math.isnan(ratio.low) or ratio.high > 100 * ratio.low:  # which says nothing
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"


def seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


MARK = {"won": "", "tie": " ~", "lost": " LOST"}


def _versus(comparison: Comparison | None) -> str:
    if comparison is None:
        return NONE
    return f"{times(comparison.mean)}{MARK[comparison.verdict]}"


# -- tables ----------------------------------------------------------------------------------------


def levels(found: Findings, value: Value, title: str) -> Table:
    """Policies by cells, in ms; the least of what a router can do stands out."""
    policies = _order(found)
    bounds = value is mean_ttft
    rows, strong = [], set()
    for i, cell in enumerate(found.cells):
        numbers = [found.level(cell, policy, value) for policy in policies]
        known = [
            n
            for n, policy in zip(numbers, policies, strict=True)
            if n is not None and not policy.startswith(CLAIRVOYANT)
        ]
        row = [cell.name, str(len(found.rows[cell.name][OURS]))]
        for k, n in enumerate(numbers):
            if n is not None and n == min(known) and not policies[k].startswith(CLAIRVOYANT):
                strong.add((i, k + 2))
            row.append(ms(n))
        if bounds:
            known = [r.bound for r in found.rows[cell.name][CLAIRVOYANT].values() if r.bound]
            row.append(ms(_mean(known)))
        rows.append(row)
    note = f"Milliseconds; means over the seeds, medians from {SATURATED:.0%} of saturation on."
    head = ["cell", "seeds", *policies]
    if bounds:
        head.append("lower bound")
        note += " Lower bound: no router of any kind can do better."
    return Table(title, head, rows, note, frozenset(strong))


def _order(found: Findings) -> list[str]:
    """Ours, the published one, heuristics, the clairvoyant."""
    main = (p for cell in found.cells for p in found.rows[cell.name] if p not in cell.rest)
    names = dict.fromkeys(
        p for p in main if any(found.seeds(cell, p, OURS) for cell in found.cells)
    )
    first = [p for p in (OURS, PUBLISHED) if p in names]
    last = [CLAIRVOYANT] if CLAIRVOYANT in names else []
    return [*first, *(p for p in names if p not in (*first, *last)), *last]


def ratios(found: Findings) -> Table:
    """Against each rival, with intervals and verdicts."""
    known = [r for r in RIVALS if any(found.other(cell, r) for cell in found.headline)]
    by_rival = {r: {c.cell.name: c for c in found.comparisons(r)} for r in known}
    rows = []
    for cell in found.headline:
        best = found.best(cell)
        row = [cell.name, str(len(found.rows[cell.name][OURS]))]
        for rival in known:
            comparison = by_rival[rival].get(cell.name)
            if rival == CLAIRVOYANT:  # no match to be won
                row.append(times(comparison.mean) if comparison else NONE)
                continue
            text = _versus(comparison)
            row.append(f"{text} {best}" if rival == BEST and best else text)
        rows.append(row)
    mean = ["geometric mean", ""]
    mean += [times(found.geometric(rival)) for rival in known]
    rows.append(mean)
    note = (
        "Their mean TTFT over Lodestar's, geometric mean over paired seeds with its 95 % t "
        "interval; at saturation the median with a bootstrap interval. ~: no difference that is "
        "certain (Holm over the cells, 5 %) or, at saturation, one under 20 %. LOST: certain, and "
        "over 1 %. The best heuristic is chosen in hindsight, its name beside."
    )
    return Table("Times faster, mean TTFT", ("cell", "seeds", *known), rows, note)


def tails(found: Findings) -> Table:
    """The same of P99."""
    known = [r for r in RIVALS if any(found.other(cell, r) for cell in found.headline)]
    rows = []
    for cell in found.headline:
        compared = [found.compare(cell, rival) for rival in known]
        rows.append([cell.name, *(times(c.p99) if c else NONE for c in compared)])
    rows.append(["geometric mean", *(times(found.geometric(r, p99_ttft)) for r in known)])
    note = "Bootstrap over seeds, never over requests."
    return Table("Times faster, P99 TTFT", ("cell", *known), rows, note)


def claims(found: Findings) -> Table:
    """The paper's own cells, with what it says of itself."""
    rows = []
    for cell in found.cells:
        if cell.block != "paper":
            continue
        ours = found.compare(cell, PREFIX)
        rows.append(
            [
                cell.name,
                f"{found.rows[cell.name][OURS][min(found.rows[cell.name][OURS])].rate:.3g}",
                f"{ours.mean.value:.2f} / {ours.p99.value:.2f}" if ours else NONE,
                _both(found, cell, PUBLISHED),
                _both(found, cell, CLAIRVOYANT),
                cell.claim,
                cell.note,
            ]
        )
    head = ("cell", "req/s", OURS, PUBLISHED, "clairvoyant", "the paper", "set-up, and differences")
    note = (
        "Times faster than AIBrix prefix-cache, mean / P99. The paper: over all 1.41x / 1.47x. Its "
        "engines were real, its V100 ran eagerly without chunked prefill and prefix caching (here "
        "too), its gateway took time of its own (here none), and its Preble and Mooncake baselines "
        "had costs of other GPUs (here each GPU's own)."
    )
    return Table("The paper's cells", head, rows, note)


def _both(found: Findings, cell: Cell, policy: str) -> str:
    """A policy's mean and P99 against prefix_cache."""
    texts = []
    for value in (mean_ttft, p99_ttft):
        theirs, its = found.level(cell, PREFIX, value), found.level(cell, policy, value)
        texts.append(f"{theirs / its:.2f}" if theirs and its else NONE)
    return " / ".join(texts)


def learning(found: Findings) -> Table:
    """From cold, and what it predicts."""
    rows = []
    for cell in found.cells:
        if cell.marks:
            continue
        runs = found.rows[cell.name][OURS].values()
        cold, later = found.worst_window(cell, True), found.worst_window(cell, False)
        converged = [row.converged for row in runs if row.converged is not None]
        rows.append(
            [
                cell.name,
                seconds(found.settled(cell, OURS)),
                seconds(found.settled(cell, PUBLISHED)),
                f"{median(converged):.0f} ({len(converged)} of {len(runs)})" if converged else NONE,
                NONE if cold is None else f"{cold[0]:.2f} / {cold[1]:.2f}",
                NONE if later is None else f"{later[0]:.2f} / {later[1]:.2f}",
                share(_mean(row.learned for row in runs)),
                _error(found, cell, OURS),
                _error(found, cell, PUBLISHED),
            ]
        )
    head = (
        *("cell", "settled, s", f"{PUBLISHED}, s", "moving mean settled, s"),
        *("worst 10 s, first minute", "worst 10 s, later", "learned"),
        *("prediction off by", f"{PUBLISHED} off by"),
    )
    note = (
        "Settled: from then on the distance to the clairvoyant router, over 30 s and all seeds, "
        "stays within 10 % of that of the last third. Moving mean: the same of one run's own TTFT, "
        "which chance moves too; median over the runs that settle. Worst ten seconds: Lodestar "
        f"over {FALLBACK} in the same ten seconds, median over seeds / worst of all. Off by: "
        "median factor between predicted and real TTFT, and the share within a factor of two."
    )
    return Table("Learning", head, rows, note)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


def _error(found: Findings, cell: Cell, policy: str) -> str:
    known = [r.predicted for r in found.rows[cell.name][policy].values() if r.predicted]
    if not known:
        return NONE
    return f"{median(f for f, _ in known):.2f}, {fmean(s for _, s in known):.0%}"


def recovery(found: Findings) -> Table:
    """After something has changed."""
    rows = []
    for cell in found.cells:
        for k, mark in enumerate(cell.marks):
            end = cell.marks[k + 1] if k + 1 < len(cell.marks) else math.inf
            row = [f"{cell.name}: {cell.note}", f"{mark:.0f}"]
            row += [seconds(found.settled(cell, p, mark, end)) for p in (OURS, PUBLISHED, FALLBACK)]
            row += [_versus(found.compare(cell, rival)) for rival in (PREFIX, BEST)]
            beyond = found.compare(cell, CLAIRVOYANT)
            row.append(times(beyond.mean) if beyond else NONE)
            rows.append(row)
    head = ("cell", "at, s", OURS, PUBLISHED, FALLBACK, f"times {PREFIX}", f"times {BEST}")
    note = (
        "Seconds after the change until the distance to the clairvoyant router stays within 10 % "
        "of what it is in the end, as under Learning; then ratios of mean TTFT over the whole run."
    )
    return Table("Adaptation", (*head, "times clairvoyant"), rows, note)


def quality(found: Findings) -> Table:
    """TPOT, preemptions and what was served in time."""
    rows = []
    for cell in found.cells:
        best = found.best(cell) or FALLBACK
        timely = [_level(found, cell, p, in_time) for p in found.heuristics(cell)]
        rows.append(
            [
                cell.name,
                *(ms(_level(found, cell, p, mean_tpot)) for p in (OURS, FALLBACK, best)),
                *(
                    f"{_level(found, cell, p, lambda r: r.preempted) or 0:.0f}"
                    for p in (OURS, FALLBACK)
                ),
                share(_level(found, cell, OURS, in_time)),
                share(_level(found, cell, TOLD, in_time)),
                share(max((t for t in timely if t is not None), default=None)),
                share(_level(found, cell, OURS, lambda r: r.hits)),
                share(_level(found, cell, best, lambda r: r.hits)),
            ]
        )
    head = (
        *("cell", "TPOT ms", f"{FALLBACK}", "best heuristic", "preempted", f"{FALLBACK}"),
        *("in time", "told", "most of any heuristic", "cache hits", "best heuristic"),
    )
    note = (
        "In time: TTFT at most 5 times, and TPOT at most twice, what more than half of the fleet's "
        "engines do when idle; no TTFT under 200 ms is late. Told: each request names that as its "
        "SLO."
    )
    return Table("What else it costs", head, rows, note)


def _level(found: Findings, cell: Cell, policy: str, value: Value) -> float | None:
    return _mean(found.values(cell, policy, value, found.seeds(cell, policy, OURS)))


def robustness(found: Findings) -> Table:
    """Single changes of headline cells, and how much of the margin is left."""
    by_name = {cell.name: cell for cell in found.cells}
    rows = []
    for cell in found.cells:
        if not cell.base:
            continue
        row = [cell.base, cell.note]
        for rival in (PREFIX, BEST):
            here = found.compare(cell, rival)
            base = by_name.get(cell.base)
            there = found.compare(base, rival) if base else None
            row.append(_versus(here))
            row.append(
                f"{math.log(here.mean.value) / math.log(there.mean.value):.0%}"
                if here and there and there.mean.value > 1
                else NONE
            )
        row.append(_versus(found.compare(cell, PUBLISHED)))
        rows.append(row)
    head = ("cell", "changed", f"times {PREFIX}", "of its margin", f"times {BEST}", "of its margin")
    note = "Of its margin: logarithm of the ratio, over that of the unchanged cell."
    return Table("Robustness", (*head, f"times {PUBLISHED}"), rows, note)


def variants(found: Findings) -> Table:
    """Ablations: the variant's mean TTFT over that of the frozen setting."""
    cells = [c for c in found.cells if any(found.seeds(c, v, OURS) for v in VARIANTS)]
    rows = []
    for variant in VARIANTS:
        compared = [found.compare(cell, variant) for cell in cells]
        rows.append([variant.partition(":")[2], *(times(c.mean) if c else NONE for c in compared)])
    note = "The variant's mean TTFT over that of the setting used everywhere: above 1 it is worse."
    return Table("Variants", ("setting", *(c.name for c in cells)), rows if cells else [], note)


def field(found: Findings) -> Table:
    """All further policies."""
    names = list(dict.fromkeys(p for c in found.cells for p in c.rest if p not in VARIANTS))
    cells = [c for c in found.cells if any(found.seeds(c, p, OURS) for p in names)]
    rows = []
    for name in names:
        compared = [found.compare(cell, name) for cell in cells]
        if any(compared):
            rows.append([name, *(times(c.mean) if c else NONE for c in compared)])
    note = "Times faster than these, mean TTFT."
    return Table("The rest of the field", ("policy", *(c.name for c in cells)), rows, note)


def every(found: Findings) -> list[Table]:
    """All that have rows."""
    tables = [
        ratios(found),
        tails(found),
        levels(found, mean_ttft, "Mean TTFT"),
        levels(found, p99_ttft, "P99 TTFT"),
        claims(found),
        learning(found),
        recovery(found),
        quality(found),
        robustness(found),
        variants(found),
        field(found),
    ]
    return [table for table in tables if table.rows]
