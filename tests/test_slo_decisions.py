"""Decisions with an SLO: recomputed from their rows, and what moves them which way."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lodestar_fast.decisions.why import describe
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace
from lodestar_fast.simulate.plan import TRACE
from tests.test_decisions import SCALE, capacities_of, close, learned, priced, rows_of


def with_slo(
    row: dict[str, Any], costs: Sequence[float], seconds: Any, upper: Any
) -> tuple[list[float], list[float]]:
    """Scores, and the part of each that is waiting; core/aims.pyi has the rule."""

    def likely(deviations: float) -> float:
        return 1 / (1 + math.exp(-1.702 * deviations))

    ttft, tpot = row["slo_ttft"], row["slo_tpot"]
    unit = ttft or 1.0
    late = [c["late"] for c in row["candidates"]]
    own = [c["own"] for c in row["candidates"]]
    rate = np.mean([n / max(1, tokens) for n, tokens in zip(late, own, strict=True)])
    scores, waits = [], []
    for c, cost, t, u in zip(row["candidates"], costs, seconds, upper, strict=True):
        early = kept = 1.0
        if ttft:
            early = likely(math.log(ttft / t) / max(0.05, math.log(u / t) / 1.2816))
            cost -= 0.9 * early * t
        if tpot:
            kept = likely((tpot - c["tpot"]) / (0.25 * tpot))
        waits.append(unit * math.log1p(cost / unit))
        missed = 1 - early * kept + c["late"] + rate * c["own"]
        scores.append(waits[-1] + 2 * unit * missed)
    return scores, waits


def test_decisions_with_an_slo_can_be_recomputed() -> None:
    """A thousand of them, a third with each kind of SLO: who could keep it, who was chosen."""
    policy, model = learned()
    model.upper = (0.2, 0.4)
    model.tpot *= 0.3
    policy.load(model.blob())

    def asked(job: Job) -> tuple[float, float]:
        k = job.request.index
        return (0.1 + 0.1 * (k % 7) if k % 3 else 0.0), (0.02 + 0.005 * (k % 5) if k % 2 else 0.0)

    trace = read_trace(TRACE).rescaled(50, 6000, 0.3).timed(1, 8.0)
    jobs = make_jobs(trace.requests[:1000])
    specs = parse_fleet("2xa30+1xl20+1xh100")
    world = Simulation(jobs, specs, policy, seed=1, decisions=1000, slo=asked)
    world.run()
    seen: Counter[str] = Counter()
    counted: Counter[tuple[str, str]] = Counter()
    late: list[float] = []
    rows = rows_of(world.router)
    capacities = capacities_of(world, rows)
    for row, job in zip(rows, jobs, strict=True):
        ttft, tpot = asked(job)
        if not (ttft or tpot):
            assert "objective" not in row and "upper" not in row["candidates"][0]
            continue
        candidates = row["candidates"]
        assert row["objective"] == "ttft"
        assert close(row["slo_ttft"] or 0, ttft, 1e-6) and close(row["slo_tpot"] or 0, tpot, 1e-6)
        x = (np.array([c["x"] for c in candidates]) * SCALE).astype("<f4")
        upper, pace = model.predict_upper(x), model.predict_tpot(x)
        seconds = model.predict(x)
        costs = priced(row, seconds, model.answer, capacities)
        scores, waits = with_slo(row, costs, seconds, upper)
        for c, u, p, score in zip(candidates, upper, pace, scores, strict=True):
            assert close(c["upper"], u, 1e-4) and c["tpot"] > 0.29 * p
            assert c["inflight"] > 0 or close(c["tpot"], p, 1e-4)
            assert close(c["score"], score, 1e-3)
            late.append(c["late"])
        over = [
            max(c["upper"] / ttft if ttft else 0, c["tpot"] / tpot if tpot else 0)
            for c in candidates
        ]
        fallback = row["fallback"]
        bar = scores[fallback] - (1 - 1 / row["margin"]) * waits[fallback]
        if row["reason"] != "explore" and not close(min(scores), bar, 1e-3):
            assert row["chosen"] == (row["best"] if min(scores) < bar else fallback)
        assert row["slo_met"] == (over[row["chosen"]] <= 1)
        decision = describe(row, row["outcome"], str, "lmetric")
        json.dumps(decision)
        assert decision["slo"]["predicted_met"] == row["slo_met"]
        done = row["outcome"]
        took = (done["e2e"] - done["ttft"]) / max(1, done["output_tokens"] - 1)
        was = not (ttft and done["ttft"] > ttft) and not (
            tpot and done["output_tokens"] > 1 and took > tpot
        )
        assert decision["outcome"]["slo_kept"] == was
        told = "kept" if row["slo_met"] else "missed"
        counted[told, "kept" if was else "missed"] += 1
        seen["some" if min(over) <= 1 else "none"] += 1
        assert ("keep its SLO" in decision["why"]) == (len(candidates) > 1)
    assert min(seen["some"], seen["none"]) > 20, seen
    assert min(late) >= 0 and sum(n > 0.1 for n in late) > 20
    stats = world.router.stats()["slo"]
    assert sum(stats.values()) == sum(asked(job) != (0, 0) for job in jobs)
    assert all(stats[k] >= n for k, n in counted.items())
