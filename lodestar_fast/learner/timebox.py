"""How long a round may take: asked between its steps, never inside one.

A round is a few milliseconds of work whose amount is bounded (STEPS batches, the rows of the
ring), but not what that takes: a slow or throttled core, swapped memory, batches queued for half a
minute. So it has a limit of processor time of its thread, which being kept from the core does not
use up. Past it batches wait for the next round and the network's further steps are left out; what
has been learned by then goes the way of all weights, through the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MOST_SECONDS: Final = 0.1  # of a round; the ordinary one takes 3 ms


def nothing() -> float:
    """The clock of a simulation: there the same work is done whatever it takes."""
    return 0.0


class TimeBox:
    """spent: processor seconds of the thread so far. overruns: rounds that were cut short."""

    def __init__(self, spent: Callable[[], float] = nothing, most: float = MOST_SECONDS) -> None:
        self.overruns = 0
        self._spent, self._most = spent, most
        self.open()

    def open(self) -> None:
        """A round begins."""
        self._began, self._noted = self._spent(), False

    @property
    def used(self) -> float:
        """Seconds since open()."""
        return self._spent() - self._began

    def full(self) -> bool:
        """Whether to stop here. Asked only where something would be left out: it is counted."""
        if self.used <= self._most:
            return False
        self.overruns += not self._noted
        self._noted = True
        return True
