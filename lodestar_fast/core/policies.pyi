"""Types of core/policies.pyx."""

from __future__ import annotations

from lodestar_fast.core.router import Reason

class Candidates:
    """The routable instances of one decision, one row each; valid only inside pick().

    Rows are ordered by slot. Columns are those of csrc/features.h, already scaled.
    """

    n: int
    reason: Reason  # pick() sets it
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
        """Take weights, if this policy has any. Returns their version. Raises BlobError."""
    @property
    def version(self) -> int: ...  # of the weights in use, 0 if none

class RoundRobin(Policy): ...
class Random(Policy): ...
class LeastRequest(Policy): ...
class PowerOfTwo(Policy): ...
class PrefixCache(Policy): ...
class Lmetric(Policy): ...
class Lodestar(Policy): ...

POLICIES: dict[str, type[Policy]]
