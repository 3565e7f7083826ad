"""Kept decisions agree with what happened: recomputed from rows, and against the simulator."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.core import POLICIES, Candidates, Event, Policy, Reason, Router
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import Lodestar
from lodestar_fast.decisions.why import contributions, describe, linear_seconds, sentence
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace
from lodestar_fast.simulate.plan import TRACE
from tests.oracle import Fixed, Model, make_router

Row = dict[str, Any]
OWN_SECONDS = features.INDEX["own_seconds"]
SCALE = np.array([scale for _, _, scale, _ in features.FEATURES])


def rows_of(router: Router, n: int = 1 << 20) -> list[Row]:
    """Rows with their outcomes, oldest first."""
    assert router.decisions is not None
    batch = router.decisions.last(n)
    return [
        json.loads(text + b"}") | {"outcome": batch.outcome(i)}
        for i, text in enumerate(batch.rows())
    ]


def learned(seed: int = 3) -> tuple[Lodestar, Model]:
    """A model like one that was trained: seconds of work weigh most, the network corrects."""
    model = Model([32, 32], seed=seed)
    model.linear *= 0.02
    for name in ("own_seconds", "queue_seconds"):
        model.linear[features.INDEX[name]] = 1
    model.range_high[features.INDEX["decode_requests"]] = 0.4
    policy = Lodestar()
    policy.load(model.blob())
    return policy, model


def simulate(policy: Policy, n: int, rate: float = 6.0) -> tuple[Simulation, list[Row]]:
    trace = read_trace(TRACE).rescaled(50, 6000, 0.3).timed(1, rate)
    jobs = make_jobs(trace.requests[:n])
    world = Simulation(jobs, parse_fleet("2xa30+1xl20+1xh100"), policy, seed=1, decisions=n)
    world.run()
    return world, rows_of(world.router)


def lmetric(row: Row) -> list[float]:
    return [(c["queued"] + c["own"]) * (c["inflight"] + 1) for c in row["candidates"]]


def close(a: float, b: float, to: float = 2e-5) -> bool:
    return math.isclose(a, b, rel_tol=to, abs_tol=1e-9)


def crowd_of(row: Row) -> float:
    candidates = row["candidates"]
    free = sum(1 / (1 + min(c["waiting"], c["queued"] / 1000)) for c in candidates)
    return max(0.0, len(candidates) / free - 2)


def priced(row: Row, seconds: Any, answer: float, capacities: dict[str, int]) -> list[float]:
    """Seconds, with what the request costs others: the scores, if it has no aim of its own."""
    crowd, scores = crowd_of(row), []
    work = [c["x"][OWN_SECONDS] for c in row["candidates"]]
    spare_weight = 0 if row.get("slo_ttft") or row.get("slo_tpot") else 0.5
    delays = [w * (c["inflight"] + 0.5) for w, c in zip(work, row["candidates"], strict=True)]
    for t, w, c in zip(seconds, work, row["candidates"], strict=True):
        delayed = (0.005 + 0.2 * crowd) * c["inflight"] + 0.2 * c["waiting"]
        usual = w * c["inflight"] * len(delays) / sum(delays)
        moved = (max(c["hit"] for c in row["candidates"]) - c["hit"]) / row["in"]
        kv = c["occupancy"] + answer / 2 * (c["inflight"] + 1) / capacities[c["name"]]
        scores.append(
            (t + w * delayed)
            * (1 + spare_weight * usual)
            * (1 + 2 * max(0.0, kv - 0.85))
            * math.exp(row["unsure"] * moved)
        )
    return scores


def capacities_of(world: Simulation, rows: list[Row]) -> dict[str, int]:
    """Of the KV cache, in tokens, by the name of the instance."""
    gpus = {engine.spec.gpu: engine.spec.kv_tokens for engine in world.engines}
    names = {c["name"] for row in rows for c in row["candidates"]}
    return {name: next(n for gpu, n in gpus.items() if gpu in name) for name in names}


@pytest.mark.parametrize(("n", "rate"), [(1000, 6.0), (300, 60.0)], ids=["calm", "overload"])
def test_a_thousand_decisions_can_be_recomputed_from_their_rows(n: int, rate: float) -> None:
    policy, model = learned()
    world, rows = simulate(policy, n, rate)
    assert len(rows) == n
    crowded, capacities = 0, capacities_of(world, rows)
    for row, outcome in zip(rows, world.outcomes, strict=True):
        candidates = row["candidates"]
        chosen, fallback = candidates[row["chosen"]], candidates[row["fallback"]]
        x = (np.array([c["x"] for c in candidates]) * SCALE).astype("<f4")
        predicted = model.predict(x)
        outside = (x > model.range_high).any(axis=1)
        crowded += crowd_of(row) > 0
        scores = priced(row, predicted, model.answer, capacities)
        for c, t, score, out in zip(candidates, predicted, scores, outside, strict=True):
            assert close(c["predicted"], t, 1e-4) and close(c["score"], score, 1e-4)
            assert c["outside"] == out
        costs = lmetric(row)
        assert close(costs[row["fallback"]], min(costs))
        assert close(scores[row["best"]], min(scores), 1e-4)
        gain = scores[row["fallback"]] / min(scores)
        if row["reason"] == "explore":
            assert chosen["inflight"] == 0
            assert chosen["score"] - min(scores[row["best"]], scores[row["fallback"]]) < 1
        elif not close(gain, row["margin"], 1e-3) and not close(gain, 1, 1e-3):
            expected = row["best"] if gain > row["margin"] else row["fallback"]
            assert row["chosen"] == expected
            guard = chosen is fallback and gain > 1
            if not chosen["outside"]:
                assert row["reason"] == ("guard" if guard else "learned")
        if chosen["outside"] and row["reason"] != "explore":
            assert row["reason"] == "out_of_range"
        # And with what the driver saw.
        assert world.engines[outcome.slot].spec.gpu in chosen["name"]
        assert row["reason"] == Reason(outcome.reason).name.lower()
        assert close(row["predicted"], outcome.predicted)
        assert row["in"] == outcome.prompt_tokens and chosen["hit"] == outcome.hit_tokens
        assert close(row["outcome"]["ttft"], outcome.ttft)
        assert close(row["outcome"]["e2e"], outcome.e2e)
        assert row["outcome"]["cached_tokens"] == outcome.cached_tokens
        assert row["outcome"]["output_tokens"] == outcome.output_tokens
    assert (crowded > 100) == (rate > 6)
    reasons = Counter(row["reason"] for row in rows)
    least = min(reasons[name] for name in ("learned", "guard", "out_of_range"))
    assert rate > 6 or least >= 20, reasons


def test_objective_e2e_can_be_recomputed_too() -> None:
    model = learned()[1]
    policy = Lodestar(objective="e2e")
    policy.load(model.blob())
    world, rows = simulate(policy, 300)
    capacities = capacities_of(world, rows)
    for row in rows:
        candidates = row["candidates"]
        assert row["objective"] == "e2e" and row["slo_met"] is None
        x = (np.array([c["x"] for c in candidates]) * SCALE).astype("<f4")
        plain, scores = priced(row, model.predict(x), model.answer, capacities), []
        for c, cost, pace in zip(candidates, plain, model.predict_tpot(x), strict=True):
            work = c["x"][OWN_SECONDS]
            answering = c["inflight"] - c["waiting"]
            scores.append(cost + (model.answer - 1) * pace + 0.5 * work * answering)
            assert close(c["score"], scores[-1], 1e-4)
        fallback = row["fallback"]
        bar = scores[fallback] - (1 - 1 / row["margin"]) * plain[fallback]
        if row["reason"] != "explore" and not close(min(scores), bar, 1e-3):
            assert row["chosen"] == (row["best"] if min(scores) < bar else fallback)


def test_contributions_sum_to_the_difference_of_the_predictions() -> None:
    _, rows = simulate(learned()[0], 200)
    for row in rows:
        decision = describe(row, row["outcome"], str.upper, "lmetric")
        json.dumps(decision)
        assert decision["why"] and decision["instance"] == decision["url"].upper()
        for i, c in enumerate(decision["candidates"]):
            seconds = linear_seconds(row, i)
            assert seconds and close(
                seconds * c["network_factor"] * 1e3, c["predicted_ttft_ms"], 1e-3
            )
            if i == row["chosen"]:
                continue
            total = (
                row["candidates"][i]["predicted"] - row["candidates"][row["chosen"]]["predicted"]
            )
            parts = contributions(row, i, row["chosen"])
            assert math.isclose(math.fsum(parts.values()), total * 1e3, abs_tol=0.02)


def test_the_interval_holds_what_it_says() -> None:
    """Nine of ten measured times, though the model was never fitted to these engines."""
    _, rows = simulate(learned()[0], 2000)
    inside = counted = 0
    for row in rows[500:]:
        decision = describe(row, row["outcome"], str, "lmetric")
        low, high = decision["interval_ms"]
        counted += 1
        inside += low <= decision["outcome"]["ttft_ms"] <= high
    assert 0.86 <= inside / counted <= 0.94


def test_odds_are_the_frequencies_of_choices() -> None:
    """The same situation many times over: chosen as often as the row says."""
    share = Guarded(learned()[0], POLICIES["lmetric"]())
    share.steer(0.3, Reason.CONTROL)
    dynamo = POLICIES["dynamo"](temperature=0.5)
    for policy in (
        *(POLICIES[n]() for n in ("random", "power_of_two", "least_request")),
        dynamo,
        share,
    ):
        counts: Counter[str] = Counter()
        odds: dict[str, float] = {}
        tries = 2000
        for seed in range(tries):
            router = make_router(policy, 4, decisions=1, seed=seed)
            for slot in (0, 1, 1, 2):
                router.policy = Fixed(slot)
                router.route(b"a" * 64 * (slot + 1), 0.0, 200 * (slot + 1))
            router.policy = policy
            router.route(b"%d" % seed * 64, 0.5, 100)
            (row,) = rows_of(router)
            counts[row["candidates"][row["chosen"]]["name"]] += 1
            odds = {c["name"]: c["odds"] for c in row["candidates"]}
            assert math.isclose(sum(odds.values()), 1, abs_tol=1e-5), policy.name
        for name, p in odds.items():
            error = 4 * math.sqrt(max(p * (1 - p), 0.25 / tries) / tries)
            assert abs(counts[name] / tries - p) <= error, (policy.name, name, odds, counts)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_odds_are_probabilities_or_unknown(name: str) -> None:
    router = make_router(POLICIES[name](), 5, decisions=300, kv_tokens=100_000)
    for k in range(300):
        ticket = router.route(bytes([k % 7]) * 64 * (1 + k % 40), k * 0.02).ticket
        router.observe(ticket, Event.FIRST_TOKEN, k * 0.02 + 0.01)
    for row in rows_of(router):
        odds = [c["odds"] for c in row["candidates"]]
        if name == "preble":
            assert odds == [None] * 5
        else:
            assert math.isclose(sum(odds), 1, abs_tol=1e-5) and odds[row["chosen"]] > 0


def test_of_a_policy_in_python_nothing_is_known_but_its_choice() -> None:
    router = make_router(Fixed(1), 3, decisions=1)
    router.route(b"x" * 64, 0.0)
    (row,) = rows_of(router)
    assert [c["odds"] for c in row["candidates"]] == [None] * 3
    assert row["chosen"] == 1 and row["best"] is None and row["linear"] is None


def test_of_many_candidates_the_ones_that_matter_are_kept() -> None:
    policy, _ = learned()
    router = make_router(policy, 40, decisions=4, max_instances=64)
    for slot in range(40):
        router.policy = Fixed(slot)
        router.route(b"p" * 64 * (40 - slot if slot == 33 else 1), 0.0)
    router.policy = policy
    router.route(b"p" * 64 * 40, 1.0)
    row = rows_of(router)[-1]
    names = [c["name"] for c in row["candidates"]]
    assert len(set(names)) == 16 and row["candidates_total"] == 40
    assert names[row["longest_hit"]] == "i33"
    best = row["candidates"][row["best"]]["score"]
    assert best == min(c["score"] for c in row["candidates"])
    assert row["chosen"] is not None and row["fallback"] is not None


class Broken(Policy):
    name = "broken"

    def pick(self, c: Candidates) -> int:
        raise RuntimeError("no")


def sentence_of(policy: Policy, now: float = 1.0) -> str:
    router = make_router(policy, 2, decisions=1, kv_tokens=100_000)
    router.route(b"x" * 6400, now)
    return sentence(rows_of(router)[0], "lmetric")


def test_each_reason_has_its_sentence() -> None:
    assert "raised an error" in sentence_of(Broken())
    assert sentence_of(Lodestar()).startswith("there is no model yet: picked")
    for reason, start in (
        (Reason.SHADOW, "mode shadow"),
        (Reason.CONTROL, "this request is in the share"),
        (Reason.DEMOTED, "the watchdog has taken the model off"),
    ):
        policy = Guarded(learned()[0], POLICIES["lmetric"]())
        policy.steer(0, reason)
        assert sentence_of(policy).startswith(start)
    assert sentence_of(POLICIES["random"]()).startswith("random picked")
    router = make_router(POLICIES["random"](), 1, decisions=1)
    router.route(b"x", 0.0)
    assert sentence(rows_of(router)[0]) == "i0 was the only engine to choose from"


def test_a_cached_prompt_is_the_reason_given() -> None:
    router = make_router(POLICIES["prefix_cache"](), 2, decisions=1)
    for now in (0.0, 1.0):
        router.observe(router.route(b"x" * 6400, now, 1600).ticket, Event.FIRST_TOKEN, now + 0.2)
    why = sentence(rows_of(router)[0])
    assert "1,599 of 1,600 tokens cached (there 0)" in why


def test_what_was_kept_outlives_its_instance() -> None:
    router = make_router(POLICIES["random"](), 1, decisions=2)
    router.route(b"x", 0.0)
    router.remove_instance(0)
    assert router.add_instance("another") == 0
    router.route(b"x", 1.0)
    assert [row["candidates"][0]["name"] for row in rows_of(router)] == ["i0", "another"]


def test_names_and_labels_are_escaped() -> None:
    router = Router(POLICIES["random"](), decisions=1)
    router.add_instance('a"\\\n\u00e9')
    router.route(b"x", 0.0)
    assert router.decisions is not None
    assert router.decisions.label(b"id", b'/"', 'm"' + "x" * 500, 2) == 1
    (row,) = rows_of(router)
    assert row["candidates"][0]["name"] == 'a"\\\n\u00e9' and row["try"] == 2
    assert row["path"] == '/"' and row["model"] == 'm"' + "x" * 126


def test_a_router_without_them_keeps_none() -> None:
    assert make_router().decisions is None
    with pytest.raises(ValueError, match="decisions"):
        make_router(decisions=-1)
