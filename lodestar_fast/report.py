"""The demo's report: one HTML page that explains itself and needs nothing else to be looked at.

Result is all that is known after a demo; comparison() makes the table that terminal and page share.
"""

from __future__ import annotations

import html
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lodestar_fast import __version__, plots
from lodestar_fast.errors import ConfigError
from lodestar_fast.summary import Record, distribution_ms, late_seconds

OURS = "lodestar"
FINAL_SECONDS, FINAL_SHARE = 60.0, 0.4


@dataclass
class Result:
    """A finished demo. Times in seconds from the first arrival."""

    command: str
    seed: int
    trace: str
    fleet: str
    rate: float | None
    workload: str  # how the trace was rescaled, in words
    seconds: float  # in which requests were sent
    records: dict[str, list[Record]]  # by policy
    labels: dict[str, dict[str, str]]  # by policy: instance id -> "0 a30"
    took_over: float | None = None  # the model's first decision
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def final_from(self) -> float:
        """When the part that is compared begins: the final minute, or the end of a short run."""
        return self.seconds - min(FINAL_SECONDS, FINAL_SHARE * self.seconds)

    @property
    def final_name(self) -> str:
        """That part, for people."""
        length = self.seconds - self.final_from
        return "final minute" if length == FINAL_SECONDS else f"final {length:.3g} s"

    def answered(self, policy: str) -> list[Record]:
        """What did not fail: times are of these, and how many failed is told beside them."""
        return [r for r in self.records[policy] if not r.error]

    def final(self, policy: str) -> list[Record]:
        """What arrived in that part, and was answered."""
        return [r for r in self.answered(policy) if r.arrival >= self.final_from]


@dataclass(frozen=True)
class Row:
    """A policy in the table; times in milliseconds, None where nothing was measured."""

    policy: str
    requests: int
    failed: int
    overall: float | None
    final: dict[str, float | None]  # TTFT in the final minute: mean, p50, p90, p99
    ratio: float | None  # that mean over Lodestar's
    tpot: float | None
    hit_ratio: float | None


def _final_ttft(result: Result, policy: str) -> dict[str, float | None]:
    return distribution_ms(r.ttft for r in result.final(policy))


def comparison(result: Result) -> list[Row]:
    """The table, Lodestar last."""
    ours = _final_ttft(result, OURS)["mean"] if OURS in result.records else None
    rows = []
    for policy, records in result.records.items():
        final = _final_ttft(result, policy)
        mean = final["mean"]
        counted = [r for r in records if r.cached_tokens is not None]
        prompt_tokens = sum(r.prompt_tokens for r in counted)
        rows.append(
            Row(
                policy=policy,
                requests=len(records),
                failed=sum(bool(r.error) for r in records),
                overall=distribution_ms(r.ttft for r in result.answered(policy))["mean"],
                final=final,
                ratio=mean / ours if ours and mean is not None else None,
                tpot=distribution_ms(r.tpot for r in result.final(policy))["mean"],
                hit_ratio=(
                    sum(r.cached_tokens or 0 for r in counted) / prompt_tokens
                    if prompt_tokens
                    else None
                ),
            )
        )
    return sorted(rows, key=lambda row: row.policy == OURS)


def verdict(result: Result) -> str:
    """One sentence: who was faster in the final minute, and by how much."""
    rows = {row.policy: row.final["mean"] for row in comparison(result)}
    ours = rows.pop(OURS, None)
    others = {policy: mean for policy, mean in rows.items() if mean is not None}
    if ours is None or not others:
        return "Nothing to compare: no first tokens from both Lodestar and a heuristic."
    best = min(others, key=lambda policy: others[policy])
    ratio = others[best] / ours
    text = (
        f"{result.final_name.capitalize()}: mean TTFT {ours:,.0f} ms with Lodestar, "
        f"{others[best]:,.0f} ms with {best}"
    )
    if ratio > 1:
        return f"{text}, the best heuristic: {ratio:.2f} times Lodestar's."
    return f"{text}: here the heuristic was the faster one."


def share_counts(result: Result, policy: str) -> Counter[str]:
    """Requests by instance label."""
    labels = result.labels.get(policy, {})
    return Counter(labels[r.instance] for r in result.records[policy] if r.instance in labels)


