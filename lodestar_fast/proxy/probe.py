"""A GET client for health checks and scrapes: one kept-alive connection, one question at a time.

Engines are buggy and may be hostile, so each answer has a cap on its size and on its time, and any
irregularity (bytes nobody asked for, a head that does not parse, an upgrade) drops the connection.
It shares nothing with the connections that carry requests: a probe that hangs holds up only itself.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from lodestar_fast.errors import LodestarError

# What a head may take on top of the body's cap; the same figure as for the engines' answers.
_HEAD_BYTES = 64 << 10


class ProbeError(LodestarError):
    """No usable answer. kind: refused, unreachable, timeout, closed, malformed or too_large."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind


class Probe:
    """One engine's probe connection; opened when asked, reopened when lost."""

    def __init__(self, host: str, port: int, *, max_bytes: int) -> None:
        """max_bytes: longest body that is accepted."""
        self._host = host
        self._port = port
        self._max_bytes = max_bytes
        self._line: _Line | None = None
        name = f"[{host}]" if ":" in host else host
        self._fields = f"HTTP/1.1\r\nHost: {name}:{port}\r\nAccept: */*\r\n".encode("latin-1")
        self._credential = b""

    def authorize(self, key: bytes) -> None:
        """Show this key with each question; empty: none."""
        self._credential = b"Authorization: Bearer %b\r\n" % key if key else b""

    async def get(self, path: str, timeout: float) -> tuple[int, bytes]:
        """Status and body of GET path, within timeout seconds. Raises ProbeError."""
        try:
            async with asyncio.timeout(timeout):
                line, self._line = self._line, None
                if line is not None and line.usable:
                    try:
                        return await self._ask(line, path)
                    except ProbeError as e:
                        # The engine closed an idle connection as our bytes were on their way.
                        if e.kind != "closed" or line.received:
                            raise
                return await self._ask(await self._connect(), path)
        except TimeoutError:
            raise ProbeError("timeout", f"no answer in {timeout:g} s") from None

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(
                lambda: _Line(self._max_bytes), self._host, self._port
            )
        except ConnectionRefusedError:
            raise ProbeError("refused") from None
        except TimeoutError:
            raise ProbeError("timeout", "no connection") from None
        except (OSError, UnicodeError) as e:
            raise ProbeError("unreachable", str(e)) from None
        return line

    async def _ask(self, line: _Line, path: str) -> tuple[int, bytes]:
        try:
            answer = await line.ask(
                b"GET %b %b%b\r\n" % (path.encode(), self._fields, self._credential)
            )
        except BaseException:  # also when the time is up: what still comes belongs to nobody
            line.abort()
            raise
        if line.usable:
            self._line = line
        return answer

    def close(self) -> None:
        """Drop the connection. Idempotent; a later get() opens a new one."""
        if self._line is not None:
            self._line.abort()
            self._line = None


class _Line(asyncio.Protocol):
    """One connection and the answer under way on it."""

    def __init__(self, max_bytes: int) -> None:
        self.usable = False  # open, in step, and the engine keeps it
        self.received = 0  # bytes of the answer so far, head included
        self._max_bytes = max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._restart()

    def _restart(self) -> None:
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._status = 0
        self._framed = False  # has a length or is chunked; else the body ends with the connection
        self._keep = False

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.usable = False
        self.received = 0
        self._restart()
        self._transport.write(request)
        return await self._answer

    def abort(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, kind: str, text: str = "") -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ProbeError(kind, text))
        self.abort()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()  # nobody asked
            return
        self.received += len(data)
        if self.received > self._max_bytes + _HEAD_BYTES:
            self._fail("too_large", f"over {self._max_bytes} bytes")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._fail("malformed", str(e) or "upgrade")

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._status and not self._framed and exc is None:
            self._complete()
        self._fail("closed")

    # -- httptools --

    def on_message_begin(self) -> None:
        if self._answer is not None and self._answer.done():
            self.usable = False  # a second answer to one question
            self.abort()
        self._restart()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_bytes:
            self._fail("too_large", f"over {self._max_bytes} bytes")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status >= 200:  # else interim: the answer is still to come
            self._complete()

    def _complete(self) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self.usable = self._keep and self._framed
            self._answer.set_result((self._status, b"".join(self._body)))
            if not self.usable:
                self.abort()
