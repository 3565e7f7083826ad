"""Seeded mutations of requests and of engines' answers, and what must hold for each of them.

Requests: whatever a client sends, an engine gets only whole requests that the router has written
anew, each answer to the client is well-framed, and the router never answers 500, 502, 503 or 504.
Answers: whatever an engine sends, the client gets a well-framed answer or one that shows as cut,
and gets it in time; no byte of it comes with another request's answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools

from tests.fake_engine import DONE_EVENT, ERROR_EVENT, HEAD_JSON, HEAD_SSE, token
from tests.proxy_rig import Rig

BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
_LENGTH = b"Content-Length: %d\r\n" % len(BODY)
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
_GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
_SMUGGLED = b"POST /v1/completions HTTP/1.1\r\nHost: smuggled\r\nContent-Length: 2\r\n\r\n{}"

REQUESTS = [
    _POST + _LENGTH + b"\r\n" + BODY,
    _POST + _LENGTH + b"Content-Type: application/json\r\nX-Request-Id: abc\r\n\r\n" + BODY,
    _POST + _CHUNKED + b"\r\n",
    _POST + _CHUNKED + b"X-Trailer: 1\r\nContent-Length: 9\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n5;ext=1\r\n" + BODY[:5] + b"\r\n0\r\n\r\n",
    _POST + _LENGTH + b"Expect: 100-continue\r\n\r\n" + BODY,
    _POST + _LENGTH + b"Connection: upgrade, x-a\r\nUpgrade: h2c\r\nX-A: 1\r\n\r\n" + BODY,
    _POST + _LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    (_POST + _LENGTH + b"\r\n" + BODY) * 2 + _GET,
    _GET + _POST + _CHUNKED + b"\r\n" + _GET,
    b"POST http://a/v1/completions HTTP/1.0\r\n" + _LENGTH + b"\r\n" + BODY,
    b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n" + _GET,
]

ANSWERS = [
    HEAD_JSON + b"content-length: 11\r\n\r\n" + b'{"ok":true}',
    HEAD_JSON + b"content-length: 99\r\n\r\n" + b'{"ok":true}',
    HEAD_JSON + b"content-length: 5\r\n\r\n" + b'{"ok":true}HTTP/1.1 200 OK\r\n',
    HEAD_JSON + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    HEAD_JSON + b"content-length: -1\r\n\r\nabc",
    HEAD_JSON + b"content-length: 99999999999999999999\r\n\r\nabc",
    HEAD_JSON + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD_JSON + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\nHTTP/1.1 200 OK",
    HEAD_JSON + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
    HEAD_JSON + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD_JSON + b"transfer-encoding: gzip\r\n\r\nabc",
    HEAD_JSON + b"\r\nuntil the end",
    HEAD_JSON + b"x: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\nabc",
    b"HTTP/1.1 304 Not Modified\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + HEAD_JSON + b"content-length: 2\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 300,
    b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nabc",
    b"HTTP/1.0 200 OK\r\n\r\nold",
    b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}",
    b"<html>not found</html>",
    b"",
    HEAD_SSE + b"%x\r\n%b\r\n" % (len(token(0)), token(0)) + b"0\r\n\r\n",
    HEAD_SSE + b"%x\r\n%b\r\n" % (len(ERROR_EVENT), ERROR_EVENT) + b"0\r\n\r\n",
    HEAD_SSE + b"%x\r\n%b\r\n" % (len(DONE_EVENT), DONE_EVENT),
    HEAD_SSE + b"5\r\ndata:\r\n" + b"1;" + b"x" * 9000 + b"\r\na\r\n",
    HEAD_SSE + b'38\r\ndata: {"choices":[],"usage":{"prompt_tokens":1e999999999}}\r\n',
]

_PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"-", b"+"),
    *(b"\xff", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n"),
    *(b"Host: b\r\n", b"HTTP/1.1", b"HTTP/1.0\r\n", b"0\r\n\r\n", b"Connection: close\r\n", _GET),
    *(b"Content-Length: 99\r\n", b" HTTP/1.1\r\n", b"\x80\r\n", b"x" * 300, _SMUGGLED),
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to four small changes."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 40)))
        match rng.randrange(6):
            case 0:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at] + rng.choice(_PIECES) + data[at:]
            case 3:
                data = data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:]
            case 4:
                lines = data.split(b"\r\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                data = b"\r\n".join(lines)
            case 5:
                data = data[:at] if rng.random() < 0.2 else data.replace(b"\r\n", b"\n", 1)
    return data


_HOP = (b"transfer-encoding:", b"expect:", b"te:", b"connection:", b"upgrade:")


class Answers:
    """Reads what a client got, by a parser that is not the router's: the statuses, and the body.

    bad: it is no sequence of HTTP/1.1 answers. whole: the last one is complete.
    """

    def __init__(self, data: bytes, heads: bool = False) -> None:
        self.statuses: list[int] = []
        self.body = b""
        self.whole = True
        self.bad = ""
        if heads:  # HEAD is among the requests: what has no body cannot be told from outside
            self.statuses = [int(s) for s in re.findall(rb"HTTP/1\.1 (\d\d\d) ", data)]
            return
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self.bad = repr(e)

    def on_message_begin(self) -> None:
        self.whole = False

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


class Engine(asyncio.Protocol):
    """Notes each request that is not what the router writes; answers well, or with `answer`."""

    def __init__(self, faults: Counter[str], answers: asyncio.Queue[bytes] | None) -> None:
        self._buffer = b""
        self._faults = faults
        self._answers = answers

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            line, *fields = head.split(b"\r\n")
            lengths = [f for f in fields if f.lower().startswith(b"content-length:")]
            good = (
                re.fullmatch(rb"POST /[!-~]* HTTP/1\.1", line)
                and all(re.fullmatch(rb"[!-9;-~]+: ?[^\0\r\n]*", f) for f in fields)
                and len(lengths) == 1
                and sum(f.lower().startswith(b"host:") for f in fields) == 1
                and not any(f.lower().startswith(_HOP) for f in fields)
                and b"host: 127.0.0.1:" in head
            )
            if not good:
                self._faults[f"engine got {head[:200]!r}"] += 1
                self._transport.abort()
                return
            n = int(lengths[0].partition(b":")[2])
            if len(rest) < n:
                return
            self._buffer = rest[n:]
            if self._answers is None:
                self._transport.write(ANSWERS[0])
                continue
            # None is left when the router repeats what a kept connection ended under.
            empty = self._answers.empty()
            self._transport.write(ANSWERS[0] if empty else self._answers.get_nowait())
            if self._answers.qsize() % 3:
                self._transport.close()


class _Errors(logging.Handler):
    """What the router logs as errors is a fault."""

    def __init__(self, faults: Counter[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        self._faults[self.format(record)] += 1


@asynccontextmanager
async def hostile_rig(
    faults: Counter[str], answers: asyncio.Queue[bytes] | None = None, **limits: Any
) -> AsyncIterator[Rig]:
    """A rig before one Engine."""
    from lodestar_fast.core.policies import RoundRobin

    rig = Rig(0, limits, RoundRobin(), {})
    await rig.start()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(faults, answers), "127.0.0.1", 0)
    rig.add(server.sockets[0].getsockname()[1])
    handler = _Errors(faults)
    logging.getLogger().addHandler(handler)
    loop.set_exception_handler(lambda _, about: faults.update([str(about)]))
    try:
        yield rig
        await rig.stop()
    finally:
        logging.getLogger().removeHandler(handler)
        server.close()


async def _exchange(port: int, pieces: list[bytes], patience: float) -> tuple[bytes, bool]:
    """What comes back, and whether the connection ended within patience seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        async with asyncio.timeout(patience):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            while data := await reader.read(65536):
                got += data
        return got, True
    except TimeoutError:
        return got, False
    except OSError:
        return got, True
    finally:
        writer.transport.abort()


