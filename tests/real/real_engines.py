"""The openai client through Lodestar to two real vLLM: run by `make test-real`, not by the suite.

The figures are printed at the end of each test (pytest -s).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from tests.real.engines import START, Engine, Router

IGNORE_EOS = {"ignore_eos": True}  # random weights end when they like
ROUNDS = 300
AT_ONCE = 6
PATIENCE = 240.0  # seconds a client waits
SERVED = 'lodestar_requests_total{outcome="completed",path="/v1/completions",status_class="2xx"}'
FAMILIES = 7  # of prompts; odd, so that round robin brings each one to both engines


def words(seed: str, n: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3000)}" for _ in range(n))


async def stream(
    client: AsyncOpenAI, prompt: str, tokens: int = 16
) -> tuple[float, Any, list[str], str]:
    """Seconds to the first token, usage, finish reasons, and the instance that answered."""
    ends: list[str] = []
    start, first, usage = time.monotonic(), 0.0, None
    raw = await client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        max_tokens=tokens,
        stream_options={"include_usage": True},
        extra_body=IGNORE_EOS,
    )
    async for chunk in raw.parse():
        if chunk.choices:
            first = first or time.monotonic() - start
            if chunk.choices[0].finish_reason:
                ends.append(chunk.choices[0].finish_reason)
        usage = chunk.usage or usage
    return first, usage, ends, raw.headers.get("x-lodestar-instance", "")


def client_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def test_what_the_openai_client_does(router: Router) -> None:
    async def main() -> None:
        async with client_of(router.url) as client:
            assert [model.id for model in (await client.models.list()).data] == ["tiny"]
            answer = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=8,
                extra_body=IGNORE_EOS,
            )
            assert answer.usage and answer.usage.completion_tokens == 8
            assert answer._request_id
            _, usage, ends, _ = await stream(client, "hello", 12)
            assert usage.completion_tokens == 12 and ends == ["length"]
            text = await client.completions.create(model="tiny", prompt="hello", max_tokens=4)
            assert text.choices[0].finish_reason
            with pytest.raises(NotFoundError) as missing:
                await client.completions.create(model="none", prompt="hello")
            assert missing.value.code == "model_not_found"
            with pytest.raises(BadRequestError):
                await stream(client, words("long", 9000))

    asyncio.run(main())


def test_the_responses_dialect_opens_before_the_first_token(router: Router) -> None:
    """vLLM repeats the request at once, in two events. The router waits for text, as clients do."""

    async def ask(client: AsyncOpenAI, prompt: str) -> tuple[float, float]:
        """Seconds to the opening event, and to the first text."""
        start, opened, first = time.monotonic(), 0.0, 0.0
        async for event in await client.responses.create(
            model="tiny", input=prompt, max_output_tokens=8, stream=True
        ):
            opened = opened or time.monotonic() - start
            if event.type.endswith(".delta"):
                first = first or time.monotonic() - start
        return opened, first

    def measured() -> float:
        return sum(router.samples("lodestar_ttft_seconds_sum").values())

    async def main() -> tuple[float, float]:
        async with client_of(router.url) as client:
            await ask(client, "so that it is connected")
            before.append(measured())
            return await ask(client, words("opens", 1800))

    before: list[float] = []
    opened, first = asyncio.run(main())
    # What the client sees before the opening event is its own delay as much as the router's.
    assert 0.5 * (first - opened) < measured() - before[0] <= first


@pytest.mark.parametrize("policy", ["lodestar", "lmetric", "prefix_cache", "round_robin"])
def test_shared_prefixes(
    engines: list[Engine], tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(client: AsyncOpenAI, i: int) -> tuple[float, float]:
        prompt = words(f"{policy} {i % FAMILIES}", 300) + f" question {i}"
        first, usage, _, _ = await stream(client, prompt)
        details = usage.prompt_tokens_details
        return first, (details.cached_tokens or 0) / usage.prompt_tokens if details else 0.0

    async def main(url: str) -> None:
        async with client_of(url) as client:
            answers = [await ask(client, i) for i in range(24)]
        hits = statistics.mean(hit for _, hit in answers[FAMILIES:])
        ttft = statistics.median(first for first, _ in answers[FAMILIES:]) * 1e3
        with capsys.disabled():
            print(f"\n{policy}: of later prompts {hits:.0%} cached, median TTFT {ttft:.0f} ms")
        assert (hits > 0.8) == (policy != "round_robin")

    with Router(engines, tmp_path / "router.log", "--policy", policy) as router:
        router.until_healthy(2)
        asyncio.run(main(router.url))


async def first_event(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    """Milliseconds to the first event of a stream, which vLLM sends with the first token."""
    start, first, done = time.perf_counter(), 0.0, False
    async with http.post(url + "/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first = first or (time.perf_counter() - start) * 1e3
            done = done or line == b"data: [DONE]\n"
    assert first and done
    return first


Pairs = list[tuple[float, float]]  # what two of them took in each round, ms


def interval(pairs: Pairs, of: Callable[[Pairs], float]) -> str:
    """A figure of the rounds, with its 95 % interval by the bootstrap over them."""
    rng = random.Random(1)
    again = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(1000))
    return f"{of(pairs):+.2f} ({again[25]:+.2f} to {again[974]:+.2f})"


def median_apart(pairs: Pairs) -> float:
    return statistics.median(a - b for a, b in pairs)


def p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[8]


def p90s_apart(pairs: Pairs) -> float:
    ours, theirs = zip(*pairs, strict=True)
    return p90(ours) - p90(theirs)


def test_what_the_router_adds(
    engines: list[Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same engine, the same cached prompt, one request at a time: through the router,
    directly, and directly once more, which shows what such a difference is worth. In each round
    the three come in another order, on kept connections, through a client as thin as can be.

    The router holds the head of an answer back until the first token, so that until then another
    engine can be tried: what the client does with a head is part of the difference."""

    async def main(url: str) -> None:
        body = {"model": "tiny", "prompt": words("adds", 100), "max_tokens": 2, "stream": True}
        body |= IGNORE_EOS
        urls = (url, engines[0].url, engines[0].url)
        rng = random.Random(1)
        rounds: list[list[float]] = []
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(aiohttp.ClientSession()) for _ in urls]
            for _ in range(ROUNDS + 10):
                times = [0.0] * len(urls)
                for i in rng.sample(range(len(urls)), len(urls)):
                    times[i] = await first_event(clients[i], urls[i], body)
                rounds.append(times)
        del rounds[:10]
        ours, theirs, again = (list(column) for column in zip(*rounds, strict=True))
        with capsys.disabled():
            print(
                f"\nTTFT of a cached prompt, ms, {ROUNDS} rounds of one request each:"
                f"\n  through the router: median {statistics.median(ours):.2f},"
                f" p90 {p90(ours):.2f}; direct: {statistics.median(theirs):.2f},"
                f" {p90(theirs):.2f}"
            )
            for name, column in (("through the router", ours), ("direct once more", again)):
                pairs = list(zip(column, theirs, strict=True))
                print(
                    f"  {name} less direct: median of the differences in a round"
                    f" {interval(pairs, median_apart)}; p90 less p90 {interval(pairs, p90s_apart)}"
                )
        assert router.samples("lodestar_requests_total{outcome")[SERVED] == ROUNDS + 10

    with Router(engines[:1], tmp_path / "router.log") as router:
        router.until_healthy(1)
        asyncio.run(main(router.url))


