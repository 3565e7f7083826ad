"""Two lower bounds on the mean TTFT of a workload: what no router of any kind can beat.

idle    every request alone on the fastest GPU for it, with all that any request before it began
        with in the cache
pooled  one server as fast as all engines together that computes nothing but prompts, the one with
        the least left first (Schrage 1968: least mean for one machine), with the same cache

Valid for engines without jitter that are never faster than their table. The pooled bound counts of
a prompt only what grows with it, c n + a A (sim/gpus): reading the weights may be shared. Engines
enter with the best ratio to the fastest that one of c and a gives, so that splitting a prompt over
unequal ones is allowed for. The larger of the two is the bound; the true optimum is above it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from lodestar_fast.sim.gpus import EngineSpec
from lodestar_fast.sim.jobs import Job, fits


def infinite_hits(jobs: Sequence[Job], block: int) -> list[int]:
    """By job: tokens, in whole blocks, that some job before it began with; less than its prompt.

    Jobs are told apart block by block, and left alone once nobody shares what they begin with: a
    table of all blocks would be larger than the workload.
    """
    shared = [0] * len(jobs)
    groups = [(list(range(len(jobs))), 0)]  # jobs in order that have the first `depth` in common
    while groups:
        group, depth = groups.pop()
        parts: dict[int, list[int]] = {}
        for index in group:
            if depth < len(hashes := jobs[index].hashes):
                parts.setdefault(hashes[depth], []).append(index)
        for first, *others in parts.values():
            if others:
                common = min(_common(jobs[first].hashes, jobs[k].hashes, depth) for k in others)
                for index in others:
                    shared[index] = common
                groups.append(([first, *others], common))
    return [
        block * min(found, (job.prompt_tokens - 1) // block)
        for found, job in zip(shared, jobs, strict=True)
    ]


def _common(a: Sequence[int], b: Sequence[int], depth: int) -> int:
    """How many first blocks are the same, at least `depth`: chains that part never meet again."""
    both = range(min(len(a), len(b)))
    return bisect_left(both, True, depth, key=lambda i: a[i] != b[i])


def idle_bound(jobs: Sequence[Job], hits: Sequence[int], fleet: Iterable[EngineSpec]) -> float:
    """Mean seconds to the end of the iteration that makes the first token."""
    kinds = list(dict.fromkeys(fleet))
    total = 0.0
    for job, hit in zip(jobs, hits, strict=True):
        total += min(
            kind.idle_ttft(job.prompt_tokens, hit if kind.prefix_caching else 0) for kind in kinds
        )
    return total / len(jobs)


def pooled_bound(jobs: Sequence[Job], hits: Sequence[int], fleet: Sequence[EngineSpec]) -> float:
    """Mean seconds, of jobs in order of arrival."""
    best = min(fleet, key=lambda spec: spec.c)
    speed = sum(max(_ratio(best.c, spec.c), _ratio(best.a, spec.a)) for spec in fleet)
    left: list[tuple[float, float]] = []  # seconds of work, arrival
    now, total = 0.0, 0.0
    for job, hit in zip(jobs, hits, strict=True):
        now, done = _serve(left, now, job.arrival)
        total += done
        n = job.prompt_tokens - hit
        pairs = n * (hit + n / 2)
        heappush(left, ((best.c * n + best.a * pairs / 1e6) / 1e3 / speed, job.arrival))
    return (total + _serve(left, now, float("inf"))[1]) / len(jobs)


def _ratio(best: float, other: float) -> float:
    if not best:
        return 0.0  # this part takes no time on the fastest: it says nothing
    return best / other if other else float("inf")


def _serve(left: list[tuple[float, float]], now: float, until: float) -> tuple[float, float]:
    """Work on the shortest; the new time, and the summed waits of what was finished."""
    done = 0.0
    while left and now < until:
        work, arrival = left[0]
        if now + work > until:
            heappop(left)
            heappush(left, (work - (until - now), arrival))
            return until, done
        heappop(left)
        now += work
        done += now - arrival
    return max(now, until), done


def lower_bounds(
    jobs: Sequence[Job], fleet: Sequence[EngineSpec], start: float = 0.0
) -> dict[str, float]:
    """{"idle", "pooled"}: seconds, means over the jobs that arrive from `start` on.

    Those before are in the cache and take no time. Jobs that no engine can hold are left out.
    """
    kinds = set(fleet)
    block = min(spec.block for spec in fleet)
    hits = infinite_hits(jobs, block)
    counted = [
        (job, hit)
        for job, hit in zip(jobs, hits, strict=True)
        if job.arrival >= start and any(fits(spec, job) for spec in kinds)
    ]
    if not counted:
        return {}
    late, known = [job for job, _ in counted], [hit for _, hit in counted]
    return {
        "idle": idle_bound(late, known, fleet),
        "pooled": pooled_bound(late, known, fleet),
    }
