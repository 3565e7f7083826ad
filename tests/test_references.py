"""Clairvoyants of another kind, lower bounds, and who was best: against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from lodestar_fast.core.policies import POLICIES, Policy
from lodestar_fast.sim.bounds import infinite_hits, lower_bounds, pooled_bound
from lodestar_fast.sim.gpus import parse_fleet, spec
from lodestar_fast.sim.jobs import Job, make_jobs, summarise
from lodestar_fast.sim.oracle import Oracle
from lodestar_fast.sim.references import AltruisticOracle, StaleOracle
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import Request
from lodestar_fast.simulate.show import best_heuristic, references
from tests.conversations import conversations

load = partial(conversations, output=80, turns=30)


def simulate(jobs: list[Job], chooser: Policy, fleet: str, **options: object) -> Simulation:
    watcher = chooser if isinstance(chooser, StaleOracle) else None
    world = Simulation(jobs, parse_fleet(fleet), chooser, seed=1, watcher=watcher, **options)  # type: ignore[arg-type]
    if isinstance(chooser, Oracle):
        chooser.world = world
    world.run()
    assert world.router.stats()["policy_error"] == ""
    return world


def ttft(world: Simulation) -> float:
    mean: float = summarise(world.outcomes)["ttft"]["mean"]
    return mean


# -- stale -----------------------------------------------------------------------------------------


def test_staleness_costs_and_a_fresh_view_costs_nothing() -> None:
    jobs = load(500, 12.0)
    greedy = ttft(simulate(jobs, Oracle(), "3xa30"))
    stale = [
        ttft(simulate(jobs, StaleOracle(), "3xa30", scrape_seconds=s)) for s in (0.002, 0.1, 1.0)
    ]
    assert greedy == pytest.approx(stale[0], rel=0.03)
    assert greedy < stale[1] < stale[2]


def test_what_is_not_reported_is_not_seen() -> None:
    """Two requests between two scrapes go to the same engine; the third knows better."""
    jobs = make_jobs([Request(k, t, 3000, 60) for k, t in enumerate((0.01, 0.02, 0.2))])
    world = simulate(jobs, StaleOracle(), "1xa30+1xl20", scrape_seconds=0.1)
    slots = [o.slot for o in world.outcomes]
    assert slots[0] == slots[1] != slots[2]
    assert [o.slot for o in simulate(jobs, Oracle(), "1xa30+1xl20").outcomes][:2] in (
        [0, 1],
        [1, 0],
    )


def test_a_frozen_engine_is_seen_as_it_was() -> None:
    def freeze(world: Simulation) -> None:
        world.freeze(0)

    jobs = load(300, 10.0)
    world = simulate(jobs, StaleOracle(), "2xa30", calls=[(0.0, freeze)])
    taken = [o.slot for o in world.outcomes].count(0)
    assert taken > 200  # it always looks empty


# -- altruistic ------------------------------------------------------------------------------------


def test_it_spares_those_that_decode() -> None:
    """A long prompt goes beside nobody, though the quicker engine is the one where many decode."""
    talk = [Request(k, 0.0, 16, 400) for k in range(12)]
    jobs = make_jobs([*talk, Request(12, 1.0, 6000, 2)])

    def there(policy: Policy) -> int:
        fleet = [spec("l20", w=18.0), spec("a30", c=0.18)]
        world = Simulation(jobs, fleet, policy, seed=1)
        policy.world = world  # type: ignore[attr-defined]
        forced = iter([0] * 12)
        original = policy.pick

        def pick(c):  # type: ignore[no-untyped-def]
            choice = original(c)
            return next(forced, choice)

        policy.pick = pick  # type: ignore[method-assign]
        return world.run()[12].slot

    assert there(AltruisticOracle(weight=0.0)) == there(Oracle()) == 0
    assert there(AltruisticOracle(weight=50.0)) == 1


def test_it_lowers_tpot_and_changes_nothing_by_asking() -> None:
    jobs = load(600, 14.0)
    greedy, kind = (simulate(jobs, p, "3xa30") for p in (Oracle(), AltruisticOracle(3.0)))
    assert summarise(kind.outcomes)["tpot"]["mean"] < summarise(greedy.outcomes)["tpot"]["mean"]
    again = simulate(jobs, AltruisticOracle(3.0), "3xa30")
    assert repr(again.outcomes) == repr(kind.outcomes)


def test_weights_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="weight"):
        AltruisticOracle(-1.0)


# -- bounds ----------------------------------------------------------------------------------------


def test_infinite_hits_are_the_longest_common_prefixes() -> None:
    jobs = load(120, 5.0)
    hits = infinite_hits(jobs, 16)
    for k, job in enumerate(jobs):
        best = 0
        for earlier in jobs[:k]:
            n = 0
            for a, b in zip(job.hashes, earlier.hashes, strict=False):
                if a != b:
                    break
                n += 1
            best = max(best, n)
        assert hits[k] == 16 * min(best, (job.prompt_tokens - 1) // 16)


def test_pooled_is_shortest_remaining_first() -> None:
    """By hand: one engine of 1 ms a token; 100 tokens at 0, 10 at 0.02, 200 at 0.05."""
    engine = spec("a30", c=1.0, a=0.0)
    jobs = make_jobs([Request(0, 0.0, 100, 1), Request(1, 0.02, 10, 1), Request(2, 0.05, 200, 1)])
    waits = [0.11, 0.01, 0.26]
    assert pooled_bound(jobs, [0, 0, 0], [engine]) == pytest.approx(sum(waits) / 3)
    twice = pooled_bound(jobs, [0, 0, 0], [engine, replace(engine, c=2.0)])  # 1.5 times as fast
    assert twice == pytest.approx((0.11 + 0.01 + 0.235) / 4.5)


@pytest.mark.parametrize("fleet", ["3xa30", "2xa30+1xh100", "2xa30+2xv100"])
@pytest.mark.parametrize("rate", [4.0, 14.0])
def test_nobody_is_below_the_bounds(fleet: str, rate: float) -> None:
    jobs = load(400, rate)
    bounds = lower_bounds(jobs, parse_fleet(fleet))
    assert 0 < bounds["pooled"] and 0 < bounds["idle"]
    for chooser in (Oracle(), AltruisticOracle(0.0), POLICIES["lmetric"]()):
        world = simulate(jobs, chooser, fleet)
        assert ttft(world) - world.delay > max(bounds.values())


def test_a_single_request_reaches_the_idle_bound() -> None:
    jobs = make_jobs([Request(0, 0.0, 3000, 5)])
    world = simulate(jobs, Oracle(), "1xa30+1xh100")
    bound = lower_bounds(jobs, parse_fleet("1xa30+1xh100"))["idle"]
    assert world.outcomes[0].ttft - world.delay == pytest.approx(bound)


def test_only_late_requests_count_and_early_ones_are_cached() -> None:
    jobs = make_jobs([Request(k, float(k), 1600, 2, 64, (5, 25)) for k in range(3)])
    fleet = parse_fleet("1xa30")
    assert lower_bounds(jobs, fleet, 0.5)["idle"] == pytest.approx(fleet[0].idle_ttft(1600, 1584))
    assert lower_bounds(jobs, fleet, 5.0) == {}


# -- what is printed -------------------------------------------------------------------------------


def entry(policy: str, mean: float | None, seed: int = 1) -> dict[str, object]:
    bound = {"idle": 10.0, "pooled": 20.0}
    return {"policy": policy, "seed": seed, "ttft_ms": {"mean": mean}, "lower_bound_ms": bound}


def test_the_best_in_hindsight_neither_learns_nor_foresees() -> None:
    runs = [
        entry("lodestar", 1.0),
        entry("oracle-stale", 2.0),
        entry("lodestar-paper:mended=true", 1),
    ]
    assert best_heuristic(runs) is None
    runs += [
        entry("lmetric", 30.0),
        entry("lmetric", 50.0, 2),
        entry("random", 45.0),
        entry("x", None),
    ]
    assert best_heuristic(runs) == {"policy": "lmetric", "ttft_ms": 40.0}
    lines = references(runs)
    assert "lmetric, 40.0 ms" in lines[0] and "10.0 ms" in lines[1] and "20.0 ms" in lines[1]
