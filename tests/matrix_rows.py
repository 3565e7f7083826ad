"""Rows of a results file, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lodestar_fast.matrix.cells import Cell
from lodestar_fast.matrix.measure import Row
from lodestar_fast.matrix.workloads import Workload


def cell(name: str = "a", load: float = 0.9, **more: Any) -> Cell:
    fields: dict[str, Any] = {"block": "paper", "fleet": "2xa30", "work": Workload("conversation")}
    return Cell(name, load=load, seconds=120.0, **(fields | more))


def row(
    policy: str,
    seed: int,
    mean: float,
    *,
    name: str = "a",
    p99: float | None = None,
    windows: Sequence[float | None] | None = None,
    **more: Any,
) -> Row:
    """TTFT in ms; the windows are all alike if not given."""
    fields: dict[str, Any] = {
        "cell": name,
        "seconds": 120.0,
        "policy": policy,
        "seed": seed,
        "rate": 5.0,
        "what": "w",
        "code": "c",
        "cpu": 1.0,
        "requests": 600,
        "failed": 0,
        "ttft": (mean, mean, 2 * mean, p99 or 10 * mean),
        "tpot": (30.0, 60.0),
        "e2e": 3000.0,
        "hits": 0.25,
        "in_time": 0.9,
        "preempted": 0,
        "cold": mean,
        "converged": 40.0,
        "windows": tuple(windows if windows is not None else [mean] * 12),
    }
    return Row(**(fields | more))
