"""The runs of a simulation, one after another or over several processes; the same results.

Workers are started afresh (spawn), not forked: torch, once used, does not survive a fork. Each gets
the plan and makes its own workload; what comes back are records, in the order of the tasks.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial

from lodestar_fast.simulate.plan import Measured, Plan, run_one
from lodestar_fast.simulate.show import Progress

Task = tuple[int, str]  # seed, policy


def measure(
    plan: Plan, tasks: Sequence[Task], jobs: int, wall_time: bool, progress: Progress
) -> Iterator[Measured]:
    """Make the runs, in order. wall_time: measure decisions too."""
    if min(jobs, len(tasks)) == 1:
        timer = time.perf_counter if wall_time else None
        for seed, policy in tasks:
            progress.begin(policy, seed)
            yield run_one(plan, seed, policy, timer, progress.within)
            progress.ended()
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(tasks)), _start) as pool:
        for done in pool.imap(partial(_task, plan, wall_time), tasks):
            yield done
            progress.ended()


def _start() -> None:
    """Ctrl-C goes to the whole group of processes; the parent ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _task(plan: Plan, wall_time: bool, task: Task) -> Measured:
    return run_one(plan, *task, time.perf_counter if wall_time else None)
