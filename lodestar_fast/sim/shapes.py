"""Workloads after published descriptions, made here or of other traces: shared prefixes of a stated
share, a prefix that is suddenly popular, one trace after another.

Called by simulate (its options) and matrix (its cells), so that both mean the same. Everything is a
pure function of the arguments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace as changed

from msgspec.structs import replace

from lodestar_fast.sim.workload import Request, Trace

BLOCK = 16  # tokens of a prefix block that is made here
HOT_BLOCK = 1 << 40  # of the popular prefix: an id that no trace uses
OUTPUT = (100, 10)  # tokens: mean and standard deviation of SharingRatio's answers

# SharingRatio: by mean prompt length in tokens, its standard deviation, how many prefixes there
# are in a repetition, and how many requests share each.
CLASSES = ((1000, 50, 25, 10), (2000, 100, 25, 10), (4000, 200, 10, 10), (8000, 400, 5, 5))
REPETITIONS = 10


def _length(rng: random.Random, mean: float, deviation: float, least: int) -> int:
    return max(least, round(rng.gauss(mean, deviation)))


def sharing_ratio(shares: Sequence[float]) -> Trace:
    """Prompts of four lengths, a stated share of each being a prefix that others have too.

    Each repetition has prefixes of its own; within it all shares, lengths and prefixes are mixed.
    """
    rng = random.Random(f"sharing {shares}")
    requests: list[Request] = []
    block = 0
    for _ in range(REPETITIONS):
        repetition: list[Request] = []
        for share in shares:
            for mean, deviation, prefixes, fold in CLASSES:
                blocks = int(share * mean) // BLOCK
                for _ in range(prefixes):
                    for _ in range(fold):
                        tokens = _length(rng, mean, deviation, blocks * BLOCK + 1)
                        runs = (block, blocks) if blocks else ()
                        out = _length(rng, *OUTPUT, 1)
                        repetition.append(Request(0, 0.0, tokens, out, BLOCK, runs))
                    block += blocks
        rng.shuffle(repetition)
        requests += repetition
    return _numbered("sharing_ratio", requests, BLOCK)


def with_sharing(trace: Trace, share: float, fold: int = 10, near: int = 20) -> Trace:
    """The trace's lengths, each prompt beginning with a share that `fold` requests have in common.

    Which ones: at random among near x fold that follow each other.
    """
    rng = random.Random(f"{trace.name} {share}")
    requests: list[Request] = []
    block = 0
    window = near * fold
    for start in range(0, len(trace.requests), window):
        part = trace.requests[start : start + window]
        prefix_of = [k // fold for k in range(len(part))]
        rng.shuffle(prefix_of)
        longest = max(int(r.prompt_tokens * share) // BLOCK for r in part) + 1
        for r, prefix in zip(part, prefix_of, strict=True):
            blocks = int(r.prompt_tokens * share) // BLOCK
            runs = (block + prefix * longest, blocks) if blocks else ()
            requests.append(replace(r, block_tokens=BLOCK, runs=runs))
        block += near * longest
    return _numbered(trace.name, requests, BLOCK)


def _numbered(name: str, requests: Sequence[Request], block_tokens: int) -> Trace:
    rows = [replace(r, index=k) for k, r in enumerate(requests)]
    return Trace(name, tuple(rows), block_tokens)


def apart(first: Sequence[Request], second: Sequence[Request]) -> list[Request]:
    """The second with numbers and blocks that the first does not have."""
    index = 1 + max((r.index for r in first), default=0)
    block = 1 + max(
        (sum(r.runs[i : i + 2]) for r in first for i in range(0, len(r.runs), 2)), default=0
    )
    return [
        replace(
            r,
            index=r.index + index,
            runs=tuple(n + block * (i % 2 == 0) for i, n in enumerate(r.runs)),
        )
        for r in second
    ]


def heated(
    requests: Sequence[Request], hot: tuple[float, float, float, int], seed: int
) -> tuple[Request, ...]:
    """While it is hot, a share of the requests is one long prefix, and then their own prompt."""
    start, end, share, tokens = hot
    rng = random.Random(f"hot {seed}")
    out = []
    for r in requests:
        if start <= r.arrival < end and rng.random() < share:
            size = r.block_tokens or BLOCK
            blocks = math.ceil(tokens / size)
            own = min(r.prompt_tokens, 4 * size)
            r = replace(
                r,
                prompt_tokens=blocks * size + own,
                block_tokens=size,
                runs=(HOT_BLOCK, blocks),
                tenant=-1,
            )
        out.append(r)
    return tuple(out)


def switched(trace: Trace, at: float, other: Trace) -> Trace:
    """Arrivals as they are; from `at` on the requests are the other's, in order from its first.

    It begins anew if it is too short. The two share no block.
    """
    before = [r for r in trace.requests if r.arrival < at]
    times = [r.arrival for r in trace.requests[len(before) :]]
    after = apart(before, other.extended(len(times)).requests[: len(times)])
    moved = (replace(r, arrival=t) for r, t in zip(after, times, strict=True))
    return changed(trace, requests=(*before, *moved))
