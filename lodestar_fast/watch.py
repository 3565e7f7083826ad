"""`lodestar watch`: the page on the admin port with a fleet that lives, until Ctrl-C.

Simulated engines, one router before them, a real trace replayed without end. After a while one of
the engines becomes slow, as a throttled GPU does: find it on the page.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import aiohttp
import uvloop
from msgspec.structs import replace
from rich.console import Console

from lodestar_fast.demo import TRACE
from lodestar_fast.demo.children import ChildError, Children, Interrupted, with_children
from lodestar_fast.demo.stack import start_stacks
from lodestar_fast.errors import ConfigError
from lodestar_fast.loadgen import replay
from lodestar_fast.replay import add_workload_arguments, count, positive
from lodestar_fast.report import OURS
from lodestar_fast.sim.gpus import EngineSpec, parse_fleet
from lodestar_fast.sim.workload import Request, Trace, read_trace
from lodestar_fast.summary import Record
from lodestar_fast.terminal import say

# Requests after which prompts come again; caches have forgotten them by then.
ROUND = 10_000
# Seconds until a request is given up: 1,000 tokens of the slow engine take a minute and a half.
PATIENCE = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fleet", default="8xa30", metavar="SPEC", help="engines, COUNTxGPU joined by + [8xa30]"
    )
    parser.add_argument(
        "--mode", default="on", metavar="M", help="mode to begin with: off, shadow, canary:P, on"
    )
    parser.add_argument(
        "--admin-port",
        type=count,
        default=29000,
        metavar="N",
        help="port of the page; 0: any free one [%(default)s]",
    )
    parser.add_argument(
        "--slow-after",
        type=positive,
        default=60.0,
        metavar="S",
        help="seconds after which an engine becomes slow [%(default)g]",
    )
    parser.add_argument(
        "--slow-factor",
        type=positive,
        default=3.0,
        metavar="X",
        help="by how much; 1: none does [%(default)g]",
    )
    add_workload_arguments(
        parser, trace=TRACE, rate=16.0, block_tokens=50, max_input=10_000, output_scale=0.5
    )


def endless(trace: Trace, rate: float, seed: int) -> Iterator[Request]:
    """The trace's requests, Poisson at that rate, round after round."""
    start = 0.0
    for turn in itertools.count():
        requests = trace.timed(seed + turn, rate).requests
        for request in requests:
            yield replace(request, arrival=start + request.arrival)
        start += requests[-1].arrival + 1 / rate


def run(args: argparse.Namespace) -> int:
    """0: --seconds are over, or Ctrl-C came; 1: a process failed; 128 + n: ended by signal n."""
    specs = parse_fleet(args.fleet)
    trace = read_trace(args.trace)
    trace = trace.rescaled(args.block_tokens, args.max_input, args.output_scale).extended(ROUND)
    if not trace.requests:
        raise ConfigError(f"--max-input: no request of {args.trace} is left")
    watch = Watch(args, specs, trace)
    try:
        uvloop.run(watch.run())
    except ChildError as e:
        print(f"lodestar watch: {e}", file=sys.stderr)
        return 1
    except Interrupted as e:
        watch.farewell()
        return 0 if e.signal == signal.SIGINT else 128 + e.signal
    watch.farewell()
    return 0


class Watch:
    """One fleet and its router, from start to Ctrl-C."""

    def __init__(self, args: argparse.Namespace, specs: list[EngineSpec], trace: Trace) -> None:
        self._args = args
        self._specs = specs
        self._trace = trace
        self._console = Console(stderr=True)
        # Not the seed's first number: the engine is to be found, not known.
        self._slow = random.Random(args.seed * 7919).randrange(len(specs))
        self._slow_url = ""
        self._ended: Counter[bool] = Counter()  # requests by whether they failed

    async def run(self) -> None:
        """Raises ChildError, and Interrupted on a signal."""
        await with_children(self._work)

    async def _work(self, children: Children, client: aiohttp.ClientSession) -> None:
        args, engine_words = self._args, []
        if args.slow_factor != 1:
            engine_words = ["--slow", f"{self._slow}={args.slow_factor}@{args.slow_after}"]
        say(self._console, f"starting {args.fleet} and the router")
        (stack,) = await start_stacks(
            children,
            client,
            [OURS],
            args.fleet,
            self._specs,
            args.seed,
            engine_words,
            ("--mode", args.mode, "--admin-port", str(args.admin_port)),
        )
        self._slow_url = stack.engine_urls[self._slow]
        say(self._console, f"\n  {stack.admin_url}/\n")
        say(
            self._console,
            f"{args.rate:g} requests a second of {self._trace.name}; Ctrl-C ends all.",
        )
        if args.slow_factor != 1:
            say(
                self._console,
                f"After {args.slow_after:g} s one engine takes {args.slow_factor:g} times as long. "
                "Which one? The page knows.",
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(args.seconds):
                await replay(
                    endless(self._trace, args.rate, args.seed),
                    {stack.policy: stack.url},
                    model=stack.model,
                    on_record=self._note,
                    timeout=PATIENCE,
                    keep=False,
                )

    def _note(self, policy: str, record: Record) -> None:
        self._ended[bool(record.error)] += 1

    def farewell(self) -> None:
        """What was, once all has ended."""
        ended = self._ended.total()
        say(self._console, f"{ended:,} requests answered, {self._ended[True]:,} of them failed.")
        if self._slow_url and self._args.slow_factor != 1:
            say(self._console, f"The slow one was {self._slow_url}.")
