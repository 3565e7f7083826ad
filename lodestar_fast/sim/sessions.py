"""Closed-loop workloads: so many users, each in one session at a time.

A user sends a request, waits for the whole answer, thinks as long as the trace says, and sends the
next; after a session's last answer he takes up the next session that nobody has. So a slow fleet
gets fewer requests, and what arrives when depends on who routes: runs of two policies share the
order of sessions and the users' first moments, not their arrivals.

A session's blocks are its own, but for the leading tools and system prompt that sessions of one
group have in common. A failed request is given up, and the session goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import groupby

from msgspec.structs import replace

from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.workload import Request, Trace

START_SECONDS = 30.0  # in which the users begin, each at a random moment
STRIDE = 1 << 24  # between the block ids of two sessions, and a trace's rounds: more than any has
GROUPS = 1 << 56  # from here on, ids of blocks that a group shares

Coming = tuple[float, Job]  # seconds from now, and what arrives then


class Sessions:
    """What arrives in a Simulation: `users` at a time through a trace, until `seconds`.

    If there are fewer sessions than the users get through, they come again, with new blocks.
    block: tokens of the engines' blocks.
    """

    def __init__(self, trace: Trace, users: int, seed: int, seconds: float, block: int) -> None:
        rng = random.Random(seed)
        self._sessions = [list(its) for _, its in groupby(trace.requests, lambda r: r.session)]
        rng.shuffle(self._sessions)
        self._starts = sorted(rng.uniform(0.0, START_SECONDS) for _ in range(users))
        self._seconds, self._block = seconds, block
        self._taken = 0  # sessions
        self._rest: dict[
            int, Iterator[Request]
        ] = {}  # by place in the trace, of what is on its way

    def begin(self) -> list[Coming]:
        """The users' first requests."""
        coming = (self._open(0.0, start) for start in self._starts)
        return [each for each in coming if each]

    def follow(self, job: Job, now: float) -> Coming | None:
        """What the user of that job, which has ended, sends next; None if it is too late."""
        rest = self._rest.pop(job.request.index)
        following = next(rest, None)
        if following is None:
            return self._open(now, 0.0)
        return self._send(following, rest, now, following.think)

    def _open(self, now: float, wait: float) -> Coming | None:
        session = self._next_session()
        return self._send(next(session), session, now, wait)

    def _send(
        self, request: Request, rest: Iterator[Request], now: float, wait: float
    ) -> Coming | None:
        if now + wait >= self._seconds:
            return None
        self._rest[request.index] = rest
        (job,) = make_jobs([request], self._block)
        return wait, job

    def _next_session(self) -> Iterator[Request]:
        """The requests of the next session that nobody has, with blocks of its own."""
        again, which = divmod(self._taken, len(self._sessions))
        number = self._taken
        self._taken += 1
        return iter(
            [
                replace(
                    r,
                    # Unique also where a session comes again while its like is still there.
                    index=r.index + again * STRIDE,
                    runs=tuple(_runs(r, number * STRIDE)),
                )
                for r in self._sessions[which]
            ]
        )


def _runs(request: Request, offset: int) -> Iterator[int]:
    """Its block ids with those of its group in front; the rest moved by offset."""
    size = request.block_tokens
    shared = min(request.group_tokens // size, -(-request.prompt_tokens // size)) if size else 0
    if shared and request.group >= 0:
        yield from (GROUPS + request.group * STRIDE, shared)
    else:
        shared = 0
    numbers = iter(request.runs)
    for start, length in zip(numbers, numbers, strict=True):
        skipped = min(shared, length)
        shared -= skipped
        if length > skipped:
            yield from (offset + start + skipped, length - skipped)