def test_leaving_ends_the_engines_work(engines: list[Engine], router: Router) -> None:
    tokens = 4000

    def generated() -> float:
        return sum(engine.generated() for engine in engines)

    async def main() -> None:
        before = generated()
        async with client_of(router.url) as client:
            running = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "go on"}],
                stream=True,
                max_tokens=tokens,
                extra_body=IGNORE_EOS,
            )
            async for _ in running:
                break
            await running.close()
        until, last = time.monotonic() + START, 0.0
        # What an engine says it runs may be old; its tokens are not.
        while any(engine.running() for engine in engines) or last != generated():
            assert time.monotonic() < until, "it still runs"
            last = generated()
            await asyncio.sleep(1)
        # It did not end because it was done, however slow this machine.
        assert 0 < last - before < tokens

    asyncio.run(main())


class Load:
    """So many clients with one stream each at a time, until told to stop."""

    def __init__(self, url: str, at_once: int, tokens: int) -> None:
        self.good = 0
        self.bad: list[str] = []
        self.longest = 0.0  # seconds
        self._url, self._tokens = url, tokens
        self._stopping = False
        self._ended = asyncio.Condition()
        self._workers = [asyncio.create_task(self._work(i)) for i in range(at_once)]

    async def _work(self, worker: int) -> None:
        async with client_of(self._url) as client:
            for i in itertools.count():
                if self._stopping:
                    return
                start = time.monotonic()
                try:
                    _, usage, ends, _ = await stream(
                        client, words(f"{worker} {i}", 60), self._tokens
                    )
                    assert usage and ends == ["length"], ends
                    self.good += 1
                except (APIError, AssertionError) as e:
                    self.bad.append(f"{type(e).__name__}: {str(e)[:120]}")
                self.longest = max(self.longest, time.monotonic() - start)
                async with self._ended:
                    self._ended.notify_all()

    async def served(self, more: int) -> None:
        """Wait until so many more have ended well, or more than one a client has not."""
        wanted, most = self.good + more, len(self._workers)
        async with self._ended:
            await self._ended.wait_for(lambda: self.good >= wanted or len(self.bad) > most)

    async def stop(self) -> None:
        """Begin no more, and wait for the last."""
        self._stopping = True
        await asyncio.gather(*self._workers)


async def works(engine: Engine) -> None:
    """Wait until it generates tokens."""
    before = await asyncio.to_thread(engine.generated)
    while before == await asyncio.to_thread(engine.generated):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_an_engine_ends_under_load_and_comes_back(
    engines: list[Engine], router: Router, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        load = Load(router.url, AT_ONCE, 48)
        await load.served(2 * AT_ONCE)
        async with asyncio.timeout(START):
            await works(engines[1])
        getattr(engines[1], how)()
        await load.served(4 * AT_ONCE)
        await load.stop()
        retries = sum(router.samples("lodestar_retries_total").values())
        with capsys.disabled():
            print(
                f"\n{how}: {load.good} served, {retries:g} of them elsewhere after it ended,"
                f" {len(load.bad)} cut, longest {load.longest:.1f} s: {load.bad[:2]}"
            )
        assert load.bad or retries, "it ended without work"
        # Only streams under way on that engine can be lost, and none of them hangs: nobody but the
        # router ends them, and the client's patience is long.
        assert len(load.bad) <= AT_ONCE and load.longest < PATIENCE / 2
        engines[1].kill()
        engines[1].start()
        await asyncio.to_thread(engines[1].wait)
        await asyncio.to_thread(router.until_healthy, 2)
        load = Load(router.url, AT_ONCE, 16)
        await load.served(4 * AT_ONCE)
        await load.stop()
        assert not load.bad
        assert not router.samples('lodestar_requests_total{outcome="router_error"')

    asyncio.run(main())
