"""Policies estimated from a log, against what the simulator knows to be true."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest

from lodestar_fast import cli
from lodestar_fast.core import POLICIES, Policy
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.rerun import RERUN, Scene
from lodestar_fast.core.router import Decision
from lodestar_fast.decisions.evaluate import Usable, estimate, odds_of, usable
from lodestar_fast.decisions.log import Writer
from lodestar_fast.decisions.reading import read_log
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.logged import read_any
from lodestar_fast.sim.oracle import first_token
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace
from lodestar_fast.simulate.plan import TRACE
from tests.test_decisions import learned

N = 1200
MIXED = "2xa30+1xl20+1xh100"


class Logged(NamedTuple):
    folder: Path
    log: Usable
    truth: list[list[float]]  # seconds to the first token on each engine, by decision
    jobs: list[Job]


def jobs_at(rate: float) -> list[Job]:
    trace = read_trace(TRACE).rescaled(50, 6000, 0.3).timed(1, rate)
    return make_jobs(trace.requests[:N])


def write(world: Simulation, folder: Path) -> Usable:
    assert world.router.decisions is not None
    writer = Writer(folder, since=1e9, block_bytes=64, fallback="lmetric")
    writer.take(world.router.decisions.take())
    writer.close()
    return usable(read_log([str(folder)]))


def play(policy: Policy, rate: float, fleet: str, folder: Path) -> Logged:
    """A run whose every decision is asked of all engines."""
    truth = []

    def ask(world: Simulation, index: int, decision: Decision) -> None:
        now = world.clock.now()
        truth.append(
            [
                first_token(e, index, world.jobs[index], now) + world.delay - now
                for e in world.engines
            ]
        )

    jobs = jobs_at(rate)
    world = Simulation(jobs, parse_fleet(fleet), policy, seed=1, probe=ask, decisions=N)
    world.run()
    return Logged(folder, write(world, folder), truth, jobs)


@pytest.fixture(scope="module")
def random_log(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    return play(POLICIES["random"](), 3.0, MIXED, tmp_path_factory.mktemp("random"))


def true_value(log: Logged, name: str) -> float:
    """The mean TTFT if each decision alone had been the other policy's."""
    odds = odds_of(name)
    values = [
        math.fsum(p * t for p, t in zip(odds(row), times, strict=True))
        for row, times in zip(log.log.rows, log.truth, strict=True)
    ]
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(
    "name", ["random", "least_request", "lmetric", "prefix_cache", "mooncake", "power_of_two"]
)
def test_estimates_hold_the_truth_of_the_simulator(random_log: Logged, name: str) -> None:
    assert len(random_log.log.rows) == N
    found, truth = estimate(random_log.log, name), true_value(random_log, name)
    assert not found.refusal and found.dr and found.snips and found.ips
    for value in (found.dr, found.snips, found.ips):
        assert value.low <= truth <= value.high, (name, truth, value)
    # And it says something: the interval is narrow, and what is measured is something else.
    assert found.dr.high - found.dr.low < 0.25 * truth
    if name in ("lmetric", "mooncake"):
        assert found.logged and found.logged.mean > 1.5 * truth


@pytest.mark.parametrize("name", ["lmetric", "least_request", "vllm_dp"])
def test_under_light_load_it_is_what_the_policy_itself_gives(name: str, tmp_path: Path) -> None:
    """Where queues are short one decision changes little for the next, and the estimate is that of
    a run of its own."""
    log = play(POLICIES["random"](), 3.0, "4xa30", tmp_path)
    outcomes = Simulation(log.jobs, parse_fleet("4xa30"), POLICIES[name](), seed=1).run()
    own = math.fsum(o.ttft for o in outcomes) / len(outcomes)
    found = estimate(log.log, name)
    assert found.dr and found.dr.low <= own <= found.dr.high


def test_without_support_it_refuses(tmp_path: Path) -> None:
    world = Simulation(
        jobs_at(3.0), parse_fleet(MIXED), POLICIES["round_robin"](), seed=1, decisions=N
    )
    world.run()
    log = write(world, tmp_path)
    for name in ("lmetric", "random", "least_request"):
        found = estimate(log, name)
        assert "no support" in found.refusal and found.dr is None and found.ips is None
        assert found.unsupported > 0.3


