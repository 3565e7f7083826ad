"""An engine that says exactly what a test tells it to, on a socket of the test's own event loop.

GET paths are looked up in `pages`: bytes are sent as they are, a whole HTTP answer; None means that
nothing is ever answered. POST starts an answer as SSE: each item put into `events` is sent as it
is, None ends the stream.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def page(body: bytes, status: int = 200) -> bytes:
    """A whole answer with a length."""
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class TinyEngine:
    """`async with TinyEngine() as engine`: listens on engine.port until the end of the block."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | None] = {
            "/health": page(b""),
            "/v1/models": page(b'{"object":"list","data":[{"id":"tiny","object":"model"}]}'),
            "/metrics": page(
                b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"
                b"vllm:kv_cache_usage_perc 0.5\nvllm:prompt_tokens_total 7\n"
            ),
        }
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.asked: list[str] = []  # "METHOD path" of each request
        self.connections = 0
        self.got_post = asyncio.Event()
        self.heads: list[bytes] = []  # of each request
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()  # those between two requests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """Refuse connections, of checks too; requests under way go on."""
        self._server.close()
        for task in self._idle:
            task.cancel()

    async def stop(self) -> None:
        """As if the process had died."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> TinyEngine:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                self._idle.add(task)
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                self._idle.discard(task)
                head = self.heads[-1].decode()
                method, path = head.split(" ", 2)[:2]
                self.asked.append(f"{method} {path}")
                length = 0
                for line in head.lower().split("\r\n"):
                    if line.startswith("content-length:"):
                        length = int(line.partition(":")[2])
                await reader.readexactly(length)
                if method == "POST":
                    await self._stream(writer)
                    continue
                answer = self.pages.get(path, page(b"", 404))
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
                if b"connection: close" in answer.lower():
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            self._tasks.discard(task)
            self._idle.discard(task)
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        self.got_post.set()
        while (event := await self.events.get()) is not None:
            writer.write(chunk(event))
        writer.write(b"0\r\n\r\n")
