"""One HTTP/1.1 client connection of a simulated engine.

Made by sim/engine_http for each accepted socket. Parses with httptools, answers pages itself and
hands generations to its Replica. Formats are in sim/engine_openai.

Behaves as vLLM 0.32 was seen to: 200 and the headers come at once, before the first token; usage is
in a stream only if asked for; a client that closes, or half-closes, loses its request; a connection
idle for 5 s after an answer is closed, one never used is not; requests may be pipelined.

Tokens are the hot path: one write for each, of pieces built when the request came. What a client
does not read piles up in the transport, bounded by the length of its answer.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from typing import cast

import httptools

from lodestar_fast.errors import ClientError
from lodestar_fast.sim import engine_openai as openai
from lodestar_fast.sim.engine_replica import Replica

KEEP_ALIVE = 5.0  # seconds; vLLM's default
MAX_BODY = 64 << 20  # bytes
MAX_PIPELINED = 8  # requests read ahead of the one being answered
VERSION = "0.32.0"  # the vLLM whose pages and formats are imitated
GENERATE = {b"/v1/chat/completions": True, b"/v1/completions": False}  # path: is it a chat
STATUS = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed",
    413: b"Request Entity Too Large", 503: b"Service Unavailable",
}  # fmt: skip


class Generating:
    """One generation on its way to a client."""

    __slots__ = (
        "arrival",
        "cached",
        "chunks",
        "connection",
        "created",
        "generation",
        "identity",
        "rid",
    )

    def __init__(
        self, connection: Connection, generation: openai.Generation, identity: bytes
    ) -> None:
        self.connection = connection
        self.generation = generation
        self.identity = identity
        self.rid = 0
        self.arrival = 0.0
        self.cached = 0
        self.created = int(datetime.now(UTC).timestamp())
        self.chunks = openai.Chunks(generation.chat, identity, self.created, connection.model_json)

    def on_token(self, generated: int, finished: bool) -> None:
        chunks, write = self.chunks, self.connection.write
        if not self.generation.stream:
            if finished:
                self.connection.finish_plain(self)
            return
        word = openai.word(generated - 1)
        if not finished:
            piece = chunks.head + word + chunks.tail
            write(chunks.role + piece if generated == 1 else piece)
            return
        what = self.generation
        counts = None
        if what.include_usage:
            counts = openai.usage(what.prompt_tokens, what.output_tokens, self.cached)
        piece = chunks.last_head + word + chunks.last_tail + chunks.end(counts)
        write(chunks.role + piece if generated == 1 else piece)
        self.connection.on_answered()


class Request:
    """One parsed HTTP request."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "size")

    def __init__(self) -> None:
        self.path = b""
        self.method = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.size = 0
        self.keep_alive = True


