"""What `simulate` prints: how far it is, on stderr, and the table of results.

On a terminal a bar; elsewhere a line now and then, and none for what is done within seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from rich import box, progress
from rich.console import Console
from rich.table import Table

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.terminal import PLAIN_SECONDS


class Progress:
    """Of runs, and within the present one where that is known."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = MonotonicClock()
        self._told = self._clock.now()
        self._bar: progress.Progress | None = None
        self._total = self._done = 0
        self._name = ""

    @contextlib.contextmanager
    def during(self, name: str, total: int = 0) -> Iterator[None]:
        """Show a bar if there is a terminal; total 0: nobody knows how long it takes."""
        self._name, self._total, self._done = name, total, 0
        if not self._console.is_terminal:
            yield
            return
        columns = (
            progress.BarColumn(),
            progress.TextColumn("{task.description}"),
            progress.TimeElapsedColumn(),
        )
        with progress.Progress(*columns, console=self._console, transient=True) as bar:
            bar.add_task(name, total=total or None)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def runs(self, total: int) -> contextlib.AbstractContextManager[None]:
        return self.during("simulating", total)

    def begin(self, policy: str, seed: int) -> None:
        self._name = f"{policy}, seed {seed}"
        self.within(0.0)

    def within(self, share: float) -> None:
        """The present run is done to that share."""
        self._show(f"{self._name}: {share:.0%}", share)

    def ended(self, text: str = "") -> None:
        """One more run is."""
        self._done += 1
        self._show(text, 0.0)

    def note(self, text: str) -> None:
        """Something that is known now; on a terminal it takes the place of the last."""
        self._show(text, 0.0)

    def warn(self, text: str) -> None:
        """Something that the user should look at."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _show(self, text: str, share: float) -> None:
        if self._total:
            text = f"{self._done} of {self._total} runs" + (f", {text}" if text else "")
        if self._bar is not None:
            self._bar.update(progress.TaskID(0), completed=self._done + share, description=text)
        elif self._clock.now() - self._told >= PLAIN_SECONDS:
            self._told = self._clock.now()
            self._console.print(text, highlight=False, soft_wrap=True)


def _mean(runs: Sequence[dict[str, Any]], *path: str) -> float | None:
    """Of one number over the seeds; None if a seed does not have it."""
    values = []
    for run in runs:
        value: Any = run
        for key in path:
            value = value[key]
        if value is None:
            return None
        values.append(value)
    return fmean(values)


def _ms(value: float | None) -> str:
    """A number of milliseconds; the head names the unit, so that a row fits a screen."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


CLAIRVOYANT = "oracle"  # begins the name of each
LEARNERS = ("lodestar", "lodestar-paper")  # policies with a model
STANDARD_ERROR = "+-"
NOTE = f"{STANDARD_ERROR}: standard error of the mean TTFT over the seeds"


def demotions(run: dict[str, Any]) -> int:
    """How often the watchdog took the learned policy off."""
    return sum(change["state"] == "demoted" for change in run.get("watchdog") or ())


def result_rows(
    runs: Sequence[dict[str, Any]], policies: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Head and a row a policy, for terminal and page. With several seeds, means over them."""
    by_policy = {name: [run for run in runs if run["policy"] == name] for name in policies}
    several = len(runs) > len(policies)
    regret = any(run["regret_ms"]["mean"] is not None for run in runs)
    failed = any(run["failed"] for run in runs)
    demoted = any(demotions(run) for run in runs)
    head = ["", "TTFT ms", *[STANDARD_ERROR] * several, "p50", "p90", "p99", "TPOT ms", "hit"]
    head += ["in time", "preempted", "learned", *["regret ms"] * regret, *["failed"] * failed]
    head += ["demoted"] * demoted
    rows = []
    for name, its in by_policy.items():
        cells = [name, _ms(_mean(its, "ttft_ms", "mean"))]
        if several:
            means = [run["ttft_ms"]["mean"] for run in its]
            known = None not in means
            cells.append(_ms(stdev(means) / len(means) ** 0.5) if known else "-")
        cells += [_ms(_mean(its, "ttft_ms", p)) for p in ("p50", "p90", "p99")]
        cells += [_ms(_mean(its, "tpot_ms", "mean"))]
        cells += [_percent(_mean(its, key)) for key in ("hit_ratio", "slo_attainment")]
        cells.append(f"{_mean(its, 'preemptions') or 0:,.0f}")
        cells.append(
            _percent(_mean(its, "learned_share")) if name.split(":")[0] in LEARNERS else "-"
        )
        if regret:
            cells.append(_ms(_mean(its, "regret_ms", "mean")))
        if failed:
            cells.append(f"{_mean(its, 'failed') or 0:,.0f}")
        if demoted:
            watched = all(run.get("watchdog") is not None for run in its)
            cells.append(f"{fmean(map(demotions, its)):.3g}" if watched else "-")
        rows.append(cells)
    return head, rows


def result_table(runs: Sequence[dict[str, Any]], policies: Sequence[str], title: str) -> Table:
    head, rows = result_rows(runs, policies)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    if STANDARD_ERROR in head:
        table.caption = NOTE
        table.caption_justify = "left"
    return table


def best_heuristic(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best one in hindsight: of those that do not learn and are not clairvoyant.

    What a learner ought to reach without being told which it is. None if there was none.
    """
    names = {run["policy"] for run in runs}
    levels = {}
    for name in names:
        if name.split(":")[0] in LEARNERS or name.startswith(CLAIRVOYANT):
            continue
        level = _mean([run for run in runs if run["policy"] == name], "ttft_ms", "mean")
        if level is not None:
            levels[name] = level
    if not levels:
        return None
    best = min(sorted(levels), key=levels.__getitem__)
    return {"policy": best, "ttft_ms": round(levels[best], 4)}


def references(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the means are to be held against, a line each."""
    lines = []
    if len({run["policy"] for run in runs}) > 1 and (best := best_heuristic(runs)):
        lines.append(f"best heuristic in hindsight: {best['policy']}, {_ms(best['ttft_ms'])} ms")
    first = [run for run in runs if run["policy"] == runs[0]["policy"]]
    if all(run["lower_bound_ms"] for run in first):
        idle, pooled = (_mean(first, "lower_bound_ms", kind) for kind in ("idle", "pooled"))
        lines.append(
            f"lower bounds of the mean: {_ms(idle)} ms if every request were alone on the fastest "
            f"engine, {_ms(pooled)} ms on one engine as fast as all, with an infinite cache"
        )
    if all(run.get("bill_per_hour") is not None for run in runs):
        policies = dict.fromkeys(run["policy"] for run in runs)
        bills = (
            f"{policy} {_mean([r for r in runs if r['policy'] == policy], 'bill_per_hour'):.3g}"
            for policy in policies
        )
        lines.append("price of an hour of the engines in use: " + ", ".join(bills))
    return lines
