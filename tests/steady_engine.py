"""An engine on the test's own event loop that takes as long as it is told, for any number of
requests at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.fake_engine import DONE_EVENT, HEAD_SSE, token, usage

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_EVENT = b'data: {"choices":[],"usage":%b}\n\n'


class _Connection(asyncio.Protocol):
    def __init__(self, engine: SteadyEngine) -> None:
        self._engine = engine
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._flooding: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._engine._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._engine.left += 1
        if self._flooding is not None:
            self._flooding.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            after = head.lower().partition(b"content-length: ")[2]
            length = int(after.partition(b"\r")[0] or 0)
            if len(rest) < length:
                return
            body, self._buffer = rest[:length], rest[length:]
            if head.startswith(b"POST"):
                self._generate(json.loads(body))
            else:
                models = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else b"{}"
                self._plain(models)

    def _plain(self, body: bytes) -> None:
        self._transport.write(_OK % len(body))
        self._transport.write(body)  # by itself: a long one is not copied

    def _generate(self, request: dict[str, Any]) -> None:
        engine = self._engine
        engine.requests += 1
        stream = request.get("stream", False)
        if stream:  # as vLLM does: before the request has its turn
            self._transport.write(HEAD_SSE)
        self._timer = asyncio.get_running_loop().call_later(engine.delay, self._answer, stream)

    def _answer(self, stream: bool) -> None:
        self._timer = None
        engine = self._engine
        if not stream:
            self._plain(engine.answer)
            return
        if engine.flood is not None:
            self._flooding = asyncio.ensure_future(self._flood(*engine.flood))
            return
        text = b"".join(
            b"%x\r\n%b\r\n" % (len(event), event)
            for event in (token(0), token(1), _EVENT % engine.usage, DONE_EVENT)
        )
        self._transport.write(text + b"0\r\n\r\n")

    async def _flood(self, piece: bytes, pieces: int) -> None:
        for _ in range(pieces):
            self._transport.write(piece)
            await self._writable.wait()
        self._transport.write(b"0\r\n\r\n")

    def abort(self) -> None:
        self._transport.abort()


class SteadyEngine:
    """`async with SteadyEngine(delay) as engine`: listens at engine.url.

    delay: seconds to the answer, whatever else runs. answer: to requests that are not streamed.
    flood: to those that are, some chunks and how often they come; None: a short stream.
    """

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.answer = b'{"choices":[]}'
        self.usage = usage(100, 2, 0)
        self.flood: tuple[bytes, int] | None = None
        self.requests = 0
        self.left = 0  # connections that ended before their answer
        self._connections: set[_Connection] = set()

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> SteadyEngine:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", 0, backlog=4096
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, whatever runs on them."""
        for connection in list(self._connections):
            connection.abort()
