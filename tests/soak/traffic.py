"""Long runs of the whole program before simulated engines, with figures.

    python -m tests.soak.traffic [leak streams rolling flapping drain overload]

Prints a line a scenario; ends with status 1 if one did not hold.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress

import uvloop

from tests.soak.bed import Bed, Client, body_of, many
from tests.test_server import request


async def leak() -> bool:
    """20,000 mixed requests: plain, streams, refused, left early; memory and descriptors after."""
    bed = await Bed.start(3, 100.0, "--policy", "lmetric", "--index-bytes", "4194304")
    seen: Counter[str] = Counter()

    async def one(client: Client, i: int) -> None:
        rng = random.Random(i)
        kind = rng.random()
        if kind < 0.05:
            task = asyncio.ensure_future(client.ask(body_of(rng, True, 200)))
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()
            client.close()
            seen["left"] += 1
            return
        if kind < 0.1:
            outcome, _ = await client.ask(b"{", rng.choice(("/v1/completions", "/nowhere")))
        else:
            outcome, _ = await client.ask(body_of(rng, kind < 0.5))
        seen[outcome] += 1

    try:
        base = bed.descriptors()
        await many(6000, 16, one, bed.lodestar.data)
        before = bed.memory()
        await many(20_000, 16, one, bed.lodestar.data)
        await asyncio.sleep(5)
        after, left = bed.memory(), bed.descriptors() - base
        print(
            f"leak: 20,000 requests after 6,000, {dict(seen)}; {before:.1f} -> {after:.1f} MB, "
            f"{left:+d} descriptors",
            flush=True,
        )
        return after - before < 16 and left <= 70 and set(seen) <= {"200", "400", "404", "left"}
    finally:
        await bed.stop()


async def streams() -> bool:
    """500 streams at once."""
    bed = await Bed.start(4, 1.0, "--policy", "lmetric")
    done: Counter[str] = Counter()
    most = 0.0

    async def one(client: Client, i: int) -> None:
        outcome, text = await client.ask(body_of(random.Random(i), True, 40, 20))
        done[outcome + (" whole" if text.endswith(b"data: [DONE]\n\n") else " cut")] += 1

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, bed.memory())
            await asyncio.sleep(0.1)

    try:
        looking = asyncio.ensure_future(look())
        await many(500, 500, one, bed.lodestar.data)
        looking.cancel()
        print(f"streams: 500 at once, {dict(done)}, at most {most:.0f} MB", flush=True)
        return done == {"200 whole": 500} and most < 150
    finally:
        await bed.stop()


async def rolling() -> bool:
    """4,000 requests while each of 4 engines is drained, restarted and taken in again, and then
    killed and restarted without a word, as only answers in one piece can bear."""
    bed = await Bed.start(4, 20.0, "--policy", "lmetric")
    done: Counter[str] = Counter()
    restarts = 0
    streaming = True

    async def one(client: Client, i: int) -> None:
        # Streams long enough that an engine which is not drained is never without one.
        outcome, _ = await client.ask(
            body_of(random.Random(i), streaming, 200 if streaming else 16)
        )
        done[outcome] += 1

    async def roll() -> None:
        nonlocal restarts, streaming
        admin = bed.lodestar.admin
        _, text = await request(admin, "GET /workers")
        ids = {worker["url"]: worker["id"] for worker in json.loads(text)["workers"]}
        for engine in bed.engines:
            await request(admin, f"POST /workers/{ids[engine.url]}/drain")
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await bed.lodestar.until(
                        f"/workers/{ids[engine.url]}",
                        lambda _, text: b'"inflight":0' in text,
                        admin,
                    )
            await engine.stop()
            await engine.start()
            await request(admin, "POST /workers", json.dumps({"url": engine.url}).encode())
            await bed.healthy(4)
            restarts += 1
        streaming = False
        await asyncio.sleep(2)
        for engine in bed.engines:
            await engine.stop()
            await asyncio.sleep(0.5)
            await engine.start()
            await bed.healthy(4)
            restarts += 1

    try:
        rolls = asyncio.ensure_future(roll())
        while not rolls.done() or done.total() < 4000:
            await many(500, 12, one, bed.lodestar.data)
            if done.total() != done["200"]:
                rolls.cancel()
                break  # an engine may be ejected by now, for a good while
        else:
            await rolls
        failed = done.total() - done["200"]
        print(
            f"rolling: {restarts} restarts, {failed} failed of {done.total()} {dict(done)}",
            flush=True,
        )
        return failed == 0
    finally:
        await bed.stop()


async def flapping() -> bool:
    """2,400 requests and more while one engine of three dies every second and a half."""
    bed = await Bed.start(3, 20.0, "--policy", "lmetric")
    done: Counter[str] = Counter()
    deaths = 0

    async def one(client: Client, i: int) -> None:
        outcome, _ = await client.ask(body_of(random.Random(i), False, 16))
        done[outcome] += 1

    async def flap() -> None:
        nonlocal deaths
        for _ in range(10):
            await bed.engines[0].stop()
            await asyncio.sleep(0.5)
            await bed.engines[0].start()
            await asyncio.sleep(1.0)
            deaths += 1

    try:
        flaps = asyncio.ensure_future(flap())
        while not flaps.done() or done.total() < 2400:
            await many(300, 12, one, bed.lodestar.data)
        await flaps
        failed = done.total() - done["200"]
        print(f"flapping: {deaths} deaths, {failed} failed of {done.total()} {dict(done)}")
        return failed == 0
    finally:
        await bed.stop()


async def drain() -> bool:
    """SIGTERM with 20 streams under way, and a client that asks nothing."""
    bed = await Bed.start(2, 1.0, "--policy", "lmetric", "--drain-grace", "60")
    done: Counter[str] = Counter()

    async def one(client: Client, i: int) -> None:
        outcome, text = await client.ask(body_of(random.Random(i), True, 100, 20))
        done[outcome + (" whole" if text.endswith(b"data: [DONE]\n\n") else " cut")] += 1

    try:
        idle, writer = await asyncio.open_connection("127.0.0.1", bed.lodestar.data)
        running = asyncio.ensure_future(many(20, 20, one, bed.lodestar.data))
        await bed.lodestar.until(
            "/workers",
            lambda _, text: sum(w["inflight"] for w in json.loads(text)["workers"]) == 20,
            bed.lodestar.admin,
        )
        start = time.monotonic()
        bed.lodestar.process.send_signal(signal.SIGTERM)
        late = "served"
        await asyncio.sleep(0.2)
        try:
            late = (await Client(bed.lodestar.data).ask(body_of(random.Random(0), False)))[0]
        except OSError:
            late = "refused"
        await idle.read()
        closed = not running.done()  # it kept nothing open
        writer.close()
        await running
        code, _ = await bed.lodestar.end()
        took = time.monotonic() - start
        print(
            f"drain: {dict(done)} of 20, late {late}, idle {'closed' if closed else 'left'}, "
            f"exit {code} in {took:.1f} s",
            flush=True,
        )
        whole = done == {"200 whole": 20}
        return whole and late in ("refused", "503") and closed and code == 0
    finally:
        await bed.stop()


async def overload() -> bool:
    """Three times what the engines can take, with a cap on each and a short queue."""
    cap, engines = 4, 2
    options = ("--max-engine-requests", str(cap), "--queue-size", "2", "--queue-timeout", "1")
    bed = await Bed.start(engines, 1.0, "--policy", "lmetric", *options)
    took: dict[str, list[float]] = {}

    async def one(client: Client, i: int) -> None:
        start = time.monotonic()
        outcome, _ = await client.ask(body_of(random.Random(i), False, 20, 20))
        took.setdefault(outcome, []).append(time.monotonic() - start)

    def p99(outcome: str) -> float:
        times = sorted(took.get(outcome, [0.0]))
        return times[int(len(times) * 0.99)]

    try:
        start = time.monotonic()
        await many(200, cap * engines, one, bed.lodestar.data)
        rate = 200 / (time.monotonic() - start)
        calm = p99("200")
        took.clear()
        tasks = []
        start = time.monotonic()
        for i in range(int(rate * 3 * 5)):
            await asyncio.sleep(max(0.0, start + i / (3 * rate) - time.monotonic()))
            tasks.append(asyncio.ensure_future(one(Client(bed.lodestar.data), i)))
        await asyncio.gather(*tasks)
        counts = {outcome: len(times) for outcome, times in took.items()}
        busy, shed = p99("200"), p99("503")
        await asyncio.sleep(1)
        took.clear()
        await many(20, 4, one, bed.lodestar.data)
        print(
            f"overload: 3 x {rate:.0f}/s, {counts}; p99 accepted {busy:.2f} s, calm {calm:.2f} s, "
            f"shed {shed * 1e3:.0f} ms; after 1 s {p99('200'):.2f} s",
            flush=True,
        )
        return set(counts) <= {"200", "503"} and busy < 2 * calm and set(took) == {"200"}
    finally:
        await bed.stop()


SCENARIOS = {each.__name__: each for each in (leak, streams, rolling, flapping, drain, overload)}


def main() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    names = sys.argv[1:] or list(SCENARIOS)
    held = {name: uvloop.run(SCENARIOS[name]()) for name in names}
    for name in names:
        print(name, "holds" if held[name] else "DOES NOT HOLD")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
