"""Types of core/policies.pyx."""

from __future__ import annotations

from typing import Any, final

from lodestar_fast.core.enums import Reason

@final
class Candidates:
    """The routable instances of one decision, one row each; valid only inside pick().

    Rows are ordered by slot. Columns are those of csrc/features.h, already scaled.
    """

    @property
    def n(self) -> int: ...
    @property
    def reason(self) -> Reason | None: ...  # pick() sets it; None before
    @reason.setter
    def reason(self, value: int) -> None: ...
    predicted: float  # pick() sets it: predicted TTFT of its choice in seconds, or leaves NaN
    def slot(self, i: int) -> int: ...
    def feature(self, i: int, name: str) -> float: ...
    def own_tokens(self, i: int) -> float: ...  # prompt tokens not believed cached on i
    def queued_tokens(self, i: int) -> float: ...  # uncached tokens ahead on i, progress deducted
    def hit_tokens(self, i: int) -> int: ...
    def inflight(self, i: int) -> int: ...
    def waiting(self, i: int) -> int: ...
    def random(self) -> float: ...  # uniform in [0, 1) from the router's seed
    @property
    def prompt_tokens(self) -> int: ...

class Policy:
    """Chooses one candidate.

    Contract: pick() returns 0 <= i < c.n and sets c.reason; reads no clock; draws randomness only
    from c.random(); does not allocate. Every subclass is run through tests/test_policies.py.
    """

    name: str
    def pick(self, c: Candidates) -> int: ...
    def load(self, blob: bytes) -> int:
        """Take weights; a policy without a model ignores them. Returns the version in use.

        Raises BlobError if they are refused; those in use stay.
        """
    @property
    def version(self) -> int: ...  # of the weights in use, 0 if none

class RoundRobin(Policy): ...
class Random(Policy): ...
class LeastRequest(Policy): ...
class PowerOfTwo(Policy): ...
class PrefixCache(Policy): ...
class Lmetric(Policy): ...

class Lodestar(Policy):
    def __init__(
        self,
        *,
        margin: float = 1.10,
        load_weight: float = 0.005,
        kv_weight: float = 2.0,
        kv_start: float = 0.85,
    ) -> None:
        """Raises ValueError for a margin below 1 or a negative weight."""
    @property
    def margin(self) -> float: ...
    @property
    def load_weight(self) -> float: ...
    @property
    def kv_weight(self) -> float: ...
    @property
    def kv_start(self) -> float: ...
    def predict(self, rows: Any, seconds: Any, *, simd: str | None = None, repeat: int = 1) -> int:
        """Score rows of scaled features, outside any decision: for tests, benches, validation.

        rows: buffer of float32 [n][WIDTH]; seconds: writable buffer of float32 [n], filled with
        predicted TTFTs; simd: a key of SIMDS, the best one if None; repeat: so often, for timing.
        Returns how many rows were out of range. Raises ValueError if sizes differ or there are no
        weights, KeyError for instructions that this processor lacks.
        """

SIMDS: dict[str, int]  # what this processor can run of "portable", "avx2"; the last one is used
POLICIES: dict[str, type[Policy]]
