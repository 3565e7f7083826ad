"""Types of proxy/upstream.pyx."""

from __future__ import annotations

from lodestar_fast.proxy.context import Context, Instance

class Pool:
    """Keep-alive connections to one engine, last used first. Made by the fleet for each Instance.

    instance.host and instance.port are read when a connection is opened.
    """

    heard_at: float  # when bytes of an answer came last, on any connection; -inf: never

    def __init__(self, context: Context, instance: Instance) -> None: ...
    @property
    def idle(self) -> int:
        """Connections waiting for a request."""
    @property
    def open(self) -> int:
        """Connections open or being opened."""
    @property
    def busy(self) -> int:
        """Connections that carry a request (opening ones included): the instance's requests."""
    def close(self) -> None:
        """Close the idle connections; the busy ones end with their request. Idempotent."""

class Upstream:
    """One connection to an engine: an asyncio protocol. Owned by an exchange while it is busy."""
