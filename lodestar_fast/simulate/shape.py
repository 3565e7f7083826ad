"""The options that change what a trace says, or do without one: text to fields of a Plan."""

from __future__ import annotations

import argparse
import math
from typing import Any

from lodestar_fast.errors import ConfigError
from lodestar_fast.simulate.prices import read_prices
from lodestar_fast.slo import Asked

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
    add(
        "--slo-ttft-ms",
        metavar="A,...",
        help="each request asks for its first token within one of these times, drawn by its place "
        "in the trace; 0: it asks for nothing. `in time` is then who got what it asked for",
    )
    add("--slo-tpot-ms", metavar="T", help="and for a token each T milliseconds in the mean")
    add(
        "--slo-untold",
        action="store_true",
        help="do not tell the router: what its requests asked for is only judged",
    )
    add(
        "--prices",
        metavar="GPU=P,...",
        help="what an hour of an engine costs, for a price_weight of lodestar and to say what the "
        "engines in use cost",
    )
    add("--patience", metavar="S", help="a client without a first token leaves after S seconds")


def shape(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a Plan. Raises ConfigError naming the option."""
    options = [name for name in ("cv", "sharing", "switch", "hot") if getattr(args, name)]
    if options and args.users:
        raise ConfigError(f"--{options[0]}: not together with --users")
    for name in ("cv", "sharing"):
        if getattr(args, name) and not (args.rate or args.load):
            raise ConfigError(f"--{name}: needs --rate or --load")
    out: dict[str, Any] = {}
    if args.slo_ttft_ms or args.slo_tpot_ms:
        ttft, tpot = (
            tuple(_number(name, text, 0, 1e7) / 1e3 for text in (given or "0").split(","))
            for name, given in (
                ("--slo-ttft-ms", args.slo_ttft_ms),
                ("--slo-tpot-ms", args.slo_tpot_ms),
            )
        )
        if len(tpot) > 1:
            raise ConfigError("--slo-tpot-ms: one time for all")
        out["asked"] = Asked(ttft, tpot[0], not args.slo_untold)
    elif args.slo_untold:
        raise ConfigError("--slo-untold: needs --slo-ttft-ms or --slo-tpot-ms")
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
    if args.prices:
        out["prices"] = read_prices(args.prices)
    if args.patience:
        out["patience"] = _number("--patience", args.patience, 0.001, math.inf)
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
