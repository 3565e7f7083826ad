"""Types of core/learned.pyx."""

from __future__ import annotations

from typing import Any

from lodestar_fast.core.aims import Aims
from lodestar_fast.core.policies import Policy

class Lodestar(Policy):
    def __init__(
        self,
        *,
        margin: float = 1.10,
        load_weight: float = 0.005,
        wait_weight: float = 0.2,
        crowd_weight: float = 0.2,
        spare_weight: float = 0.5,
        affinity_weight: float = 1.0,
        kv_weight: float = 2.0,
        kv_start: float = 0.85,
        explore_share: float = 0.01,
        objective: str = "ttft",
        tpot_weight: float = 0.3,
        price_weight: float = 0.0,
    ) -> None:
        """objective and the last two weights: of Aims. Raises ValueError for a margin below 1, a
        negative weight, a share beyond 0 to 1 or an unknown objective.
        """
    @property
    def aims(self) -> Aims: ...
    @property
    def margin(self) -> float: ...
    @property
    def load_weight(self) -> float: ...
    @property
    def wait_weight(self) -> float: ...
    @property
    def crowd_weight(self) -> float: ...
    @property
    def spare_weight(self) -> float: ...
    @property
    def affinity_weight(self) -> float: ...
    @property
    def kv_weight(self) -> float: ...
    @property
    def kv_start(self) -> float: ...
    @property
    def explore_share(self) -> float: ...
    @property
    def saved(self) -> float:
        """Seconds by which it may choose worse than the best now, to try idle engines."""
    @property
    def spent(self) -> float:
        """Those that tries have cost so far, by its own scores; in the shadow, would have."""
    def predict(self, rows: Any, seconds: Any, *, simd: str | None = None, repeat: int = 1) -> int:
        """Score rows of scaled features, outside any decision: for tests, benches, validation.

        rows: buffer of float32 [n][WIDTH]; seconds: writable buffer of float32 [n], filled with
        predicted TTFTs; simd: a key of SIMDS, the best one if None; repeat: so often, for timing.
        Returns how many rows were out of range. Raises ValueError if sizes differ or there are no
        weights, KeyError for instructions that this processor lacks.
        """

SIMDS: dict[str, int]  # what this processor can run of "portable", "avx2"; the last one is used
