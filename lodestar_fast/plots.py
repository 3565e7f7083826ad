"""The plots of the report, as SVG to be put inside an HTML page.

Colours are drawn as placeholders and become CSS variables of the page, so that one drawing serves
light and dark; letters stay letters, in the page's own font. Every series also has a line style of
its own: colour is never the only difference. Nothing in here is fetched when the page is looked at.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lodestar_fast.summary import Record, moving_mean_ttft

WINDOW_SECONDS = 10.0  # of the moving means
SCATTER_POINTS = 1500  # more only make the page heavy

# Placeholder as matplotlib draws it -> variable of the page. The page defines all of them.
FOREGROUND, GRID, SHADE = "#fe0001", "#fe0002", "#fe0003"
SERIES = tuple(f"#fd00{n:02x}" for n in range(8))
PARTS = tuple(f"#fc00{n:02x}" for n in range(8))
VARIABLES = {
    FOREGROUND: "--fg",
    GRID: "--grid",
    SHADE: "--shade",
    **{colour: f"--series-{n}" for n, colour in enumerate(SERIES)},
    **{colour: f"--part-{n}" for n, colour in enumerate(PARTS)},
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": FOREGROUND,
    "axes.labelcolor": FOREGROUND,
    "axes.edgecolor": FOREGROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _seconds(value: float, _position: Any = None) -> str:
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:g} s"


def _log_time_axis(axis: Any) -> None:
    """1, 2, 5, 10, 20 ... with units."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(FuncFormatter(_seconds))
    axis.set_minor_formatter(NullFormatter())


def line_style(names: Sequence[str], name: str) -> dict[str, Any]:
    """Lodestar's line is solid, thick and on top; the heuristics' are thin and dashed."""
    if name == "lodestar":
        return {"color": SERIES[0], "linestyle": "-", "linewidth": 2.6, "zorder": 5}
    number = [other for other in names if other != "lodestar"].index(name)
    return {
        "color": SERIES[1 + number % (len(SERIES) - 1)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.7,
        "zorder": 3,
    }


def legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=2.6,
        columnspacing=1.4,
    )


def as_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as one <svg> element whose ids start with `name`."""
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    # The page gives the width; the drawing keeps its proportions.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def ttft_over_time(
    runs: Mapping[str, Sequence[Record]],
    took_over: float | None,
    final_from: float,
    final_name: str,
) -> str:
    """Moving mean of TTFT by arrival.

    took_over: when the model's first decision was. From final_from on is the part that is compared.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        axes = figure.subplots()
        end, low, high = 0.0, math.inf, 0.0
        for name, records in runs.items():
            times, means = moving_mean_ttft(records, WINDOW_SECONDS, 1.0)
            axes.plot(times, means, label=name, **line_style(list(runs), name))
            end, low, high = max([end, *times]), min([low, *means]), max([high, *means])
        axes.set_yscale("log")
        if high:
            axes.set_ylim(low / 1.4, high * 1.4)
        _log_time_axis(axes.yaxis)
        axes.set_xlim(0, max(end, 1.0))
        axes.set_xlabel("time of arrival, seconds from the start")
        axes.set_ylabel(f"mean TTFT of the last {WINDOW_SECONDS:g} s")
        top = axes.get_xaxis_transform()
        if took_over is not None and took_over <= end:
            axes.axvspan(0, took_over, color=SHADE, linewidth=0, zorder=0)
            axes.axvline(took_over, color=SERIES[0], linewidth=1.2, zorder=2)
            axes.annotate(
                "the model takes over",
                (took_over, 0.97),
                (5, 0),
                xycoords=top,
                textcoords="offset points",
                va="top",
                color=SERIES[0],
            )
        if 0 < final_from < end:
            axes.annotate(
                "",
                (end, 0.03),
                (final_from, 0.03),
                xycoords=top,
                textcoords=top,
                arrowprops={"arrowstyle": "<->", "color": FOREGROUND, "linewidth": 0.9},
            )
            axes.text((final_from + end) / 2, 0.045, final_name, transform=top, ha="center")
        legend(axes, len(runs))
        return as_svg(figure, "over-time", "TTFT over time by policy")


def distribution(runs: Mapping[str, Sequence[Record]]) -> str:
    """Share of requests whose first token came within a time."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        axes = figure.subplots()
        for name, records in runs.items():
            values = np.sort([r.ttft for r in records if r.ttft is not None])
            shares = np.arange(1, len(values) + 1) / max(len(values), 1)
            axes.step(values, shares, where="post", label=name, **line_style(list(runs), name))
        axes.set_xscale("log")
        _log_time_axis(axes.xaxis)
        axes.set_ylim(0, 1.01)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        axes.set_xlabel("TTFT")
        axes.set_ylabel("share of requests at or below")
        legend(axes, len(runs))
        return as_svg(figure, "distribution", "Distribution of TTFT by policy")


def prediction(records: Sequence[Record]) -> str:
    """Each request's TTFT as predicted when it was routed against what it was."""
    points = np.array(
        [(r.predicted, r.ttft) for r in records if r.predicted is not None and r.ttft is not None]
    ).reshape(-1, 2)
    if len(points) > SCATTER_POINTS:
        chosen = np.random.default_rng(0).choice(len(points), SCATTER_POINTS, replace=False)
        points = points[np.sort(chosen)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.scatter(
            points[:, 0], points[:, 1], s=9, color=SERIES[0], alpha=0.35, linewidths=0, zorder=3
        )
        low, high = (points.min() / 1.3, points.max() * 1.3) if len(points) else (0.01, 1.0)
        ends = np.array([low, high])
        axes.fill_between(ends, ends / 2, ends * 2, color=SHADE, linewidth=0, zorder=0)
        axes.plot(ends, ends, color=FOREGROUND, linewidth=1.0, zorder=2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        _log_time_axis(axes.xaxis)
        _log_time_axis(axes.yaxis)
        axes.tick_params(axis="x", rotation=35)
        axes.set_xlabel("TTFT as predicted when routed")
        axes.set_ylabel("TTFT as it was")
        return as_svg(figure, "prediction", "Predicted against real TTFT")


def shares(counts: Mapping[str, Mapping[str, int]], labels: Sequence[str]) -> str:
    """Where each policy sent its requests. counts: by policy and label; labels: e.g. "0 a30"."""
    kinds = list(dict.fromkeys(label.split()[-1] for label in labels))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.45 * max(len(counts), 2)), layout="constrained")
        axes = figure.subplots()
        for row, (_policy, by_label) in enumerate(counts.items()):
            total = sum(by_label.values()) or 1
            left = 0.0
            for label in labels:
                share = by_label.get(label, 0) / total
                part = kinds.index(label.split()[-1])
                axes.barh(row, share, 0.74, left, color=PARTS[part % len(PARTS)])
                # A gap in the page's own colour parts neighbours of one kind.
                axes.vlines(left + share, row - 0.38, row + 0.38, color=PARTS[-1], linewidth=1.6)
                if share > 0.045:
                    text = f"{label} {share:.0%}" if share > 0.11 else f"{share:.0%}"
                    axes.text(
                        left + share / 2, row, text, ha="center", va="center", color=PARTS[-2]
                    )
                left += share
        axes.set_yticks(range(len(counts)), list(counts))
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks([])
        return as_svg(figure, "shares", "Share of requests by instance and policy")
