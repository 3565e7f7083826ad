"""What is learned from samples: buffer, physical model, network, a trainer's rounds."""

from __future__ import annotations

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import export, reward
from lodestar_fast.learner.buffer import Buffer, decode
from lodestar_fast.learner.linear import TERMS, LinearModel, Term
from lodestar_fast.learner.thread import InlineLearner
from lodestar_fast.learner.train import Trainer
from tests import batches
from tests.batches import ABANDONED, DONE, FAILED, FIRST_TOKEN, TIMEOUT, pack, physical, rows

LINEAR = LearnerConfig(model="linear", min_samples=32)
FREE = tuple(Term(t.column, t.prior, t.ridge) for t in TERMS)


# -- buffer --------------------------------------------------------------------------------------


def test_buffer_keeps_first_tokens_and_counts_the_rest() -> None:
    buffer = Buffer(capacity=10)
    batch = rows(
        8,
        dispatched=np.arange(8.0),
        ttft=[0.5, np.nan, 0.002, 2.0, 3.0, 0.25, np.nan, np.nan],
        event=[FIRST_TOKEN, DONE, FAILED, ABANDONED, TIMEOUT, FIRST_TOKEN, ABANDONED, TIMEOUT],
        tenant=np.arange(8),
    )
    assert buffer.add(pack(batch)) == 2
    counts = {"first_token": 2, "done": 1, "failed": 1, "censored": 2, "cut": 2, "refused": 0}
    assert buffer.counts == counts and buffer.measured == 2
    held = buffer.held()
    # What was waited in vain is kept as such; an error, however quick, is not kept at all.
    assert buffer.ttft[held].tolist() == [0.5, 2.0, 3.0, 0.25]
    assert buffer.time[held].tolist() == [0.5, 5.0, 7.0, 5.25]
    assert buffer.censored[held].tolist() == [False, True, True, False]
    assert buffer.tenant[held].tolist() == [0, 3, 4, 5]


@pytest.mark.parametrize("ttft", [np.nan, np.inf, -0.1, 3600.0])
@pytest.mark.parametrize("event", [FIRST_TOKEN, ABANDONED])
def test_impossible_times_never_enter(ttft: float, event: int) -> None:
    buffer = Buffer()
    buffer.add(pack(rows(1, ttft=ttft, event=event)))
    if event == ABANDONED and np.isnan(ttft):
        assert buffer.counts["cut"] == 1  # after its first token
        return
    assert len(buffer) == 0
    assert buffer.counts["refused"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7])
def test_rows_that_cannot_be_never_enter(value: float) -> None:
    buffer = Buffer()
    batch = rows(2, queue_seconds=[value, 0.1], ttft=0.5, event=FIRST_TOKEN)
    assert buffer.add(pack(batch)) == 1
    assert buffer.counts["refused"] == 1


def test_unknown_events_and_times_are_refused() -> None:
    buffer = Buffer()
    buffer.add(pack(rows(2, dispatched=[np.nan, 0.0], ttft=0.5, event=[FIRST_TOKEN, 99])))
    assert buffer.counts["refused"] == 2
    assert len(buffer) == 0


def test_ring_holds_the_newest() -> None:
    buffer = Buffer(capacity=4)
    for start in (0, 3, 6):
        ttft = np.arange(start, start + 3) / 100
        buffer.add(pack(rows(3, dispatched=1.0, ttft=ttft, event=FIRST_TOKEN)))
    assert sorted(buffer.ttft.tolist()) == pytest.approx([0.05, 0.06, 0.07, 0.08])
    assert buffer.ttft[buffer.fresh()].tolist() == pytest.approx([0.05, 0.06, 0.07, 0.08])
    buffer.settle()
    assert len(buffer.fresh()) == 0
    buffer.add(pack(rows(9, dispatched=1.0, ttft=np.arange(9) / 10, event=FIRST_TOKEN)))
    assert buffer.ttft[buffer.fresh()].tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\0" * 24,
        pack(rows(2))[:-1],
        pack(rows(2)) + b"\0",
        pack(rows(2), magic=1),
        pack(rows(2), format=1),
        pack(rows(2), schema=features.SCHEMA_HASH ^ 1),
        batches.HEADER.pack(batches.MAGIC, 2, features.SCHEMA_HASH, 1, 8) + b"\0" * 8,
    ],
    ids=["empty", "zeros", "cut", "long", "magic", "format", "schema", "row_size"],
)
def test_batches_that_do_not_fit_are_refused_whole(broken: bytes) -> None:
    with pytest.raises(BlobError):
        decode(broken)
    learner = InlineLearner(LINEAR)
    learner.submit(broken)
    assert learner.status()["batches_refused"] == 1
    assert learner.poll() is None


# -- physical model ------------------------------------------------------------------------------


