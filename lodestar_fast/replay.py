"""`lodestar replay`: a request trace against any OpenAI-compatible URL.

Options in, workload to loadgen.replay(), progress and results out. The options of the workload are
those of `demo` too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.loadgen import find_model, replay
from lodestar_fast.sim.logged import read_any
from lodestar_fast.sim.workload import Trace
from lodestar_fast.summary import Record, document, run_summary, write_json
from lodestar_fast.terminal import ReplayProgress, say, say_trouble, summary_table


def positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def add_workload_arguments(
    parser: argparse.ArgumentParser, trace: str | None = None, **defaults: Any
) -> None:
    """The options that turn a trace into requests; the demo has the same with other defaults.

    trace: the file that is replayed unless another is named; None: --trace is required.
    """
    group = parser.add_argument_group("workload", "Brackets hold the defaults.")
    group.add_argument(
        "--trace",
        required=trace is None,
        default=trace,
        metavar="F",
        help="trace: JSON lines, gzip or plain, in the format of lodestar_fast/data/README.md, "
        "or a log of decisions (serve --decision-log), a file or the folder"
        + (f" [{Path(trace).name}]" if trace else ""),
    )
    rate, seconds = defaults.get("rate", "its own times"), defaults.get("seconds", "all of it")
    group.add_argument(
        "--rate",
        type=positive,
        metavar="R",
        help=f"redraw the arrivals as Poisson at R requests a second [{rate}]",
    )
    group.add_argument(
        "--seconds", type=positive, metavar="S", help=f"stop sending after S seconds [{seconds}]"
    )
    group.add_argument(
        "--seed", type=count, default=1, metavar="K", help="seed of the arrivals [%(default)s]"
    )
    group.add_argument(
        "--block-tokens",
        type=count,
        default=0,
        metavar="T",
        help="shrink or stretch prompts to T tokens a prefix block; 0: as they are [%(default)s]",
    )
    group.add_argument(
        "--max-input",
        type=count,
        default=0,
        metavar="M",
        help="then drop prompts of more than M tokens; 0: none [%(default)s]",
    )
    group.add_argument(
        "--output-scale",
        type=positive,
        default=1.0,
        metavar="O",
        help="factor on output tokens [%(default)s]",
    )
    parser.set_defaults(**defaults)


def workload(args: argparse.Namespace) -> Trace:
    """The requests that the options ask for. Raises ConfigError if they leave none.

    A trace too short for --rate and --seconds is repeated, each time with other prefixes.
    """
    trace = read_any(args.trace)
    trace = trace.rescaled(args.block_tokens, args.max_input, args.output_scale)
    if args.rate and args.seconds:
        # A Poisson process of n arrivals on average has, but once in millions, fewer than this.
        arrivals = args.rate * args.seconds
        trace = trace.extended(math.ceil(arrivals + 5 * math.sqrt(arrivals)))
    trace = trace.timed(args.seed, args.rate, args.seconds)
    if not trace.requests:
        raise ConfigError(f"--max-input: no request of {args.trace} is left")
    return trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workload_arguments(parser)
    parser.add_argument(
        "--url", required=True, metavar="U", help="base URL of the server, http://host:port"
    )
    parser.add_argument("--model", metavar="M", help="model to ask for [the server's first]")
    parser.add_argument("--api-key-file", metavar="F", help="file whose first line is the API key")
    parser.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="give a request up after S seconds [%(default)s]",
    )
    parser.add_argument("--json", metavar="OUT", help="write the results as JSON")


def run(args: argparse.Namespace) -> int:
    """0: requests were answered; 1: none was; 130: interrupted, results are of what had ended."""
    trace = workload(args)
    url = args.url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {args.url} is not an http:// or https:// URL")
    records: list[Record] = []
    interrupted = False
    try:
        uvloop.run(_run(args, trace, url, records))
    except KeyboardInterrupt:
        interrupted = True
    records.sort(key=lambda record: record.index)
    run = run_summary(records, policy=None, seed=args.seed, trace=trace.name, rate=args.rate)
    console = Console()
    console.print(summary_table(run))
    if run["hit_ratio"] is not None:
        say(console, f"{run['hit_ratio']:.1%} of prompt tokens came from the engines' caches")
    say_trouble(console, records)
    if args.json:
        write_json(args.json, document("replay", [run]))
    if interrupted:
        return 130
    return 0 if any(not record.error for record in records) else 1


async def _run(args: argparse.Namespace, trace: Trace, url: str, ended: list[Record]) -> None:
    headers = _authorization(args.api_key_file)
    model = args.model or await find_model(url, headers)
    clock = MonotonicClock()
    console = Console(stderr=True)
    progress = ReplayProgress(len(trace.requests), clock, console)

    def on_record(name: str, record: Record) -> None:
        ended.append(record)
        progress.note(record)

    count, seconds = len(trace.requests), trace.seconds
    say(console, f"{count} requests of {trace.name} over {seconds:.0f} s to {url}")
    shown = asyncio.create_task(progress.show())
    try:
        await replay(
            trace.requests,
            {"": url},
            model=model,
            on_record=on_record,
            timeout=args.timeout,
            headers=headers,
            clock=clock,
        )
    finally:
        shown.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shown


def _authorization(path: str | None) -> dict[str, str]:
    if not path:
        return {}
    try:
        with open(path, encoding="ascii") as file:
            return {"authorization": f"Bearer {file.readline().strip()}"}
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--api-key-file: cannot read {path}: {e}") from None
