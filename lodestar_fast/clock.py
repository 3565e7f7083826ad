"""Where time comes from. Drivers are given a Clock; nothing below them reads one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a monotonic axis whose zero means nothing."""
        ...


class MonotonicClock:
    """The machine's monotonic clock: unmoved by changes of the date."""

    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """Time that moves only when told; the simulator's."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance_to(self, t: float) -> None:
        """Move to t. Raises ValueError if that is in the past."""
        if t < self._now:
            raise ValueError(f"cannot move back from {self._now} to {t}")
        self._now = t
