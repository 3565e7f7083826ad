"""The weight blob: written as the contract says, read back, refused when it does not fit."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.core.policies import Lodestar
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import export
from lodestar_fast.learner.export import Blob, Network, pack, parse
from lodestar_fast.learner.train import Trainer
from tests import batches
from tests.batches import physical

W = features.WIDTH


def linear() -> Blob:
    return Blob(7, np.linspace(0, 1, W).astype(np.float32), 0.0, None)


def corrected(hidden: tuple[int, ...] = (24, 24), seed: int = 0) -> Blob:
    rng = np.random.default_rng(seed)
    sizes = (W, *hidden, 1)
    layers = [
        (rng.normal(0, 0.4, (b, a)).astype(np.float32), rng.normal(0, 0.2, b).astype(np.float32))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    ones = np.ones(W, np.float32)
    network = Network(-3 * ones, 3 * ones, -np.inf * ones, 2.5 * ones, layers)
    return Blob(8, np.full(W, 0.1, np.float32), 0.69, network)


def test_linear_blob_byte_by_byte() -> None:
    data = pack(linear())
    head = struct.pack("<IIQIII", 0x4C535742, 2, features.SCHEMA_HASH, 7, W, 0)
    assert data[: len(head)] == head
    heads = struct.pack("<3f", math.log(2), math.log(2), 0.0) + bytes(4 * W)
    assert data[len(head) :] == struct.pack(f"<f{W}f", 0.0, *np.linspace(0, 1, W)) + heads


def test_blob_with_network_has_the_promised_length() -> None:
    sizes = (W, 24, 24, 1)
    weights = sum(a * b + b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    assert len(pack(corrected())) == 28 + 4 * (4 + 1 + W + 4 * W + weights + 3 + W)


@pytest.mark.parametrize("blob", [linear(), corrected(), corrected((1,)), corrected((128,) * 3)])
def test_parse_gives_back_what_was_packed(blob: Blob) -> None:
    got = parse(pack(blob))
    assert (got.version, got.bound) == (blob.version, pytest.approx(blob.bound))
    assert got.linear.tolist() == blob.linear.tolist()
    assert (got.network is None) == (blob.network is None)
    if got.network and blob.network:
        for a, b in zip(got.network[:4], blob.network[:4], strict=True):
            assert np.array_equal(a, b)
        for one, other in zip(got.network.layers, blob.network.layers, strict=True):
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])


def test_rows_outside_the_range_get_no_correction() -> None:
    blob = corrected()
    x = np.full((2, W), 1.0, np.float32)
    x[1, 3] = 2.6
    physical = blob._replace(network=None).predict(x)
    got = blob.predict(x)
    assert got[0] != physical[0]
    assert got[1] == physical[1]


def test_prediction_is_bounded_below_and_in_its_correction() -> None:
    blob = corrected()
    x = np.random.default_rng(1).normal(0, 1, (200, W)).astype(np.float32)
    physical = blob._replace(network=None).predict(x)
    assert physical.min() == 1e-4
    factor = blob.predict(x) / physical
    assert factor.max() <= np.exp(0.69) + 1e-6
    assert factor.min() >= np.exp(-0.69) - 1e-6


def test_fold_takes_the_standardisation_into_the_first_layer() -> None:
    rng = np.random.default_rng(2)
    blob = corrected()
    assert blob.network
    mean, std = rng.normal(0, 5, W), rng.uniform(0.01, 2, W)
    folded = export.fold(blob.network.layers, mean, 1 / std)
    x = rng.normal(mean, std, (50, W))
    weight, bias = blob.network.layers[0]
    np.testing.assert_allclose(
        x @ folded[0][0].T + folded[0][1], ((x - mean) / std) @ weight.T + bias, atol=1e-3
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["linear", "weight", "bias", "clip", "bound"])
def test_numbers_that_are_not_finite_are_refused(part: str, value: float) -> None:
    blob = corrected()
    assert blob.network
    if part == "linear":
        blob.linear[3] = value
    elif part == "weight":
        blob.network.layers[1][0][2, 2] = value
    elif part == "bias":
        blob.network.layers[2][1][0] = value
    elif part == "clip":
        blob.network.clip_low[0] = value
    else:
        blob = blob._replace(bound=value)
    with pytest.raises(BlobError, match="finite"):
        pack(blob)


def test_damaged_blobs_are_refused() -> None:
    data = pack(corrected())
    for broken in (
        b"",
        data[:27],
        data[:-1],
        data + b"\0",
        b"\0" + data[1:],
        data[:8] + bytes(8) + data[16:],  # another schema
        data[:24] + struct.pack("<I", 5) + data[28:],  # too many layers
        data[:32] + struct.pack("<I", 129) + data[36:],  # too wide
        data[:28] + struct.pack("<I", W + 1) + data[32:],
    ):
        with pytest.raises(BlobError):
            parse(broken)


# -- parity with what decides ----------------------------------------------------------------------


def by_core(data: bytes, x: np.ndarray) -> np.ndarray:
    policy = Lodestar()
    policy.load(data)
    out = np.zeros(64, np.float32)
    parts = []
    for start in range(0, len(x), 64):  # as many rows as there may be instances
        part = np.ascontiguousarray(x[start : start + 64])
        policy.predict(part, out[: len(part)])
        parts.append(out[: len(part)].copy())
    return np.concatenate(parts)


@pytest.mark.parametrize("blob", [linear(), corrected(), corrected((5,)), corrected((128, 32, 8))])
def test_core_predicts_what_the_blob_says(blob: Blob) -> None:
    x = np.random.default_rng(3).normal(0, 2, (500, W)).astype(np.float32)
    np.testing.assert_allclose(by_core(pack(blob), x), blob.predict(x), rtol=1e-4, atol=1e-6)


def test_core_predicts_what_torch_has_learned() -> None:
    """From the trainer's network over standardisation, folding and float32 to C: 1e-5 of log."""
    pytest.importorskip("torch")
    from lodestar_fast.learner.model import Correction

    network = Correction(W)
    trainer, rng = Trainer(LearnerConfig(min_samples=32), network), np.random.default_rng(4)
    for k in range(30):
        data = physical(rng, 60, start=float(k))
        data["ttft"] *= np.where(data["x"][:, features.INDEX["hit_ratio"]] > 0.5, 1.4, 1.0)
        trainer.add(batches.pack(data))
        trainer.round()
    assert trainer.corrects
    x = trainer.buffer.x[: len(trainer.buffer)]
    z = trainer._standardise(x)
    expected = np.log(trainer.linear.predict(x)) + network.log_factor(z)
    trainer.add(batches.pack(physical(rng, 60, start=30.0)))  # lets pass what is there
    made = trainer.round()
    assert made is not None
    got = np.log(by_core(made, x))
    print(f"largest difference of log seconds: {np.abs(got - expected).max():.2e}")
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_core_refuses_what_parse_refuses() -> None:
    data = pack(corrected())
    policy = Lodestar()
    for broken in (b"", data[:-1], data + b"\0", data[:8] + bytes(8) + data[16:]):
        with pytest.raises(BlobError):
            policy.load(broken)
        with pytest.raises(BlobError):
            parse(broken)
