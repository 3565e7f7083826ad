"""Two million requests through the whole program, in slices, with faults and aborts among them.

    python -m tests.soak.marathon [COUNT]

After each slice an engine loses all its connections. Prints a line for every tenth of the way; ends
with status 1 if memory grew by a megabyte or more in 100,000 requests, descriptors stayed open, or
an outcome is not explained by what was done.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack

import uvloop

from tests.soak.bed import Client, body_of, many
from tests.soak.crowds import Watched
from tests.steady_engine import SteadyEngine
from tests.test_server import Lodestar

SLICE = 20_000
WARM = 5  # the first fifth is not looked at: until caches and tables are full
AT_ONCE = 32
EXPLAINED = {"200", "400", "404", "left", "cut"}


def slope(points: list[tuple[int, float]]) -> float:
    """Least squares through (requests, MB): MB in 100,000 requests."""
    n = len(points)
    x, y = sum(p[0] for p in points) / n, sum(p[1] for p in points) / n
    spread = sum((p[0] - x) ** 2 for p in points)
    return 1e5 * sum((p[0] - x) * (p[1] - y) for p in points) / spread if spread else 0.0


async def one(seen: Counter[str], first: int, client: Client, i: int) -> None:
    rng = random.Random(first + i)
    kind = rng.random()
    if kind < 0.02:
        asking = asyncio.ensure_future(client.ask(body_of(rng, True)))
        await asyncio.sleep(rng.random() * 0.002)
        asking.cancel()
        client.close()
        seen["left"] += 1
    elif kind < 0.05:
        path = rng.choice(("/v1/completions", "/nowhere"))
        seen[(await client.ask(b"{", path))[0]] += 1
    else:
        seen[(await client.ask(body_of(rng, kind < 0.5)))[0]] += 1


async def outcomes(lodestar: Lodestar) -> Counter[str]:
    """Requests that ended, by the router's own count."""
    _, text = await lodestar.get("/metrics", lodestar.admin)
    counts: Counter[str] = Counter()
    for line in text.decode().splitlines():
        if match := re.match(r'lodestar_requests_total\{.*outcome="(\w+)".*\} (\S+)', line):
            counts[match[1]] += int(float(match[2]))
    return counts


async def run(count: int) -> bool:
    seen: Counter[str] = Counter()
    points: list[tuple[int, float]] = []
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(SteadyEngine(0.0)) for _ in range(3)]
        lodestar = await Lodestar.start(
            *("--worker-urls", *(engine.url for engine in engines)),
            *("--log-level", "error", "--model", "linear", "--index-bytes", "4194304"),
        )
        here = Watched(lodestar, engines[0])
        try:
            await lodestar.ready()
            base = here.descriptors()
            start = time.monotonic()
            slices = max(count // SLICE, 2 * WARM)
            for turn in range(slices):
                first = turn * SLICE
                await many(SLICE, AT_ONCE, functools.partial(one, seen, first), here.port)
                if turn >= slices // WARM:
                    points.append((first, here.memory()))
                engines[turn % 3].cut()
                if turn % max(slices // 10, 1) == 0 or turn == slices - 1:
                    took = time.monotonic() - start
                    print(
                        f"marathon: {first + SLICE:,} requests in {took:.0f} s, "
                        f"{here.memory():.1f} MB, {dict(seen)}",
                        flush=True,
                    )
            left = await here.descriptors_left(base)
            ended = await outcomes(lodestar)
            await lodestar.stop()
        finally:
            if lodestar.process.returncode is None:
                lodestar.process.kill()
                await lodestar.end()
    grows = slope(points)
    print(f"marathon: {grows:+.3f} MB in 100,000, {left:+d} descriptors, ended {dict(ended)}")
    # Who left may have left before the request was read; and checks may have asked beside.
    missing = seen.total() - ended.total()
    return (
        grows < 1
        and left <= 70
        and set(seen) <= EXPLAINED
        and seen["cut"] <= ended["engine_error"]
        and missing <= seen["left"]
        and not ended["router_error"] + ended["shed"]
    )


def main() -> int:
    count = int(sys.argv[1]) if sys.argv[1:] else 2_000_000
    held = uvloop.run(run(count))
    print("marathon", "holds" if held else "DOES NOT HOLD")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
