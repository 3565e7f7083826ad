"""Modes and watchdog: in the closed loop in virtual time, and against samples made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lodestar_fast
from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.core import POLICIES, Reason, Router
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import Lmetric, Lodestar
from lodestar_fast.errors import ConfigError
from lodestar_fast.governor import Governor, share_of
from lodestar_fast.learner import export, tick
from lodestar_fast.learner.thread import InlineLearner
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Job, Outcome, make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace
from tests import batches

TRACE = Path(lodestar_fast.__file__).parent / "data" / "mooncake_conversation.jsonl.gz"
FLEET = "8xa30"
RATE = 20.0


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """150 s of conversations on the verge of queues."""
    trace = read_trace(TRACE).rescaled(block_tokens=50, max_input=10_000, output_scale=0.5)
    return make_jobs(trace.timed(seed=1, rate=RATE, seconds=150.0).requests)


class Learning:
    """A learner of a simulation, with room for what a test does to it."""

    def __init__(self, inner: InlineLearner | None = None) -> None:
        self.inner = inner or InlineLearner(LearnerConfig(model="linear"))
        self.polls = 0

    def submit(self, samples: bytes) -> None:
        self.inner.submit(samples)

    def poll(self) -> bytes | None:
        self.polls += 1
        return self.inner.poll()

    def status(self) -> dict[str, Any]:
        return self.inner.status()

    def close(self) -> None:
        self.inner.close()


class Unwatched:
    """In a governor's place: samples to the learner, its weights to the policy, nothing else."""

    def __init__(self) -> None:
        self.learner = Learning()

    def tick(self, router: Router, now: float) -> int | None:
        return tick(router, self.learner)


def blob(version: int, **weights: float) -> bytes:
    linear = np.zeros(features.WIDTH, "<f4")
    for name, value in weights.items():
        linear[features.INDEX[name]] = value
    return export.pack(export.Blob(version, linear, 0.0, None))


class WrongSigns(Learning):
    """From the poll `at` on it publishes a model that likes queues; up to the poll `until`."""

    def __init__(self, at: int, until: int = 10**9) -> None:
        super().__init__()
        self.at, self.until = at, until

    def poll(self) -> bytes | None:
        published = super().poll()
        if self.at <= self.polls < self.until:
            return blob(10_000 + self.polls, base=0.5, own_seconds=1.0, queue_seconds=-1.0)
        return published


def poisoned(batch: bytes, slot: int) -> bytes:
    changed = np.frombuffer(batch, features.sample_dtype(), offset=24).copy()
    changed["ttft"][changed["slot"] == slot] *= 0.1
    return batches.pack(changed)


class Poisoned(Learning):
    """What it is told of instance 0 is a tenth of what was measured."""

    def submit(self, samples: bytes) -> None:
        self.inner.submit(poisoned(samples, 0))


def govern(mode: str = "on", learner: Any = None, **options: Any) -> Governor:
    policy = Guarded(Lodestar(), Lmetric())
    return Governor(policy, mode, learner=learner or Learning(), **options)


def simulate(jobs: list[Job], governor: Governor, seed: int = 1) -> tuple[list[Outcome], Router]:
    fleet = parse_fleet(FLEET)
    run = Simulation(jobs, fleet, governor.policy, seed=seed, governor=governor)
    return run.run(), run.router


def heuristic(jobs: list[Job], seed: int = 1) -> list[Outcome]:
    return Simulation(jobs, parse_fleet(FLEET), POLICIES["lmetric"](), seed=seed).run()


def mean(outcomes: list[Outcome], start: float, end: float) -> float:
    return float(np.mean([o.ttft for o in outcomes if start <= o.arrival < end]))


# -- modes --


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_shadow_and_off_choose_as_the_heuristic_alone(jobs: list[Job], mode: str) -> None:
    governor = govern(mode)
    outcomes, router = simulate(jobs, governor)
    assert [o.slot for o in outcomes] == [o.slot for o in heuristic(jobs)]
    decisions = router.stats()["decisions"]
    about = governor.status(150.0)
    if mode == "off":
        assert decisions["heuristic"] == len(jobs) and not about["version"]
        assert about["learner"]["samples"] == dict.fromkeys(about["learner"]["samples"], 0)
        return
    assert decisions["shadow"] + decisions["cold"] == len(jobs) > 20 * decisions["cold"]
    assert about["version"] > 100 and about["watchdog"]["state"] == "trusted"
    asked = about["asked"]
    assert asked["decisions"] == decisions["shadow"] > asked["agreed"] > 0
    assert 0 < asked["predicted_ttft_learned"] <= asked["predicted_ttft_fallback"] < 1
    assert 0 < about["watchdog"]["median_error"] < 0.7
    assert about["watchdog"]["control"]["requests"] and not about["watchdog"]["learned"]["requests"]


