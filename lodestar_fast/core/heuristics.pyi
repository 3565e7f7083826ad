"""Types of core/heuristics.pyx. What each policy does is in its docstring there."""

from __future__ import annotations

from lodestar_fast.core.policies import Policy

class RoundRobin(Policy): ...
class Random(Policy): ...
class LeastRequest(Policy): ...
class PowerOfTwo(Policy): ...
class LeastKV(Policy): ...
class LeastPrefillTokens(Policy): ...
class VllmDP(Policy): ...

class LeastLatency(Policy):
    def __init__(
        self,
        *,
        output_tokens: float = 200.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def output_tokens(self) -> float: ...

class Throughput(Policy):
    def __init__(
        self,
        *,
        seconds: float = 10.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def seconds(self) -> float: ...
