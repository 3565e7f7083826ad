"""`lodestar explain`: why a request went where it went, from a running router's admin port."""

from __future__ import annotations

import argparse
import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from lodestar_fast.decisions.why import milliseconds, place
from lodestar_fast.errors import ConfigError

ADMIN: Final = "http://127.0.0.1:29000"
TIMEOUT: Final = 10.0  # seconds
SHOWN: Final = 4  # contributions of a candidate that are shown, the largest

Decision = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The router keeps the last decisions in memory (serve --decisions); a request id is in the "
        "x-request-id header of every answer. Exit status 2 if there is nothing to explain."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("request_id", nargs="?", metavar="REQUEST_ID", help="explain this request")
    what.add_argument("--last", type=int, metavar="N", help="list the last N decisions instead")
    parser.add_argument("--admin", metavar="URL", default=ADMIN, help=f"the admin port [{ADMIN}]")
    parser.add_argument(
        "--admin-key-file", metavar="FILE", help="file whose first line is the admin key [none]"
    )
    parser.add_argument("--json", action="store_true", help="print what the router says, as JSON")


def run(args: argparse.Namespace) -> int:
    if args.last is not None:
        if args.last < 1:
            raise ConfigError(f"--last: {args.last} is less than 1")
        path = f"/admin/decisions?limit={args.last}"
    else:
        path = f"/admin/decisions/{quote(args.request_id, safe='')}"
    answer = fetch(args.admin, path, args.admin_key_file)
    if args.json:
        print(json.dumps(answer, indent=2))
    elif args.last is None:
        print("\n".join(explain(answer)))
    elif answer["decisions"]:
        print("\n".join(table(answer["decisions"])))
    else:
        raise ConfigError("no decision was made yet")
    return 0


