"""The demo while it runs: a page of the terminal that changes, or a line now and then.

Board collects, render() draws; drawing happens twice a second at most, as the processes that are
measured share the machine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lodestar_fast.clock import Clock
from lodestar_fast.report import OURS, Row
from lodestar_fast.summary import Record
from lodestar_fast.terminal import RECENT_SECONDS, REFRESH_SECONDS, Recent, ms, say

PLAIN_SECONDS = 10.0

# Reasons that say that a model was asked and had its say.
MODEL_REASONS = {"learned", "guard", "out_of_range"}


class Board:
    """What is known so far."""

    def __init__(
        self, labels: Mapping[str, Mapping[str, str]], total: int, seconds: float, clock: Clock
    ) -> None:
        """labels: by policy and instance id; total: requests to each; seconds: of arrivals."""
        self.labels = labels
        self.total = total
        self.seconds = seconds
        self.ttft = {policy: Recent() for policy in labels}
        self.shares: dict[str, Counter[str]] = {policy: Counter() for policy in labels}
        self.failed: Counter[str] = Counter()
        self.ended = 0
        self.reasons: Counter[str] = Counter()
        self.took_over: float | None = None  # arrival of the first request a model had a say in
        self.version: int | None = None  # of the model, if the router says
        self.learner = ""  # its state, if the router says
        self._clock = clock
        self._start = clock.now()

    def note(self, policy: str, record: Record) -> None:
        self.ended += 1
        self.failed[policy] += bool(record.error)
        if record.ttft is not None:
            self.ttft[policy].add(self._clock.now(), record.ttft)
        if record.instance:
            self.shares[policy][self.labels[policy].get(record.instance, "?")] += 1
        if policy == OURS and record.reason:
            self.reasons[record.reason] += 1
            if record.reason in MODEL_REASONS:
                first = record.arrival if self.took_over is None else self.took_over
                self.took_over = min(first, record.arrival)

    @property
    def elapsed(self) -> float:
        return self._clock.now() - self._start

    def recent(self, policy: str) -> float | None:
        return self.ttft[policy].recent(self._clock.now())

    def phase(self) -> str:
        """Who decides for Lodestar now."""
        if OURS not in self.labels:
            return ""
        if self.took_over is not None:
            version = f" v{self.version}" if self.version else ""
            return f"model{version} decides, since t = {self.took_over:.0f} s"
        waiting = {
            "importing": "while PyTorch loads",
            "gathering": "while the first measurements gather",
        }.get(self.learner, "while the model gets ready")
        return f"a heuristic (lmetric) decides {waiting}"

    def decided(self) -> str:
        """How often each reason decided for Lodestar."""
        total = self.reasons.total()
        return ", ".join(
            f"{reason} {count} ({count / total:.0%})"
            for reason, count in self.reasons.most_common()
        )

    def line(self) -> str:
        """For where there is no terminal."""
        times = ", ".join(f"{policy} {ms(self.recent(policy))}" for policy in self.labels)
        text = f"{min(self.elapsed, self.seconds):.0f} of {self.seconds:.0f} s; mean TTFT of the "
        text += f"last {RECENT_SECONDS:g} s: {times}"
        return f"{text}; {phase}" if (phase := self.phase()) else text

    def render(self, title: str) -> RenderableType:
        labels = sorted(
            {label for by_id in self.labels.values() for label in by_id.values()},
            key=lambda label: int(label.split()[0]),
        )
        done = min(self.elapsed, self.seconds)
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=self.seconds, completed=done, width=30),
            Text(
                f"{done:.0f} of {self.seconds:.0f} s"
                if done < self.seconds
                else "waiting for the last answers"
            ),
            Text(f"{self.ended:,} of {self.total * len(self.labels):,} answers", style="dim"),
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("TTFT")
        table.add_column("so far", justify="right")
        table.add_column(f"last {RECENT_SECONDS:g} s", justify="right")
        for label in labels:
            table.add_column(label, justify="right")
        if self.failed.total():
            table.add_column("failed", justify="right")
        for policy in self.labels:
            sent = self.shares[policy].total() or 1
            cells = [f"{self.shares[policy][label] / sent:.0%}" for label in labels]
            if self.failed.total():
                cells.append(str(self.failed[policy]))
            table.add_row(
                policy,
                ms(self.ttft[policy].mean),
                ms(self.recent(policy)),
                *cells,
                style="bold" if policy == OURS else "",
            )
        lines: list[RenderableType] = [Text(title, style="bold"), head, Text(), table, Text()]
        if OURS in self.labels:
            lines.append(Text.assemble(("Lodestar: ", "bold"), self.phase()))
            lines.append(Text(f"  decisions: {self.decided() or 'none yet'}", style="dim"))
        return Group(*lines)


async def show(board: Board, title: str, console: Console) -> None:
    """Until cancelled; leaves the last state on the screen."""
    if not console.is_terminal:
        say(console, title)
        while True:
            await asyncio.sleep(PLAIN_SECONDS)
            say(console, board.line())
    with Live(console=console, auto_refresh=False, transient=False) as live:
        try:
            while True:
                live.update(board.render(title), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)
        finally:
            live.update(board.render(title), refresh=True)


def result_table(rows: Sequence[Row], final: str) -> Table:
    """The comparison, for the terminal; 80 columns hold it."""
    title = f"TTFT in the {final}, heuristics against Lodestar (times in ms)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("policy", no_wrap=True)
    heads = ("mean", "p50", "p99", "x Lodestar", "whole run", "TPOT", "hits", "failed")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.policy,
            *(_number(row.final[key]) for key in ("mean", "p50", "p99")),
            _number(row.ratio, 2),
            _number(row.overall),
            _number(row.tpot, 1),
            "-" if row.hit_ratio is None else f"{row.hit_ratio:.1%}",
            f"{row.failed:,}",
            style="bold" if row.policy == OURS else "",
        )
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
