"""`lodestar matrix`: every policy in every cell of the evaluation, and the report of it.

`make paper` and `make paper-quick` call it. Cells (cells.py) become runs (runner.py), runs become
rows (measure.py) in a results file (store.py), and rows become ratios, tables and a page
(findings.py, tables.py, page.py). Stopped at any moment, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix import robust
from lodestar_fast.matrix.cells import Cell, matrix, quick
from lodestar_fast.matrix.runner import CAPACITY_COST, Runner, each, plan_table
from lodestar_fast.matrix.store import Store
from lodestar_fast.matrix.workloads import missing
from lodestar_fast.simulate import at_least_one, positive
from lodestar_fast.simulate.show import Progress

STORE, TRACES = "bench/paper/results.jsonl.gz", "bench/paper/traces"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Runs that the results file has already, from the same code, are not repeated. Cells whose "
        "trace is not in the folder are left out, and named."
    )
    add = parser.add_argument
    add("--store", default=STORE, metavar="FILE", help=f"results file [{STORE}]")
    add("--traces", default=TRACES, metavar="DIR", help=f"folder of traces [{TRACES}]")
    add(
        "--quick",
        action="store_true",
        help="the headline subset: fifteen cells, ten seeds, the best heuristics",
    )
    add("--cells", metavar="A,B", help="only cells of these names, as in mix-* [all]")
    add("--policy", metavar="A,B", help="only these policies [those of the cell]")
    add("--seeds", type=at_least_one, metavar="N", help="at most N seeds a cell [the cell's]")
    add("--seconds", type=positive, metavar="S", help="length of a run [the cell's]")
    group = parser.add_argument_group("running")
    add = group.add_argument
    add("--plan", action="store_true", help="say what would be run and how long it takes")
    add("--jobs", type=at_least_one, default=1, metavar="N", help="processes to use [1]")
    add("--minutes", type=positive, metavar="M", help="begin no run that would end later")
    add("--fresh", action="store_true", help="forget the results of these cells first")
    add(
        "--any-code",
        action="store_true",
        help="keep results of other versions of the code; the report says how many there are",
    )
    add(
        "--robust",
        type=at_least_one,
        metavar="N",
        help="not the cells, but N short runs of fleets, requests and faults drawn at random; "
        "exit status 1 if Lodestar collapses in one of them",
    )
    add("--first", type=at_least_one, default=1, metavar="K", help="seed of the first of them [1]")
    add("--no-run", action="store_true", help="only the report, of what is there")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--report", metavar="DIR", help="folder for the report, an HTML page and a Markdown file")
    add("--readme", metavar="FILE", help="file whose results table is brought up to date")


def run(args: argparse.Namespace) -> int:
    store = Store(Path(args.store))
    traces = Path(args.traces)
    console, progress = Console(), Progress(Console(stderr=True))
    if args.robust:
        return _robust(range(args.first, args.first + args.robust), store, args, progress)
    cells = _cells(args)
    for cell in [cell for cell in cells if (why := missing(cell.work, traces))]:
        progress.warn(f"{cell.name}: left out: {why}")
        cells.remove(cell)
    if not cells:
        raise ConfigError("--cells: no cell is left")
    runner = Runner(
        store,
        traces,
        MonotonicClock(),
        jobs=args.jobs,
        budget=60 * args.minutes if args.minutes else float("inf"),
        any_code=args.any_code,
    )
    if args.fresh and not args.plan:
        store.forget(cells)
    if not args.no_run:
        _run(args.plan, cells, runner, console, progress)
    if not args.plan and (args.report or args.readme):
        from lodestar_fast.matrix.page import write_report
        from lodestar_fast.matrix.readme import update_readme

        if args.report:
            path = write_report(args.report, cells, store)
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
        if args.readme:
            update_readme(Path(args.readme), cells, store, args.quick)
    return 0


def _robust(seeds: range, store: Store, args: argparse.Namespace, progress: Progress) -> int:
    """Run those that are not in the store, from the same code."""
    kept = [d for d in store.draws.values() if d.code == robust.code() and d.seed in seeds]
    todo = sorted(set(seeds) - {d.seed for d in kept})
    works = [(seed, Path(args.traces)) for seed in ([] if args.no_run else todo)]
    try:
        with progress.runs(len(works)):
            for _, draw in each(robust.run_draw, works, args.jobs):
                store.add(draw)
                kept.append(draw)
                progress.ended(f"seed {draw.seed}: {draw.ratio:.2f}")
                if draw.ratio > robust.COLLAPSE:
                    progress.warn(f"collapse: {draw.ratio:.2f}, seed {draw.seed}: {draw.what}")
    finally:
        store.fold()
    table = robust.table(kept)
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in table.head:
        out.add_column(name, justify="left" if name == "seed" else "right")
    for row in table.rows:
        out.add_row(*row)
    console = Console()
    console.print(out)
    console.print(table.note, highlight=False)
    return 1 if robust.collapsed(kept) else 0


def _run(
    plan: bool, cells: Sequence[Cell], runner: Runner, console: Console, progress: Progress
) -> None:
    rates = runner.missing_capacities(cells)
    if rates and plan:
        console.print(
            f"{rates} saturation rates are to be found first, about "
            f"{rates * CAPACITY_COST / 60:.0f} minutes; then the plan can be made. Without --plan "
            "it is all done at once.",
            highlight=False,
        )
        return
    if rates:
        with progress.during(f"finding {rates} saturation rates"):
            runner.capacities(cells, progress.note)
    todo = runner.todo(cells)
    if plan:
        console.print(plan_table(cells, todo, runner.costs))
    seconds = runner.seconds(todo)
    console.print(
        f"{len(todo)} runs, about {_duration(seconds)} on {runner.jobs} "
        + ("processors" if runner.jobs > 1 else "processor"),
        highlight=False,
    )
    if plan or not todo:
        return
    with progress.runs(len(todo)):

        def told(left: float, last: str) -> None:
            progress.ended(f"about {_duration(left)} left, {last}")

        try:
            done = runner.run(todo, told)
        finally:
            runner.store.fold()
    if done < len(todo):
        console.print(
            f"{len(todo) - done} runs are left for another time: call it again", highlight=False
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 90 else f"{minutes} min"


def _cells(args: argparse.Namespace) -> list[Cell]:
    every = matrix()
    cells = list((quick(every) if args.quick else every).values())
    if args.cells:
        chosen = []
        for pattern in args.cells.replace(",", " ").split():
            some = [cell for cell in cells if fnmatchcase(cell.name, pattern)]
            if not some:
                raise ConfigError(f"--cells: no cell is called {pattern}")
            chosen += some
        cells = list(dict.fromkeys(chosen))
    if args.policy:
        names = tuple(args.policy.replace(",", " ").split())
        cells = [replace(cell, policies=names, rest=()) for cell in cells]
    if args.seeds:
        cells = [replace(cell, seeds=min(cell.seeds, args.seeds)) for cell in cells]
    if args.seconds:
        cells = [replace(cell, seconds=args.seconds) for cell in cells]
    return cells
