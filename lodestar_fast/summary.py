"""What became of each request, and the numbers that are published about it.

One Record a request and policy is what replay and demo measure; run_summary() makes of them one run
of the JSON document that `simulate`, `replay` and `demo` share. A quantity that a command cannot
know is null there, never 0. Report and terminal tables read the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lodestar_fast import __version__
from lodestar_fast.errors import ConfigError

SCHEMA = 1

# The moving mean that convergence is judged by, and how near to its final level it has to stay.
CONVERGENCE_WINDOW, CONVERGENCE_BAND = 30.0, 0.10
# The window of worst_window_ratio, and how many requests make its mean worth looking at.
WORST_WINDOW, WORST_WINDOW_REQUESTS = 10.0, 10

# Reasons that are no fallback: the model decided, or there was nothing for it to decide.
NO_FALLBACK = {"learned", "heuristic", "only_one"}


class Record(msgspec.Struct, gc=False):
    """One request as its client saw it. Times in seconds; what was not seen is None."""

    index: int  # place in the trace
    arrival: float  # since the start of the replay, as planned
    prompt_tokens: int  # as the engine counted them, else as in the trace
    late: float = 0.0  # how much after its planned arrival it was sent
    output_tokens: int = 0
    cached_tokens: int | None = None  # prompt tokens that the engine had in its cache
    ttft: float | None = None  # from sending to the first piece that carries a token
    tpot: float | None = None  # per output token after the first
    e2e: float | None = None  # from sending to the end of the answer
    status: int = 0  # HTTP status; 0: none was received
    error: str = ""  # why it failed; empty: it did not
    instance: str = ""  # from here on: what the router says in its x-lodestar-* headers
    reason: str = ""
    predicted: float | None = None  # TTFT
    decision: float | None = None  # time the decision took


def distribution_ms(seconds: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and percentiles in milliseconds; all null without a value."""
    values = np.array([s for s in seconds if s is not None], dtype=float) * 1e3
    if not len(values):
        return {"mean": None, "p50": None, "p90": None, "p99": None}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "mean": _round(values.mean()),
        "p50": _round(p50),
        "p90": _round(p90),
        "p99": _round(p99),
    }


def _round(value: float) -> float:
    """Four digits past the point: finer than any clock here."""
    return round(float(value), 4)


def late_seconds(records: Iterable[Record]) -> float:
    """How late the latest hundredth of requests was sent, at least."""
    late = [record.late for record in records]
    return float(np.percentile(late, 99)) if late else 0.0


def mean_ttft(records: Iterable[Record], start: float = 0.0, end: float = math.inf) -> float | None:
    """Mean TTFT in seconds of what arrived in [start, end); None if nothing did."""
    values = [r.ttft for r in records if r.ttft is not None and start <= r.arrival < end]
    return sum(values) / len(values) if values else None


def moving_mean_ttft(
    records: Sequence[Record], window: float, step: float
) -> tuple[list[float], list[float]]:
    """Ends of windows, every `step` seconds of arrivals, and the mean TTFT in each.

    Windows are trailing: a point shows what arrived in the `window` seconds before it. Empty ones
    are left out.
    """
    points = sorted((r.arrival, r.ttft) for r in records if r.ttft is not None)
    if not points:
        return [], []
    arrivals = np.array([p[0] for p in points])
    totals = np.concatenate([[0.0], np.cumsum([p[1] for p in points])])
    ends = np.arange(step, arrivals[-1] + step, step)
    low = np.searchsorted(arrivals, ends - window, side="left")
    high = np.searchsorted(arrivals, ends, side="left")
    some = high > low
    means = (totals[high] - totals[low])[some] / (high - low)[some]
    return ends[some].tolist(), means.tolist()


def convergence(records: Sequence[Record]) -> float | None:
    """First moment after which the moving mean of TTFT stays near its mean over the final third.

    None if it never does, or if the run is shorter than three windows.
    """
    ends, means = moving_mean_ttft(records, CONVERGENCE_WINDOW, 1.0)
    if not ends or ends[-1] < 3 * CONVERGENCE_WINDOW:
        return None
    level = mean_ttft(records, ends[-1] * 2 / 3)
    if level is None:
        return None
    settled = None
    for end, mean in zip(ends, means, strict=True):
        if abs(mean - level) > CONVERGENCE_BAND * level:
            settled = None
        elif settled is None:
            settled = end
    return settled


