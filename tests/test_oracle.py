"""The clairvoyant router: its forecasts come true, it changes nothing, and nobody is quicker."""

from __future__ import annotations

import math
import random

import pytest

from lodestar_fast.core.policies import POLICIES
from lodestar_fast.sim.gpus import parse_fleet, spec
from lodestar_fast.sim.jobs import Job, make_jobs, summarise
from lodestar_fast.sim.oracle import INF, Oracle, Regret, first_token, first_tokens
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import Request


def load(count: int, rate: float, seed: int = 3) -> list[Job]:
    """Conversations of a few turns among requests of their own."""
    rng = random.Random(seed)
    requests, now = [], 0.0
    for k in range(count):
        now += rng.expovariate(rate)
        chat, turns = rng.randrange(12), rng.randrange(1, 30)
        runs = (1000 * chat, turns) if rng.random() < 0.6 else ()
        prompt = 64 * turns + rng.randrange(1, 60)
        requests.append(Request(k, now, prompt, rng.randrange(1, 80), 64, runs))
    return make_jobs(requests)


def simulate(jobs: list[Job], policy: str, fleet: str, **options: object) -> Simulation:
    chooser = Oracle() if policy == "oracle" else POLICIES[policy]()
    world = Simulation(jobs, parse_fleet(fleet), chooser, seed=1, **options)  # type: ignore[arg-type]
    if isinstance(chooser, Oracle):
        chooser.world = world
    world.run()
    assert world.router.stats()["policy_error"] == ""
    return world


@pytest.mark.parametrize("fleet", ["2xa30+1xh100", "2xa30+1xv100"])
@pytest.mark.parametrize("count", [1, 40, 97, 130])
def test_what_it_foresees_happens(fleet: str, count: int) -> None:
    """Jitter included, if nobody comes after it."""
    last = simulate(load(count, 12.0), "oracle", fleet, jitter=0.1).outcomes[-1]
    assert last.ttft == pytest.approx(last.predicted, abs=1e-9)


def test_it_takes_the_earliest_first_token() -> None:
    """The slow engine is idle, the quick one is not, and still quicker."""
    jobs = make_jobs([Request(0, 0.0, 500, 50), Request(1, 0.001, 4000, 2)])
    world = simulate(jobs, "oracle", "1xa30+1xh100")
    assert [o.slot for o in world.outcomes] == [1, 1]
    assert world.outcomes[1].ttft < spec("a30").idle_ttft(4000)


def test_it_sees_a_slow_engine_before_any_router_could() -> None:
    def slow(run: Simulation) -> None:
        run.engines[1].slow = 50.0

    world = simulate(load(60, 2.0), "oracle", "2xa30", calls=[(0.0, slow)])
    assert {o.slot for o in world.outcomes} == {0}


def test_equal_engines_share_by_load() -> None:
    jobs = make_jobs([Request(k, 0.0, 300, 5) for k in range(6)])
    world = simulate(jobs, "oracle", "3xa30")
    assert sorted(o.slot for o in world.outcomes) == [0, 0, 1, 1, 2, 2]


def test_no_heuristic_is_quicker() -> None:
    jobs = load(600, 16.0)
    ours = summarise(simulate(jobs, "oracle", "3xa30").outcomes)["ttft"]["mean"]
    for name in ("least_request", "prefix_cache", "lmetric", "round_robin"):
        assert ours < summarise(simulate(jobs, name, "3xa30").outcomes)["ttft"]["mean"], name


def test_asking_changes_nothing() -> None:
    jobs = load(200, 12.0)
    plain = simulate(jobs, "lmetric", "2xa30+1xl20", jitter=0.1)
    regret = Regret(seed=1, share=1.0)
    probed = simulate(jobs, "lmetric", "2xa30+1xl20", jitter=0.1, probe=regret)
    assert repr(plain.outcomes) == repr(probed.outcomes)
    assert len(regret.seconds) == len(jobs)


def test_the_limit_hides_only_what_is_later() -> None:
    jobs = load(80, 30.0)
    seen = 0

    def compare(world: Simulation, index: int, _: object) -> None:
        nonlocal seen
        job, now = jobs[index], world.clock.now()
        times = [first_token(engine, index, job, now) for engine in world.engines]
        best, limited = first_tokens(world.engines, index, job, now)
        assert best == min(times)
        assert limited == [time if time == best else INF for time in times] or all(
            limit in (time, INF) and (limit == time or time > best)
            for time, limit in zip(times, limited, strict=True)
        )
        seen += 1

    simulate(jobs, "lmetric", "3xa30", probe=compare)
    assert seen == len(jobs)


def test_regret_is_what_the_choice_cost() -> None:
    """Nothing for the clairvoyant; for one that takes turns, the wait it could have spared."""
    jobs = load(200, 12.0)
    oracle, turns = Regret(1, share=1.0), Regret(1, share=1.0)
    simulate(jobs, "oracle", "1xa30+1xh100", probe=oracle)
    simulate(jobs, "round_robin", "1xa30+1xh100", probe=turns)
    assert max(cost for _, cost in oracle.seconds) == 0.0
    costs = [cost for _, cost in turns.seconds]
    assert min(costs) >= 0.0 and sum(costs) / len(costs) > 0.01


def test_regret_is_asked_for_a_share_of_decisions() -> None:
    regret = Regret(7)
    simulate(load(600, 10.0), "random", "2xa30", probe=regret)
    assert 10 <= len(regret.seconds) <= 60


def test_what_fits_nowhere_is_foreseen_to_fail() -> None:
    engine_tokens = spec("a30").kv_tokens
    jobs = make_jobs([Request(0, 0.0, engine_tokens + 100, 2), Request(1, 1.0, 100, 2)])
    regret = Regret(1, share=1.0)
    world = simulate(jobs, "oracle", "2xa30", probe=regret)
    lost, served = world.outcomes
    assert lost.error == "longer than the cache" and math.isnan(lost.ttft)
    assert math.isnan(lost.predicted) and served.error == ""
    assert len(regret.seconds) == 1
