"""The openai client through Lodestar to two real vLLM: run by `make test-real`, not by the suite.

The figures are printed at the end of each test (pytest -s).
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from tests.real.engines import Engine, Router

IGNORE_EOS = {"ignore_eos": True}  # random weights end when they like
PAIRS = 60
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
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


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

    async def main() -> float:
        async with client_of(router.url) as client:
            start, first = time.monotonic(), 0.0
            async for event in await client.responses.create(
                model="tiny", input=words("opens", 1200), max_output_tokens=8, stream=True
            ):
                if event.type.endswith(".delta"):
                    first = first or time.monotonic() - start
            return first

    first = asyncio.run(main())
    assert first
    measured = sum(router.samples("lodestar_ttft_seconds_sum").values())
    assert 0.5 * first < measured <= first


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


def test_what_the_router_adds(
    engines: list[Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same engine asked through the router and directly, in turns, on kept connections."""

    async def main(url: str) -> None:
        prompt = words("adds", 100)
        async with client_of(url) as through, client_of(engines[0].url) as direct:
            times: list[list[float]] = [[], []]
            for i in range(2 * (PAIRS + 2)):
                # By turns first: the second of a pair finds a warmer machine.
                which = i % 2 ^ i // 2 % 2
                first, usage, _, _ = await stream((through, direct)[which], prompt, 2)
                times[which].append(first * 1e3)
                assert usage.completion_tokens == 2
        ours, theirs = (each[2:] for each in times)
        added = statistics.quantiles([a - b for a, b in zip(ours, theirs, strict=True)])
        with capsys.disabled():
            print(
                f"\nTTFT of a cached prompt, {PAIRS} pairs: {statistics.median(ours):.1f} ms,"
                f" direct {statistics.median(theirs):.1f} ms (medians); differences"
                f" {added[1]:+.2f} ms, quartiles {added[0]:+.2f} and {added[2]:+.2f}"
            )

    with Router(engines[:1], tmp_path / "router.log") as router:
        router.until_healthy(1)
        asyncio.run(main(router.url))


def test_leaving_ends_the_engines_work(engines: list[Engine], router: Router) -> None:
    async def main() -> None:
        async with client_of(router.url) as client:
            running = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "go on"}],
                stream=True,
                max_tokens=4000,
                extra_body=IGNORE_EOS,
            )
            async for _ in running:
                break
            await running.close()
        until = time.monotonic() + 5
        while any(engine.running() for engine in engines):
            assert time.monotonic() < until, "it still runs"
            await asyncio.sleep(0.1)

    asyncio.run(main())


async def _load(
    url: str, seconds: float, at_once: int, tokens: int
) -> tuple[int, list[str], list[float]]:
    """Requests that ended well, what went wrong with the others, and the seconds each took."""
    good, bad, took = 0, [], []
    until = time.monotonic() + seconds

    async def one(client: AsyncOpenAI, worker: int) -> None:
        nonlocal good
        i = 0
        while time.monotonic() < until:
            i += 1
            start = time.monotonic()
            try:
                _, usage, ends, _ = await stream(client, words(f"{worker} {i}", 60), tokens)
                assert usage and ends == ["length"], ends
                good += 1
            except (APIError, AssertionError) as e:
                bad.append(f"{type(e).__name__}: {str(e)[:120]}")
            took.append(time.monotonic() - start)

    async with client_of(url) as client:
        await asyncio.gather(*(one(client, worker) for worker in range(at_once)))
    return good, bad, took


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_an_engine_ends_under_load_and_comes_back(
    engines: list[Engine], router: Router, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        at_once = 6
        load = asyncio.create_task(_load(router.url, 20.0, at_once, 48))
        await asyncio.sleep(5)
        getattr(engines[1], how)()
        good, bad, took = await load
        with capsys.disabled():
            print(f"\n{how}: {good} served, {len(bad)} cut, longest {max(took):.1f} s: {bad[:2]}")
        # Only streams under way on that engine can be lost, and none of them hangs.
        assert good > at_once and len(bad) <= at_once and max(took) < 30
        engines[1].kill()
        engines[1].start()
        await asyncio.to_thread(engines[1].wait)
        await asyncio.to_thread(router.until_healthy, 2)
        good, bad, _ = await _load(router.url, 5.0, 6, 16)
        assert good > 5 and not bad
        assert not router.samples('lodestar_requests_total{outcome="router_error"')

    asyncio.run(main())