def prediction_error(records: Sequence[Record]) -> tuple[float, float] | None:
    """Median of |log2(real / predicted)| as a factor, and the share within a factor of 2."""
    logs = [
        abs(math.log2(r.ttft / r.predicted))
        for r in records
        if r.ttft and r.predicted and r.predicted > 0
    ]
    if not logs:
        return None
    return float(2 ** np.median(logs)), sum(x <= 1 for x in logs) / len(logs)


def versions() -> dict[str, str]:
    """Of what took part."""
    found = {"lodestar": __version__, "python": platform.python_version()}
    for package in ("torch", "uvloop", "aiohttp", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


# -- the page --------------------------------------------------------------------------------------

CSS = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1d2733; --soft: #5b6875; --grid: #e3e8ee;
  --shade: #f0f2f5; --box: #f6f8fa;
  --series-0: #c8500a; --series-1: #6b7280; --series-2: #1f6fb2; --series-3: #11845b;
  --series-4: #7c4dae; --series-5: #a07a00; --series-6: #b03060; --series-7: #00808a;
  --part-0: #4f86c6; --part-1: #d08a2e; --part-2: #3f9b75; --part-3: #9a6bc2; --part-4: #b8596f;
  --part-5: #7c8794; --part-6: #ffffff; --part-7: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --bg: #12181f; --fg: #e4e9ee; --soft: #9aa7b4;
  --grid: #2a333d; --shade: #1c242d; --box: #1a222b;
  --series-0: #ff9350; --series-1: #aab4bf; --series-2: #62b0ee; --series-3: #4fd09c;
  --series-4: #c39bea; --series-5: #e0bd4d; --series-6: #f088ae; --series-7: #4fc9d2;
  --part-0: #3b6ca6; --part-1: #a86a1a; --part-2: #2c7c5b; --part-3: #7c50a3; --part-4: #974357;
  --part-5: #5c6672; --part-6: #ffffff; --part-7: #12181f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem; background: var(--bg);
  color: var(--fg); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.7rem; } h2 { margin: 2.6rem 0 .4rem; font-size: 1.2rem; }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); }
