"""Sample batches in: checked, counted, and kept as arrays.

Everything the learner ever sees of the outside passes Buffer.add(). A batch of another format or
schema is refused whole (BlobError); a row with a number that cannot be is dropped and counted, for
an engine or a client may produce any measurement, and one NaN would spoil every sum it enters.

What is kept teaches a time to the first token: those that were measured, and, of requests given up
before it (by the client, or at a time limit), the time waited, which is a lower bound. Without
these a fleet in trouble would look quick, for those that waited longest would leave no trace. An
engine's error is neither: when it comes says nothing of how long an answer would have taken.

Layout of a batch, little endian (written by Router.drain()):

    u32 magic | u32 format | u64 schema hash | u32 rows | u32 bytes a row | rows
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import reward, tenants
from lodestar_fast.shares import VERIFIED

MAGIC = 0x4C53534D
FORMAT = 2
HEADER = struct.Struct("<IIQII")

# Values of core.Event as they stand in a row; the learner may not import the core.
FIRST_TOKEN, DONE, FAILED, ABANDONED, TIMEOUT = 0, 3, 4, 5, 6
GIVEN_UP = (ABANDONED, TIMEOUT)
KINDS = ("first_token", "done", "failed", "censored", "cut", "refused")

LEAST_VERIFIED = 32  # rows for a judgement
MAX_TTFT = 3600.0  # seconds; request_timeout's default, beyond it a measurement is a mistake
MAX_FEATURE = 1e6  # rows are scaled to about 1 in size; a million is no measurement either


def plausible(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row of a batch could be: finite numbers about 1 in size, and a base."""
    x = rows["x"]
    out: NDArray[np.bool_] = np.isfinite(rows["dispatched"])
    out &= (np.abs(x) <= MAX_FEATURE).all(axis=1) & (x[:, features.INDEX["base"]] == 1.0)
    return out


