"""A decision for people: what the admin port answers, and a plain sentence.

The contribution of a feature is the linear model's coefficient times the difference between two
candidates, in milliseconds of predicted TTFT: of the chosen one against the runner-up (negative: it
is quicker by that), of every other one against the chosen. What the network adds is the line
`network`, so that contributions sum to the difference of the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from lodestar_fast.decisions import wants
from lodestar_fast.decisions.schema import Row
from lodestar_fast.features import FEATURES

NETWORK: Final = "network"
FLOOR: Final = 1e-4  # seconds: the least that the linear part predicts (csrc/model.h)

# Reasons that are a guard's word against the model, and its name.
GUARDS: Final = {
    "guard": "margin",
    "out_of_range": "range",
    "absurd": "absurd",
    "error": "error",
    "demoted": "watchdog",
}

# Which features speak of what.
_CACHED: Final = ("own_tokens", "hit_ratio", "own_seconds")
_QUEUED: Final = (
    "queue_seconds",
    "prefill_requests",
    "prefill_seconds",
    "work_context",
    "reported_waiting",
)
_RUNNING: Final = (
    "decode_requests",
    "decode_seconds",
    "decode_context",
    "inter_token_seconds",
    "reported_running",
)
_MEMORY: Final = ("kv_occupancy", "kv_overflow", "reported_kv_usage")
_LATE: Final = ("overdue_seconds",)
_NETWORK: Final = (NETWORK,)


def describe(
    row: Row,
    outcome: dict[str, Any] | None,
    identify: Callable[[str], str],
    fallback: str = "the fallback",
) -> dict[str, Any]:
    """A row as GET /admin/decisions/{request_id} gives it.

    identify: the opaque id of an instance by its URL. fallback: name of the heuristic behind the
    model.
    """
    candidates, at = row["candidates"], row["chosen"]
    chosen = candidates[at]
    other = runner_up(row)
    low, high = row["error_low"], row["error_high"]
    predicted = row["predicted"]
    interval = None
    if predicted is not None and low is not None:
        interval = [_ms(predicted * math.exp(low)), _ms(predicted * math.exp(high))]
    return {
        "request_id": row["id"],
        "time": row["t"],
        "path": row["path"],
        "model": row["model"],
        "prompt_tokens": row["in"],
        "instance": identify(chosen["name"]),
        "url": chosen["name"],
        "policy": row["policy"],
        "mode": row["mode"] or None,
        "reason": row["reason"],
        "guard": GUARDS.get(row["reason"]),
        "margin": gain(row),
        "margin_needed": row["margin"],
        "model_version": row["version"],
        "explored": row["reason"] == "explore",
        "propensity": chosen["odds"],
        "predicted_ttft_ms": _ms(predicted),
        "interval_ms": interval,
        "objective": row.get("objective", "ttft"),
        "answer_tokens": row.get("answer"),
        "slo": wants.slo(row),
        "candidates": [
            _candidate(row, i, at if i != at else other, identify) for i in range(len(candidates))
        ],
        "candidates_total": row["candidates_total"],
        "outcome": _outcome(row, outcome),
        "tries": row["try"],
        "why": sentence(row, fallback) + wants.why(row),
    }


def _candidate(
    row: Row, i: int, against: int | None, identify: Callable[[str], str]
) -> dict[str, Any]:
    c = row["candidates"][i]
    seconds = linear_seconds(row, i)
    return {
        "instance": identify(c["name"]),
        "url": c["name"],
        "chosen": i == row["chosen"],
        "fallback_choice": i == row["fallback"],
        "features": {name: x for (name, *_), x in zip(FEATURES, c["x"], strict=True)},
        "hit_tokens": c["hit"],
        "queued_tokens": round(c["queued"]),
        "waiting": c["waiting"],
        "inflight": c["inflight"],
        "predicted_ttft_ms": _ms(c["predicted"]),
        "upper_ttft_ms": _ms(c.get("upper")),
        "tpot_ms": _ms(c.get("tpot")),
        "others_late": c.get("late"),
        "price": c.get("price"),
        "slo_met": wants.keeps(row, i),
        "linear_ms": _ms(seconds),
        "network_factor": round(c["predicted"] / seconds, 4) if seconds else None,
        "out_of_range": c["outside"],
        "score_ms": _ms(c["score"]),
        "physics_ms": _ms(c["expected"]),
        "propensity": c["odds"],
        "contributions": contributions(row, i, against) if against is not None else {},
    }


def _outcome(row: Row, outcome: dict[str, Any] | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "event": outcome["event"],
        "status": outcome["status"],
        "ttft_ms": _ms(outcome["ttft"]),
        "e2e_ms": _ms(outcome["e2e"]),
        "cached_tokens": outcome["cached_tokens"],
        "output_tokens": outcome["output_tokens"],
        "prompt_tokens": outcome["prompt_tokens"],
        "slo_kept": wants.kept(row, outcome),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


# -- comparison ------------------------------------------------------------------------------------


def _cost(row: Row, i: int) -> float:
    """What orders the candidates: the model's score, else plain physics. Seconds."""
    c = row["candidates"][i]
    return float(c["expected"] if c["score"] is None else c["score"])


