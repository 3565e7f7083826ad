"""What a round may publish (the gate), and how long it may take (its time box)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.learner import export, gate
from lodestar_fast.learner.buffer import Buffer
from lodestar_fast.learner.gate import Gate
from lodestar_fast.learner.linear import TERMS, LinearModel
from lodestar_fast.learner.timebox import TimeBox
from lodestar_fast.learner.train import AT_ONCE, BATCH, STEPS, Trainer
from tests.batches import ABANDONED, pack, physical

PLAIN = LearnerConfig(model="linear")
PRIOR = LinearModel(TERMS)


def blob(factor: float = 1.0, version: int = 1) -> bytes:
    """Plain physics, times a factor."""
    linear = (PRIOR.coefficients * factor).astype(np.float32)
    return export.pack(export.Blob(version, linear, 0.0, None))


def seconds(data: NDArray[Any]) -> NDArray[np.float64]:
    """What plain physics says of these rows."""
    return PRIOR.predict(data["x"])


def judged(
    new: float, old: float | None, count: int, spread: float = 0.1, seed: int = 1
) -> tuple[bool, str]:
    """Weights off by the one factor against others off by the other; None: none in use yet."""
    rng, buffer, door = np.random.default_rng(seed), Buffer(), Gate()
    buffer.add(pack(physical(rng, 50)))
    door.hold(blob(new), buffer)
    if count:
        data = physical(rng, count, start=1.0)
        data["ttft"] = seconds(data) * np.exp(rng.normal(0, spread, count))
        buffer.add(pack(data))
    passed, why = door.ask(b"" if old is None else blob(old), buffer)
    return bool(passed), why


# -- the gate ------------------------------------------------------------------------------------


def test_weights_wait_until_enough_rows_have_come_that_they_have_not_seen() -> None:
    assert judged(1.0, 1.0, 0) == (False, "")
    assert judged(1.0, 1.0, gate.LEAST - 1) == (False, "")
    assert judged(1.0, 1.0, gate.LEAST) == (True, "")


@pytest.mark.parametrize(
    ("new", "old", "passes"),
    [(1.0, 1.0, True), (1.0, 2.0, True), (1.5, 1.0, False), (0.6, 1.0, False), (1.3, 1.4, True)],
)
def test_what_is_worse_does_not_pass(new: float, old: float, passes: bool) -> None:
    assert judged(new, old, 20) == (passes, "" if passes else "unseen")


def test_the_first_weights_are_compared_with_physics() -> None:
    assert judged(1.05, None, 20, spread=0.3) == (True, "")
    assert judged(3.0, None, 20, spread=0.3) == (False, "unseen")


def test_as_good_weights_are_seldom_refused_and_much_worse_ones_always() -> None:
    """Both off to either side by a tenth, errors of 30 %: which one is nearer is chance."""
    passed = [
        sum(judged(new, old, 12, 0.3, seed)[0] for seed in range(200))
        for new, old in ((1.1, 1 / 1.1), (1.8, 1.0), (2.5, 1.0))
    ]
    assert passed[0] >= 150 and passed[1] <= 10 and passed[2] == 0


def test_no_uncertainty_excuses_a_large_difference() -> None:
    """One row of eight is predicted a thousand times too long: 1.1 standard errors."""
    rng, buffer, door = np.random.default_rng(2), Buffer(), Gate()
    linear = PRIOR.coefficients.astype(np.float32)
    linear[features.INDEX["kv_overflow"]] = 1000.0
    buffer.add(pack(physical(rng, 50)))
    door.hold(export.pack(export.Blob(2, linear, 0.0, None)), buffer)
    data = physical(rng, 8, start=1.0)
    data["ttft"] = seconds(data)
    data["x"][3, features.INDEX["kv_overflow"]] = 1.0
    buffer.add(pack(data))
    assert door.ask(blob(), buffer) == (b"", "unseen")


def test_who_left_is_no_error_of_a_longer_prediction() -> None:
    """Clients that left at once: weights that say twice as long are as right of them."""
    rng, buffer, door = np.random.default_rng(3), Buffer(), Gate()
    buffer.add(pack(physical(rng, 50)))
    door.hold(blob(2.0), buffer)
    data = physical(rng, 40, start=1.0)
    data["ttft"], data["event"] = 0.001, ABANDONED
    buffer.add(pack(data))
    assert door.ask(blob(), buffer)[0]


@pytest.mark.parametrize("tenants", [1, 10])
def test_a_tenant_that_sends_most_does_not_decide_alone(tenants: int) -> None:
    """Nine rows of ten say the new weights are right, nine tenants of ten that they are not."""
    rng, buffer, door = np.random.default_rng(4), Buffer(), Gate()
    buffer.add(pack(physical(rng, 50)))
    door.hold(blob(1.5), buffer)
    data = physical(rng, 100, start=1.0)
    data["ttft"] = seconds(data) * np.where(np.arange(100) % 10, 1.5, 1.0)
    data["tenant"] = 3
    if tenants > 1:
        data["tenant"][::10] = 5 + 2 * np.arange(10)
    buffer.add(pack(data))
    assert bool(door.ask(blob(), buffer)[0]) == (tenants == 1)


def test_what_has_learned_its_rows_by_heart_is_refused() -> None:
    """Noise without a rule: a network trained until it knows each row is no better on others.

    A gate that asks about the rows it was trained on lets it through.
    """
    pytest.importorskip("torch")
    from lodestar_fast.learner.model import Correction

    rng = np.random.default_rng(5)
    network = Correction(features.WIDTH, (64, 64), seed=1)
    trainer = Trainer(LearnerConfig(), network)

    def noise(k: int) -> bytes:
        data = physical(rng, 40, start=float(k))
        data["ttft"] *= np.exp(rng.normal(0, 0.5, 40))
        return pack(data)

    for k in range(3):
        trainer.add(noise(k))
        trainer.round()
    live = trainer.blob
    assert live and trainer.refusals.total() == 0
    trainer._losses[:] = (1.0, 0.0, 1000.0)  # it is told that the network is good
    trainer._gate = Gate()
    known = trainer.buffer.held()
    x, ttft = trainer.buffer.x[known], trainer.buffer.ttft[known]
    trainer._measure(x)
    z, wanted = trainer._standardise(x), np.log(ttft / trainer.linear.predict(x))
    for _ in range(800):
        network.learn(z, wanted.astype(np.float32), BATCH)
    trainer._make()
    by_heart = trainer._gate._held
    errors = [
        float(np.abs(np.log(ttft / export.parse(b).predict(x))).mean()) for b in (by_heart, live)
    ]
    assert errors[0] < 0.6 * errors[1], "on the rows it has seen it is far better"
    trainer.add(noise(4))
    assert trainer.round() is None
    assert trainer.refusals["unseen"] == 1 and trainer.blob == live
    assert not trainer.refusal, "as happens by chance"


def test_worse_weights_are_refused_and_sound_ones_pass_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, rng = Trainer(PLAIN, None), np.random.default_rng(6)
    for k in range(2):
        trainer.add(pack(physical(rng, 100, start=float(k))))
        live = trainer.round()
    assert live is not None
    solve = LinearModel.solve

    def spoilt(self: LinearModel) -> None:
        solve(self)
        self.theta = self.theta * 2.0

    with monkeypatch.context() as patch:
        patch.setattr(LinearModel, "solve", spoilt)
        trainer.add(pack(physical(rng, 20, start=2.0)))
        live = trainer.round()
        assert live is not None, "what was made before, judged by rows that came since"
    trainer.add(pack(physical(rng, 20, start=3.0)))
    assert trainer.round() is None
    assert trainer.refusals["unseen"] == 1 and trainer.blob == live
    trainer.add(pack(physical(rng, 20, start=4.0)))
    assert trainer.round() is not None, "once it is sound again it is published"


def test_each_row_judges_before_it_teaches() -> None:
    """The times double from one round to the next: weights made before cannot know it."""
    trainer, rng = Trainer(PLAIN, None), np.random.default_rng(7)
    for k in range(10):
        data = physical(rng, 60, start=float(k))
        data["ttft"] *= 2.0 if k > 7 else 1.0
        trainer.add(pack(data))
        made = trainer.round()
        if k == 8:
            assert made is not None
            x = data["x"]
            old = export.parse(made).predict(x)
            assert np.median(np.log(data["ttft"] / old)) > 0.6
    assert made is not None
    assert np.mean(export.parse(made).predict(x)) > 1.05 * np.mean(old)


# -- the time box --------------------------------------------------------------------------------


class Clock:
    """Processor time that each look at it finds further on."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_box_is_full_past_its_limit_and_counts_a_round_once() -> None:
    clock = Clock(0.0)
    box = TimeBox(clock, 0.5)
    clock.now = 0.5
    assert not box.full() and box.used == 0.5
    clock.now = 0.6
    assert box.full() and box.full() and box.overruns == 1
    box.open()
    assert not box.full() and box.overruns == 1
    clock.now = 2.0
    assert box.full() and box.overruns == 2