class Archive(Protocol):
    """Which of the rows that the ring gives up are worth keeping, and in place of which others."""

    size: int

    def places(self, x: NDArray[np.float32]) -> list[int]:
        """For each row of (n, W): its place in 0..size, or -1. A later one may take it again."""
        ...


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
    """The newest rows, in a ring of arrays; behind it, if there is one, an archive of older ones.

    x: (n, W) float32 rows as the policy saw them; ttft: (n,) seconds to the first token, or, where
    censored is set, waited for it in vain; time: (n,) seconds at which that ended, on the router's
    clock; tenant: (n,) who asked. n = capacity, of which the archive's part lies at the end.
    The ring is ordered by arrival of the samples; `fresh()` are those since the last `settle()`.

    counts: rows by kind, where "cut" was given up after its first token, which another row told of.
    """

    def __init__(self, capacity: int = 6000, archive: Archive | None = None) -> None:
        self.capacity = capacity
        self.ring = capacity - (archive.size if archive else 0)
        # By column in memory: what a round asks of all rows is asked column by column.
        self.x: NDArray[np.float32] = np.zeros((features.WIDTH, capacity), np.float32).T
        self.ttft: NDArray[np.float32] = np.zeros(capacity, np.float32)
        self.time: NDArray[np.float64] = np.zeros(capacity, np.float64)
        self.censored: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self.tenant: NDArray[np.uint32] = np.zeros(capacity, np.uint32)
        self.total = 0  # rows ever kept
        self.counts = dict.fromkeys(KINDS, 0)
        self.newest = -np.inf  # the latest time of any row, seconds
        self._archive = archive
        self._archived: NDArray[np.bool_] = np.zeros(capacity - self.ring, np.bool_)
        self._settled = 0
        self._alone = True  # whether all rows so far were one tenant's

    def __len__(self) -> int:
        return min(self.total, self.ring) + int(self._archived.sum())

    @property
    def measured(self) -> int:
        """First tokens ever seen."""
        return self.counts["first_token"]

    def add(self, batch: bytes) -> int:
        """Take a batch; return how many first tokens it held. Raises BlobError."""
        rows = decode(batch)
        event, ttft, dispatched = rows["event"], rows["ttft"], rows["dispatched"]
        first, given_up = event == FIRST_TOKEN, np.isin(event, GIVEN_UP)
        done, failed = event == DONE, event == FAILED
        waited = given_up & ~np.isnan(ttft)
        sane = (first | given_up | done | failed) & plausible(rows)
        sane &= ~(first | waited) | ((ttft >= 0.0) & (ttft < MAX_TTFT))
        kinds = (first, done, failed, waited, given_up & ~waited)
        for kind, which in zip(KINDS, (*(k & sane for k in kinds), ~sane), strict=True):
            self.counts[kind] += int(which.sum())

        keep = np.flatnonzero(sane & (first | waited))
        if len(keep):
            self._append(rows[keep], waited[keep])
        if sane.any():
            self.newest = max(self.newest, float(dispatched[sane].max()))
        return int((sane & first).sum())

    def _append(self, rows: NDArray[Any], censored: NDArray[np.bool_]) -> None:
        """Write rows behind the newest; of more than the ring holds, the last ones."""
        ends = rows["dispatched"] + rows["ttft"]
        self.newest = max(self.newest, float(ends.max()))
        for start in range(0, len(rows), self.ring):
            part = slice(start, min(start + self.ring, len(rows)))
            count = part.stop - start
            at = np.arange(self.total, self.total + count) % self.ring
            if self._archive is not None:
                self._put_away(self._archive, at[max(0, self.ring - self.total) :])
            self.x[at], self.ttft[at] = rows["x"][part], rows["ttft"][part]
            self.time[at], self.censored[at] = ends[part], censored[part]
            self.tenant[at] = rows["tenant"][part]
            self.total += count
            self._alone = self._alone and bool((rows["tenant"] == self.tenant[0]).all())

    def _put_away(self, archive: Archive, at: NDArray[np.intp]) -> None:
        """Rows that are about to be overwritten, oldest first: the archive may want some."""
        for row, place in zip(at, archive.places(self.x[at]), strict=True):
            if place >= 0:
                to = self.ring + place
                for column in (self.x, self.ttft, self.time, self.censored, self.tenant):
                    column[to] = column[row]
                self._archived[place] = True

    def held(self) -> slice | NDArray[np.intp]:
        """Where all rows are that there are: what to index a column with."""
        ring = min(self.total, self.ring)
        if not self._archived.any():
            return slice(0, ring)
        return np.concatenate([np.arange(ring), self.ring + np.flatnonzero(self._archived)])

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.intp]:
        """Positions of so many rows at random; no tenant's more often than tenants.py allows."""
        held, n = self.held(), len(self)
        if self._alone:
            pick = rng.integers(0, n, count)
        else:
            odds = np.cumsum(tenants.factors(self.tenant[held], np.ones(n)))
            pick = np.searchsorted(odds, rng.random(count) * odds[-1], side="right")
        return pick if isinstance(held, slice) else held[pick]

    def shares(self, at: NDArray[np.intp]) -> NDArray[np.float64]:
        """(n,) factors on the weights of those rows in a fit, so that no tenant weighs too much."""
        if self._alone:
            return np.ones(len(at))
        held, out = self.held(), np.ones(self.capacity)
        out[held] = tenants.factors(self.tenant[held], reward.weight(reward.work(self.x[held])))
        return out[at]

    def latest(self, count: int) -> NDArray[np.intp]:
        """Positions of the newest rows, oldest first; at most so many."""
        return np.arange(self.total - min(count, self.total, self.ring), self.total) % self.ring

    def verified(self, count: int) -> NDArray[np.intp]:
        """Of the newest rows the operator's own, at most so many; none if they are few."""
        newest = self.latest(self.ring)
        found: NDArray[np.intp] = newest[self.tenant[newest] == VERIFIED][-count:]
        return found if len(found) >= LEAST_VERIFIED else found[:0]

    def fresh(self) -> NDArray[np.intp]:
        """Positions of the rows that came since settle(), oldest first (never seen by a fit)."""
        return self.latest(self.total - self._settled)

    def settle(self) -> None:
        """Call the present rows seen."""
        self._settled = self.total
