"""What counts as served in time.

TTFT at most 5 times what the same prompt takes on the fastest of the fleet's GPUs when it is idle,
but never less than 200 ms; and TPOT at most twice that GPU's idle one. So the goal depends on the
request and the hardware, and not on what any policy happens to reach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lodestar_fast.sim.gpus import EngineSpec
from lodestar_fast.summary import Record

TTFT_FACTOR, TTFT_FLOOR = 5.0, 0.2
TPOT_FACTOR = 2.0


def in_time(fleet: Sequence[EngineSpec]) -> Callable[[Record], bool]:
    """Whether a request met both goals; one that failed did not, one token has no TPOT to judge."""
    kinds = list(dict.fromkeys(fleet))  # of a thousand engines there may be three

    def judge(record: Record) -> bool:
        if record.error or record.ttft is None:
            return False
        tokens = record.prompt_tokens
        ttft = min(spec.idle_ttft(tokens) for spec in kinds)
        if record.ttft > max(TTFT_FACTOR * ttft, TTFT_FLOOR):
            return False
        if record.tpot is None:
            return True
        context = tokens + record.output_tokens / 2
        tpot = min(spec.iteration_seconds(1, 0, context, 1) for spec in kinds)
        return record.tpot <= TPOT_FACTOR * tpot

    return judge