.verdict { margin: 1.2rem 0; padding: .8rem 1rem; background: var(--box); font-size: 1.1rem;
  border-left: 4px solid var(--series-0); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; line-height: 1.3; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { font-weight: 700; color: var(--series-0); }
figure { margin: .6rem 0 0; } figcaption { max-width: 46rem; margin-top: .5rem; font-size: .95rem; }
figure svg { display: block; width: 100%; height: auto; }
figure.narrow svg { max-width: 36rem; }
figure svg text { font-family: inherit !important; }
code, pre { font: .9em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { padding: .7rem 1rem; background: var(--box); overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .6rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def _number(value: float | None, unit: str = " ms", digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def _table(rows: Sequence[Row], final: str) -> str:
    head = (
        ("Policy", ""),
        ("TTFT mean", final),
        ("p50", final),
        ("p99", final),
        ("times Lodestar's", f"mean, {final}"),
        ("TTFT mean", "whole run"),
        ("TPOT mean", final),
        ("cache hits", "of prompt tokens"),
        ("failed", "requests"),
    )
    lines = ['<div class="scroll"><table><thead><tr>']
    for title, small in head:
        lines.append(f'<th scope="col">{title}<br><small class="soft">{small}</small></th>')
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = (
            _number(row.final["mean"]),
            _number(row.final["p50"]),
            _number(row.final["p99"]),
            _number(row.ratio, "", 2),
            _number(row.overall),
            _number(row.tpot, digits=1),
            _number(None if row.hit_ratio is None else row.hit_ratio * 100, " %", 1),
            f"{row.failed:,}",
        )
        kind = ' class="ours"' if row.policy == OURS else ""
        lines.append(
            f"<tr{kind}><td>{html.escape(row.policy)}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _figure(title: str, svg: str, caption: str, narrow: bool = False) -> str:
    kind = ' class="narrow"' if narrow else ""
    return f"<h2>{title}</h2>\n<figure{kind}>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def _figures(result: Result) -> list[str]:
    runs = {row.policy: result.answered(row.policy) for row in comparison(result)}
    start = (
        "The shaded start is decided by a heuristic, LMETRIC, while PyTorch loads and the first "
        f"measurements gather; from {result.took_over:.0f} s on the model decides. "
        if result.took_over is not None
        else "The model decided nothing in this run. "
    )
    figures = [
        _figure(
            "Time to first token over time",
            plots.ttft_over_time(runs, result.took_over, result.final_from, result.final_name),
            "All routers get the same requests at the same moments, each with its own fleet of the "
            "same engines. Each point is the mean over what arrived in the ten seconds before it; "
            f"the scale is logarithmic, lower is better. {start}",
        ),
        _figure(
            f"Distribution in the {result.final_name}",
            plots.distribution({name: result.final(name) for name in runs}),
            "For each time, the share of requests whose first token had come by then; further left "
            "is better. A mean can hide a few that waited long: see where a curve meets the top.",
        ),
    ]
    error = prediction_error(result.records.get(OURS, []))
    if error is not None:
        figures.append(
            _figure(
                "What was predicted, and what came",
                plots.prediction(result.records[OURS]),
                "One dot for each request that Lodestar routed with a model: the TTFT predicted "
                "for the chosen engine, and the one its client saw. On the line both are equal; "
                f"the band is a factor of two either way and holds {error[1]:.0%}. The median "
                f"error is a factor of {error[0]:.2f}.",
                narrow=True,
            )
        )
    labels = list(
        dict.fromkeys(label for by_id in result.labels.values() for label in by_id.values())
    )
    if labels:
        counts: Mapping[str, Mapping[str, int]] = {
            name: share_counts(result, name) for name in runs
        }
        figures.append(
            _figure(
                "Where the requests went",
                plots.shares(counts, sorted(labels, key=lambda label: int(label.split()[0]))),
                "Share of requests that each engine got, by its number and GPU. Nobody tells a "
                "router how fast an engine is: counting requests, a heuristic treats all alike; "
                "Lodestar measures.",
            )
        )
    return figures


def render(result: Result) -> str:
    """The page. Contains no address that a browser would fetch."""
    rate = f"{result.rate:g} requests a second, Poisson" if result.rate else "the trace's own times"
    sent = max(map(len, result.records.values()))
    late = late_seconds(record for records in result.records.values() for record in records)
    facts = {
        "fleet, for each policy": result.fleet,
        "requests": f"{sent:,} to each router: {result.trace}, {result.workload}",
        "arrivals": f"{rate}, seed {result.seed}",
        "client": f"sent 99 % of its requests within {late * 1e3:.0f} ms of their time",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {number}" for name, number in result.versions.items()),
    }
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Lodestar demo</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>",
            "<h1>Lodestar demo: heuristics against a router that learns</h1>",
            '<p class="soft">TTFT, the time to first token, is what one waits before an answer '
            "begins. The engines are simulated, in real time and over real HTTP; routers, clients "
            "and the learning are real.</p>",
            f'<p class="verdict">{html.escape(verdict(result))}</p>',
            _table(comparison(result), result.final_name),
            *_figures(result),
            "<h2>How this was made</h2>",
            f"<pre>{html.escape(result.command)}</pre>\n<dl>",
            *(
                f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
                for name, value in facts.items()
            ),
            '</dl>\n<p class="soft">Simulated engines show how policies compare, not what a GPU '
            "does to the millisecond. All processes share one machine, so its own scheduling is in "
            "every number, for every policy alike.</p>\n</main>\n</body>\n</html>\n",
        ]
    )


def make_folder(folder: str) -> None:
    """Make a report's folder. Raises ConfigError naming --report."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--report: cannot make {folder}: {e.strerror}") from None


def write_report(folder: str, result: Result) -> Path:
    """Write index.html into a folder, made if need be. Raises ConfigError naming --report."""
    make_folder(folder)
    path = Path(folder) / "index.html"
    try:
        path.write_text(render(result), encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--report: cannot write {path}: {e.strerror}") from None
    return path


def row_dict(row: Row) -> dict[str, Any]:
    """What the JSON document adds to a run."""
    return {"ttft_final_ms": row.final, "ratio_to_lodestar": row.ratio}
