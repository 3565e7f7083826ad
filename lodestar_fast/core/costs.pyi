"""Types of core/costs.pyx. What each policy does is in its docstring there."""

from __future__ import annotations

from lodestar_fast.core.policies import Policy

class Lmetric(Policy): ...

class Mooncake(Policy):
    def __init__(
        self,
        *,
        transfer: float = 0.0,
        balance: float = 1.5,
    ) -> None:
        """Raises ValueError for a value that makes no sense."""
    @property
    def transfer(self) -> float: ...
    @property
    def balance(self) -> float: ...

class Dynamo(Policy):
    def __init__(
        self, *, overlap_weight: float = 1.0, temperature: float = 0.0, block_tokens: float = 16.0
    ) -> None: ...
    @property
    def overlap_weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def block_tokens(self) -> float: ...

class ExpectedCompletion(Policy):
    def know(self, slot: int, c: float, w: float) -> None:
        """The coefficients of a slot, seconds per token and per iteration.

        Raises ValueError if they make no sense.
        """
