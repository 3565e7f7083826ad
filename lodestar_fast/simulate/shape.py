"""The options that change what a trace says, or do without one: text to fields of a Plan."""

from __future__ import annotations

import argparse
import math
from typing import Any

from lodestar_fast.errors import ConfigError

SIZES = ("block_tokens", "max_input", "output_scale")
MOST_HOT = 1 << 20  # tokens of a hot prefix; no engine holds more


def add_arguments(add: Any) -> None:
    """add: add_argument of a parser's group."""
    add(
        "--cv",
        metavar="X",
        help="with --rate or --load: Gamma gaps with this coefficient of variation; 1 is Poisson, "
        "4 comes in bursts [1]",
    )
    add(
        "--sharing",
        metavar="S,...",
        help="no trace but SharingRatio: prompts of 1,000 to 8,000 tokens, of which a share of S, "
        "from 0 to below 1, is a prefix that 5 or 10 requests begin with; needs --seconds, "
        "and --rate or --load",
    )
    add(
        "--switch",
        metavar="T=F",
        help="from T seconds on, at the same moments, the requests of trace F, rescaled as --trace",
    )
    add(
        "--hot",
        metavar="A,B,S,N",
        help="from A to B seconds a share S of the requests begins with one prefix of N tokens",
    )


def shape(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a Plan. Raises ConfigError naming the option."""
    options = [name for name in ("cv", "sharing", "switch", "hot") if getattr(args, name)]
    if options and args.users:
        raise ConfigError(f"--{options[0]}: not together with --users")
    for name in ("cv", "sharing"):
        if getattr(args, name) and not (args.rate or args.load):
            raise ConfigError(f"--{name}: needs --rate or --load")
    out: dict[str, Any] = {}
    if args.cv:
        out["cv"] = _number("--cv", args.cv, 0.05, 100)
    if args.sharing:
        # What is rescaled is the trace that takes over, if there is one.
        for name in ("trace", *(() if args.switch else SIZES)):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}: not together with --sharing")
        if not args.seconds:
            raise ConfigError("--sharing: needs --seconds")
        shares = args.sharing.split(",")
        out["sharing"] = tuple(_number("--sharing", text, 0, 0.99) for text in shares)
    if args.switch:
        at, _, path = args.switch.partition("=")
        if not path:
            raise ConfigError(f"--switch: `{args.switch}` is not SECONDS=FILE")
        last = args.seconds or math.inf
        out["switch"] = (_number("--switch: SECONDS", at, 0, last), path)
    if args.hot:
        parts = args.hot.split(",")
        if len(parts) != 4:
            raise ConfigError(f"--hot: `{args.hot}` is not FROM,TO,SHARE,TOKENS")
        start = _number("--hot: FROM", parts[0], 0, math.inf)
        end = _number("--hot: TO", parts[1], start, math.inf)
        part = _number("--hot: SHARE", parts[2], 0, 1)
        out["hot"] = (start, end, part, int(_number("--hot: TOKENS", parts[3], 1, MOST_HOT)))
    return out


def _number(what: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (least <= value <= most and value < math.inf):
        limits = f"{least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
        raise ConfigError(f"{what}: `{text}` is not a number, {limits}")
    return value
