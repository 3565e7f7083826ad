"""What long runs need: engines that keep their port, a router before them, clients that count."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.fake_engine import free_port
from tests.test_server import Lodestar, request

PAGE = os.sysconf("SC_PAGE_SIZE")


class Engine:
    """`lodestar engine` on a port that it keeps over restarts."""

    def __init__(self, speedup: float) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._speedup = speedup

    async def start(self) -> Engine:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lodestar_fast", "engine", "--port", str(self.port)),
            *("--speedup", str(self._speedup), "--model", "m"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        while True:
            try:
                await request(self.port, "GET /health")
                return self
            except OSError:
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()


class Bed:
    """A router before engines."""

    def __init__(self, engines: list[Engine], lodestar: Lodestar) -> None:
        self.engines = engines
        self.lodestar = lodestar

    @classmethod
    async def start(cls, engines: int, speedup: float, *options: str) -> Bed:
        them = [await Engine(speedup).start() for _ in range(engines)]
        urls = [engine.url for engine in them]
        quick = ("--health-check-interval", "0.2", "--log-level", "error")
        lodestar = await Lodestar.start("--worker-urls", *urls, *quick, *options)
        bed = cls(them, lodestar)
        await bed.healthy(engines)
        return bed

    async def healthy(self, n: int) -> None:
        wanted = b'"healthy":true'
        await self.lodestar.until(
            "/workers", lambda _, text: text.count(wanted) == n, self.lodestar.admin
        )

    async def stop(self) -> None:
        if self.lodestar.process.returncode is None:
            self.lodestar.process.kill()
            await self.lodestar.end()
        for engine in self.engines:
            await engine.stop()

    def memory(self) -> float:
        """Resident MB of the router."""
        pages = Path(f"/proc/{self.lodestar.process.pid}/statm").read_text().split()[1]
        return int(pages) * PAGE / 1e6

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.lodestar.process.pid}/fd"))


def body_of(rng: random.Random, stream: bool, tokens: int = 8, prompt: int = 200) -> bytes:
    text = f"{rng.randrange(50)} " * prompt + str(rng.random())
    return json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            "max_tokens": tokens,
        }
    ).encode()


class Client:
    """One kept-alive connection, opened when needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def ask(self, body: bytes, path: str = "/v1/chat/completions") -> tuple[str, bytes]:
        """The outcome ("200", "503", ..., "cut") and the answer's body."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            text = b""
            if b"chunked" in head:
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    text += (await self._reader.readexactly(size + 2))[:-2]
                await self._reader.readexactly(2)
            else:
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                text = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            self.close()
            return "cut", b""
        if b"connection: close" in head:
            self.close()
        return head.split(b" ")[1].decode(), text


async def many(
    count: int, at_once: int, one: Callable[[Client, int], Awaitable[None]], port: int
) -> None:
    """one(client, i) for each i below count, at_once of them at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        client = Client(port)
        for i in numbers:
            await one(client, i)
        client.close()

    await asyncio.gather(*(work() for _ in range(at_once)))
