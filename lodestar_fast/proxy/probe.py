"""A GET client for health checks and scrapes: one kept-alive connection, one question at a time.

Engines are buggy and may be hostile, so each answer has a cap on its size and on its time, and any
irregularity (bytes nobody asked for, a head that does not parse, an upgrade) drops the connection.
It shares nothing with the connections that carry requests: a probe that hangs holds up only itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from lodestar_fast.errors import LodestarError

# What a head may take on top of the body's cap; the same figure as for the engines' answers.
_HEAD_BYTES = 64 << 10


class ProbeError(LodestarError):
    """No usable answer. kind: refused, unreachable, timeout, closed, malformed or too_large."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind


# Called with an answer's status and body, and the seconds it took; returns the seconds until the
# next question, None if there is to be none.
Heard = Callable[[int, bytes, float], float | None]


class Series(NamedTuple):
    """Questions asked one after the other."""

    question: Callable[[], bytes]
    timeout: float  # seconds, of each
    heard: Heard


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

    async def repeat(self, path: str, timeout: float, heard: Heard) -> None:
        """GET path again and again: two thirds of get()'s cost, for no task wakes for an answer.

        Each is given to `heard`; until that says that it was the last one, or ProbeError is raised,
        as by get().
        """
        pause: float | None = 0.0
        while pause is not None:
            line, self._line = self._line, None
            if line is None or not line.usable:
                try:
                    async with asyncio.timeout(timeout):
                        line = await self._connect()
                except TimeoutError:
                    raise ProbeError("timeout", f"no connection in {timeout:g} s") from None
            try:
                pause = await line.repeat(Series(lambda: self._question(path), timeout, heard))
            except BaseException as e:
                line.abort()
                # As in get(): an engine may close a connection that is idle.
                if not isinstance(e, ProbeError) or e.kind != "closed":
                    raise
                if line.received or not line.answers:
                    raise
                continue
            if line.usable:
                self._line = line
            elif pause is not None:
                await asyncio.sleep(pause)

    def _question(self, path: str) -> bytes:
        return b"GET %b %b%b\r\n" % (path.encode(), self._fields, self._credential)

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
            answer = await line.ask(self._question(path))
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
        self.answers = 0
        self._max_bytes = max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._asked = False  # an answer is to come
        self._asked_at = 0.0
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._series: Series | None = None
        self._ended: asyncio.Future[float | None] | None = None  # the series
        self._timer: asyncio.TimerHandle | None = None
        self._restart()

    def _restart(self) -> None:
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._status = 0
        self._framed = False  # has a length or is chunked; else the body ends with the connection
        self._keep = False

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._answer = self._loop.create_future()
        self._send(request)
        return await self._answer

    async def repeat(self, series: Series) -> float | None:
        """Ask until it was the last time, or no further question can be asked here; returns what
        was said after the last answer."""
        if not self.usable:
            raise ProbeError("closed")
        self._series, self._ended = series, self._loop.create_future()
        self._next()
        try:
            return await self._ended
        finally:
            self._series = None
            if self._timer is not None:
                self._timer.cancel()

    def _next(self) -> None:
        """The next question of a series; none if the connection was closed meanwhile."""
        assert self._series is not None and self._ended is not None
        if not self.usable:
            self._ended.set_result(0.0)
            return
        self._asked_at = time.monotonic()
        self._timer = self._loop.call_later(self._series.timeout, self._late)
        self._send(self._series.question())

    def _late(self) -> None:
        assert self._series is not None
        self._fail("timeout", f"no answer in {self._series.timeout:g} s")

    def _send(self, request: bytes) -> None:
        assert self._transport is not None
        self.usable = False
        self.received = 0
        self._asked = True
        self._restart()
        self._transport.write(request)

    def abort(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, kind: str, text: str = "") -> None:
        for waiting in (self._answer, self._ended):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ProbeError(kind, text))
        self.abort()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._fail("malformed", "bytes that nobody asked for")
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
        if self._asked:
            self._fail("closed")

    # -- httptools --

    def on_message_begin(self) -> None:
        if not self._asked:
            self._fail("malformed", "a second answer to one question")
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
        if not self._asked:
            return
        self._asked = False
        self.answers += 1
        self.usable = self._keep and self._framed
        body = b"".join(self._body)
        if self._series is not None:
            self._told(self._series, body)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result((self._status, body))
        if not self.usable:
            self.abort()

    def _told(self, series: Series, body: bytes) -> None:
        """An answer of a series is in."""
        assert self._ended is not None and self._timer is not None
        self._timer.cancel()
        if self._ended.done():
            return
        try:
            pause = series.heard(self._status, body, time.monotonic() - self._asked_at)
        except Exception as e:
            self._ended.set_exception(e)
            return
        if pause is None or not self.usable:
            self._ended.set_result(pause)
            return
        self.received = 0
        self._timer = self._loop.call_later(pause, self._next)
