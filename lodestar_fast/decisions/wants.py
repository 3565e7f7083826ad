"""What a request wanted besides an early first token, and whether it was to get it, in words.

A row of decisions/schema.py has the members `objective`, `slo_ttft`, `slo_tpot`, `slo_met`,
`answer` and, in each candidate, `upper`, `tpot`, `late` and `price` only if it wanted more.
"""

from __future__ import annotations

from typing import Any

from lodestar_fast.decisions.schema import Row


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def has_slo(row: Row) -> bool:
    return bool(row.get("slo_ttft") or row.get("slo_tpot"))


def keeps(row: Row, i: int) -> bool | None:
    """Whether candidate i was predicted to keep the SLO; None: there is none, or nothing known."""
    c = row["candidates"][i]
    pairs = [(c.get("upper"), row.get("slo_ttft")), (c.get("tpot"), row.get("slo_tpot"))]
    asked = [(seconds, limit) for seconds, limit in pairs if limit]
    if not asked or any(seconds is None for seconds, _ in asked):
        return None
    return all(seconds <= limit for seconds, limit in asked)


def kept(row: Row, outcome: dict[str, Any]) -> bool | None:
    """Whether it was kept in the end; None: there is none, or nobody saw."""
    if not has_slo(row) or outcome["event"] != "done" or outcome["ttft"] is None:
        return None
    late = row["slo_ttft"] is not None and outcome["ttft"] > row["slo_ttft"]
    tokens = outcome["output_tokens"]
    if row["slo_tpot"] is None or tokens < 2 or outcome["e2e"] is None:
        return not late
    return not late and (outcome["e2e"] - outcome["ttft"]) / (tokens - 1) <= row["slo_tpot"]


def slo(row: Row) -> dict[str, Any] | None:
    """The member `slo` of an answer of the admin port."""
    if not has_slo(row):
        return None
    return {
        "ttft_ms": _ms(row["slo_ttft"]),
        "tpot_ms": _ms(row["slo_tpot"]),
        "predicted_met": row["slo_met"],
    }


def limits(row: Row) -> str:
    """Its SLO in words."""
    parts = []
    if row["slo_ttft"]:
        parts.append(f"{row['slo_ttft'] * 1e3:,.0f} ms to the first token")
    if row["slo_tpot"]:
        parts.append(f"{row['slo_tpot'] * 1e3:,.0f} ms a token")
    return " and ".join(parts)


def why(row: Row) -> str:
    """What the model's choice had to do with it; empty: nothing."""
    if row["reason"] not in ("learned", "guard", "out_of_range", "cold", "only_one"):
        return ""
    if not has_slo(row):
        counted = {"e2e": "the whole answer", "ttft+tpot": "the time per token"}
        parts = [counted[row["objective"]]] if row.get("objective", "ttft") != "ttft" else []
        if row["candidates"][row["chosen"]].get("price") is not None:
            parts.append("the price")
        return f"; {' and '.join(parts)} counted" if parts else ""
    able = sum(keeps(row, i) is True for i in range(len(row["candidates"])))
    if row["slo_met"]:
        others = "the only one that can" if able == 1 else f"one of {able} that can"
        return f"; it is to keep its SLO of {limits(row)}, as {others}"
    if row["slo_met"] is False and able:
        there = "another is" if able == 1 else f"{able} others are"
        return f"; {there} likelier to keep its SLO of {limits(row)}, but it would cost others more"
    if row["slo_met"] is False:
        return f"; none is likely to keep its SLO of {limits(row)}, it costs others less there"
    return ""