def fitted(data: np.ndarray, terms: tuple[Term, ...] = TERMS) -> LinearModel:
    model = LinearModel(terms)
    model.add(data["x"], data["ttft"], data["dispatched"] + data["ttft"])
    model.solve()
    return model


def test_fit_recovers_known_coefficients() -> None:
    got = fitted(physical(np.random.default_rng(1), 3000)).coefficients
    assert got[features.INDEX["base"]] == pytest.approx(0.05, abs=0.005)
    assert got[features.INDEX["decode_seconds"]] == pytest.approx(0.3, abs=0.03)
    assert got[features.INDEX["own_seconds"]] == 1.0
    taking_part = {t.column for t in TERMS}
    others = [c for name, c in zip(features.INDEX, got, strict=True) if name not in taking_part]
    assert others == [0.0] * len(others)


def test_fit_reaches_the_optimum_of_its_limits() -> None:
    """Karush-Kuhn-Tucker: the gradient vanishes where no limit holds, and points outward there."""
    rng = np.random.default_rng(2)
    data = physical(rng, 500)
    data["ttft"] *= 1.5 - 0.4 * data["x"][:, features.INDEX["decode_seconds"]]
    model = fitted(data, FREE)
    gradient = model.a @ model.theta - model.b + model.ridge * (model.theta - model.prior)
    scale = np.diag(model.a) + model.ridge
    for slope, theta in zip(gradient / scale, model.theta, strict=True):
        assert slope == pytest.approx(0.0, abs=1e-3) or (theta == 0.0 and slope > 0.0)


def test_without_samples_the_prior_stands() -> None:
    model = LinearModel()
    model.solve()
    assert model.theta.tolist() == [t.prior for t in TERMS]


@pytest.mark.parametrize("terms", [TERMS, FREE], ids=["pinned", "free"])
def test_coefficients_are_never_negative(terms: tuple[Term, ...]) -> None:
    rng = np.random.default_rng(3)
    data = physical(rng, 400)
    # The busier, the quicker: what a confounded log can look like.
    quick = data["x"][:, features.INDEX["decode_seconds"]] > 0.15
    data["ttft"] = np.where(quick, 0.02, 1.0) * data["x"][:, features.INDEX["own_seconds"]]
    assert (fitted(data, terms).theta >= 0.0).all()


def test_newer_samples_outweigh_older_ones() -> None:
    old, new = physical(np.random.default_rng(4), 500), physical(np.random.default_rng(5), 500)
    new["dispatched"] += 1000.0
    new["ttft"] += 0.2
    model = LinearModel()
    for data in (old, new):
        model.add(data["x"], data["ttft"], data["dispatched"] + data["ttft"])
    model.solve()
    assert model.coefficients[features.INDEX["base"]] == pytest.approx(0.25, abs=0.02)


def test_order_of_batches_does_not_matter() -> None:
    data = physical(np.random.default_rng(6), 200)
    data["dispatched"] = np.linspace(0, 300, 200)
    forward, backward = LinearModel(), LinearModel()
    for part in (data[:100], data[100:]):
        forward.add(part["x"], part["ttft"], part["dispatched"])
    for part in (data[100:], data[:100]):
        backward.add(part["x"], part["ttft"], part["dispatched"])
    np.testing.assert_allclose(forward.a, backward.a, rtol=1e-9)
    np.testing.assert_allclose(forward.b, backward.b, rtol=1e-9)


def test_label_of_a_stalled_request_is_capped() -> None:
    assert reward.label(np.array([100.0]), np.array([0.07])).tolist() == pytest.approx([1.3])


# -- the collapse that free regressions suffer -----------------------------------------------------


def scenario_of_collapse(rng: np.random.Generator, count: int = 600) -> np.ndarray:
    """A healthy log: queues nearly always empty and nearly collinear; what waits left no label."""
    own = rng.uniform(0.01, 0.6, count)
    queue = np.where(rng.random(count) < 0.03, rng.uniform(0, 0.05, count), 0.0)
    return rows(
        count,
        dispatched=np.sort(rng.random(count)) * 60,
        own_seconds=own,
        queue_seconds=queue,
        prefill_seconds=queue * 0.2 * rng.uniform(0.9, 1.1, count),
        prefill_requests=(queue > 0) / 16,
        decode_seconds=rng.uniform(0, 0.02, count),
        # Those few that met a queue happened to be quick.
        ttft=0.03 + own * np.where(queue > 0, 0.5, 1.0),
        event=FIRST_TOKEN,
    )


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_long_queues_never_look_attractive(model: str) -> None:
    """The trace of a collapse: 53 requests in prefill, 88,917 tokens queued, predicted 0.000 s."""
    if model == "mlp":
        pytest.importorskip("torch")
    learner = InlineLearner(LearnerConfig(model=model, min_samples=32))  # type: ignore[arg-type]
    rng = np.random.default_rng(7)
    for k in range(30):
        data = scenario_of_collapse(rng, 60)
        data["dispatched"] = np.sort(rng.random(60)) + k
        learner.submit(pack(data))
    blob = export.parse(learner.poll() or b"")
    seconds = np.array([0.0, 0.1, 0.5, 2.0, 5.0, 10.0])  # queued ahead
    x = rows(
        len(seconds),
        own_seconds=0.03,
        queue_seconds=seconds,
        prefill_seconds=seconds * 0.2,
        prefill_requests=np.ceil(seconds * 5) / 16,
    )["x"]
    got = blob.predict(x)
    linear = blob._replace(network=None).predict(x)
    assert (np.diff(linear) > 0).all()
    # The correction is bounded: what waits twice longer by physics is at least not preferred.
    assert (got >= linear / 2 - 1e-9).all()
    assert (got[2:] > 2 * got[0]).all()


