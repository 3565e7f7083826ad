"""Many clients at once, most of them a nuisance, before the whole program; with figures.

    python -m tests.soak.crowds [idle drippers burst shed readers stream]

Prints a line a scenario; ends with status 1 if one did not hold. The suite runs them small.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from tests.fake_engine import token
from tests.soak.bed import Client
from tests.steady_engine import SteadyEngine
from tests.test_server import CHAT, Lodestar

Figures = dict[str, float]
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
_GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
PLAIN = CHAT.replace(b'"stream":true', b'"stream":false').replace(b"tiny", b"m")
STREAM = CHAT.replace(b"tiny", b"m")


def figures_of(scenario: Coroutine[Any, Any, Figures], patience: float = 240.0) -> Figures:
    """Run a scenario. Raises TimeoutError: uvloop would wait for ever for what does not come."""
    return uvloop.run(asyncio.wait_for(scenario, patience))


class Watched:
    """A router before an engine, and what it takes."""

    def __init__(self, lodestar: Lodestar, engine: SteadyEngine) -> None:
        self.lodestar = lodestar
        self.engine = engine
        self.port = lodestar.data

    def memory(self) -> float:
        """Resident MB."""
        pages = Path(f"/proc/{self.lodestar.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.lodestar.process.pid}/fd"))

    async def descriptors_left(self, base: int) -> int:
        """How many more than base are open once that is few, or after ten seconds."""
        end = time.monotonic() + 10.0
        while self.descriptors() > base + 70 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return self.descriptors() - base

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.lodestar.open()

    async def ask(self, body: bytes = PLAIN) -> str:
        client = Client(self.port)
        try:
            return (await client.ask(body))[0]
        finally:
            client.close()


@asynccontextmanager
async def watched(delay: float, *options: str) -> AsyncIterator[Watched]:
    async with SteadyEngine(delay) as engine:
        quiet = ("--policy", "lmetric", "--log-level", "error")
        lodestar = await Lodestar.start("--worker-urls", engine.url, *quiet, *options)
        try:
            await lodestar.ready()
            here = Watched(lodestar, engine)
            assert await here.ask() == "200"
            yield here
            await lodestar.stop()
        finally:
            if lodestar.process.returncode is None:
                lodestar.process.kill()
                await lodestar.end()


async def idle(n: int) -> Figures:
    """n clients that asked once and stay; one more is served all the same."""
    async with watched(0.0) as here:
        base, before = here.descriptors(), here.memory()
        crowd = []
        for _ in range(n):
            reader, writer = await here.open()
            writer.write(_GET)
            await reader.readuntil(b'{"status":"ok"}')
            crowd.append(writer)
        served = await here.ask()
        during = here.memory()
        open_at_most = here.descriptors() - base
        for writer in crowd:
            writer.transport.abort()
        return {
            "served": served == "200",
            "open": open_at_most,
            "before_mb": before,
            "during_mb": during,
            "descriptors_left": await here.descriptors_left(base),
        }


async def drippers(n: int, honest: int, timeout: float) -> Figures:
    """n clients that send a byte of a head or of a body from time to time; honest requests beside
    them. timeout: of heads and of bodies, in seconds."""
    options = ("--header-timeout", str(timeout), "--body-timeout", str(timeout))
    gone: Counter[str] = Counter()
    dripping = 0

    async def drip(port: int, in_body: bool) -> None:
        nonlocal dripping
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = _HEAD + (b"\r\n" if in_body else b"X: ")
        writer.write(data)
        dripping += 1
        ended = asyncio.ensure_future(reader.read())
        while not (await asyncio.wait([ended], timeout=timeout / 20))[0]:
            writer.write(b"x")
        gone["408" if b" 408 " in ended.result()[:20] else "else"] += 1
        writer.transport.abort()

    async with watched(0.0, *options) as here:
        base = here.descriptors()
        start = time.monotonic()
        crowd = [asyncio.ensure_future(drip(here.port, i % 2 == 1)) for i in range(n)]
        while dripping < n:
            await asyncio.sleep(0.01)
        client, took = Client(here.port), []
        for _ in range(honest):
            began = time.monotonic()
            outcome, _ = await client.ask(PLAIN)
            assert outcome == "200"
            took.append(time.monotonic() - began)
        client.close()
        await asyncio.gather(*crowd)
        return {
            "honest_p99_ms": sorted(took)[int(len(took) * 0.99)] * 1e3,
            "gone_408": gone["408"],
            "gone_else": gone["else"],
            "gone_after_s": time.monotonic() - start,
            "descriptors_left": await here.descriptors_left(base),
        }


async def burst(n: int, delay: float, *options: str) -> Figures:
    """n requests at once, each of which takes the engine delay seconds."""
    async with watched(delay, *options) as here:
        base = here.descriptors()
        start = time.monotonic()
        outcomes = Counter(await asyncio.gather(*(here.ask() for _ in range(n))))
        took = time.monotonic() - start
        calm = time.monotonic()
        after = await here.ask()
        return {
            **{f"answered_{outcome}": count for outcome, count in outcomes.items()},
            "seconds": took,
            "after_s": time.monotonic() - calm if after == "200" else float("inf"),
            "descriptors_left": await here.descriptors_left(base),
        }


async def readers(n: int, megabytes: int, timeout: float) -> Figures:
    """n clients that read nothing of an answer of so many MB. timeout: of writes, in seconds."""
    async with watched(0.0, "--write-timeout", str(timeout)) as here:
        here.engine.answer = b"x" * (megabytes << 20)
        base, before = here.descriptors(), here.memory()
        requests = here.engine.requests
        crowd = []
        for _ in range(n):
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port, limit=1024)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
                b"Content-Length: %d\r\n\r\n" % len(PLAIN) + PLAIN
            )
            crowd.append((reader, writer))
        most = before
        start = time.monotonic()
        while here.engine.requests < requests + n or here.engine.connections > 4:
            most = max(most, here.memory())
            if time.monotonic() > start + timeout + 30:
                break
            await asyncio.sleep(0.02)
        cut_after = time.monotonic() - start
        for _, writer in crowd:
            writer.transport.abort()
        here.engine.answer = b"{}"
        return {
            "growth_mb": most - before,
            "cut_after_s": cut_after,
            "served_after": await here.ask() == "200",
            "descriptors_left": await here.descriptors_left(base),
        }


async def stream(megabytes: int) -> Figures:
    """One event stream of so many MB, to a client that takes it slower than it comes."""
    event = token(0).replace(b"t0", b"t" * 4000)
    pieces = (megabytes << 20) // (len(event) * 64)
    piece = (b"%x\r\n%b\r\n" % (len(event), event)) * 64
    async with watched(0.0) as here:
        here.engine.flood = (piece, pieces)
        before = most = here.memory()
        reader, writer = await here.open()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            % len(STREAM)
            + STREAM
        )
        start = time.monotonic()
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            got += len(await reader.readexactly(size + 2)) - 2
            if got >> 23 != (got - size) >> 23:  # each 8 MB
                most = max(most, here.memory())
                await asyncio.sleep(0.01)
        writer.close()
        return {
            "megabytes": got / (1 << 20),
            "missing": pieces * 64 * len(event) - got,
            "growth_mb": most - before,
            "seconds": time.monotonic() - start,
        }


SCENARIOS: dict[
    str, tuple[Callable[[], Coroutine[Any, Any, Figures]], Callable[[Figures], bool]]
] = {
    "idle": (
        lambda: idle(3000),
        lambda f: bool(f["served"]) and f["open"] >= 3000 and f["during_mb"] < 200,
    ),
    "drippers": (
        lambda: drippers(200, 500, 5.0),
        lambda f: f["honest_p99_ms"] < 50 and f["gone_408"] == 200 and f["gone_after_s"] < 7,
    ),
    "burst": (lambda: burst(1500, 1.0), lambda f: f.get("answered_200") == 1500),
    "shed": (
        lambda: burst(1500, 1.0, "--max-concurrent-requests", "400", "--queue-size", "100"),
        lambda f: (
            f["answered_200"] >= 500
            and f["answered_200"] + f["answered_503"] == 1500
            and f["after_s"] < 2
        ),
    ),
    "readers": (
        lambda: readers(100, 20, 3.0),
        lambda f: f["growth_mb"] < 64 and f["cut_after_s"] < 30 and bool(f["served_after"]),
    ),
    "stream": (
        lambda: stream(200),
        lambda f: f["megabytes"] > 190 and f["missing"] == 0 and f["growth_mb"] < 64,
    ),
}


def main() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 16384)), hard))
    held = True
    for name in sys.argv[1:] or SCENARIOS:
        scenario, holds = SCENARIOS[name]
        figures = figures_of(scenario())
        good = holds(figures) and figures.get("descriptors_left", 0) <= 70
        held = held and good
        text = ", ".join(f"{key} {value:.5g}" for key, value in figures.items())
        print(f"{name}: {text}: {'holds' if good else 'DOES NOT HOLD'}", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