async def _all(count: int, one: Any, at_once: int = 32) -> None:
    """one(i) for each i below count, some at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for i in numbers:
            await one(i)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def fuzz_requests(seed: int, count: int) -> tuple[Counter[str], Counter[int]]:
    """Faults by description, and how often each status came."""
    faults: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    async with hostile_rig(faults) as rig:

        async def one(i: int) -> None:
            rng = random.Random(f"{seed}/{i}")
            base = rng.choice(REQUESTS)
            data = mutate(rng, base)
            cut = rng.randrange(len(data) + 1)
            pieces = [data] if rng.random() < 0.5 else [data[:cut], data[cut:]]
            got, _ = await _exchange(rig.port, pieces, 0.1)
            answers = Answers(got, heads=b"HEAD" in data)
            seen.update(answers.statuses)
            if answers.bad or {500, 502, 503, 504} & set(answers.statuses):
                faults[f"{seed}/{i} {data[:300]!r} -> {got[:300]!r} {answers.bad}"] += 1

        await _all(count, one)
    return faults, seen


async def fuzz_answers(seed: int, count: int) -> tuple[Counter[str], Counter[int]]:
    """The same for engines' answers."""
    faults: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    limits = {"first_byte_timeout": 0.3, "stream_idle_timeout": 0.3, "max_retries": 0}
    async with hostile_rig(faults, queue, **limits) as rig:
        request = json.loads(BODY)
        request["stream"] = True
        body = json.dumps(request).encode()
        post = _POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body

        async def one(i: int) -> None:
            rng = random.Random(f"{seed}/{i}")
            answer = rng.choice(ANSWERS)
            queue.put_nowait(answer if rng.random() < 0.2 else mutate(rng, answer))
            got, ended = await _exchange(rig.port, [post], 10.0)
            answers = Answers(got)
            seen.update(answers.statuses)
            own = b"internal_error" in got
            if answers.bad or own or not ended or len(answers.statuses) > 1:
                faults[f"{seed}/{i} {answer[:300]!r} -> {got[:300]!r} {answers.bad}"] += 1

        await _all(count, one)
    return faults, seen