def fetch(admin: str, path: str, key_file: str | None) -> Any:
    """What the admin port answers. Raises ConfigError, in words for the operator."""
    parts = urlsplit(admin if "://" in admin else f"http://{admin}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--admin: `{admin}` is no URL of the form http://host:port")
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}{path}")  # noqa: S310
    if key_file:
        try:
            key = Path(key_file).read_text().split()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"--admin-key-file: {key_file}: {e}") from None
        if not key:
            raise ConfigError(f"--admin-key-file: {key_file} holds no key")
        request.add_header("authorization", f"Bearer {key[0]}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        with e:
            raise ConfigError(_refusal(e, admin)) from None
    except urllib.error.URLError as e:
        reason = getattr(e.reason, "strerror", None) or e.reason
        raise ConfigError(f"--admin: {admin}: no router answers there: {reason}") from None
    except (OSError, http.client.HTTPException, ValueError):
        raise ConfigError(f"--admin: {admin}: what answers there is no Lodestar") from None


def _refusal(error: urllib.error.HTTPError, admin: str) -> str:
    try:
        said = json.loads(error.read())["error"]
        text, ours = str(said["message"]), "type" not in said  # the data port speaks as OpenAI
    except (OSError, ValueError, KeyError, TypeError):
        text, ours = f"status {error.code}", False
    if ours and error.code not in (401, 403):
        return text
    return f"--admin: {admin}: {text}" + ("" if ours else "; is that the admin port?")


# -- what is printed -------------------------------------------------------------------------------


def table(decisions: list[Decision]) -> list[str]:
    """One line for each decision."""
    rows: list[tuple[str, ...]] = [
        ("time", "request", "engine", "reason", "predicted", "measured", "why")
    ]
    for d in decisions:
        outcome = d["outcome"] or {}
        measured = _ms(outcome.get("ttft_ms"))
        if outcome.get("event") in ("failed", "abandoned", "timeout"):
            measured = outcome["event"]
        rows.append(
            (
                time.strftime("%H:%M:%S", time.localtime(d["time"])),
                d["request_id"] or "-",
                place(d["url"]),
                d["reason"],
                _ms(d["predicted_ttft_ms"]),
                measured,
                d["why"],
            )
        )
    return aligned(rows, right={4, 5})


def explain(d: Decision) -> list[str]:
    """A decision on half a screen."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(d["time"]))
    asked = [str(d["request_id"] or "a request"), when, d["path"], d["model"]]
    asked.append(f"{d['prompt_tokens']:,} prompt tokens")
    if d["tries"] > 1:
        asked.append(f"try {d['tries']}")
    lines = [", ".join(part for part in asked if part), "", d["why"], ""]
    lines += aligned(_candidates(d), right=set(range(2, 12)))
    if d["candidates_total"] > len(d["candidates"]):
        lines.append(f"... and {d['candidates_total'] - len(d['candidates'])} others")
    lines += ["", *_differences(d), *_who(d), _what_became(d)]
    return lines


def _candidates(d: Decision) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("", "engine", "cached", "to compute", "queued", "running", "KV", "predicted", "score")
    ]
    aimed = any(c["upper_ttft_ms"] is not None for c in d["candidates"])
    if aimed:
        rows[0] += ("9 of 10 in", "a token", "SLO", "others late")
    for c in d["candidates"]:
        features = c["features"]
        mark = ("->" if c["chosen"] else "") + ("f" if c["fallback_choice"] else "")
        rows.append(
            (
                mark,
                place(c["url"]),
                f"{c['hit_tokens']:,}",
                f"{features['own_tokens']:,.0f}",
                f"{c['queued_tokens']:,.0f}",
                f"{c['inflight']:,}",
                f"{100 * features['kv_occupancy']:.0f} %",
                _ms(c["predicted_ttft_ms"]),
                _ms(c["score_ms"]),
            )
        )
        if aimed:
            slo = {True: "kept", False: "missed", None: "-"}[c["slo_met"]]
            late = "-" if c["others_late"] is None else f"{c['others_late']:.2f}"
            rows[-1] += (_ms(c["upper_ttft_ms"]), _ms(c["tpot_ms"]), slo, late)
    return rows


def _differences(d: Decision) -> list[str]:
    """Which features tell the other candidates from the chosen one."""
    lines = []
    for c in d["candidates"]:
        if c["chosen"] or not c["contributions"]:
            continue
        largest = sorted(c["contributions"].items(), key=lambda item: -abs(item[1]))[:SHOWN]
        parts = ", ".join(f"{name} {ms:+,.1f}" for name, ms in largest if abs(ms) >= 0.05)
        if parts:
            lines.append(f"{place(c['url'])} against the chosen one, ms: {parts}")
    return [*lines, ""] if lines else []


def _who(d: Decision) -> list[str]:
    parts = [f"policy {d['policy']}"]
    if d["mode"]:
        parts.append(f"mode {d['mode']}")
    parts.append(f"reason {d['reason']}")
    if d["objective"] != "ttft":
        parts.append(f"objective {d['objective']}")
    if d["model_version"]:
        parts.append(f"model version {d['model_version']}")
    if d["margin"]:
        parts.append(f"gain over the fallback x{d['margin']:.2f} (needed x{d['margin_needed']:g})")
    if d["propensity"] is not None and d["propensity"] < 1:
        parts.append(f"drawn with probability {d['propensity']:.2f}")
    legend = "->: chosen"
    if any(c["fallback_choice"] for c in d["candidates"]):
        legend += ", f: what the fallback heuristic would take"
    return [legend, ", ".join(parts)]


def _what_became(d: Decision) -> str:
    outcome = d["outcome"]
    if outcome is None:
        return "outcome: not known yet"
    parts = []
    if outcome["ttft_ms"] is not None:
        text = f"first token after {_ms(outcome['ttft_ms'])}"
        if d["predicted_ttft_ms"] is not None:
            text += f" (predicted {_ms(d['predicted_ttft_ms'])}"
            if d["interval_ms"]:
                low, high = d["interval_ms"]
                text += f", in 9 of 10 cases {_ms(low)} to {_ms(high)}"
            text += ")"
        parts.append(text)
    if outcome["cached_tokens"] is not None:
        tokens = outcome["prompt_tokens"] or d["prompt_tokens"]
        parts.append(f"{outcome['cached_tokens']:,} of {tokens:,} tokens were cached")
    if outcome["e2e_ms"] is not None:
        tokens = f" and {outcome['output_tokens']:,} tokens" if outcome["output_tokens"] else ""
        parts.append(f"ended after {_ms(outcome['e2e_ms'])}{tokens}")
    if outcome["slo_kept"] is not None:
        parts.append(f"its SLO was {'kept' if outcome['slo_kept'] else 'missed'}")
    status = f" ({outcome['status']})" if outcome["status"] else ""
    return f"outcome: {outcome['event'].replace('_', ' ')}{status}: " + ", ".join(parts)


def _ms(ms: float | None) -> str:
    return "-" if ms is None else milliseconds(ms / 1e3)


def aligned(rows: list[tuple[str, ...]], right: set[int]) -> list[str]:
    """Rows of texts as columns; right: those that end at the same place."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if k in right else text.ljust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
