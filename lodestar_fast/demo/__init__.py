"""`lodestar demo`: what Lodestar does, seen within minutes, without a GPU.

For each policy a fleet of simulated engines and a router before it, all real processes that talk
HTTP; one client sends all routers the same requests of a real trace at the same moments. One of
the routers learns meanwhile. Then a table, a report to look at, and JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console

from lodestar_fast.clock import Clock, MonotonicClock
from lodestar_fast.demo.children import ChildError, Children, Interrupted, with_children
from lodestar_fast.demo.live import Board, result_table, show
from lodestar_fast.demo.stack import Stack, get_json, preemptions, start_stacks
from lodestar_fast.errors import ConfigError
from lodestar_fast.loadgen import replay
from lodestar_fast.replay import add_workload_arguments, workload
from lodestar_fast.report import (
    OURS,
    Result,
    Row,
    comparison,
    make_folder,
    row_dict,
    verdict,
    versions,
    write_report,
)
from lodestar_fast.sim.gpus import EngineSpec, parse_fleet
from lodestar_fast.sim.workload import Trace
from lodestar_fast.slo import Goals
from lodestar_fast.summary import Record, document, run_summary, write_json
from lodestar_fast.terminal import say, say_trouble

TRACE = str(files("lodestar_fast") / "data" / "mooncake_conversation.jsonl.gz")
POLICIES = "least_request,prefix_cache,lmetric,lodestar"

ANSWER_SECONDS = 45.0  # until a request is given up, so that an overloaded fleet ends the demo too
POLL_SECONDS = 2.0  # between questions about the model's version


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fleet",
        default="2xa30+1xl20+1xh100",
        metavar="SPEC",
        help="engines of each router, COUNTxGPU joined by + [%(default)s]",
    )
    parser.add_argument(
        "--policies", default=POLICIES, metavar="A,B", help="policies to compare [%(default)s]"
    )
    add_workload_arguments(
        parser,
        trace=TRACE,
        rate=13.0,
        seconds=150.0,
        block_tokens=50,
        max_input=10_000,
        output_scale=0.5,
    )
    parser.add_argument("--json", metavar="OUT", help="write the results as JSON")
    parser.add_argument(
        "--report", default="demo-report", metavar="DIR", help="folder of the report [%(default)s]"
    )


def run(args: argparse.Namespace) -> int:
    """0: done; 1: a process failed, or a policy got no answer; 128 + n: ended by signal n."""
    policies = list(dict.fromkeys(args.policies.replace(",", " ").split()))
    if not policies:
        raise ConfigError("--policies: names no policy")
    specs = parse_fleet(args.fleet)
    trace = workload(args)
    # Better now than after three minutes.
    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json: no folder {Path(args.json).parent}")
    make_folder(args.report)
    demo = Demo(args, policies, specs, trace)
    try:
        uvloop.run(demo.run())
    except ChildError as e:
        print(f"lodestar demo: {e}", file=sys.stderr)
        return 1
    except Interrupted as e:
        return 128 + e.signal
    return demo.publish()


class Demo:
    """One demo, from the processes to the report."""

    def __init__(
        self, args: argparse.Namespace, policies: list[str], specs: list[EngineSpec], trace: Trace
    ) -> None:
        self._args = args
        self._policies = policies
        self._specs = specs
        self._trace = trace
        self._console = Console(stderr=True)
        self._clock: Clock = MonotonicClock()
        self._records: dict[str, list[Record]] = {}
        self._preemptions: dict[str, int | None] = {}
        self._stacks: list[Stack] = []
        self._board: Board | None = None

    @property
    def _title(self) -> str:
        args = self._args
        rate = f" at {args.rate:g} req/s" if args.rate else ""
        return (
            f"Lodestar demo: {args.fleet} for each of {len(self._policies)} routers, "
            f"{len(self._trace.requests):,} requests of {self._trace.name}{rate}, seed {args.seed}"
        )

    async def run(self) -> None:
        """Start all, replay, stop all. Raises ChildError, and Interrupted on a signal."""
        await with_children(self._work)

    async def _work(self, children: Children, client: aiohttp.ClientSession) -> None:
        args = self._args
        say(self._console, f"starting {len(self._policies)} fleets and routers")
        self._stacks = await start_stacks(
            children, client, self._policies, args.fleet, self._specs, args.seed
        )
        board = Board(
            {stack.policy: stack.labels for stack in self._stacks},
            len(self._trace.requests),
            args.seconds or self._trace.seconds,
            self._clock,
        )
        self._board = board
        tasks = [asyncio.create_task(show(board, self._title, self._console))]
        for stack in self._stacks:
            if stack.policy == OURS:
                tasks.append(asyncio.create_task(self._ask_about_model(client, stack, board)))
        try:
            self._records = await replay(
                self._trace.requests,
                {stack.policy: stack.url for stack in self._stacks},
                model=self._stacks[0].model,
                on_record=board.note,
                timeout=ANSWER_SECONDS,
                clock=self._clock,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for stack in self._stacks:
            self._preemptions[stack.policy] = await preemptions(client, stack)

    async def _ask_about_model(
        self, client: aiohttp.ClientSession, stack: Stack, board: Board
    ) -> None:
        while True:
            status = await get_json(client, stack.admin_url + "/admin/model")
            if status:
                board.version = status.get("version")
                board.learner = str(status.get("state", ""))
            await asyncio.sleep(POLL_SECONDS)

    # -- afterwards

    def publish(self) -> int:
        """Table, JSON and report; the exit status."""
        args = self._args
        assert self._board is not None
        seconds = args.seconds or self._trace.seconds
        result = Result(
            command=shlex.join(["lodestar", *sys.argv[1:]]),
            seed=args.seed,
            trace=self._trace.name,
            fleet=args.fleet,
            rate=args.rate,
            workload=(f"{args.block_tokens} tokens a block, " if args.block_tokens else "")
            + f"output x {args.output_scale:g}",
            seconds=seconds,
            records=self._records,
            labels={stack.policy: stack.labels for stack in self._stacks},
            took_over=self._board.took_over,
            versions=versions(),
        )
        rows = comparison(result)
        out = Console()
        out.print(result_table(rows, result.final_name))
        say(out, verdict(result))
        for policy, records in self._records.items():
            say_trouble(out, records, f"{policy}: ")
        if args.json:
            write_json(args.json, self._document(result, rows))
        say(out, f"report: {write_report(args.report, result)}")
        return 1 if any(row.failed == row.requests for row in rows) else 0

    def _document(self, result: Result, rows: list[Row]) -> dict[str, Any]:
        extra = {row.policy: row_dict(row) for row in rows}
        baseline = self._records.get("least_request")
        runs = [
            run_summary(
                records,
                policy=policy,
                seed=result.seed,
                trace=result.trace,
                fleet=result.fleet,
                rate=result.rate,
                preemptions=self._preemptions.get(policy),
                baseline=baseline,
                in_time=Goals(self._specs).met,
            )
            | extra[policy]
            for policy, records in self._records.items()
        ]
        return document("demo", runs, final_from_s=result.final_from, took_over_s=result.took_over)
