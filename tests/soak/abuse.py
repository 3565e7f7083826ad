"""What clients and engines could teach the learner, and must not: before the whole program.

    python -m tests.soak.abuse [aborts slow_readers slow_engine] [--model mlp]

Two engines that are equal, or were. Prints a line a scenario; ends with status 1 if one did not
hold. The suite runs them smaller, without the network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.fake_engine import token
from tests.soak.bed import Client, body_of, many
from tests.soak.crowds import Figures, figures_of
from tests.steady_engine import SteadyEngine
from tests.test_server import Lodestar

QUICK = ("--round-seconds", "0.1", "--min-samples", "16", "--scrape-interval", "0.5")


class Pair:
    """A router that has learned, before two engines."""

    def __init__(self, lodestar: Lodestar, engines: Sequence[SteadyEngine]) -> None:
        self.lodestar = lodestar
        self.engines = engines
        self._rng = random.Random(1)

    def body(self) -> bytes:
        """A streamed request with a prompt of its own."""
        return body_of(self._rng, True, 2, 20)

    async def share(self, count: int) -> float:
        """Of so many honest requests, eight at a time, the first engine's part."""
        before = [engine.requests for engine in self.engines]

        async def one(client: Client, i: int) -> None:
            outcome, text = await client.ask(self.body())
            assert outcome == "200" and text.endswith(b"data: [DONE]\n\n")

        await many(count, 8, one, self.lodestar.data)
        got = [engine.requests - n for engine, n in zip(self.engines, before, strict=True)]
        assert sum(got) == count
        return got[0] / count

    async def begin(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """A request that has reached an engine; whether that is the first one."""
        before = [engine.requests for engine in self.engines]
        mouth = socket.socket()
        mouth.setblocking(False)
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # else it swallows all
        await asyncio.get_running_loop().sock_connect(mouth, ("127.0.0.1", self.lodestar.data))
        reader, writer = await asyncio.open_connection(sock=mouth, limit=4096)
        body = self.body()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        while [engine.requests for engine in self.engines] == before:
            await asyncio.sleep(0)
        return reader, writer, self.engines[0].requests > before[0]

    async def learned(self) -> None:
        """Honest requests until the model decides."""
        while True:
            await self.share(40)
            _, text = await self.lodestar.get("/admin/model", self.lodestar.admin)
            if json.loads(text)["version"] > 3:
                return

    async def clean(self) -> bool:
        """Whether no engine was blamed for anything, and all outcomes are explained."""
        _, text = await self.lodestar.get("/metrics", self.lodestar.admin)
        wrong = (
            *(b'outcome="engine_error"', b'outcome="router_error"', b'outcome="shed"'),
            b"\nlodestar_instance_failures_total{",
        )
        return not any(mark in text for mark in wrong)


@asynccontextmanager
async def pair(model: str, *delays: float) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(SteadyEngine(delay)) for delay in delays]
        lodestar = await Lodestar.start(
            *("--worker-urls", *(engine.url for engine in engines)),
            *("--model", model, "--log-level", "error", *QUICK),
        )
        try:
            await lodestar.until(
                "/workers", lambda _, text: text.count(b'"healthy":true') == 2, lodestar.admin
            )
            both = Pair(lodestar, engines)
            await both.learned()
            yield both
            await lodestar.stop()
        finally:
            if lodestar.process.returncode is None:
                lodestar.process.kill()
                await lodestar.end()


async def aborts(model: str, count: int, after: int) -> Figures:
    """Whoever sees its request on the first engine leaves before the first token."""
    async with pair(model, 0.01, 0.01) as both:
        done = 0
        while done < count:
            reader, writer, on_first = await both.begin()
            if on_first:
                writer.transport.abort()
                done += 1
            else:
                await reader.read()
                writer.close()
        told = both.engines[0].left
        return {"told": told, "share": await both.share(after), "clean": await both.clean()}


async def slow_readers(model: str, count: int, after: int) -> Figures:
    """Whoever sees its request on the first engine reads the long answer slowly."""
    event = token(0).replace(b"t0", b"t" * 4000)
    chunks = b"%x\r\n%b\r\n" % (len(event), event) * 16
    async with pair(model, 0.01, 0.01) as both:

        async def one() -> bool:
            both.engines[0].flood = (chunks, 96)  # 6 MB, more than sockets hold
            reader, writer, on_first = await both.begin()
            while data := await reader.read(65536):
                if on_first:
                    await asyncio.sleep(0.001)
            assert data == b""
            writer.close()
            return on_first

        done = 0
        while done < count:
            done += await one()
        both.engines[0].flood = None
        return {"share": await both.share(after), "clean": await both.clean()}


async def slow_engine(model: str, count: int, after: int) -> Figures:
    """The first engine is ten times slower for a while."""
    async with pair(model, 0.01, 0.01) as both:
        both.engines[0].delay = 0.1
        await both.share(count)
        slow = await both.share(count)
        both.engines[0].delay = 0.01
        await both.share(after)
        return {
            "share_while_slow": slow,
            "share_after": await both.share(100),
            "clean": await both.clean(),
        }


Scenario = Callable[[str, int, int], Coroutine[Any, Any, Figures]]
SCENARIOS: dict[str, tuple[Scenario, int, int]] = {
    "aborts": (aborts, 400, 300),
    "slow_readers": (slow_readers, 160, 300),
    "slow_engine": (slow_engine, 300, 200),
}


def holds(figures: Figures) -> bool:
    """The target keeps at least 15 % while it is as good, and less than half while it is not."""
    after = figures.get("share", figures.get("share_after", 0.0))
    return after >= 0.15 and figures.get("share_while_slow", 0.0) < 0.4 and bool(figures["clean"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS])
    parser.add_argument("--model", default="mlp", choices=("mlp", "linear"))
    args = parser.parse_args()
    held = True
    for name in args.scenarios or SCENARIOS:
        scenario, count, after = SCENARIOS[name]
        figures = figures_of(scenario(args.model, count, after))
        held = held and holds(figures)
        text = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
        print(f"{name}: {text}: {'holds' if holds(figures) else 'DOES NOT HOLD'}", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