def runner_up(row: Row) -> int | None:
    """The best of the others; None if there is none."""
    others = [i for i in range(len(row["candidates"])) if i != row["chosen"]]
    return min(others, key=lambda i: _cost(row, i), default=None)


def gain(row: Row) -> float | None:
    """The fallback's score over the best one's: by what factor the model's choice is better."""
    best, fallback = row["best"], row["fallback"]
    if best is None or fallback is None:
        return None
    scores = [row["candidates"][i]["score"] for i in (fallback, best)]
    return round(scores[0] / scores[1], 4) if scores[1] and scores[0] is not None else None


def linear_seconds(row: Row, i: int) -> float | None:
    """The physical part of a candidate's prediction."""
    if row["linear"] is None:
        return None
    x = row["candidates"][i]["x"]
    terms = zip(row["linear"], x, FEATURES, strict=True)
    return max(
        FLOOR, math.fsum(weight * value * scale for weight, value, (_, _, scale, _) in terms)
    )


def contributions(row: Row, i: int, against: int) -> dict[str, float]:
    """By feature, milliseconds: what makes candidate i slower than the other one (or quicker, if
    negative). Those that make no difference are left out; without a model there are none."""
    one, other = row["candidates"][i], row["candidates"][against]
    if row["linear"] is None or one["predicted"] is None or other["predicted"] is None:
        return {}
    parts = {
        name: 1e3 * weight * scale * (a - b)
        for (name, _, scale, _), weight, a, b in zip(
            FEATURES, row["linear"], one["x"], other["x"], strict=True
        )
    }
    total = 1e3 * (one["predicted"] - other["predicted"])
    parts[NETWORK] = total - math.fsum(parts.values())
    return {name: round(ms, 3) for name, ms in parts.items() if abs(ms) >= 0.0005}


# -- the sentence ----------------------------------------------------------------------------------


def place(name: str) -> str:
    """An instance as people call it: host and port."""
    return name.partition("://")[2] or name


def milliseconds(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms / 1e3:,.1f} s" if ms >= 10_000 else f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def sentence(row: Row, fallback: str = "the fallback") -> str:
    """Why, in one plain sentence."""
    rows, reason = row["candidates"], row["reason"]
    chosen = rows[row["chosen"]]
    here, rule = place(chosen["name"]), row["policy"]
    if len(rows) == 1:
        return f"{here} was the only engine to choose from"
    other = runner_up(row)
    assert other is not None
    there = place(rows[other]["name"])
    reasons = evidence(row, row["chosen"], other)
    compared = ": ".join(filter(None, (f"picked {here} over {there}", ", ".join(reasons))))
    if not reasons and (chosen["odds"] or 1) < 1:
        compared = f"picked {here}, drawn among equals"
    elif reason in ("learned", "out_of_range") and chosen["predicted"] > rows[other]["predicted"]:
        compared += f": it waits longer there, but {_instead(row, chosen, rows[other])}"
    if reason == "learned":
        return compared
    if reason == "explore":
        return f"picked {here} to learn how it does there, not because it looked best"
    if reason == "out_of_range":
        return f"{compared}; unlike anything trained on, so the network had no say"
    if reason == "guard":
        best = rows[row["best"]]
        return (
            f"{fallback}'s choice {here} stands: {place(best['name'])} looked better, but by less "
            f"than the margin of {100 * (row['margin'] - 1):.0f} %{_predictions(best, chosen)}"
        )
    if reason == "cold":
        return f"there is no model yet: {compared}"
    if reason == "heuristic":
        return f"{rule if not row['mode'] else fallback} {compared}"
    if reason == "error" and row["fallback"] is None:
        return f"the policy raised an error; {here} had the fewest requests in flight"
    because = {
        "error": "the policy raised an error",
        "shadow": "mode shadow, where the model only looks on",
        "control": "this request is in the share that the model does not decide",
        "demoted": "the watchdog has taken the model off",
        "absurd": "the model's prediction was no number of seconds",
    }[reason]
    best = rows[row["best"]] if row["best"] is not None else None
    if best is None or best is chosen:
        agreed = "; the model would have done the same" if best is chosen else ""
        return f"{because}: {fallback} {compared}{agreed}"
    return (
        f"{because}: {fallback} picked {here}; the model likes "
        f"{place(best['name'])} better{_predictions(best, chosen)}"
    )


