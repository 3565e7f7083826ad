"""What a router costs: processor time a request and an event, memory a stream and an engine.

    python bench/sizing.py [--policy lodestar]

Starts `lodestar serve` before engines that answer at once, loads it, and reads the router's own
processor time and resident memory from /proc, so that client and engines do not count. A table row
a figure. Half a minute; quiet machines repeat within some percent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "tests" / "data" / "vllm-0.32.0-metrics.txt").read_bytes()
TICK = os.sysconf("SC_CLK_TCK")
BYTES = os.sysconf("SC_PAGE_SIZE")


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


ANSWER = whole(
    b'{"choices":[{"text":"hello"}],"usage":{"prompt_tokens":256,"completion_tokens":1}}'
)
GETS = {
    b"/metrics": whole(PAGE),
    b"/v1/models": whole(b'{"object":"list","data":[{"id":"m","object":"model"}]}'),
}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"cmpl-1","choices":[{"text":" word","finish_reason":null}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Engine(asyncio.Protocol):
    """Answers at once; a streamed request gets an event at each beat of pace()."""

    streams: set[asyncio.Transport] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.held = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, found, body = self.held.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(body) < length:
            return
        self.held = b""
        path = head.split(b" ", 2)[1]
        write = self.transport.write
        if not head.startswith(b"POST"):
            write(GETS.get(path, whole(b"")))
        elif b'"stream": true' in body:
            write(HEAD)
            self.streams.add(self.transport)
        else:
            write(ANSWER)

    @classmethod
    async def pace(cls, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            for transport in list(cls.streams):
                transport.write(CHUNK)


def free_ports(n: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Router:
    """A `lodestar serve` before engines on these ports."""

    def __init__(self, ports: list[int], policy: str) -> None:
        self.port, self.admin = free_ports(2)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lodestar_fast", "serve", "--policy", policy),
                *("--port", str(self.port), "--admin-port", str(self.admin)),
                *("--host", "127.0.0.1", "--log-level", "error", "--worker-urls"),
                *(f"http://127.0.0.1:{port}" for port in ports),
            ],
            cwd=ROOT,
        )

    def cpu(self) -> float:
        """Seconds of processor time so far, all threads."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(text[11]) + int(text[12])) / TICK

    def memory(self) -> float:
        """Resident, MB."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * BYTES / 1e6

    async def ready(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET /readiness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                if b" 200 " in await reader.readline():
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def body(tokens: int, stream: bool) -> bytes:
    """A request whose prompt nobody has seen, 4 bytes a token."""
    text = "".join(random.choices("abcdefghijklmnop ", k=4 * tokens))
    data = json.dumps({"model": "m", "prompt": text, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data)
    return head + data


async def unary(router: Router, clients: int, seconds: float, tokens: int) -> tuple[float, int]:
    """Processor seconds, requests."""
    bodies = [body(tokens, False) for _ in range(200)]
    until = time.monotonic() + seconds
    done = 0

    async def ask() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        while time.monotonic() < until:
            writer.write(random.choice(bodies))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            await reader.readexactly(length)
            done += 1
        writer.close()

    before = router.cpu()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return router.cpu() - before, done


class Sink(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        pass


async def streams(router: Router, n: int, pause: float, seconds: float) -> tuple[float, float]:
    """Processor time an event in us; memory a stream in kB."""
    loop = asyncio.get_running_loop()
    before = router.memory()
    transports = []
    for _ in range(n):
        transport, _ = await loop.create_connection(Sink, "127.0.0.1", router.port)
        transport.write(body(256, True))
        transports.append(transport)
    while len(Engine.streams) < n:
        await asyncio.sleep(0.05)
    pacing = asyncio.ensure_future(Engine.pace(pause))
    await asyncio.sleep(1)
    start = router.cpu()
    began = time.monotonic()
    await asyncio.sleep(seconds)
    events = n * (time.monotonic() - began) / pause
    cost = (router.cpu() - start) / events * 1e6
    size = (router.memory() - before) * 1000 / n
    pacing.cancel()
    for transport in transports:
        transport.abort()
    return cost, size


async def idle(router: Router, seconds: float) -> float:
    """Share of a core."""
    start = router.cpu()
    await asyncio.sleep(seconds)
    return (router.cpu() - start) / seconds


async def main(policy: str) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", 0) for _ in range(64)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    for n in (1, 8, 64):
        router = Router(ports[:n], policy)
        try:
            await router.ready()
            await asyncio.sleep(8)  # torch
            print(f"{n:3} engines: idle {await idle(router, 5):6.1%} of a core", flush=True)
            print(f"{n:3} engines: {router.memory():.0f} MB", flush=True)
            for tokens in (256, 4096):
                cpu, done = await unary(router, 32, 4, tokens)
                print(
                    f"{n:3} engines: {cpu / done * 1e6:.0f} us a request of {tokens} tokens, "
                    f"{done / cpu:.0f} requests a second of a core",
                    flush=True,
                )
            if n == 8:
                cost, size = await streams(router, 1000, 0.1, 4)
                print(
                    f"{n:3} engines: 1000 streams, {cost:.1f} us an event, {size:.0f} kB a stream"
                )
        finally:
            router.stop()
    for server in servers:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", default="lodestar")
    uvloop.run(main(parser.parse_args().policy))
