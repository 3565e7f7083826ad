"""How long the learner's start holds up an event loop in the same process.

    python bench/bench_import_stall.py [--plain] [--runs 3] [--rounds 5]

A heartbeat of 1 ms runs on uvloop in the main thread, while ThreadLearner imports torch in its own
and trains its first rounds on synthetic samples. Printed for each run, a process of its own: the
longest gaps between two beats, and how many were over 5 ms. --plain imports torch in a bare thread
instead: what there would be without the precautions.

On a busy machine a gap may be the scheduler's; run `--idle` (no learner) beside it to know. About
20 ms of one gap is torch's own initialisation in C, which holds the GIL whatever we do.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import subprocess
import sys
import threading
import time

import uvloop


def batch(dispatched: float, rows: int) -> bytes:
    """A batch of first tokens, made by a router: the main thread needs no numpy for that."""
    from lodestar_fast.core import POLICIES, Event, Router

    router = Router(POLICIES["round_robin"](), max_instances=4, index_bytes=1 << 20)
    for i in range(4):
        router.add_instance(str(i))
    for i in range(rows):
        now = dispatched + i / rows
        ticket = router.route(b"", now, 200 + 100 * (i * 7 % 13)).ticket
        router.observe(ticket, Event.FIRST_TOKEN, now + 0.05 + 0.01 * (i * 7 % 13))
        router.observe(ticket, Event.DONE, now + 1.0)
    return router.drain()


async def heartbeat(done: threading.Event, gaps: list[float]) -> None:
    """Record the gaps of a 1 ms heartbeat until done, or for two minutes."""
    loop = asyncio.get_running_loop()
    last = start = loop.time()
    while not done.is_set() and last - start < 120:
        await asyncio.sleep(0.001)
        now = time.monotonic()
        gaps.append(now - last)
        last = now


async def measure(kind: str, rounds: int) -> list[float]:
    gaps: list[float] = []
    done = threading.Event()
    if kind == "idle":
        threading.Timer(3.0, done.set).start()
        await heartbeat(done, gaps)
    elif kind == "plain":

        def work() -> None:
            importlib.import_module("torch")
            done.set()

        threading.Thread(target=work).start()
        await heartbeat(done, gaps)
    else:
        from lodestar_fast.config import LearnerConfig
        from lodestar_fast.learner.thread import ThreadLearner

        batches = [batch(float(k), 40) for k in range(rounds + 4)]
        config = LearnerConfig(round_seconds=0.3)
        blobs = 0

        def enough(_: object) -> None:
            nonlocal blobs
            if batches:
                learner.submit(batches.pop())
            blobs += learner.poll() is not None
            if blobs >= rounds:
                done.set()

        learner = ThreadLearner(config, before_round=enough)
        await heartbeat(done, gaps)
        print(learner.status())
        learner.close()
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="import torch in a bare thread")
    parser.add_argument("--idle", action="store_true", help="no learner at all, for 3 s")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kind = "plain" if args.plain else "idle" if args.idle else "learner"
    if not args.child:
        for _ in range(args.runs):
            subprocess.run([sys.executable, *sys.argv, "--child"], check=True)
        return
    started = time.monotonic()
    gaps = uvloop.run(measure(kind, args.rounds))
    worst = sorted(gaps)[-5:][::-1]
    print(
        f"{kind}: longest gaps {', '.join(f'{1e3 * g:.1f}' for g in worst)} ms,"
        f" {sum(g > 0.005 for g in gaps)} over 5 ms, {time.monotonic() - started:.1f} s in all"
    )


if __name__ == "__main__":
    main()
