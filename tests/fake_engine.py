"""An engine that does as it is told, faults included, and remembers what it was asked.

Each request is answered by the next entry of `script`, or by `default` when that is used up. An
answer is a coroutine function of the Call; the functions below make the usual ones. Facts to wait
for are events: Call.gone, FakeEngine.called().
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Answer = Callable[["Call"], Awaitable[None]]

HEAD_JSON = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
HEAD_SSE = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
ERROR_EVENT = (
    b'data: {"error": {"message": "try again later", "type": "Service Unavailable", '
    b'"param": null, "code": 503}}\n\n'
)
DONE_EVENT = b"data: [DONE]\n\n"


def token(i: int) -> bytes:
    """The i-th event of a completion stream."""
    return b'data: {"id":"cmpl-1","choices":[{"text":"t%d","finish_reason":null}]}\n\n' % i


def usage(prompt: int, output: int, cached: int) -> bytes:
    """A usage object, as vLLM writes it."""
    return json.dumps(
        {
            "prompt_tokens": prompt,
            "total_tokens": prompt + output,
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    ).encode()


class Call:
    """One request, and the connection it came on."""

    def __init__(self, connection: _Connection, head: bytes, body: bytes) -> None:
        self.connection = connection
        self.head = head
        self.body = body
        self.sent = 0  # for answers that count
        self.gone = asyncio.Event()  # the peer closed the connection
        line, *fields = head.split(b"\r\n")
        self.method, self.target, self.version = line.split(b" ")
        self.fields = [tuple(f.split(b": ", 1)) for f in fields if f]

    def field(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    def send(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def close(self) -> None:
        """End the connection in an orderly way."""
        self.connection.transport.close()

    def reset(self) -> None:
        """End the connection by a reset."""
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.buffer = b""
        self.calls: list[Call] = []
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.engine.connections.append(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            call = Call(self, head, b"")
            (length,) = call.field(b"content-length")
            if len(rest) < int(length):
                return
            call.body, self.buffer = rest[: int(length)], rest[int(length) :]
            self.calls.append(call)
            self.engine.take(call)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.remove(self)
        for call in self.calls:
            call.gone.set()


class FakeEngine:
    """Listens on a port of its own between start() and stop()."""

    def __init__(self, default: Answer | None = None) -> None:
        self.default = default or plain(200, b'{"ok":true}')
        self.script: deque[Answer] = deque()
        self.calls: list[Call] = []
        self.connections: list[_Connection] = []
        self.port = 0
        self._new: asyncio.Queue[Call] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._errors: list[BaseException] = []

    async def start(self) -> FakeEngine:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def abort(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Close everything. Raises what an answer raised."""
        self.abort()
        if self._errors:
            raise self._errors[0]

    def take(self, call: Call) -> None:
        self.calls.append(call)
        self._new.put_nowait(call)
        answer = self.script.popleft() if self.script else self.default
        task = asyncio.ensure_future(answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def called(self) -> Call:
        """The next request not yet waited for."""
        return await self._new.get()


# -- answers --


def plain(status: int, body: bytes, extra: bytes = b"") -> Answer:
    """A whole answer with a length. extra: further field lines."""

    async def answer(call: Call) -> None:
        fields = b"content-type: application/json\r\n%b" % extra
        fields += b"content-length: %d\r\n" % len(body)
        call.send(b"HTTP/1.1 %d Reason\r\n%b\r\n%b" % (status, fields, body))

    return answer


def stream(*events: bytes, close: bool = False) -> Answer:
    """An event stream, one chunk an event, to its proper end."""

    async def answer(call: Call) -> None:
        call.send(HEAD_SSE)
        for event in events:
            call.chunk(event)
        call.send(b"0\r\n\r\n")
        if close:
            call.close()

    return answer


def raw(data: bytes, close: bool = False, gate: asyncio.Event | None = None) -> Answer:
    """These bytes, once the gate is open."""

    async def answer(call: Call) -> None:
        if gate is not None:
            await gate.wait()
        call.send(data)
        if close:
            call.close()

    return answer


def pieces(queue: asyncio.Queue[bytes | None], end: str = "close") -> Answer:
    """Bytes as they come out of the queue; None ends: "close", "reset" or "keep"."""

    async def answer(call: Call) -> None:
        while (data := await queue.get()) is not None:
            call.send(data)
        if end == "close":
            call.close()
        elif end == "reset":
            call.reset()

    return answer


async def reset(call: Call) -> None:
    """Reset the connection before the first byte."""
    call.reset()


async def hang_up(call: Call) -> None:
    """Close the connection before the first byte."""
    call.close()


async def stall(call: Call) -> None:
    """Never answer."""
    await call.gone.wait()


async def head_only(call: Call) -> None:
    """What vLLM does while a request is queued: status 200 at once, and nothing behind it."""
    call.send(HEAD_SSE)
    await call.gone.wait()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
