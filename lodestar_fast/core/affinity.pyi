"""Types of core/affinity.pyx. What each policy does is in its docstring there."""

from __future__ import annotations

from lodestar_fast.core.policies import Policy

class PrefixCache(Policy): ...

class PrefixThreshold(Policy):
    def __init__(
        self,
        *,
        threshold: float = 0.5,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def threshold(self) -> float: ...

class Preble(Policy):
    def __init__(
        self,
        *,
        threshold: float = 0.5,
        rebalance: float = 1.5,
        window: float = 180.0,
        output_tokens: float = 200.0,
    ) -> None: ...
    @property
    def threshold(self) -> float: ...
    @property
    def rebalance(self) -> float: ...
    @property
    def window(self) -> float: ...
    @property
    def output_tokens(self) -> float: ...

class CacheAware(Policy):
    def __init__(
        self, *, cache_threshold: float = 0.5, balance_abs: float = 32.0, balance_rel: float = 1.1
    ) -> None: ...
    @property
    def cache_threshold(self) -> float: ...
    @property
    def balance_abs(self) -> float: ...
    @property
    def balance_rel(self) -> float: ...

class LlmdWeighted(Policy):
    def __init__(
        self,
        *,
        prefix: float = 2.0,
        queue: float = 1.0,
        kv: float = 1.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def prefix(self) -> float: ...
    @property
    def queue(self) -> float: ...
    @property
    def kv(self) -> float: ...

class LlmdSticky(Policy):
    def __init__(
        self,
        *,
        waiting: int = 5,
        kv: float = 0.8,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def waiting(self) -> int: ...
    @property
    def kv(self) -> float: ...

class SessionAffinity(Policy):
    def __init__(
        self,
        *,
        bound: float = 1.25,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def bound(self) -> float: ...
