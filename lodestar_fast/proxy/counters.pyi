"""Types of proxy/counters.pyx."""

from __future__ import annotations

from typing import Any

class Histogram:
    """Counts of durations in fixed buckets, held in C.

    bounds: rising upper bounds in seconds; one more bucket, +Inf, is added.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None: ...
    def observe(self, seconds: float) -> None:
        """Count one duration. NaN is ignored; a negative one counts as 0."""
    def snapshot(self) -> tuple[tuple[float, ...], list[int], float]:
        """Bounds; counts, one a bucket and +Inf last, not cumulative; sum of seconds."""

class Counters:
    """What the data path counts, in C fields; read by metrics.py at scrape time only."""

    def add_retry(self, reason: str) -> None: ...
    def finish(self, path: str, status: int, outcome: str, seconds: float) -> None:
        """Count one finished request. Unknown paths count as "other". Raises ValueError on an
        unknown outcome."""
    def snapshot(self) -> dict[str, Any]:
        """Everything at once:

        requests: dict[tuple[str, str, str], int], keyed (path, status_class, outcome), zero entries
            left out. path: a route, a local path or "other"; status_class: "1xx".."5xx", or "none"
            if no answer was begun; outcome: one of OUTCOMES.
        request_seconds, decision_seconds: Histogram.snapshot().
        retries: dict[str, int], by reason (see Instance.note_failure for the names), and "stale".
        connections_total: int, client connections accepted.
        stale_connections: int, reused engine connections that turned out closed.
        extra_bytes: int, engine connections dropped for bytes after an answer.
        upstream_opened: int, engine connections opened.
        retries_refused: int, further tries not made because the retry budget was used up.
        connections_refused: int, client connections beyond max_connections.
        """

OUTCOMES: tuple[str, ...]  # completed, engine_error, router_error, shed, client_abort