def worst_window_ratio(records: Sequence[Record], baseline: Sequence[Record]) -> float | None:
    """The worst window's mean TTFT, as a multiple of what the baseline had in the same window."""
    end = max((r.arrival for r in records), default=0.0)
    worst = None
    for start in np.arange(0.0, end, WORST_WINDOW):
        window = [r for r in records if start <= r.arrival < start + WORST_WINDOW]
        ours = mean_ttft(window)
        theirs = mean_ttft(baseline, start, start + WORST_WINDOW)
        if len(window) >= WORST_WINDOW_REQUESTS and ours is not None and theirs:
            worst = max(worst or 0.0, ours / theirs)
    return None if worst is None else _round(worst)


def run_summary(
    records: Sequence[Record],
    *,
    policy: str | None,
    seed: int,
    trace: str,
    rate: float | None = None,
    fleet: str | None = None,
    preemptions: int | None = None,
    baseline: Sequence[Record] | None = None,
    in_time: Callable[[Record], bool | None] | None = None,
    warm_up: float = 0.0,
    regret: Sequence[float] = (),
) -> dict[str, Any]:
    """One entry of "runs".

    rate None: as measured. baseline: the run under least_request. in_time: judges a request, for
    the share that was served in time; None: it does not count. warm_up: what arrived in so many
    first seconds is in no latency, hit ratio or share in time; counts, convergence and the worst
    window are of the whole run. regret: seconds, of sampled decisions.
    """
    judged = [r for r in records if r.arrival >= warm_up]
    done = [r for r in judged if not r.error]
    reasons = Counter(r.reason for r in records if r.reason)
    counted = [r for r in done if r.cached_tokens is not None]
    prompt_tokens = sum(r.prompt_tokens for r in counted)
    decisions = [r.decision * 1e6 for r in records if r.decision is not None]
    span = max((r.arrival for r in records), default=0.0)
    verdicts = [v for v in map(in_time, judged) if v is not None] if in_time else []
    return {
        "policy": policy,
        "seed": seed,
        "trace": trace,
        "fleet": fleet,
        "rate": rate if rate is not None else (_round(len(records) / span) if span else None),
        "requests": len(records),
        "failed": sum(bool(r.error) for r in records),
        "ttft_ms": distribution_ms(r.ttft for r in done),
        "tpot_ms": distribution_ms(r.tpot for r in done),
        "e2e_ms": distribution_ms(r.e2e for r in done),
        "hit_ratio": (
            _round(sum(r.cached_tokens or 0 for r in counted) / prompt_tokens)
            if prompt_tokens
            else None
        ),
        "preemptions": preemptions,
        "slo_attainment": (_round(sum(verdicts) / len(verdicts)) if verdicts else None),
        "decision_us": (
            {
                "p50": _round(np.percentile(decisions, 50)),
                "p99": _round(np.percentile(decisions, 99)),
            }
            if decisions
            else {"p50": None, "p99": None}
        ),
        "learned_share": (
            _round(reasons["learned"] / reasons.total()) if reasons.total() else None
        ),
        "fallbacks": {k: n for k, n in sorted(reasons.items()) if k not in NO_FALLBACK},
        "convergence_s": convergence(records),
        "worst_window_ratio": worst_window_ratio(records, baseline) if baseline else None,
        "regret_ms": {key: distribution_ms(regret)[key] for key in ("mean", "p99")},
    }


def document(command: str, runs: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The whole JSON document."""
    return {
        "schema": SCHEMA,
        "command": command,
        "version": __version__,
        "runs": list(runs),
        **more,
    }


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write a document. Raises ConfigError naming --json if that cannot be done."""
    try:
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as e:
        raise ConfigError(f"--json: cannot write {path}: {e.strerror}") from None
