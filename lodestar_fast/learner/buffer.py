"""Sample batches in: checked, counted, and kept as arrays.

Everything the learner ever sees of the outside passes Buffer.add(). A batch of another format or
schema is refused whole (BlobError); a row with a number that cannot be is dropped and counted, for
an engine or a client may produce any measurement, and one NaN would spoil every sum it enters.

Layout of a batch, little endian (written by Router.drain()):

    u32 magic | u32 format | u64 schema hash | u32 rows | u32 bytes a row | rows
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.errors import BlobError

MAGIC = 0x4C53534D
FORMAT = 1
HEADER = struct.Struct("<IIQII")

# Values of core.Event as they stand in a row; the learner may not import the core.
FIRST_TOKEN, DONE, FAILED, ABANDONED, TIMEOUT = 0, 3, 4, 5, 6
KINDS = {
    FIRST_TOKEN: "first_token",
    DONE: "done",
    FAILED: "failed",
    ABANDONED: "censored",
    TIMEOUT: "censored",
}

MAX_TTFT = 3600.0  # seconds; request_timeout's default, beyond it a measurement is a mistake
MAX_FEATURE = 1e6  # rows are scaled to about 1 in size; a million is no measurement either


def decode(batch: bytes) -> NDArray[Any]:
    """The rows of a batch, as a read-only structured array of features.sample_dtype().

    Raises BlobError naming what does not fit.
    """
    if len(batch) < HEADER.size:
        raise BlobError(f"sample batch of {len(batch)} bytes has no header")
    magic, format_, schema, rows, row_bytes = HEADER.unpack_from(batch)
    dtype = features.sample_dtype()
    if magic != MAGIC:
        raise BlobError(f"sample batch starts with {magic:#010x}, not {MAGIC:#010x}")
    if format_ != FORMAT:
        raise BlobError(f"sample batch has format {format_}, not {FORMAT}")
    if schema != features.SCHEMA_HASH:
        raise BlobError(f"sample batch has schema {schema:#x}, not {features.SCHEMA_HASH:#x}")
    if row_bytes != dtype.itemsize:
        raise BlobError(f"sample rows have {row_bytes} bytes, not {dtype.itemsize}")
    if len(batch) != HEADER.size + rows * row_bytes:
        raise BlobError(f"sample batch of {rows} rows has {len(batch)} bytes")
    return np.frombuffer(batch, dtype, rows, HEADER.size)


class Buffer:
    """The newest first tokens, in a ring of arrays.

    x: (capacity, W) float32 rows as the policy saw them; ttft: (capacity,) seconds;
    time: (capacity,) seconds at which the first token came, on the router's clock.
    The ring is ordered by arrival of the samples; `fresh()` are those since the last `settle()`.
    """

    def __init__(self, capacity: int = 6000) -> None:
        self.capacity = capacity
        # By column in memory: what a round asks of all rows is asked column by column.
        self.x: NDArray[np.float32] = np.zeros((features.WIDTH, capacity), np.float32).T
        self.ttft: NDArray[np.float32] = np.zeros(capacity, np.float32)
        self.time: NDArray[np.float64] = np.zeros(capacity, np.float64)
        self.total = 0  # first tokens ever kept
        self.counts = {kind: 0 for kind in (*KINDS.values(), "refused")}
        self.newest = -np.inf  # the latest time of any row, seconds
        self._settled = 0

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def add(self, batch: bytes) -> int:
        """Take a batch; return how many first tokens it held. Raises BlobError."""
        rows = decode(batch)
        x, ttft, dispatched = rows["x"], rows["ttft"], rows["dispatched"]
        known = np.isin(rows["event"], list(KINDS))
        sane = known & np.isfinite(dispatched) & (np.abs(x) <= MAX_FEATURE).all(axis=1)
        sane &= x[:, features.INDEX["base"]] == 1.0
        first = rows["event"] == FIRST_TOKEN
        sane &= ~first | ((ttft >= 0.0) & (ttft < MAX_TTFT))
        self.counts["refused"] += int((~sane).sum())
        for event, kind in KINDS.items():
            self.counts[kind] += int((sane & (rows["event"] == event)).sum())

        keep = np.flatnonzero(sane & first)
        self._append(x[keep], ttft[keep], dispatched[keep] + ttft[keep])
        if len(rows) and sane.any():
            self.newest = max(self.newest, float(dispatched[sane].max()))
        return len(keep)

    def _append(self, x: NDArray[Any], ttft: NDArray[Any], time: NDArray[Any]) -> None:
        """Write rows behind the newest; of more than the ring holds, the last ones."""
        self.total += len(ttft)
        kept = min(len(ttft), self.capacity)
        if not kept:
            return
        at = np.arange(self.total - kept, self.total) % self.capacity
        self.x[at], self.ttft[at], self.time[at] = x[-kept:], ttft[-kept:], time[-kept:]
        self.newest = max(self.newest, float(time.max()))

    def fresh(self) -> NDArray[np.intp]:
        """Positions of the rows that came since settle(), oldest first (never seen by a fit)."""
        count = min(self.total - self._settled, self.capacity)
        return np.arange(self.total - count, self.total) % self.capacity

    def settle(self) -> None:
        """Call the present rows seen."""
        self._settled = self.total
