"""Decisions with an SLO: recomputed from their rows, and what moves them which way."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.core import Event, Router
from lodestar_fast.core.costs import Lmetric
from lodestar_fast.core.modes import Guarded
from lodestar_fast.decisions.why import describe
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace
from lodestar_fast.simulate.plan import TRACE, Plan, fleet, run_one
from lodestar_fast.slo import Goals
from tests import batches
from tests.oracle import Fixed, make_router
from tests.test_aims import model, weighted
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


# -- what makes others late ------------------------------------------------------------------------

LIMIT = 0.04  # seconds a token that everyone here asks for


def answering(router: Router, slot: int, requests: int, pace: float, tokens: int = 60) -> None:
    """Have so many answers under way on an instance, each token of which took that long."""
    for _ in range(requests):
        router.policy = Fixed(slot)
        d = router.route(b"%d" % slot * 64, 0.0, 10, slo_tpot=LIMIT)
        router.observe(d.ticket, Event.FIRST_TOKEN, 0.0)
        for k in range(tokens):
            router.observe(d.ticket, Event.TOKENS, k * pace, 1)


def asked(router: Router, tokens: int = 2000, ttft: float = 0.0) -> dict[str, Any]:
    """The row of a request with that SLO, or of the time per token, ten seconds later."""
    router.policy = weighted(model(), margin=1.0)
    tpot = 0.0 if ttft else LIMIT
    router.route(b"z" * 64, 10.0, tokens, slo_ttft=ttft, slo_tpot=tpot)
    row: dict[str, Any] = rows_of(router, 1)[0]
    return row


def late(*paces: float, requests: int = 5, tokens: int = 2000) -> list[float]:
    """By instance, where the answers go at these paces."""
    router = make_router(Fixed(), len(paces), decisions=1)
    for slot, pace in enumerate(paces):
        answering(router, slot, requests, pace)
    return [c["late"] for c in asked(router, tokens)["candidates"]]


def test_those_about_to_miss_are_spared_and_not_the_lost_or_the_quick() -> None:
    quick, near, lost = late(0.01, LIMIT, 0.2)
    assert near > 5 * quick > 0 and near > 5 * lost > 0
    assert near < 5  # no more than there are


def test_more_work_and_more_answers_make_more_late() -> None:
    few, many = late(LIMIT, requests=2)[0], late(LIMIT, requests=8)[0]
    assert many == pytest.approx(4 * few, rel=0.02)
    small, large = late(LIMIT, tokens=200)[0], late(LIMIT, tokens=4000)[0]
    assert large > 5 * small > 0


def test_who_asks_for_nothing_is_not_made_late() -> None:
    router = make_router(Fixed(), 1, decisions=1)
    d = router.route(b"x" * 64, 0.0, 10, slo_ttft=0.1)
    router.observe(d.ticket, Event.FIRST_TOKEN, 0.0)
    assert asked(router)["candidates"][0]["late"] == 0


def test_who_has_ended_is_not_made_late() -> None:
    seen = []
    for ends in ([], [Event.DONE], [Event.DONE, Event.ABANDONED, Event.TIMEOUT]):
        router = make_router(Fixed(), 1, decisions=1)
        tickets = [router.route(b"x" * 64, 0.0, 10, slo_tpot=LIMIT).ticket for _ in range(3)]
        router.observe(tickets[0], Event.FIRST_TOKEN, 0.1)
        for ticket, event in zip(tickets, ends, strict=False):
            router.observe(ticket, event, 1.0, 20)
        seen.append(asked(router)["candidates"][0]["late"])
    assert seen[0] > seen[1] > seen[2] == 0


def test_the_pace_of_those_there_counts_beside_the_prediction() -> None:
    router = make_router(Fixed(), 2, decisions=1)
    answering(router, 1, 3, 0.05)
    idle, busy = (c["tpot"] for c in asked(router)["candidates"])
    assert idle == pytest.approx(0.02, rel=1e-3)
    assert busy == pytest.approx(0.3 * 0.02 + 0.7 * 0.05, rel=1e-3)


def near_and_lost(tokens: int, ttft: float = 0.0) -> dict[str, Any]:
    """Eight on the one may still be in time, eight on the other never will."""
    router = make_router(Fixed(), 2, decisions=1)
    answering(router, 0, 8, 0.034)
    answering(router, 1, 8, 0.2)
    return asked(router, tokens, ttft)


def test_a_long_prompt_goes_where_all_are_lost_and_a_short_one_where_it_is_in_time() -> None:
    assert near_and_lost(50)["chosen"] == 0
    assert near_and_lost(12000)["chosen"] == 1


def test_the_sentence_says_whom_it_spares() -> None:
    short, long = near_and_lost(50), near_and_lost(12000)
    assert describe(short, None, str, "lmetric")["why"].endswith("as the only one that can")
    sentence = describe(long, None, str, "lmetric")["why"]
    assert "another is likelier to keep its SLO of 40 ms a token" in sentence
    assert "cost others more" in sentence
    hopeless = describe(near_and_lost(50, ttft=0.001), None, str, "lmetric")
    assert "none is likely to keep its SLO of 1 ms" in hopeless["why"]
    assert all(c["others_late"] >= 0 for c in hopeless["candidates"])


@pytest.mark.parametrize("slo", [0.0, 1.0])
def test_a_request_with_an_slo_is_no_evidence_of_being_slower(slo: float) -> None:
    """It is to be in time, not early; without one the same decision is evidence."""
    router = make_router(Guarded(weighted(model()), Lmetric()), 2)
    d = router.route(b"x" * 64, 0.0, 1000, slo_ttft=slo)
    router.observe(d.ticket, Event.FIRST_TOKEN, 0.2)
    (row,) = np.frombuffer(router.drain(), features.sample_dtype(), offset=batches.HEADER.size)
    assert np.isnan(row["reference"]) == (slo > 0)


# -- in the closed loop ----------------------------------------------------------------------------

CROWDED = {
    "4 A30, prompts that share 30 %": Plan("4xa30", sharing=(0.3,), rate=8.3, seconds=150),
    "A30 + V100, conversations": Plan(
        "2xa30+2xv100", rate=9.0, seconds=150, block_tokens=50, max_input=10000, output_scale=0.5
    ),
}


@pytest.mark.parametrize("name", CROWDED)
def test_told_more_are_in_time_than_untold_and_than_by_any_rule(name: str) -> None:
    """More requests than the fleet can serve in time, seeds that nothing was tuned on."""
    plan = replace(CROWDED[name], learner="linear")
    met = Goals(fleet(plan)).met
    served: dict[str, list[float]] = {}
    for policy in ("lodestar:told=true", "lodestar", "lmetric", "prefix_threshold:threshold=0.2"):
        for seed in (11, 12):
            done = run_one(plan, seed, policy)
            records = [r for r in done.records if r.arrival >= done.warm_up]
            served.setdefault(policy, []).append(float(np.mean([met(r) for r in records])))
    told = np.mean(served.pop("lodestar:told=true"))
    assert told > 1.1 * max(np.mean(shares) for shares in served.values()), served
