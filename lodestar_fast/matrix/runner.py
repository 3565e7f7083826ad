"""What is to be run, in which order, over how many processes, and how long that will take.

Seed by seed over all cells, so that whenever it ends every cell has as many seeds as the others.
What is in the store already, from the same code, is not run again.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lodestar_fast.clock import Clock
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix.cells import OURS, PUBLISHED, REST_SEEDS, VARIANTS, Cell
from lodestar_fast.matrix.code import code_version
from lodestar_fast.matrix.measure import Row, capacity_of, find_capacity, row_of
from lodestar_fast.matrix.store import Store, what_of
from lodestar_fast.simulate.plan import SIMULATED, settings

# Processor seconds for a thousand requests, before anything was measured; then it is measured.
COSTS = {OURS: 1.0, PUBLISHED: 2.0, "oracle": 0.5, "oracle-altruistic": 1.0}
COST = 0.2
CAPACITY_COST = 100.0  # to find a saturation rate


@dataclass(frozen=True)
class Task:
    """One run."""

    cell: Cell
    rate: float
    policy: str
    seed: int
    what: str
    code: str


def rate_of(cell: Cell, store: Store) -> float:
    """Requests a second; 0 in a closed loop. Raises KeyError while saturation is not known."""
    if cell.work.users:
        return 0.0
    known = [store.capacities[capacity_of(cell, name)].saturation for name in cell.work.sources]
    return round(cell.load * min(known) * cell.times, 3)


def policies_of(cell: Cell) -> list[tuple[str, int]]:
    """Those that this version has, with their numbers of seeds."""
    every = [(name, cell.seeds) for name in cell.policies]
    every += [(name, min(cell.seeds, 5 if name in VARIANTS else REST_SEEDS)) for name in cell.rest]
    return [(name, seeds) for name, seeds in every if settings(name)[0] in (*POLICIES, *SIMULATED)]


def code_of(policy: str) -> str:
    """The version of all that its runs follow from."""
    return code_version(settings(policy)[0])


def tasks(
    cells: Iterable[Cell],
    store: Store,
    code: Callable[[str], str] = code_of,
    any_code: bool = False,
) -> list[Task]:
    """All runs that the store does not have, in order.

    code: by policy, the version that a run has to be of; any_code: it may be of others.
    """
    todo = []
    for place, cell in enumerate(cells):
        rate = rate_of(cell, store)
        for policy, seeds in policies_of(cell):
            for seed in range(1, seeds + 1):
                what = what_of(cell, rate, policy, seed)
                row = store.rows.get((cell.name, cell.seconds, policy, seed))
                if row and row.what == what and (any_code or row.code == code(policy)):
                    continue
                todo.append((seed, place, Task(cell, rate, policy, seed, what, code(policy))))
    return [task for _, _, task in sorted(todo, key=lambda entry: entry[:2])]


class Costs:
    """Processor seconds that a run will take, from those that are in the store."""

    def __init__(self, store: Store) -> None:
        self._exact: dict[tuple[str, float, str], float] = {}
        self._thousand: dict[str, float] = {}
        for row in store.rows.values():
            self.learn(row)

    def learn(self, row: Row) -> None:
        self._exact[row.cell, row.seconds, row.policy] = row.cpu
        self._thousand[settings(row.policy)[0]] = 1e3 * row.cpu / max(row.requests, 1)

    def of(self, task: Task) -> float:
        exact = self._exact.get((task.cell.name, task.cell.seconds, task.policy))
        if exact is not None:
            return exact
        name = settings(task.policy)[0]
        thousand = self._thousand.get(name, COSTS.get(name, COST))
        rate = task.rate or 0.1 * task.cell.work.users
        return thousand * rate * task.cell.seconds / 1e3


Told = Callable[[float, str], None]  # seconds left, the run that has ended
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Runner:
    """Runs what is missing. budget: in seconds; no run is begun that would not end within."""

    def __init__(
        self,
        store: Store,
        traces: Path,
        clock: Clock,
        *,
        jobs: int = 1,
        budget: float = float("inf"),
        any_code: bool = False,
    ) -> None:
        self.store, self.traces, self.clock = store, traces, clock
        self.jobs, self.any_code = jobs, any_code
        self._end = clock.now() + budget
        self.costs = Costs(store)

    def capacities(self, cells: Sequence[Cell], note: Callable[[str], None]) -> None:
        """Find the saturation rates that are not known yet. Raises ConfigError."""
        works = [(cell, name, self.traces) for cell, name in _uncharted(cells, self.store)]
        for _, found in each(find_capacity, works, self.jobs):
            self.store.add(found)
            note(f"{found.fleet}, {found.source}: saturated at {found.saturation:.3g} req/s")

    def missing_capacities(self, cells: Sequence[Cell]) -> int:
        return len(_uncharted(cells, self.store))

    def todo(self, cells: Sequence[Cell]) -> list[Task]:
        return tasks(cells, self.store, any_code=self.any_code)

    def seconds(self, todo: Iterable[Task]) -> float:
        """Until they are done, on as many processors as jobs."""
        return sum(map(self.costs.of, todo)) / self.jobs

    def run(self, todo: Sequence[Task], told: Told) -> int:
        """How many were run; fewer than asked if the budget ended. Raises ConfigError."""
        left = dict.fromkeys(todo)

        def begun() -> Iterator[tuple[Task, Path]]:
            for task in todo:
                if self.clock.now() + self.costs.of(task) > self._end:
                    return
                yield task, self.traces

        for (task, _), row in each(_work, begun(), self.jobs):
            self.store.add(row)
            self.costs.learn(row)
            del left[task]
            told(self.seconds(left), f"{row.cell} {row.policy} seed {row.seed}")
        return len(todo) - len(left)


def each(
    work: Callable[[*Arguments], Result], items: Iterable[tuple[*Arguments]], jobs: int
) -> Iterator[tuple[tuple[*Arguments], Result]]:
    """Each item with its result, as they come, made in so many processes; 1: in this one.

    No more items are taken than can be begun soon, so that they may end early.
    """
    if jobs == 1:
        for item in items:
            yield item, work(*item)
        return
    # Afresh (spawn), not forked: torch, once used, does not survive a fork.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start)
    running: dict[Future[Result], tuple[*Arguments]] = {}
    try:
        for item in items:
            running[pool.submit(work, *item)] = item
            while len(running) > jobs:  # one waits, so that no worker does
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(ended), ended.result()
        for ended in as_completed(running):
            yield running[ended], ended.result()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()  # what runs would be waited for
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _uncharted(cells: Sequence[Cell], store: Store) -> list[tuple[Cell, str]]:
    needed = {
        capacity_of(cell, name): (cell, name)
        for cell in cells
        for name in cell.work.sources
        if not cell.work.users
    }
    return [work for key, work in needed.items() if key not in store.capacities]


def _start() -> None:
    """Ctrl-C goes to the whole group of processes; the parent ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(task: Task, traces: Path) -> Row:
    try:
        return row_of(task.cell, task.rate, task.policy, task.seed, task.what, task.code, traces)
    except ConfigError as e:
        raise ConfigError(f"{task.cell.name}, {task.policy}: {e}") from None


def plan_table(cells: Iterable[Cell], todo: Sequence[Task], costs: Costs) -> Table:
    """By cell: what is to be run, and the processor time it takes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("cell", "req/s", "seconds", "runs", "CPU min"):
        table.add_column(head, justify="left" if head == "cell" else "right", no_wrap=True)
    for cell in cells:
        its = [task for task in todo if task.cell.name == cell.name]
        minutes = sum(map(costs.of, its)) / 60
        rate = f"{its[0].rate:.4g}" if its else "-"
        table.add_row(cell.name, rate, f"{cell.seconds:g}", str(len(its)), f"{minutes:.1f}")
    return table
