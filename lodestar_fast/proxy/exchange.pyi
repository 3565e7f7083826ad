"""Types of proxy/exchange.pyx."""

from __future__ import annotations

from lodestar_fast.proxy.context import Context as Context
from lodestar_fast.proxy.context import Instance as Instance
from lodestar_fast.proxy.counters import OUTCOMES as OUTCOMES
from lodestar_fast.proxy.counters import Counters as Counters

TRANSITIONS: dict[str, dict[str, str]]  # state -> event -> next state; nothing else is allowed

class Client:
    """The downstream side as an exchange sees it: the base of Downstream."""

class Exchange:
    """One request's life. Belongs to one Downstream, which uses it for one request at a time."""

    @property
    def state(self) -> str:
        """A key of TRANSITIONS."""