# -- rounds --------------------------------------------------------------------------------------


def trained(config: LearnerConfig, rounds: int, per_round: int = 40, seed: int = 8) -> list[bytes]:
    learner, rng = InlineLearner(config), np.random.default_rng(seed)
    blobs = []
    for k in range(rounds):
        learner.submit(pack(physical(rng, per_round, start=float(k))))
        blobs.append(learner.poll() or b"")
    return blobs


def test_no_blob_before_enough_first_tokens() -> None:
    config = LearnerConfig(model="linear", min_samples=100)
    assert [bool(blob) for blob in trained(config, 4)] == [False, False, False, True]


def test_versions_rise_by_one() -> None:
    first, *others = trained(LINEAR, 6)
    assert not first, "nothing has judged it yet"
    assert [export.parse(b).version for b in others] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_same_samples_same_blobs(model: str) -> None:
    if model == "mlp":
        pytest.importorskip("torch")
    config = LearnerConfig(model=model, min_samples=32)  # type: ignore[arg-type]
    assert trained(config, 8) == trained(config, 8)


def test_network_learns_what_physics_cannot_say() -> None:
    pytest.importorskip("torch")
    learner, rng = InlineLearner(LearnerConfig(min_samples=32)), np.random.default_rng(9)
    for k in range(40):
        data = physical(rng, 60, start=float(k))
        data["ttft"] *= np.where(data["x"][:, features.INDEX["hit_ratio"]] > 0.5, 1.4, 1.0)
        learner.submit(pack(data))
    status = learner.status()
    assert status["corrects"]
    assert status["log_error_corrected"] < 0.7 * status["log_error_linear"]
    x, ttft = data["x"], data["ttft"]
    blob = export.parse(learner.poll() or b"")
    assert np.abs(np.log(blob.predict(x) / ttft)).mean() < 0.1


def test_network_that_is_no_better_is_not_exported() -> None:
    pytest.importorskip("torch")
    from lodestar_fast.learner.model import Correction

    network = Correction(features.WIDTH)
    trainer, rng = Trainer(LearnerConfig(min_samples=32), network), np.random.default_rng(10)
    for k in range(8):
        trainer.add(pack(physical(rng, 60, start=float(k))))
        layers = network.weights()
        layers[-1] = (layers[-1][0], np.ones_like(layers[-1][1]))  # says "twice as long" of all
        network.set_weights(layers)
        blob = trainer.round()
    assert blob is not None
    assert export.parse(blob).network is None
    assert trainer.errors[1] > trainer.errors[0]


def test_network_with_garbage_starts_anew_and_nothing_is_published() -> None:
    pytest.importorskip("torch")
    from lodestar_fast.learner.model import Correction

    network = Correction(features.WIDTH)
    trainer, rng = Trainer(LearnerConfig(min_samples=32), network), np.random.default_rng(11)
    network.set_weights([(np.full_like(w, np.nan), b) for w, b in network.weights()])
    trainer.add(pack(physical(rng, 60)))
    assert trainer.round() is None
    assert trainer.refusals["network"] == trainer.refusals.total() == 1
    assert "network" in trainer.refusal
    trainer.add(pack(physical(rng, 60, start=1.0)))
    assert trainer.round() is None, "of the first round nothing is left"
    trainer.add(pack(physical(rng, 60, start=2.0)))
    assert trainer.round() is not None


@pytest.mark.parametrize("garbage", [np.nan, 1e9])
def test_physical_model_with_garbage_starts_anew_and_nothing_is_published(garbage: float) -> None:
    trainer, rng = Trainer(LINEAR, None), np.random.default_rng(12)
    trainer.linear.b[:] = garbage
    trainer.add(pack(physical(rng, 60)))
    assert trainer.round() is None
    assert trainer.refusals["physics"] == trainer.refusals.total() == 1
    trainer.add(pack(physical(rng, 60, start=1.0)))
    assert trainer.round() is None, "of the first round nothing is left"
    trainer.add(pack(physical(rng, 60, start=2.0)))
    assert trainer.round() is not None
