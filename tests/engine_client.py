"""For tests of `lodestar engine`: engines in this process, and a raw HTTP client."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from lodestar_fast.sim.engine_http import Engines, start
from lodestar_fast.sim.gpus import parse_fleet

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello there"}]}


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a coroutine test as the engine runs: on uvloop, with a limit."""

    def runner(**fixtures: Any) -> None:
        uvloop.run(asyncio.wait_for(test(**fixtures), 60))

    runner.__name__ = test.__name__
    runner.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]  # for fixtures
    return runner


@asynccontextmanager
async def engines(fleet: str = "h100", **options: Any) -> AsyncIterator[Engines]:
    running = await start(parse_fleet(fleet), **options)
    try:
        yield running
    finally:
        await running.close()


class Client:
    """A raw connection to one engine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, method: str, path: str, body: object = None, headers: str = "") -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else dumps(body)
        if body is not None and "content-type" not in headers:
            headers += "content-type: application/json\r\n"
        headers = f"host: e\r\n{headers}content-length: {len(data)}\r\n\r\n"
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{headers}".encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return status, headers, body

    async def chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def ask(self, *request: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        self.send(*request, **options)
        return await self.answer()

    async def chat(self, **fields: Any) -> Any:
        status, _, body = await self.ask("POST", CHAT, {**HELLO, **fields})
        assert status == 200, body
        return json.loads(body)


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


@asynccontextmanager
async def connected(running: Engines, index: int = 0) -> AsyncIterator[Client]:
    port = int(running.urls[index].rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something that must happen has happened."""
    while not condition():
        await asyncio.sleep(0)
