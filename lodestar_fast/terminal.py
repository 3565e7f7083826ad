"""What `replay` and `demo` print: a bar on a terminal, a plain line now and then elsewhere.

Progress goes to stderr and results to stdout, so that the results can be piped.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lodestar_fast.clock import Clock
from lodestar_fast.summary import Record, late_seconds

REFRESH_SECONDS = 0.5  # of a terminal; more costs time that the measured processes could use
PLAIN_SECONDS = 5.0  # between lines where there is no terminal
RECENT_SECONDS = 10.0
MOST_ERRORS = 3  # that are listed

# A client that sends one request in a hundred later than this measures itself.
LATE_SECONDS = 0.05


def say(console: Console, text: str) -> None:
    """Plain text; folded between words on a terminal, left in one line elsewhere."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def ms(seconds: float | None) -> str:
    """A time for people: three digits, at least whole milliseconds."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    if value >= 9999.5:
        return f"{seconds:,.1f} s"
    return f"{value:.1f} ms" if value < 9.95 else f"{value:,.0f} ms"


class Recent:
    """Mean of the values of the last RECENT_SECONDS, and of all."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()
        self._recent = 0.0
        self._total = 0.0
        self.count = 0

    def add(self, now: float, value: float) -> None:
        self._values.append((now, value))
        self._recent += value
        self._total += value
        self.count += 1

    def recent(self, now: float) -> float | None:
        while self._values and self._values[0][0] < now - RECENT_SECONDS:
            self._recent -= self._values.popleft()[1]
        return self._recent / len(self._values) if self._values else None

    @property
    def mean(self) -> float | None:
        return self._total / self.count if self.count else None


class ReplayProgress:
    """How far a replay against one URL is."""

    def __init__(self, total: int, clock: Clock, console: Console) -> None:
        self.total = total
        self.ended = self.failed = 0
        self.ttft = Recent()
        self._clock = clock
        self._console = console

    def note(self, record: Record) -> None:
        self.ended += 1
        self.failed += bool(record.error)
        if record.ttft is not None:
            self.ttft.add(self._clock.now(), record.ttft)

    def text(self) -> str:
        recent = self.ttft.recent(self._clock.now())
        return (
            f"{self.ended}/{self.total} ended, {self.failed} failed, "
            f"TTFT {ms(self.ttft.mean)}, last {RECENT_SECONDS:g} s {ms(recent)}"
        )

    async def show(self) -> None:
        """Show until cancelled."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(PLAIN_SECONDS)
                say(self._console, self.text())
        columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=self._console, auto_refresh=False) as bar:
            task = bar.add_task("", total=self.total)
            try:
                while True:
                    bar.update(task, completed=self.ended, description=self.text(), refresh=True)
                    await asyncio.sleep(REFRESH_SECONDS)
            finally:
                bar.update(task, completed=self.ended, description=self.text(), refresh=True)


def summary_table(run: dict[str, Any]) -> Table:
    """One run's latencies."""
    title = f"{run['requests']:,} requests, {run['failed']:,} failed"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right")
    for key, name in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("e2e_ms", "E2E")):
        table.add_row(name, *(milliseconds(value) for value in run[key].values()))
    return table


def milliseconds(value: float | None) -> str:
    return ms(None if value is None else value / 1e3)


def say_trouble(console: Console, records: Sequence[Record], prefix: str = "") -> None:
    """The commonest errors, each with how often it came; and whether the client was late."""
    errors = Counter(record.error for record in records if record.error)
    for error, count in errors.most_common(MOST_ERRORS):
        say(console, f"{prefix}failed: {count} x {error}")
    if (late := late_seconds(records)) > LATE_SECONDS:
        say(
            console,
            f"{prefix}1 % of requests were sent {late:.2f} s late or more: this machine was too "
            "busy for the client, and the times include that",
        )