def test_a_canary_tells_of_both_sides(tmp_path: Path) -> None:
    policy = Guarded(learned()[0], POLICIES["lmetric"]())
    policy.steer(0.5, 9)
    log = play(policy, 3.0, MIXED, tmp_path)
    for name in ("lodestar", "lmetric"):
        found = estimate(log.log, name)
        truth = true_value(log, name)
        assert not found.refusal and found.unsupported == 0 and found.modelled == 1
        assert found.dr and found.dr.low <= truth <= found.dr.high
    assert "no support" in estimate(log.log, "random").refusal


def test_a_log_too_short_is_refused(random_log: Logged) -> None:
    found = estimate(Usable(random_log.log.rows[:60]), "mooncake")
    assert "too little" in found.refusal and found.dr is None


def test_what_cannot_be_learned_from_is_counted(random_log: Logged) -> None:
    rows = [dict(row) for row in random_log.log.rows[:6]]
    rows[0]["outcome"] = None
    rows[1]["outcome"] = rows[1]["outcome"] | {"ttft": None}
    rows[2]["stream"] = False
    rows[3]["candidates_total"] = 20
    rows[4]["candidates"] = [c | {"odds": None} for c in rows[4]["candidates"]]
    log = usable(rows)
    assert len(log.rows) == 1 and sorted(log.left_out.values()) == [1, 1, 1, 1, 1]


# Told the true coefficients by the simulator, which no row holds: expected_completion.
@pytest.mark.parametrize("name", sorted(RERUN - {"expected_completion"}))
def test_a_policy_chooses_again_as_it_did(name: str, tmp_path: Path) -> None:
    """Its odds over rows are those of the run that wrote them."""
    jobs = jobs_at(6.0)[:300]
    world = Simulation(jobs, parse_fleet(MIXED), POLICIES[name](), seed=1, decisions=300)
    world.run()
    scene, policy = Scene(), POLICIES[name]()
    for row in write(world, tmp_path).rows:
        again = scene.odds(policy, row)
        assert again == pytest.approx([c["odds"] for c in row["candidates"]], abs=1e-6)


def test_the_verb_reports_and_refuses(
    random_log: Logged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    folder = str(random_log.folder)
    command = ["log", "evaluate", folder, "--policy", "lmetric,lodestar", "--json", str(out)]
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert f"{N:,} decisions of random: mean TTFT" in said and "lmetric" in said
    assert "lodestar: refused: no decision in the log" in said
    first, second = json.loads(out.read_text())["policies"]
    assert first["dr_ms"][1] < first["dr_ms"][0] < first["dr_ms"][2] and not first["refusal"]
    assert second["dr_ms"] is None and second["refusal"]
    for name, error in (("none", "no policy `none`"), ("round_robin", "remembers earlier")):
        assert cli.main(["log", "evaluate", folder, "--policy", name]) == 2
        assert error in capsys.readouterr().err
    with pytest.raises(ConfigError):
        odds_of("preble")


def test_a_log_is_a_trace(random_log: Logged) -> None:
    trace = read_any(random_log.folder)
    assert len(trace.requests) == N and trace.block_tokens == 64
    for request, job in zip(trace.requests, random_log.jobs, strict=True):
        assert request.arrival == pytest.approx(job.arrival - random_log.jobs[0].arrival, abs=1e-5)
        assert request.prompt_tokens == job.prompt_tokens
        assert request.output_tokens == job.output_tokens
    # What was shared is shared, but for what a step of 64 tokens cuts off: half of one on average.
    specs, hits = parse_fleet("1xh100"), []
    for jobs in (random_log.jobs, make_jobs(trace.requests)):
        outcomes = Simulation(jobs, specs, POLICIES["random"](), seed=1).run()
        hits.append(sum(o.cached_tokens for o in outcomes) / sum(o.prompt_tokens for o in outcomes))
    assert hits[1] == pytest.approx(hits[0], abs=0.05) and hits[0] > 0.15
