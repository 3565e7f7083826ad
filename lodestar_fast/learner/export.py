"""Weights out: the blob that core's policy `lodestar` loads, and its reader.

Little endian, nothing between the parts and nothing after them:

    u32 magic | u32 format | u64 schema hash | u32 version | u32 W | u32 L
    u32 dims[L + 1]                      if L > 0; dims[0] = W, dims[L] = 1
    f32 bound                            of the network's output, log factor
    f32 linear[W]
    f32 clip_low[W] clip_high[W]         if L > 0, and all below: the network's inputs are clipped
    f32 range_low[W] range_high[W]       seen in training: a row outside gets no correction
    f32 weight[out][in], f32 bias[out]   for each layer; ReLU between layers
    f32 upper[2] answer tpot[W]          the other heads: learner/heads.py

Prediction for a row x: T = max(linear . x, 1e-4) exp(clip(net(clip(x)), -bound, bound)) seconds to
the first token, T exp(upper) in all but one case of ten, max(tpot . x, 1e-4) seconds for each
further token of `answer` in the mean. A blob of an earlier format is refused.
The standardisation of training is folded into the first layer, so the core has no normaliser.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.errors import BlobError

Array = NDArray[np.float32]

MAGIC: Final = 0x4C535742
FORMAT: Final = 2
HEADER: Final = struct.Struct("<IIQIII")
LOADED_SECONDS: Final = np.float32(0.03)  # LS_LOADED_SECONDS in csrc/model.h
LEAST_TPOT: Final = 1e-4
MAX_LAYERS: Final = 4
MAX_HIDDEN: Final = 128


class Network(NamedTuple):
    """The correction in units of rows; layers: (out, in) weight and (out,) bias, first to last."""

    clip_low: Array
    clip_high: Array
    range_low: Array
    range_high: Array
    layers: list[tuple[Array, Array]]


class Heads(NamedTuple):
    """What is predicted besides the time to the first token; these values: nothing is known."""

    upper: tuple[float, float] = (math.log(2.0), math.log(2.0))  # log factor: no queue, queue
    answer: float = 0.0  # tokens of an answer
    tpot: Array | None = None  # (W,) coefficients, seconds

    @property
    def slopes(self) -> Array:
        return np.zeros(features.WIDTH, np.float32) if self.tpot is None else self.tpot


class Blob(NamedTuple):
    """The contents of a weight blob. network is None for a linear one."""

    version: int
    linear: Array
    bound: float
    network: Network | None
    heads: Heads = Heads()

    def predict_upper(self, x: Array) -> NDArray[np.float64]:
        """Seconds to the first token, in all but one case of ten."""
        loaded = x[:, features.INDEX["queue_seconds"]] > LOADED_SECONDS
        return self.predict(x) * np.exp(np.where(loaded, self.heads.upper[1], self.heads.upper[0]))

    def predict_tpot(self, x: Array) -> NDArray[np.float64]:
        """Seconds for each token after the first."""
        return np.maximum(x.astype(np.float64) @ self.heads.slopes.astype(np.float64), LEAST_TPOT)

    def predict(self, x: Array) -> NDArray[np.float64]:
        """Seconds for rows (n, W): what the core computes, as a reference for tests."""
        out = np.maximum(x.astype(np.float64) @ self.linear.astype(np.float64), 1e-4)
        if self.network is None:
            return out
        n = self.network
        z = np.clip(x, n.clip_low, n.clip_high).astype(np.float64)
        for i, (weight, bias) in enumerate(n.layers):
            z = (np.maximum(z, 0.0) if i else z) @ weight.T.astype(np.float64) + bias
        inside = ((x >= n.range_low) & (x <= n.range_high)).all(axis=1)
        return out * np.exp(np.where(inside, np.clip(z[:, 0], -self.bound, self.bound), 0.0))


def fold(
    layers: list[tuple[Array, Array]], mean: NDArray[Any], inverse_std: NDArray[Any]
) -> list[tuple[Array, Array]]:
    """The layers with the standardisation z = (x - mean) inverse_std inside the first one."""
    weight, bias = (part.astype(np.float64) for part in layers[0])
    weight = weight * inverse_std
    bias = bias - weight @ mean
    return [(weight.astype(np.float32), bias.astype(np.float32)), *layers[1:]]


def pack(blob: Blob) -> bytes:
    """The bytes of a blob. Raises BlobError if the core would refuse them."""
    width, network = features.WIDTH, blob.network
    layers = network.layers if network else []
    head = HEADER.pack(MAGIC, FORMAT, features.SCHEMA_HASH, blob.version, width, len(layers))
    parts: list[bytes] = [head]
    if layers:
        dims = [width, *(len(bias) for _, bias in layers)]
        parts.append(struct.pack(f"<{len(dims)}I", *dims))
    parts += [struct.pack("<f", blob.bound), _floats(blob.linear)]
    if network:
        parts += [_floats(part) for part in network[:4]]
        parts += [_floats(part) for layer in layers for part in layer]
    heads = blob.heads
    parts += [struct.pack("<3f", *heads.upper, heads.answer), _floats(heads.slopes)]
    data = b"".join(parts)
    parse(data)
    return data


def _floats(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, kind: str = "<f4") -> NDArray[Any]:
        """The next count numbers of four bytes."""
        end = self.at + 4 * count
        if end > len(self.data):
            raise BlobError(f"weight blob of {len(self.data)} bytes is cut short")
        out = np.frombuffer(self.data, kind, count, self.at)
        self.at = end
        return out


@functools.lru_cache(maxsize=4)
def parse(data: bytes) -> Blob:
    """Read a blob by the rules of the core. Raises BlobError naming what does not fit.

    The newest are remembered: a round asks for the blob in use and the one it makes again.
    """
    if len(data) < HEADER.size:
        raise BlobError(f"weight blob of {len(data)} bytes has no header")
    magic, format_, schema, version, width, depth = HEADER.unpack_from(data)
    if magic != MAGIC or format_ != FORMAT:
        raise BlobError(f"weight blob has magic {magic:#x}, format {format_}, not {FORMAT}")
    if schema != features.SCHEMA_HASH or width != features.WIDTH:
        raise BlobError(f"weight blob has feature schema {schema:#x} of {width} columns")
    if depth > MAX_LAYERS:
        raise BlobError(f"weight blob has {depth} layers, more than {MAX_LAYERS}")
    reader = _Reader(data)
    reader.at = HEADER.size
    dims = reader.take(depth + 1, "<u4").tolist() if depth else []
    if depth and (dims[0] != width or dims[-1] != 1 or not all(0 < d <= MAX_HIDDEN for d in dims)):
        raise BlobError(f"weight blob has layers of {dims}")
    bound = float(reader.take(1)[0])
    linear = reader.take(width)
    network = None
    if depth:
        clip_low, clip_high, range_low, range_high = (reader.take(width) for _ in range(4))
        layers = [
            (reader.take(a * b).reshape(b, a), reader.take(b))
            for a, b in zip(dims[:-1], dims[1:], strict=True)
        ]
        network = Network(clip_low, clip_high, range_low, range_high, layers)
    light, loaded, answer = reader.take(3).tolist()
    heads = Heads((light, loaded), answer, reader.take(width))
    if reader.at != len(data):
        raise BlobError(f"weight blob has {len(data) - reader.at} bytes too many")
    _check_finite(bound, linear, network)
    if not np.isfinite([light, loaded, answer, *heads.slopes]).all():
        raise BlobError("weight blob has a head that is not finite")
    if answer < 0 or (heads.slopes < 0).any():
        raise BlobError("weight blob has a head with a negative coefficient")
    return Blob(version, linear, bound, network, heads)


def _check_finite(bound: float, linear: Array, network: Network | None) -> None:
    numbers: list[NDArray[Any]] = [np.array([bound]), linear]
    if network:
        numbers += [network.clip_low, network.clip_high]
        numbers += [part for layer in network.layers for part in layer]
        if np.isnan(network.range_low).any() or np.isnan(network.range_high).any():
            raise BlobError("weight blob has a range that is not a number")
    if not all(np.isfinite(part).all() for part in numbers) or bound < 0:
        raise BlobError("weight blob has a number that is not finite")
