"""`lodestar simulate`: what a policy, one more GPU or a fault would do to a trace's latencies.

The real router and learner against simulated engines in virtual time, hours in seconds: options to
a Plan, its runs (policy x seed) over processes, their numbers to a table and the JSON document.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lodestar_fast.core.policies import POLICIES
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.bounds import lower_bounds
from lodestar_fast.sim.gpus import COEFFICIENTS, GPUS, MODEL, MODELS, EngineSpec
from lodestar_fast.sim.later import ROUND_SECONDS
from lodestar_fast.simulate.plan import (
    LEARNED,
    ORACLE,
    PAPER,
    SIMULATED,
    TRACE,
    Measured,
    Plan,
    events,
    ever,
    fleet,
    jobs_of,
    make_policy,
    settings,
    workload,
)
from lodestar_fast.simulate.saturation import saturation
from lodestar_fast.simulate.shape import add_arguments as add_shapes
from lodestar_fast.simulate.shape import shape
from lodestar_fast.simulate.show import Progress, best_heuristic, references, result_table
from lodestar_fast.simulate.workers import measure
from lodestar_fast.slo import Goals
from lodestar_fast.summary import document, run_summary, write_json

WIDTH = 120  # of the widest table, in characters
BASELINE = "least_request"  # of worst_window_ratio
DEFAULT = f"{BASELINE},prefix_cache,lmetric,{LEARNED}"
# Without --trace: the packaged one as the paper that it is known from sizes it for small GPUs.
PACKAGED = {"block_tokens": 50, "max_input": 10_000, "output_scale": 0.5}


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The first 10 % of a run is warm-up: latencies, hit ratio and the share in time leave out "
        "what arrived in it. The same arguments give the same output, byte for byte, but for "
        "decision_us, which is measured."
    )
    add = parser.add_argument
    add(
        "--fleet",
        default="8xa30",
        metavar="SPEC",
        help=f"engines, COUNTxGPU+... of {', '.join(GPUS)} [8xa30]",
    )
    add("--model", default=MODEL, choices=tuple(MODELS), help=f"what they serve [{MODEL}]")
    add(
        "--policy",
        default=DEFAULT,
        metavar="A,B",
        help=f"policies to compare; `all` of them, and, only here: `{ORACLE}`, the clairvoyant "
        "greedy, which sees what no router can, `oracle-stale`, which sees it as of the last "
        "scrape, `oracle-altruistic`, which minds what it does to others, and "
        f"`{PAPER}`, the published system. "
        f"With settings: {LEARNED}:margin=1.2:model=linear [{DEFAULT}]",
    )
    add("--learner", default="mlp", choices=("linear", "mlp"), help=f"model of {LEARNED} [mlp]")
    add(
        "--learner-seconds",
        type=not_negative,
        default=ROUND_SECONDS,
        metavar="S",
        help=f"simulated time of one of its rounds, as measured in the proxy [{ROUND_SECONDS}]",
    )
    add(
        "--no-watchdog",
        action="store_true",
        help=f"let {LEARNED} decide whatever it does; else it is watched, as in the proxy",
    )
    add("--seed", type=count, default=1, metavar="K", help="seed of arrivals and policies [1]")
    add(
        "--seeds",
        type=at_least_one,
        default=1,
        metavar="N",
        help="N seeds from K on, the same for every policy [1]",
    )
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add(
        "--trace",
        metavar="F",
        help="trace: JSON lines, gzip or plain, in the format of lodestar_fast/data/README.md, "
        "or a log of decisions (serve --decision-log), a file or the folder "
        "[the packaged one, with --block-tokens 50 --max-input 10000 --output-scale 0.5]",
    )
    add(
        "--rate",
        type=positive,
        metavar="R",
        help="redraw arrivals as Poisson at R requests a second [the trace's own times]; with "
        "--seconds a trace that is too short is repeated with new prefixes",
    )
    add(
        "--load",
        type=positive,
        metavar="X",
        help="--rate as a share of saturation, which is found first: the highest rate that the "
        "clairvoyant greedy keeps up with",
    )
    add(
        "--time-scale",
        type=positive,
        metavar="X",
        help="multiply the trace's own times by X: 0.5 doubles the load",
    )
    add(
        "--users",
        type=at_least_one,
        metavar="N",
        help="closed loop, for a trace of sessions: N users at a time, each waiting for an answer, "
        "thinking as long as the trace says, and sending the next; needs --seconds",
    )
    add("--seconds", type=positive, metavar="S", help="no arrivals after S seconds")
    add("--block-tokens", type=count, metavar="T", help="tokens a prefix block gets")
    add("--max-input", type=count, metavar="M", help="drop longer prompts, in tokens")
    add("--output-scale", type=positive, metavar="O", help="factor on output tokens")
    add_shapes(add)
    group = parser.add_argument_group("engines and what the router sees of them")
    add = group.add_argument
    add(
        "--coefficients",
        metavar="K=V,...",
        help=f"factors on the cost coefficients {', '.join(COEFFICIENTS)}, as in w=1.25,c=0.8",
    )
    add(
        "--jitter",
        type=share,
        default=0.0,
        metavar="X",
        help="spread of the durations of iterations, log-normal [0]",
    )
    add(
        "--events",
        metavar="FILE",
        help="faults, JSON lines: slow, crash, drain, up, join, replace, scrape_s, scrape_loss, "
        'freeze, thaw; such as {"t":150,"slot":3,"slow":3.0} or {"t":260,"join":"a30"}',
    )
    add(
        "--scrape-interval",
        type=positive,
        default=0.1,
        metavar="S",
        help="seconds between reports of the engines' load [0.1]",
    )
    add(
        "--delay",
        type=not_negative,
        default=10.0,
        metavar="MS",
        help="milliseconds from an engine's token to the router and client seeing it [10]",
    )
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--regret",
        action="store_true",
        help="at 5 %% of decisions, what each engine would have done (slow): fills regret_ms",
    )
    add("--jobs", type=at_least_one, default=1, metavar="N", help="processes to use [1]")
    add("--json", metavar="OUT", help="write the results as JSON")
    add("--report", metavar="DIR", help="folder for an HTML page with table and drawings")
    add(
        "--no-wall-time",
        action="store_true",
        help="leave decision_us null, so that all output is reproducible",
    )


def run(args: argparse.Namespace) -> int:
    policies = _policies(args.policy)
    plan = _plan(args)
    # What can be wrong is found here, before anything takes long.
    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json: no folder {Path(args.json).parent}")
    specs = fleet(plan)
    faults = events(plan, specs)
    seeds = range(args.seed, args.seed + args.seeds)
    trace = workload(plan, seeds[0])
    progress = Progress(Console(stderr=True))
    capacity = None
    if args.load:
        with progress.during("finding saturation"):
            capacity = saturation(plan, seeds[0], progress.note)
        plan = replace(plan, rate=round(capacity * args.load, 4))
    end = args.seconds if plan.users else workload(plan, seeds[0]).seconds
    late = [time for time, _ in faults if time > end]
    if late:
        progress.warn(f"{plan.events}: t = {late[0]:g} is after the last arrival")
    tasks = [(seed, policy) for seed in seeds for policy in policies]
    runs: list[dict[str, Any]] = []
    done: list[Measured] = []
    first: dict[str, Measured] = {}
    with progress.runs(len(tasks)):
        for measured in measure(plan, tasks, args.jobs, not args.no_wall_time, progress):
            done.append(measured)
            if len(done) == len(policies):  # of one seed: then its records can go
                runs += list(_summaries(plan, trace.name, done, specs))
                if args.report and not first:
                    first = {each.policy: each for each in done}
                done = []
    out = Console()
    if not out.is_terminal or out.width < WIDTH:  # rather wrapped lines than numbers cut off
        out = Console(width=WIDTH)
    if capacity is not None:
        out.print(
            f"saturation: {capacity:.3g} req/s for the clairvoyant greedy; "
            f"load {args.load:g} is {plan.rate:.4g} req/s",
            highlight=False,
            soft_wrap=True,
        )
    title = _title(plan, trace.name, runs)
    out.print(result_table(runs, policies, title))
    for line in references(runs):
        out.print(line, highlight=False, soft_wrap=True)
    if args.json:
        more: dict[str, Any] = {"best_heuristic": best_heuristic(runs)}
        if capacity is not None:
            more["saturation_rate"] = round(capacity, 4)
        write_json(args.json, document("simulate", runs, **more))
    if args.report:
        from lodestar_fast.simulate.page import write_page

        labels = [f"{slot} {spec.gpu}" for slot, spec in enumerate(specs)]
        command = shlex.join(["lodestar", *sys.argv[1:]])
        path = write_page(args.report, title, command, runs, first, labels)
        out.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


def _policies(text: str) -> list[str]:
    names: list[str] = []
    for name in text.replace(",", " ").split():
        if name != "all":
            if settings(name)[0] not in (*POLICIES, *SIMULATED):
                raise ConfigError(
                    f"--policy: no policy `{name}`; there are: "
                    + ", ".join([*sorted(POLICIES), *SIMULATED, "all"])
                )
            make_policy(name)  # its settings may be wrong
        names += sorted(POLICIES) if name == "all" else [name]
    if not names:
        raise ConfigError("--policy: names no policy")
    return list(dict.fromkeys(names))


def _plan(args: argparse.Namespace) -> Plan:
    given = [
        name for name in ("rate", "load", "time_scale", "users") if getattr(args, name) is not None
    ]
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise ConfigError(f"{second}: not together with {first}")
    if args.users and not args.seconds:
        raise ConfigError("--users: needs --seconds")
    if args.users and not args.trace:
        raise ConfigError("--users: needs --trace, of closed-loop sessions")
    sizes: dict[str, Any] = {} if args.trace or args.sharing else dict(PACKAGED)
    for name in PACKAGED:
        if (value := getattr(args, name)) is not None:
            sizes[name] = value
    return Plan(
        fleet=args.fleet,
        model=args.model,
        trace=args.trace or TRACE,
        rate=args.rate,
        time_scale=args.time_scale or 1.0,
        seconds=args.seconds,
        coefficients=_coefficients(args.coefficients),
        events=args.events,
        scrape_interval=args.scrape_interval,
        delay=args.delay / 1e3,
        jitter=args.jitter,
        users=args.users or 0,
        learner=args.learner,
        learner_seconds=args.learner_seconds,
        watchdog=not args.no_watchdog,
        regret=args.regret,
        **shape(args),
        **sizes,
    )


def _coefficients(text: str | None) -> tuple[tuple[str, float], ...]:
    factors: dict[str, float] = {}
    for part in (text or "").replace(",", " ").split():
        name, _, value = part.partition("=")
        if name not in COEFFICIENTS:
            raise ConfigError(
                f"--coefficients: no coefficient `{name}`; there are {', '.join(COEFFICIENTS)}"
            )
        try:
            factors[name] = positive(value)
        except (ValueError, argparse.ArgumentTypeError):
            raise ConfigError(
                f"--coefficients: {name}: `{value}` is not a positive number"
            ) from None
    return tuple(factors.items())


def _summaries(
    plan: Plan, trace: str, runs: Sequence[Measured], specs: Sequence[EngineSpec]
) -> Iterator[dict[str, Any]]:
    """The entries of one seed."""
    warm_up = runs[0].warm_up
    jobs = jobs_of(plan, runs[0].seed)  # none in a closed loop: they depend on the policy
    bounds = lower_bounds(jobs, ever(plan, specs), warm_up)
    baseline = next((run.records for run in runs if run.policy == BASELINE), None)
    for run in runs:
        yield run_summary(
            run.records,
            policy=run.policy,
            seed=run.seed,
            trace=trace,
            fleet=plan.fleet,
            rate=plan.rate,
            preemptions=run.preemptions,
            baseline=baseline,
            in_time=plan.asked.in_time if plan.asked else Goals(specs).met,
            warm_up=run.warm_up,
            regret=run.regret,
        ) | {
            "warm_up_s": round(run.warm_up, 4),
            "lower_bound_ms": {k: round((v + plan.delay) * 1e3, 4) for k, v in bounds.items()},
            "bill_per_hour": run.bill,
            "watchdog": None if run.watchdog is None else [c._asdict() for c in run.watchdog],
        }


def _title(plan: Plan, trace: str, runs: Sequence[dict[str, Any]]) -> str:
    seeds = len({run["seed"] for run in runs})
    some = runs[0]
    rate = f" at {some['rate']:.4g} req/s" if some["rate"] else ""
    return (
        f"{plan.fleet}, {trace}{rate}, {some['requests']:,} requests"
        + (f", means over {seeds} seeds" if seeds > 1 else f", seed {some['seed']}")
        + (f", with {plan.events}" if plan.events else "")
    )
