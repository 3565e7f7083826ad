"""What a simulation is given and what comes out: requests as jobs, outcomes, their summary."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from lodestar_fast.sim.blocks import hash_prompt
from lodestar_fast.sim.gpus import EngineSpec
from lodestar_fast.sim.workload import BYTES_PER_TOKEN, Request, prompt_bytes

NAN = float("nan")


class Job(NamedTuple):
    """A request with its engine blocks found: done once, used for every policy."""

    arrival: float  # seconds
    request: Request
    hashes: array[int]  # of the prompt's full engine blocks
    prompt_tokens: int
    output_tokens: int

    @property
    def prompt(self) -> bytes:
        """Made anew: kept, the prompts of a long trace would be gigabytes."""
        return prompt_bytes(self.request)


def make_jobs(requests: Iterable[Request], block: int = 16) -> list[Job]:
    """The requests of a trace with their engine blocks (`block` tokens each)."""
    jobs = []
    for r in requests:
        hashes = hash_prompt(prompt_bytes(r), block * BYTES_PER_TOKEN)
        jobs.append(Job(r.arrival, r, hashes, r.prompt_tokens, max(1, r.output_tokens)))
    return jobs


class Outcome(msgspec.Struct, gc=False):
    """What became of one job. Times in seconds; NaN where it did not come to that."""

    index: int
    arrival: float
    slot: int
    reason: int  # core.Reason
    predicted: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0  # found in the engine's cache
    hit_tokens: int = 0  # what the router believed
    ttft: float = NAN
    e2e: float = NAN
    error: str = ""  # why it failed; empty: it did not
    decision: float = NAN  # what the timer saw route() take

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.e2e - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else NAN


def fits(spec: EngineSpec, job: Job) -> bool:
    """Whether an engine's cache can hold the job at all; the last token's place is not needed."""
    room = (spec.blocks - spec.reserved_blocks) * spec.block
    return job.prompt_tokens + job.output_tokens - 1 <= room


def summarise(outcomes: Sequence[Outcome], skip_seconds: float = 0.0) -> dict[str, Any]:
    """Mean and percentiles of TTFT and TPOT in seconds, without what arrived before skip_seconds.

    hit_ratio: share of prompt tokens found in the engines' caches.
    """
    counted = [o for o in outcomes if o.arrival >= skip_seconds]
    prompt = sum(o.prompt_tokens for o in counted)
    return {
        "requests": len(counted),
        "ttft": _distribution(o.ttft for o in counted),
        "tpot": _distribution(o.tpot for o in counted),
        "hit_ratio": sum(o.cached_tokens for o in counted) / prompt if prompt else NAN,
    }


def _distribution(values: Iterable[float]) -> dict[str, float]:
    known = np.array([v for v in values if v == v])
    if not len(known):
        return dict.fromkeys(("mean", "p50", "p90", "p99"), NAN)
    p50, p90, p99 = np.percentile(known, (50, 90, 99)).tolist()
    return {"mean": float(known.mean()), "p50": p50, "p90": p90, "p99": p99}
