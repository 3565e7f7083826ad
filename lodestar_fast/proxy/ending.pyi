"""Types of proxy/ending.pyx: its class is for the compiled modules beside it."""

from __future__ import annotations

class Ending:
    """The base of Exchange."""

    @property
    def state(self) -> str:
        """One of states.STATES."""
