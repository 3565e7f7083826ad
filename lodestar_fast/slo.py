"""What counts as served in time.

One goal for the whole service, as an operator would set it and a user would notice: nobody is told
which engine answers, so it cannot be a harder one for whom a fast engine serves. And whoever puts
several kinds of GPU behind one address means all of them to be of use: a goal that most of them
cannot meet even when idle would make the rest of the fleet the service. So both limits are
multiples of what most engines (more than half of them) do when idle:

    TTFT    at most 5 times that of the same prompt, but never less than 200 ms: a long prompt may
            take longer, and below 200 ms nobody can tell
    TPOT    at most twice that of a single short request, the same number for every request

They depend on the fleet and the prompt, and not on what any policy happens to reach. In a fleet of
one kind it is that kind that is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lodestar_fast.sim.gpus import EngineSpec
from lodestar_fast.summary import Record

TTFT_FACTOR, TTFT_FLOOR = 5.0, 0.2
TPOT_FACTOR = 2.0


def most(kinds: Mapping[EngineSpec, int], seconds: Callable[[EngineSpec], float]) -> float:
    """The time within which more than half of the engines are done. kinds: with their numbers."""
    done = 0
    for time, count in sorted((seconds(spec), count) for spec, count in kinds.items()):
        done += count
        if 2 * done > sum(kinds.values()):
            return time
    raise ValueError("a fleet without engines")


class Goals:
    """Those of a service on that fleet, in seconds."""

    def __init__(self, fleet: Sequence[EngineSpec]) -> None:
        self._kinds = Counter(fleet)  # of a thousand engines there may be three
        self.tpot = TPOT_FACTOR * most(self._kinds, lambda spec: spec.iteration_seconds(1, 0, 0, 1))

    def ttft(self, prompt_tokens: int) -> float:
        idle = most(self._kinds, lambda spec: spec.idle_ttft(prompt_tokens))
        return max(TTFT_FLOOR, TTFT_FACTOR * idle)

    def of(self, prompt_tokens: int) -> tuple[float, float]:
        """What a request would ask for that was to be told of them: TTFT and TPOT."""
        return self.ttft(prompt_tokens), self.tpot

    def met(self, record: Record) -> bool:
        """By a request; one that failed did not meet them, one token has no TPOT to judge."""
        if record.error or record.ttft is None:
            return False
        if record.ttft > TTFT_FLOOR and record.ttft > self.ttft(record.prompt_tokens):
            return False
        return record.tpot is None or record.tpot <= self.tpot


class Asked(NamedTuple):
    """What each request asks for by itself, in place of one goal for all. Seconds, 0: nothing."""

    ttft: tuple[float, ...] = (0.0,)  # one of these, drawn by the request's index
    tpot: float = 0.0
    told: bool = True  # to the router; else it is only judged by them

    def of(self, index: int) -> tuple[float, float]:
        return self.ttft[(index * 2654435761 >> 8) % len(self.ttft)], self.tpot

    def in_time(self, record: Record) -> bool | None:
        """None if it asked for nothing: it does not count."""
        ttft, tpot = self.of(record.index)
        if not (ttft or tpot):
            return None
        if record.error or record.ttft is None or (ttft and record.ttft > ttft):
            return False
        return not tpot or record.tpot is None or record.tpot <= tpot