def test_a_healthy_model_decides_as_if_nobody_watched(jobs: list[Job]) -> None:
    governor = govern()
    outcomes, _ = simulate(jobs, governor)
    policy = POLICIES["lodestar"]()
    alone = Simulation(jobs, parse_fleet(FLEET), policy, seed=1, governor=Unwatched()).run()
    assert [o.slot for o in outcomes] == [o.slot for o in alone]
    assert governor.watchdog.state == "trusted" and not governor.watchdog.demotions


def test_a_canary_gets_its_share_and_both_sides_are_measured(jobs: list[Job]) -> None:
    governor = govern("canary:30")
    _, router = simulate(jobs, governor)
    n = router.stats()["decisions"]
    learned = n["learned"] + n["guard"] + n["out_of_range"]
    assert learned / (learned + n["control"]) == pytest.approx(0.3, abs=0.06)
    sides = governor.counts(router)["sides"]
    assert sides["learned"][0] > 500 and sides["fallback"][0] > 1500
    assert sum(sides["learned"]) and sides["learned"][1] / sides["learned"][0] < 1


def test_a_mode_can_be_changed_at_any_time() -> None:
    governor = govern()
    for mode, share in (("canary:0.5", 0.005), ("off", 0.0), ("shadow", 0.0), ("on", 1.0)):
        governor.set_mode(mode)
        assert governor.mode == mode and governor.policy.share == share == share_of(mode)
    with pytest.raises(ConfigError, match="no mode `canary:101`"):
        governor.set_mode("canary:101")
    assert governor.mode == "on"
    with pytest.raises(ConfigError):
        govern("half")


# -- the watchdog --


def test_a_model_with_wrong_signs_is_demoted_within_100_requests_and_does_no_lasting_harm(
    jobs: list[Job],
) -> None:
    governor = govern(learner=WrongSigns(at=60))
    outcomes, router = simulate(jobs, governor)
    first = next(o.index for o in outcomes if o.reason == Reason.DEMOTED)
    forced = next(o.index for o in outcomes if o.arrival >= 60.0)
    assert first - forced < 100
    assert all(o.reason == Reason.DEMOTED for o in outcomes[first:]), "while it stays bad"
    plain = heuristic(jobs)
    assert mean(outcomes, 80, 150) < 1.15 * mean(plain, 80, 150)
    # The same heuristic decides in both, but from other states: near saturation two such half
    # minutes differ by some 20 per cent, either way.
    assert mean(outcomes, 120, 150) < 1.25 * mean(plain, 120, 150)
    assert governor.watchdog.demotions == {"regret": 1}
    assert governor.fallbacks(router)["watchdog_regret"] == len(outcomes) - first
    about = governor.status(150.0)["watchdog"]
    assert about["state"] == "demoted" and "physics finds" in about["why"]
    assert about["hold_left"] == 0 and about["next_hold"] == 60


def test_a_model_that_mends_is_tried_and_trusted_again(jobs: list[Job]) -> None:
    governor = govern(learner=WrongSigns(at=40, until=50), hold=10.0)
    outcomes, _ = simulate(jobs, governor)
    seen = [o.reason for o in outcomes]
    demoted = [o.arrival for o in outcomes if o.reason == Reason.DEMOTED]
    assert 10 <= demoted[-1] - demoted[0] < 30
    trial = [r for r in seen if r in (Reason.CONTROL, Reason.DEMOTED)]
    assert trial[0] == Reason.DEMOTED and trial[-1] == Reason.CONTROL
    assert governor.watchdog.state == "trusted" and governor.watchdog.demotions == {"regret": 1}
    last = [o for o in outcomes if o.arrival > 140]
    assert not {Reason.CONTROL, Reason.DEMOTED} & {Reason(o.reason) for o in last}


def test_a_watchdog_that_is_off_only_watches(jobs: list[Job]) -> None:
    governor = govern(learner=WrongSigns(at=20), watchdog=False)
    simulate(jobs[:800], governor)
    assert governor.policy.regret > 0.6 and governor.watchdog.state == "trusted"


def test_poisoned_labels_of_one_instance_never_cost_more_than_the_heuristic(
    jobs: list[Job],
) -> None:
    """The physical model has no place for them: speeds are the core's, factors are bounded."""
    outcomes, _ = simulate(jobs, govern(learner=Poisoned()))
    plain = heuristic(jobs)
    for start in range(10, 150, 10):
        assert mean(outcomes, start, start + 10) < 1.1 * mean(plain, start, start + 10)


