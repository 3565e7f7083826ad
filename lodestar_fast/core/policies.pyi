"""Types of core/policies.pyx."""

from __future__ import annotations

from typing import final

from lodestar_fast.core.affinity import CacheAware as CacheAware
from lodestar_fast.core.affinity import LlmdSticky as LlmdSticky
from lodestar_fast.core.affinity import LlmdWeighted as LlmdWeighted
from lodestar_fast.core.affinity import Preble as Preble
from lodestar_fast.core.affinity import PrefixCache as PrefixCache
from lodestar_fast.core.affinity import PrefixThreshold as PrefixThreshold
from lodestar_fast.core.affinity import SessionAffinity as SessionAffinity
from lodestar_fast.core.costs import Dynamo as Dynamo
from lodestar_fast.core.costs import ExpectedCompletion as ExpectedCompletion
from lodestar_fast.core.costs import Lmetric as Lmetric
from lodestar_fast.core.costs import Mooncake as Mooncake
from lodestar_fast.core.enums import Reason
from lodestar_fast.core.heuristics import LeastKV as LeastKV
from lodestar_fast.core.heuristics import LeastLatency as LeastLatency
from lodestar_fast.core.heuristics import LeastPrefillTokens as LeastPrefillTokens
from lodestar_fast.core.heuristics import LeastRequest as LeastRequest
from lodestar_fast.core.heuristics import PowerOfTwo as PowerOfTwo
from lodestar_fast.core.heuristics import Random as Random
from lodestar_fast.core.heuristics import RoundRobin as RoundRobin
from lodestar_fast.core.heuristics import Throughput as Throughput
from lodestar_fast.core.heuristics import VllmDP as VllmDP
from lodestar_fast.core.learned import Lodestar as Lodestar

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

def feature_table() -> list[tuple[str, str, float, str]]:
    """The rows of csrc/features.h: (name, unit, scale, help)."""

def schema_hash() -> int:
    """64-bit FNV-1a over "name|unit|scale;" of all rows."""

POLICIES: dict[str, type[Policy]]
