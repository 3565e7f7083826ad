"""What happens next, in virtual time: a heap of calls on a VirtualClock.

Calls due at one time are made in the order in which they were planned, so a run is a pure function
of what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from lodestar_fast.clock import VirtualClock


class Events:
    """Calls to come. The clock stands at the time of the call being made."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Plan call(*args). ValueError (from the clock, when its turn comes) if that is past."""
        self._planned += 1
        heappush(self._heap, (time, self._planned, call, args))

    def step(self) -> bool:
        """Make the next call; whether there was one."""
        if not self._heap:
            return False
        time, _, call, args = heappop(self._heap)
        self.clock.advance_to(time)
        call(*args)
        return True
