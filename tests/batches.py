"""Sample batches as Router.drain() makes them, from values the test chooses."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features

HEADER = struct.Struct("<IIQII")
MAGIC = 0x4C53534D
FIRST_TOKEN, DONE, FAILED, ABANDONED, TIMEOUT = 0, 3, 4, 5, 6


def rows(count: int, **columns: Any) -> NDArray[Any]:
    """count rows: base 1, the named features as given, every other number 0 or unknown."""
    out = np.zeros(count, features.sample_dtype())
    for name in ("ttft", "e2e", "tpot", "predicted", "reference"):
        out[name] = np.nan
    out["x"][:, features.INDEX["base"]] = 1.0
    for name, values in columns.items():
        if name in features.INDEX:
            out["x"][:, features.INDEX[name]] = values
        else:
            out[name] = values
    return out


def pack(
    rows: NDArray[Any], *, magic: int = MAGIC, format: int = 2, schema: int | None = None
) -> bytes:
    """A batch of these rows."""
    schema = features.SCHEMA_HASH if schema is None else schema
    return HEADER.pack(magic, format, schema, len(rows), rows.dtype.itemsize) + rows.tobytes()


def physical(rng: np.random.Generator, count: int, start: float = 0.0) -> NDArray[Any]:
    """A healthy fleet: TTFT = 0.05 + own + queue + 0.3 decode_seconds, with 5 % noise."""
    own, decode = rng.uniform(0.01, 0.6, count), rng.uniform(0, 0.3, count)
    queue = rng.exponential(0.05, count)
    ttft = (0.05 + own + queue + 0.3 * decode) * np.exp(rng.normal(0, 0.05, count))
    return rows(
        count,
        dispatched=start + np.sort(rng.random(count)),
        own_seconds=own,
        queue_seconds=queue,
        decode_seconds=decode,
        hit_ratio=rng.random(count),
        ttft=ttft,
        event=FIRST_TOKEN,
    )
