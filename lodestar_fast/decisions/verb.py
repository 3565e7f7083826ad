"""`lodestar log`: what can be done with a log of decisions. `evaluate`: how another policy would
have done."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

from lodestar_fast.decisions.evaluate import (
    KNOWN,
    PARTS,
    Estimate,
    Range,
    Usable,
    estimate,
    usable,
)
from lodestar_fast.decisions.explain import aligned
from lodestar_fast.decisions.reading import read_log
from lodestar_fast.decisions.rewards import DEFAULT, REWARDS, Weights
from lodestar_fast.decisions.why import milliseconds
from lodestar_fast.errors import ConfigError

CAVEAT = (
    "Each number is for the situations of this log, one decision changed at a time; "
    "`lodestar simulate --trace LOG` plays a policy from the first request on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="evaluate")
    evaluate = verbs.add_parser(
        "evaluate",
        allow_abbrev=False,
        description="Estimate the mean TTFT (or another reward) of other policies from a log of "
        "decisions: inverse propensity (IPS), self-normalised (SNIPS) and doubly robust, with "
        "95 % intervals. It refuses where the log has no support: decisions must have been made "
        "with chance in them (canary, random, power_of_two, ties).",
        epilog="Policies that a log can tell of: " + ", ".join(KNOWN) + ". "
        "Exit status 1 if one was refused.",
    )
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="log files, or their folder")
    evaluate.add_argument("--policy", required=True, metavar="A,B", help="policies to estimate")
    evaluate.add_argument(
        "--reward", choices=REWARDS, default="ttft", help="what is to be compared (ttft)"
    )
    evaluate.add_argument(
        "--slo-ttft-ms",
        type=float,
        metavar="MS",
        help="for in_time: the limit of requests that had no SLO of their own",
    )
    for name, help_ in (
        ("tpot", "for ttft+tpot: seconds to the first token that one after it is worth"),
        ("price", "for cost: seconds of waiting that a second of an engine of price 1 is worth"),
    ):
        default = getattr(DEFAULT, name)
        evaluate.add_argument(
            f"--{name}-weight",
            type=float,
            metavar="W",
            default=default,
            help=f"{help_} ({default:g})",
        )
    evaluate.add_argument("--json", metavar="OUT", help="write the results as JSON")


def run(args: argparse.Namespace) -> int:
    names = args.policy.replace(",", " ").split()
    if not names:
        raise ConfigError("--policy: names no policy")
    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json: no folder {Path(args.json).parent}")
    log = usable(read_log(args.files))
    if REWARDS[args.reward].whole:
        log = log.whole()
    if not log.rows:
        raise ConfigError(f"no decision to learn from: {_left_out(log) or 'the log is empty'}")
    slo, weights = _limit(args, log), _weights(args, log)
    estimates = [estimate(log, name, args.reward, slo, weights) for name in dict.fromkeys(names)]
    print("\n".join(report(log, estimates, args.reward)))
    if args.json:
        document = {
            "schema": 2,
            "reward": args.reward,
            "unit": REWARDS[args.reward].what,
            "decisions": len(log.rows),
            "left_out": dict(log.left_out),
            "policies": [dataclasses.asdict(each) for each in estimates],
        }
        Path(args.json).write_text(json.dumps(document, indent=2) + "\n")
    return int(any(each.refusal for each in estimates))


def _limit(args: argparse.Namespace, log: Usable) -> float:
    """Seconds; 0: none is needed. Raises ConfigError."""
    if args.slo_ttft_ms is not None and not 0 < args.slo_ttft_ms < 1e9:
        raise ConfigError(f"--slo-ttft-ms: {args.slo_ttft_ms:g} is no number of milliseconds")
    if args.reward != "in_time":
        if args.slo_ttft_ms is not None:
            raise ConfigError(f"--slo-ttft-ms: reward {args.reward} has no limit; in_time has")
        return 0.0
    if args.slo_ttft_ms is None and any(not row.get("slo_ttft") for row in log.rows):
        raise ConfigError("--reward in_time: some requests had no SLO; --slo-ttft-ms gives theirs")
    return (args.slo_ttft_ms or 0.0) / 1e3


def _weights(args: argparse.Namespace, log: Usable) -> Weights:
    """Raises ConfigError."""
    weights = Weights(args.tpot_weight, args.price_weight)
    for name, value in weights._asdict().items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"--{name}-weight: {value:g} is no weight")
    priced = (c.get("price") is not None for row in log.rows for c in row["candidates"])
    if args.reward == "cost" and not all(priced):
        raise ConfigError("--reward cost: decisions without prices; serve --price-weight logs them")
    return weights


def _left_out(log: Usable) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in log.left_out.most_common())


def report(log: Usable, estimates: list[Estimate], reward: str = "ttft") -> list[str]:
    """The answer as text."""
    made = sorted({f"{row['policy']} ({row['mode']})".removesuffix(" ()") for row in log.rows})
    measured = math.fsum(row["outcome"]["ttft"] for row in log.rows) / len(log.rows)
    lines = [
        f"{len(log.rows):,} decisions of {', '.join(made)}: mean TTFT {milliseconds(measured)}"
        + (f"; left out: {_left_out(log)}" if log.left_out else ""),
        "",
    ]
    rows: list[tuple[str, ...]] = [
        ("policy", "doubly robust", "SNIPS", "IPS", "measured", "worth", "supported", "model")
    ]
    for each in estimates:
        if not each.refusal:
            rows.append(
                (
                    each.policy,
                    *(_text(value) for value in (each.dr, each.snips, each.ips, each.logged)),
                    f"{each.effective:,.0f}",
                    f"{100 * (1 - each.unsupported):.1f} %",
                    f"{100 * each.modelled:.0f} %",
                )
            )
    if len(rows) > 1:
        lines += aligned(rows, right={1, 2, 3, 4, 5, 6, 7})
        lines += [
            "",
            f"{REWARDS[reward].what[0].upper()}{REWARDS[reward].what[1:]}, with 95 % intervals;",
            "measured: of the same decisions as they were made;",
            f"worth: effective sample size; model: share with its predictions; {PARTS} parts.",
            CAVEAT,
        ]
    lines += [f"{each.policy}: refused: {each.refusal}" for each in estimates if each.refusal]
    return lines


def _text(value: Range | None) -> str:
    assert value is not None
    return f"{value.mean:,.1f} ({value.low:,.1f}-{value.high:,.1f})"