def test_without_a_clock_it_is_never_full() -> None:
    assert not TimeBox().full()


class Counting:
    """In place of a network: how many steps it was asked for."""

    def __init__(self) -> None:
        self.steps = 0

    def learn(self, z: NDArray[Any], wanted: NDArray[Any], batch: int) -> None:
        self.steps += len(z) // batch

    def log_factor(self, z: NDArray[Any]) -> NDArray[np.float32]:
        return np.zeros(len(z), np.float32)

    def sound(self, limit: float) -> bool:
        return True


@pytest.mark.parametrize(
    ("step", "steps"), [(0.0, STEPS), (0.2, 0), (0.06, 0), (0.03, 2 * AT_ONCE), (0.02, STEPS)]
)
def test_a_round_stops_between_steps_when_its_time_is_over(step: float, steps: int) -> None:
    network, box = Counting(), TimeBox(Clock(step), 0.1)
    trainer, rng = Trainer(LearnerConfig(), network), np.random.default_rng(8)  # type: ignore[arg-type]
    trainer.add(pack(physical(rng, 60)))
    box.open()
    assert trainer.round(box=box) is None
    assert (network.steps, box.overruns) == (steps, int(steps < STEPS))
    trainer.add(pack(physical(rng, 60, start=1.0)))
    box.open()
    assert trainer.round(box=box) is not None, "what was learned passes the gate as ever"


def test_steps_in_parts_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from lodestar_fast.learner import train
    from lodestar_fast.learner.model import Correction

    def learned() -> list[Any]:
        network = Correction(features.WIDTH)
        trainer, rng = Trainer(LearnerConfig(), network), np.random.default_rng(9)
        for k in range(5):
            trainer.add(pack(physical(rng, 60, start=float(k))))
            trainer.round()
        return network.weights()

    parts = learned()
    monkeypatch.setattr(train, "AT_ONCE", STEPS)
    for (w0, b0), (w1, b1) in zip(parts, learned(), strict=True):
        assert (w0 == w1).all() and (b0 == b1).all()


def test_a_round_that_is_told_to_stop_trains_no_network() -> None:
    network = Counting()
    trainer, rng = Trainer(LearnerConfig(), network), np.random.default_rng(10)  # type: ignore[arg-type]
    for k in range(2):
        trainer.add(pack(physical(rng, 60, start=float(k))))
        made = trainer.round(more=lambda: False)
    assert made is not None and network.steps == 0
