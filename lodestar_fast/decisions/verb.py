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
        description="Estimate the mean TTFT of other policies from a log of decisions: inverse "
        "propensity (IPS), self-normalised (SNIPS) and doubly robust, with 95 % intervals. "
        "It refuses where the log has no support: decisions must have been made with chance "
        "in them (canary, random, power_of_two, ties).",
        epilog="Policies that a log can tell of: " + ", ".join(KNOWN) + ". "
        "Exit status 1 if one was refused.",
    )
    evaluate.add_argument("files", nargs="+", metavar="FILE", help="log files, or their folder")
    evaluate.add_argument("--policy", required=True, metavar="A,B", help="policies to estimate")
    evaluate.add_argument("--json", metavar="OUT", help="write the results as JSON")


def run(args: argparse.Namespace) -> int:
    names = args.policy.replace(",", " ").split()
    if not names:
        raise ConfigError("--policy: names no policy")
    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json: no folder {Path(args.json).parent}")
    log = usable(read_log(args.files))
    if not log.rows:
        raise ConfigError(f"no decision to learn from: {_left_out(log) or 'the log is empty'}")
    estimates = [estimate(log, name) for name in dict.fromkeys(names)]
    print("\n".join(report(log, estimates)))
    if args.json:
        document = {
            "schema": 1,
            "decisions": len(log.rows),
            "left_out": dict(log.left_out),
            "policies": [_plain(each) for each in estimates],
        }
        Path(args.json).write_text(json.dumps(document, indent=2) + "\n")
    return int(any(each.refusal for each in estimates))


def _plain(each: Estimate) -> dict[str, object]:
    ms = {
        name: None if value is None else [1e3 * x for x in value]
        for name, value in (
            ("ips_ms", each.ips),
            ("snips_ms", each.snips),
            ("dr_ms", each.dr),
            ("logged_ms", each.logged),
        )
    }
    fields = dataclasses.asdict(each)
    for name in ("ips", "snips", "dr", "logged"):
        del fields[name]
    return fields | ms


def _left_out(log: Usable) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in log.left_out.most_common())


def report(log: Usable, estimates: list[Estimate]) -> list[str]:
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
            "Mean TTFT in ms, 95 % intervals; measured: of the same decisions as they were made;",
            f"worth: effective sample size; model: share with its predictions; {PARTS} parts.",
            CAVEAT,
        ]
    lines += [f"{each.policy}: refused: {each.refusal}" for each in estimates if each.refusal]
    return lines


def _text(value: Range | None) -> str:
    assert value is not None
    return f"{1e3 * value.mean:,.1f} ({1e3 * value.low:,.1f}-{1e3 * value.high:,.1f})"
