"""Requests that were given up before their first token: what they teach, and that it is needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.core import Event
from lodestar_fast.learner import export, reward
from lodestar_fast.learner.censored import tail
from lodestar_fast.learner.linear import LinearModel
from lodestar_fast.learner.thread import InlineLearner
from tests.batches import ABANDONED, FAILED, FIRST_TOKEN, TIMEOUT, pack, physical, rows
from tests.oracle import make_router
from tests.test_router import PROMPT, samples

# -- what the router says of them ------------------------------------------------------------------


@pytest.mark.parametrize("event", [Event.FAILED, Event.ABANDONED, Event.TIMEOUT])
@pytest.mark.parametrize("end", [1.001, 40.0], ids=["at once", "believed to have begun"])
def test_what_is_not_streamed_and_ends_early_says_nothing_of_a_first_token(
    event: Event, end: float
) -> None:
    router = make_router(instances=1)
    router.observe(router.route(PROMPT, 1.0, streaming=False).ticket, event, end)
    (row,) = samples(router)
    assert np.isnan(row["ttft"]) and row["e2e"] == pytest.approx(end - 1.0, rel=1e-5)


# -- the physical model ----------------------------------------------------------------------------


@given(z=st.floats(-8, 60))
def test_tail_is_the_gradient_and_curvature_of_the_normal_tail(z: float) -> None:
    """Against log(1 - Phi) differentiated numerically: the step of Newton's method."""
    told, beyond = tail(z)
    assert 0.0 <= told <= 1.0 and beyond > max(z, 0.0) - 1e-9
    if -6 < z < 15:
        h = 1e-3
        low, mid, high = (math.log(math.erfc((z + d) / math.sqrt(2)) / 2) for d in (-h, 0.0, h))
        assert told * beyond == pytest.approx(-(high - low) / (2 * h), rel=1e-4, abs=1e-9)
        assert told == pytest.approx(-(high - 2 * mid + low) / h**2, rel=1e-2, abs=1e-4)


def impatient(rng: np.random.Generator, patience: float, count: int = 4000) -> tuple[Any, Any]:
    """Rows of a fleet that is slower under load than the prior says, and their expected TTFT.

    Whoever has waited for `patience` seconds leaves, which with long queues nearly all do.
    """
    own, queue = rng.uniform(0.02, 0.5, count), rng.exponential(0.6, count)
    prefill = queue * rng.uniform(0.15, 0.25, count)
    expected = 0.2 + own + queue + 1.5 * prefill
    ttft = expected * np.exp(rng.normal(-0.06, 0.35, count))  # with a mean of 1
    gone = ttft > patience
    data = rows(
        count,
        dispatched=np.sort(rng.random(count)) * 100,
        own_seconds=own,
        queue_seconds=queue,
        prefill_seconds=prefill,
        ttft=np.minimum(ttft, patience),
        event=np.where(gone, ABANDONED, FIRST_TOKEN),
    )
    return data, expected


def bias(patience: float, censored: bool) -> tuple[float, float]:
    """Mean predicted over expected TTFT of long queues and of short ones."""
    data, expected = impatient(np.random.default_rng(1), patience)
    gone = data["event"] == ABANDONED
    model = LinearModel()
    for part in np.array_split(np.arange(len(data)), 100):
        part = part if censored else part[~gone[part]]
        time = data["dispatched"][part] + data["ttft"][part]
        model.add(data["x"][part], data["ttft"][part], time, gone[part])
        model.solve()
    ratio = model.predict(data["x"]) / expected
    long = data["x"][:, features.INDEX["queue_seconds"]] > 1.0
    return float(ratio[long].mean()), float(ratio[~long].mean())


@pytest.mark.parametrize("patience", [0.5, 1.0, 2.0])
def test_clients_that_leave_make_queues_look_short_unless_they_count(patience: float) -> None:
    """86, 50 and 17 % leave."""
    assert bias(patience, censored=False)[0] < 0.88
    for ratio in bias(patience, censored=True):
        assert ratio == pytest.approx(1.0, abs=0.07)


def test_a_wait_that_is_shorter_than_expected_teaches_nothing() -> None:
    model = LinearModel()
    data = physical(np.random.default_rng(2), 500)
    model.add(data["x"], data["ttft"], data["dispatched"])
    model.solve()
    before = model.coefficients
    x = rows(200, own_seconds=5.0, queue_seconds=5.0)["x"]
    waited = np.full(200, 1.0, np.float32)  # of ten seconds
    model.add(x, waited, np.full(200, 1.0), np.ones(200, np.bool_))
    model.solve()
    assert model.coefficients == pytest.approx(before, rel=1e-3, abs=1e-6)


# -- the whole learner -----------------------------------------------------------------------------


def taught(data: Any, model: str, rounds: int = 30) -> export.Blob:
    if model == "mlp":
        pytest.importorskip("torch")
    learner = InlineLearner(LearnerConfig(model=model))  # type: ignore[arg-type]
    for part in np.array_split(data, rounds):
        learner.submit(pack(part))
    blob = learner.poll()
    assert blob is not None
    return export.parse(blob)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_the_learner_counts_those_who_left(model: str) -> None:
    data, expected = impatient(np.random.default_rng(3), 1.0, 3000)
    stayed = data[data["event"] == FIRST_TOKEN]
    long = (data["x"][:, features.INDEX["queue_seconds"]] > 1.0) & (expected > 1.5)
    with_them, without = (
        float(np.mean(taught(part, model).predict(data["x"][long]) / expected[long]))
        for part in (data, stayed)
    )
    assert without < 0.87
    assert 0.9 < with_them < 1.15


@pytest.mark.parametrize("event", [FAILED, ABANDONED, TIMEOUT])
def test_what_ends_after_two_milliseconds_does_not_teach_that_it_is_quick(event: int) -> None:
    rng = np.random.default_rng(4)
    data = physical(rng, 1200)
    data["dispatched"] *= 20
    quick = physical(rng, 1200)
    quick["dispatched"] *= 20
    quick["ttft"], quick["event"] = 0.002, event
    both = np.concatenate([data, quick])
    both = both[np.argsort(both["dispatched"])]
    x = data["x"][:200]
    alone, beside = (taught(each, "linear").predict(x) for each in (data, both))
    assert beside == pytest.approx(alone, rel=0.01)


def test_a_prediction_above_what_was_waited_is_no_error() -> None:
    ratio = np.array([-0.5, 0.5, -0.5, 0.5])
    got = reward.miss(ratio, np.array([True, True, False, False]))
    assert got.tolist() == [0.0, 0.5, 0.5, 0.5]