class Scripted:
    """A governor whose samples come from the test; the clock with them."""

    def __init__(self, mode: str = "on", **options: Any) -> None:
        self.governor = govern(mode, **options)
        self.policy = self.governor.policy
        self.router = Router(self.policy)
        self.now = 0.0

    def second(self, count: int = 0, **columns: Any) -> str:
        """count first tokens, then a tick; the state after it."""
        self.now += 1.0
        defaults: dict[str, Any] = {"event": batches.FIRST_TOKEN, "predicted": 0.2, "ttft": 0.2}
        defaults |= {"reason": Reason.LEARNED, "reference": 0.2, "own_seconds": 0.18}
        if count:
            batch = batches.pack(batches.rows(count, **(defaults | columns)))
            self.governor.watchdog.evidence.take(batch)
        self.governor.tick(self.router, self.now)
        return self.governor.watchdog.state


def test_predictions_off_by_more_than_three_are_demoted() -> None:
    for off, state in ((2.5, "trusted"), (3.5, "demoted"), (1 / 3.5, "demoted")):
        it = Scripted()
        it.second(63, ttft=0.2 * off)
        assert it.governor.watchdog.state == "trusted", "not from a handful"
        assert it.second(1, ttft=0.2 * off) == state
        assert it.governor.watchdog.cause == ("inaccurate" if state == "demoted" else "")


def test_holds_grow_and_shrink() -> None:
    it = Scripted()
    for hold in (30, 60, 120, 240):
        start = it.now
        assert it.second(64, ttft=2.0) == "demoted"
        while it.second(8, reason=Reason.DEMOTED) == "demoted":
            pass
        assert it.now - start == pytest.approx(hold, abs=9)
        assert it.governor.watchdog.state == "trial" and it.policy.share == pytest.approx(0.1)
        while it.second(10) == "trial":
            it.second(10, reason=Reason.CONTROL)
        assert it.policy.share == 1.0
    for _ in range(4900):
        it.second()
    it.second(64, ttft=2.0)
    assert it.governor.status(it.now)["watchdog"]["next_hold"] == 60, "short again after a calm"


def test_without_traffic_nothing_is_tried() -> None:
    it = Scripted()
    it.second(64, ttft=2.0)
    for _ in range(500):
        assert it.second() == "demoted"


def test_a_slower_canary_is_demoted_and_a_quicker_one_is_not() -> None:
    draw = np.random.default_rng(1)

    def noisy(factor: float, n: int) -> Any:
        return 0.2 * factor * np.exp(draw.normal(0, 0.4, n))

    for factor, demoted in ((1.6, True), (1.0, False), (0.7, False)):
        it = Scripted("canary:10")
        for _ in range(120):
            it.second(2, ttft=noisy(factor, 2))
            it.second(18, ttft=noisy(1.0, 18), reason=Reason.CONTROL)
        assert (it.governor.watchdog.cause == "slower") == demoted, factor
        assert bool(it.governor.watchdog.demotions) == demoted


def test_deviations_that_do_worse_than_agreements_are_put_to_the_test() -> None:
    """Suspected, then measured against a quarter of the requests: acquitted, or demoted."""
    draw = np.random.default_rng(1)
    for control, verdict in ((0.45, "trusted"), (0.2, "demoted")):
        it = Scripted()
        while it.governor.watchdog.state == "trusted":
            it.second(10, ttft=0.2 * np.exp(draw.normal(0, 0.3, 10)))
            it.second(10, ttft=0.4 * np.exp(draw.normal(0, 0.3, 10)), own_seconds=0.1)
        assert it.governor.watchdog.state == "trial" and it.policy.share == 0.75
        while it.governor.watchdog.state == "trial":
            it.second(15, ttft=0.4 * np.exp(draw.normal(0, 0.3, 15)), own_seconds=0.1)
            ttft = control * np.exp(draw.normal(0, 0.3, 5))
            it.second(5, ttft=ttft, reason=Reason.CONTROL)
        assert it.governor.watchdog.state == verdict


def test_age_alone_is_no_fault_but_age_and_error_are() -> None:
    it = Scripted()
    for _ in range(70):
        assert it.second(2) == "trusted"
    assert it.governor.status(it.now)["stale"]
    assert it.second(128, ttft=0.2 * 2.5) == "demoted" and it.governor.watchdog.cause == "stale"
    frozen = Scripted()
    frozen.governor.freeze()
    for _ in range(70):
        frozen.second(2)
    assert frozen.second(128, ttft=0.2 * 2.5) == "trusted"


def test_an_operators_word_is_trusted_first() -> None:
    it = Scripted()
    it.second(64, ttft=2.0)
    it.governor.set_mode("on")
    assert it.governor.watchdog.state == "trusted" and it.policy.share == 1


def test_a_learner_that_raises_is_judged_all_the_same() -> None:
    class Raising(Learning):
        def poll(self) -> bytes | None:
            raise RuntimeError("on purpose")

    it = Scripted(learner=Raising())
    with pytest.raises(RuntimeError):
        it.second(64, ttft=2.0)
    assert it.governor.watchdog.state == "demoted"
