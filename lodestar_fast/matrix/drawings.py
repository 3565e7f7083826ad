"""The report's figures, drawn as the demo's are (plots.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lodestar_fast.matrix.cells import CLAIRVOYANT, FALLBACK, OURS, PUBLISHED, Cell
from lodestar_fast.matrix.findings import BEST, Findings
from lodestar_fast.matrix.measure import WINDOW
from lodestar_fast.plots import FOREGROUND, SERIES, STYLE, as_svg, legend, line_style

PREFIX = "prefix_cache"
LINES = (OURS, PUBLISHED, FALLBACK, PREFIX)
TICKS = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 30.0, 50.0, 100.0)
FINE = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
MARKERS = "osD^"


def _times_axis(axis: Any, low: float, high: float) -> None:
    """Ratios on a logarithmic scale, at numbers that people say."""
    ticks = [t for t in (FINE if high < 2.2 * low else TICKS) if low <= t <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))


def ratios(found: Findings) -> str:
    """By cell, how many times faster than three rivals, with intervals."""
    rivals = (PREFIX, BEST, PUBLISHED, CLAIRVOYANT)
    cells = found.headline
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.0 + 0.42 * len(cells)), layout="constrained")
        axes = figure.subplots()
        low, high = 0.9, 1.1
        for k, rival in enumerate(rivals):
            offset = 0.13 * (k - (len(rivals) - 1) / 2)
            label = rival if rival != CLAIRVOYANT else "clairvoyant"
            for comparison in found.comparisons(rival):
                y = cells.index(comparison.cell) + offset
                ratio = comparison.mean
                ends = [ratio.low, ratio.high] if ratio.low == ratio.low else [ratio.value] * 2
                axes.plot(ends, [y, y], color=SERIES[k], linewidth=1.6, zorder=3)
                axes.plot(
                    [ratio.value],
                    [y],
                    marker=MARKERS[k],
                    markersize=6,
                    linestyle="",
                    color=SERIES[k],
                    label=label,
                    zorder=4,
                )
                label = "_"  # once in the legend
                # An interval of few seeds may be wider than all that is to be seen.
                low = min(low, max(ratio.value / 2, ends[0]))
                high = max(high, min(ratio.value * 2, ends[1]))
        axes.axvline(1.0, color=FOREGROUND, linewidth=1.1, zorder=2)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.05, high * 1.05)
        _times_axis(axes.xaxis, low / 1.05, high * 1.05)
        axes.set_yticks(range(len(cells)), [cell.name for cell in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlabel("their mean TTFT over Lodestar's: right of 1 Lodestar is faster")
        legend(axes, len(rivals))
        return as_svg(figure, "ratios", "Ratios of mean TTFT by cell, with intervals")


def learning(found: Findings) -> str:
    """Distance to the clairvoyant in the course of a run, mean over the headline cells."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        axes = figure.subplots()
        low, high = 0.95, 1.2
        policies = [p for p in LINES if found.together(p)]
        for policy in policies:
            ratio = np.exp(found.together(policy))
            times = (np.arange(len(ratio)) + 0.5) * WINDOW
            axes.plot(times, ratio, label=policy, **line_style(policies, policy))
            low, high = min(low, np.nanmin(ratio)), max(high, np.nanmax(ratio))
        axes.axhline(1.0, color=FOREGROUND, linewidth=1.1, zorder=2)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.03, high * 1.05)
        _times_axis(axes.yaxis, low / 1.03, high * 1.05)
        axes.set_xlim(left=0)
        axes.set_xlabel("time of arrival, seconds from a cold start")
        axes.set_ylabel("mean TTFT, times the clairvoyant's")
        legend(axes, len(policies))
        return as_svg(figure, "learning", "Distance to the clairvoyant from a cold start")


def adaptation(found: Findings) -> str:
    """What happens after a change: mean TTFT in the course of the run, a panel a cell."""
    cells = [cell for cell in found.cells if cell.marks]
    columns = 2 if len(cells) > 1 else 1
    rows = math.ceil(len(cells) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.5 + 2.5 * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for panel, cell in zip(panels, cells, strict=False):
            _course(panel, found, cell)
        for panel in panels[len(cells) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=2.6)
        return as_svg(figure, "adaptation", "TTFT over time where something changes")


def _course(axes: Axes, found: Findings, cell: Cell) -> None:
    policies = [p for p in (*LINES, CLAIRVOYANT) if found.seeds(cell, p, OURS)]
    for policy in policies:
        rows = found.rows[cell.name][policy].values()
        means = _mean_windows([row.windows for row in rows])
        times = (np.arange(len(means)) + 0.5) * WINDOW
        name = "clairvoyant" if policy == CLAIRVOYANT else policy
        axes.plot(times, means, label=name, **line_style(policies, policy))
    for mark in cell.marks:
        axes.axvline(mark, color=FOREGROUND, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(
        FixedLocator([b * 10**k for k in range(1, 6) for b in (1, 1.5, 2, 3, 5, 7)])
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:g} ms" if x < 1000 else f"{x / 1000:g} s")
    )
    axes.set_xlim(left=0)
    axes.set_title(cell.name, fontsize=10, loc="left")


def _mean_windows(windows: Sequence[Sequence[float | None]]) -> list[float]:
    """Geometric mean over seeds; NaN where no seed has a value."""
    out = []
    for values in zip(*windows, strict=True):
        known = [math.log(v) for v in values if v]
        out.append(math.exp(sum(known) / len(known)) if known else math.nan)
    return out
