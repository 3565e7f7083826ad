"""W3C trace context of a request, and what is remembered of it for a span.

With tracing off nothing here runs: `traceparent` and `tracestate` pass to engines as they came. On,
a request of which the client says nothing begins a trace, and the engine is told our span as its
parent. When the request has ended its numbers are put into a bounded queue; telemetry.py makes
spans and metrics of them, in a thread. Prompts, answers and keys are not among them.
"""

from __future__ import annotations

import random
import re
from collections import deque
from typing import NamedTuple

_LINES = re.compile(rb"(?im)^(traceparent|tracestate):[ \t]*(.*?)[ \t]*\r\n")
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.S)
_QUEUE = 4096  # requests that may wait to be told of


class Trace(NamedTuple):
    """Where a request stands in a trace. parent: 0 if it begins one."""

    trace_id: int
    span_id: int
    parent: int
    sampled: bool
    state: str  # tracestate, as it came


class Record(NamedTuple):
    """One ended request. Times in seconds of the monotonic clock; 0: has not happened."""

    trace: Trace
    started: float
    first_token: float
    ended: float
    path: str
    status: int
    outcome: str
    model: str
    instance: str  # id of the last engine; empty: none was chosen
    address: str  # its host and port
    port: int
    policy: str
    reason: str
    predicted: float  # seconds to the first token; NaN: no model was asked
    decision_seconds: float
    tries: int
    prompt_tokens: int  # as the engine says; -1: it does not
    cached_tokens: int
    output_tokens: int


class Tracer:
    """Gives requests their place in traces, and keeps what ended."""

    def __init__(self, sample: float) -> None:
        """sample: share of the traces begun here that are recorded; others are as they say."""
        self.ended: deque[Record] = deque()
        self.dropped = 0
        self._sample = sample
        # Ids must be unlike each other, not secret.
        self._random = random.Random(random.SystemRandom().getrandbits(256))

    def begin(self, fields: bytes) -> tuple[Trace, bytes]:
        """A request's place, and its field lines for the engine, with our span as the parent."""
        found: dict[bytes, list[bytes]] = {b"traceparent": [], b"tracestate": []}
        for name, value in _LINES.findall(fields):
            found[name.lower()].append(value)
        given = found[b"traceparent"]
        parent = _parse(given[0]) if len(given) == 1 else None
        span = self._random.getrandbits(64) or 1
        state = ""
        if parent is None:
            sampled = self._random.random() < self._sample
            trace = Trace(self._random.getrandbits(128) or 1, span, 0, sampled, "")
        else:
            state = b",".join(found[b"tracestate"]).decode("latin-1")
            trace = Trace(parent[0], span, parent[1], parent[2], state)
        if any(found.values()):
            fields = _LINES.sub(b"", fields)
        line = f"traceparent: 00-{trace.trace_id:032x}-{span:016x}-{trace.sampled:02x}\r\n"
        if state:
            line += f"tracestate: {state}\r\n"
        return trace, fields + line.encode("latin-1")

    def end(self, record: Record) -> None:
        """A request is over. Drops it if too many wait."""
        if len(self.ended) < _QUEUE:
            self.ended.append(record)
        else:
            self.dropped += 1


def _parse(value: bytes) -> tuple[int, int, bool] | None:
    """Trace id, span id and the sampled flag of a traceparent; None if it is not to be used."""
    match = _PARENT.fullmatch(value)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return trace_id, span_id, bool(int(match[4], 16) & 1)