class Connection(asyncio.Protocol):
    """One client connection; also the callbacks of its httptools parser."""

    def __init__(self, replica: Replica, connections: set[Connection]) -> None:
        self.replica = replica
        self.model_json = json.dumps(replica.model).encode()
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = Request()
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._answer: Generating | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._paused = False
        self._transport: asyncio.Transport
        self.write: Callable[[bytes], None]

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.write = self._transport.write
        self._connections.add(self)

    def abort(self) -> None:
        """Cut the connection, as a process that dies does."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._stop_idling()
        self._waiting.clear()
        self._drop_answer()

    def eof_received(self) -> None:
        """A half-close ends the request too, as in vLLM; the transport closes itself."""
        self._drop_answer()

    def data_received(self, data: bytes) -> None:
        self._stop_idling()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused in on_message_complete
        except httptools.HttpParserCallbackError:
            raise  # a mistake of ours: the loop logs it and closes the connection
        except httptools.HttpParserError:
            self._fail(400, "Invalid HTTP request received.")

    # httptools

    def on_message_begin(self) -> None:
        self._incoming = Request()

    def on_url(self, url: bytes) -> None:
        self._incoming.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._incoming.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._incoming.headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._incoming.size += len(data)
        if self._incoming.size > MAX_BODY:
            self._incoming.body.clear()
            self._fail(413, f"a body has at most {MAX_BODY} bytes")
            return
        self._incoming.body.append(data)

    def on_message_complete(self) -> None:
        request = self._incoming
        if self._parser.should_upgrade():
            self._fail(400, "upgrades are not supported")
            return
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        if self._transport.is_closing():
            return
        if self._current is None and not self._waiting:
            self._serve(request)
            return
        self._waiting.append(request)
        if len(self._waiting) >= MAX_PIPELINED and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # answering

    def _serve(self, request: Request) -> None:
        self._current = request
        path = request.path.partition(b"?")[0]
        chat = GENERATE.get(path)
        if path == b"/reset_prefix_cache" and request.method == b"POST":
            done = self.replica.reset_prefix_cache()
            self._respond(200 if done else 503, b"" if done else b'{"detail":"blocks are in use"}')
        elif chat is None:
            self._serve_page(request, path)
        elif request.method != b"POST":
            self._respond(405, b'{"detail":"Method Not Allowed"}', extra=b"allow: POST\r\n")
        else:
            try:
                self._generate(request, chat)
            except ClientError as error:
                self._respond(error.status, openai.error_body(error))

    def _generate(self, request: Request, chat: bool) -> None:
        kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise openai.refusal(
                "Unsupported Media Type: Only 'application/json' is allowed", type="Bad Request"
            )
        replica = self.replica
        generation = openai.parse(
            b"".join(request.body), chat=chat, model=replica.model, engine=replica.spec
        )
        given = request.headers.get(b"x-request-id", b"").decode("latin-1")
        name = f"{'chatcmpl' if chat else 'cmpl'}-{given or secrets.token_hex(8)}"
        self._answer = Generating(self, generation, json.dumps(name).encode())
        if generation.stream:
            self.write(
                self._head(200)
                + b"content-type: text/event-stream; charset=utf-8\r\n"
                + b"transfer-encoding: chunked\r\n\r\n"
            )
        replica.submit(self._answer)

    def _serve_page(self, request: Request, path: bytes) -> None:
        replica, json_type = self.replica, b"application/json"
        if path == b"/health":
            body, kind = b"", b""
        elif path == b"/metrics":
            body, kind = replica.metrics.page(), b"text/plain; version=1.0.0; charset=utf-8"
        elif path == b"/version":
            body, kind = json.dumps({"version": VERSION}).encode(), json_type
        elif path == b"/v1/models":
            body, kind = _models(replica), json_type
        else:
            self._respond(404, b'{"detail":"Not Found"}')
            return
        if request.method != b"GET":
            self._respond(405, b'{"detail":"Method Not Allowed"}', extra=b"allow: GET\r\n")
        else:
            self._respond(200, body, kind)

    def finish_plain(self, answer: Generating) -> None:
        body = openai.answer(
            answer.generation.chat, answer.identity, answer.created, self.model_json,
            answer.generation, answer.cached,
        )  # fmt: skip
        self._respond(200, body)

    def _head(self, status: int) -> bytes:
        """Status line and the headers that every answer has."""
        assert self._current is not None
        head = b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: lodestar-engine\r\n" % (
            status,
            STATUS[status],
            formatdate(usegmt=True).encode(),
        )
        identity = self._current.headers.get(b"x-request-id")
        if identity is not None:
            head += b"x-request-id: %b\r\n" % identity
        return head if self._current.keep_alive else head + b"connection: close\r\n"

    def _respond(
        self, status: int, body: bytes, kind: bytes = b"application/json", extra: bytes = b""
    ) -> None:
        assert self._current is not None
        head = self._head(status) + extra + b"content-length: %d\r\n" % len(body)
        if kind:
            head += b"content-type: %b\r\n" % kind
        if self._current.method == b"HEAD":
            body = b""
        self.write(head + b"\r\n" + body)
        self.on_answered()

    def on_answered(self) -> None:
        """The answer to the current request has been written: the next, or wait for it."""
        assert self._current is not None
        keep_alive = self._current.keep_alive
        self._current = self._answer = None
        if not keep_alive:
            self._transport.close()
        elif self._waiting:  # not now: this may be called from within the Replica
            self.replica.loop.call_soon(self._serve_waiting)
        elif not self._transport.is_closing():
            self._idle = self.replica.loop.call_later(KEEP_ALIVE, self._transport.close)

    def _serve_waiting(self) -> None:
        if self._transport.is_closing():
            return
        if self._current is None and self._waiting:
            self._serve(self._waiting.popleft())
        if self._paused and len(self._waiting) < MAX_PIPELINED:
            self._paused = False
            self._transport.resume_reading()

    def _fail(self, status: int, message: str) -> None:
        """Not HTTP, or too much of it: say so unless an answer is under way, and hang up."""
        if self._transport.is_closing():
            return
        self._drop_answer()
        if self._current is None:
            self._current = Request()
            self._current.keep_alive = False
            self._respond(status, openai.error_body(openai.refusal(message, status=status)))
        self._transport.close()

    def _drop_answer(self) -> None:
        if self._answer is not None:
            self.replica.cancel(self._answer)
            self._answer = None

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def _models(replica: Replica) -> bytes:
    model = {
        "id": replica.model,
        "object": "model",
        "created": replica.created,
        "owned_by": "vllm",
        "root": replica.model,
        "parent": None,
        "max_model_len": replica.spec.max_model_len,
        "permission": [],
    }
    return json.dumps({"object": "list", "data": [model]}).encode()
