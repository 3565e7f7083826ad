from collections.abc import Callable
from typing import Any, final

from lodestar_fast.clock import VirtualClock

@final
class Events:
    """Calls to come. The clock, which nobody else moves, stands at the time of the call being made.

    Calls due at one time are made in the order in which they were planned.
    """

    clock: VirtualClock
    def __init__(self, clock: VirtualClock) -> None: ...
    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Plan call(*args).

        Raises ValueError for NaN; for what is past, the clock does when its turn comes.
        """
    def step(self) -> bool:
        """Make the next call; whether there was one."""
