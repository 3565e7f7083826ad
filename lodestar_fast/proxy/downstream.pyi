"""Types of proxy/downstream.pyx."""

from __future__ import annotations

from asyncio import BaseTransport

from lodestar_fast.proxy.context import Context

class Downstream:
    """One client connection: the protocol that the data port gives to loop.create_server()."""

    def __init__(self, context: Context) -> None: ...
    @property
    def busy(self) -> bool:
        """A request is being read, runs, or its answer is being sent."""
    @property
    def blocked(self) -> bool:
        """The client does not take what was sent to it; its engine is not read meanwhile."""
    @property
    def unsent(self) -> int:
        """Bytes of answers that the kernel has not taken yet."""
    def connection_made(self, transport: BaseTransport) -> None: ...
    def get_buffer(self, sizehint: int) -> bytearray: ...
    def buffer_updated(self, n: int) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
