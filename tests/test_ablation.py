"""The evaluation's variants of the learner, and the watchdog of a simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lodestar_fast import build, features
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.core.router import Router
from lodestar_fast.errors import ConfigError
from lodestar_fast.learner.ablation import Ablation
from lodestar_fast.learner.linear import TERMS, LinearModel
from lodestar_fast.simulate.plan import FALLBACK, LEARNED, Governed, Plan, make_learner, run_one

PLAN = Plan(fleet="2xa30", rate=4.0, seconds=30.0, block_tokens=50, max_input=8000)


def test_without_a_prior_the_data_decide() -> None:
    x = np.zeros((400, features.WIDTH), np.float32)
    rng = np.random.default_rng(1)
    free = LinearModel(Ablation(prior=False).terms)
    assert Ablation().terms == TERMS
    x[:, free.columns[0]] = 1.0
    x[:, free.columns[1]] = rng.uniform(0, 2, 400)  # own_seconds
    free.add(x, (0.1 + 3.0 * x[:, free.columns[1]]).astype(np.float32), np.arange(400.0))
    free.solve()
    assert free.theta[1] == pytest.approx(3.0, rel=0.05)
    assert free.theta[0] == pytest.approx(0.1, abs=0.05)


def test_variants_are_named_in_the_policy() -> None:
    pytest.importorskip("torch")
    learner = make_learner(PLAN, {"hidden": 7, "prior": False})
    trainer = learner._trainer  # type: ignore[attr-defined]
    assert [len(bias) for _, bias in trainer.network.weights()] == [7, 7, 1]
    assert not trainer.linear.prior.any()
    with pytest.raises(ConfigError, match="hidden"):
        make_learner(PLAN, {"hidden": 129})


def test_the_watchdog_of_a_simulation_leaves_a_healthy_run_as_it_is() -> None:
    assert FALLBACK == build.FALLBACK and LEARNED == build.LEARNED
    policy = f"{LEARNED}:model=linear"
    watched = run_one(PLAN, 1, policy)
    alone = run_one(replace(PLAN, watchdog=False), 1, policy)
    assert watched.records == alone.records
    assert watched.watchdog == [] and alone.watchdog is None


def test_what_the_watchdog_does_is_kept_with_its_time() -> None:
    governor = Governed(Guarded(POLICIES[LEARNED](), POLICIES[FALLBACK]()))
    router = Router(governor.policy, seed=1)
    governor.tick(router, 1.0)
    assert governor.changes == []
    governor.watchdog._enter("demoted", "for this test")
    governor.tick(router, 2.0)
    assert governor.changes == []  # it was before this tick; only what a tick does is its doing
    governor.watchdog._until = 3.0
    governor.watchdog.look = lambda *_, **__: governor.watchdog._enter("trial", "again")  # type: ignore[method-assign]
    governor.tick(router, 4.0)
    assert [(c.t, c.state, c.why) for c in governor.changes] == [(4.0, "trial", "again")]