def _instead(row: Row, chosen: Row, other: Row) -> str:
    """What a longer wait is worth."""
    moved = (chosen["hit"] - other["hit"]) / row["in"]
    if moved > 0 and chosen["predicted"] <= other["predicted"] * math.exp(row["unsure"] * moved):
        return "by less than predictions are off, and its prefix stays where it is cached"
    return "delays others less"


def _predictions(best: Row, chosen: Row) -> str:
    if best["predicted"] is None or chosen["predicted"] is None:
        return ""
    return (
        f" ({milliseconds(best['predicted'])} predicted against "
        f"{milliseconds(chosen['predicted'])})"
    )


def evidence(row: Row, i: int, against: int) -> list[str]:
    """What speaks for candidate i against another one: the weightiest first, two at most, and the
    predictions. By the model's contributions, or by plain physics where there is no model."""
    one, other = row["candidates"][i], row["candidates"][against]
    parts = contributions(row, i, against)
    if not parts:
        parts = {
            "own_seconds": 1e3 * (_x(one, "own_seconds") - _x(other, "own_seconds")),
            "queue_seconds": 1e3 * (_x(one, "queue_seconds") - _x(other, "queue_seconds")),
            "decode_requests": (one["inflight"] - one["waiting"])
            - (other["inflight"] - other["waiting"]),
        }
    groups = [
        (math.fsum(parts.get(name, 0.0) for name in names), say)
        for names, say in (
            (_CACHED, _say_cached),
            (_QUEUED, _say_queued),
            (_RUNNING, _say_running),
            (_MEMORY, _say_memory),
            (_LATE, _say_late),
            (_NETWORK, _say_network),
        )
    ]
    least = min(ms for ms, _ in groups)
    texts = [
        text
        for ms, say in sorted(groups, key=lambda group: group[0])
        if ms < 0 and ms <= 0.2 * least and (text := say(row, one, other))
    ][:2]
    if one["predicted"] is not None and other["predicted"] is not None:
        texts.append(
            f"{milliseconds(one['predicted'])} predicted against {milliseconds(other['predicted'])}"
        )
    return texts


def _x(c: Row, name: str) -> float:
    return float(c["x"][next(i for i, (known, *_) in enumerate(FEATURES) if known == name)])


def _say_cached(row: Row, one: Row, other: Row) -> str:
    tokens = row["in"]
    quicker = math.log(other["speed"] / one["speed"])
    if math.log(max(1, other["own"]) / max(1, one["own"])) >= quicker:
        if one["hit"] == other["hit"]:
            return ""
        return f"{one['hit']:,} of {tokens:,} tokens cached (there {other['hit']:,})"
    return (
        f"a quicker engine ({one['speed'] * 1e6:,.0f} us a token, there "
        f"{other['speed'] * 1e6:,.0f})"
    )


def _say_queued(row: Row, one: Row, other: Row) -> str:
    if round(one["queued"]) >= round(other["queued"]):
        return ""
    mine = f"{one['queued']:,.0f} tokens" if round(one["queued"]) else "nothing"
    return f"{mine} queued (there {other['queued']:,.0f})"


def _say_running(row: Row, one: Row, other: Row) -> str:
    mine, theirs = (c["inflight"] - c["waiting"] for c in (one, other))
    return f"{mine:,} answers under way (there {theirs:,})" if mine < theirs else ""


def _say_memory(row: Row, one: Row, other: Row) -> str:
    mine, theirs = (_x(c, "kv_occupancy") for c in (one, other))
    return f"KV cache {100 * mine:.0f} % full (there {100 * theirs:.0f} %)" if mine < theirs else ""


def _say_network(row: Row, one: Row, other: Row) -> str:
    return "such cases turn out quicker here than physics says"


def _say_late(row: Row, one: Row, other: Row) -> str:
    late = _x(other, "overdue_seconds")
    return f"the other one is {milliseconds(late)} late with an answer" if late else ""
