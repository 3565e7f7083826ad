"""Types of proxy/exchange.pyx."""

from __future__ import annotations

class Exchange:
    """One request's life. Belongs to one Downstream, which uses it for one request at a time."""

    @property
    def state(self) -> str:
        """A key of states.TRANSITIONS."""
