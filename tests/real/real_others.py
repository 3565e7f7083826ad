"""An engine that is not vLLM, and has no metrics: `transformers serve`, run by `make test-real`.

It streams an event with the role before it reads the prompt, ends a stream without [DONE], takes
one request at a time, and answers 500 when asked for its models.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, AsyncOpenAI

from tests.real.engines import Router, Transformers, started

TOKENS = 8


@pytest.fixture(scope="module")
def engines(
    venv: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Transformers]]:
    logs = tmp_path_factory.mktemp("logs")
    both = [Transformers(venv, model, logs / f"transformers{i}.log") for i in range(2)]
    with started(both) as engines:
        yield engines


@pytest.fixture
def router(engines: list[Transformers], tmp_path: Path) -> Iterator[Router]:
    with Router(engines, tmp_path / "router.log") as it:
        it.until_healthy(2)
        yield it


async def ask(client: AsyncOpenAI, model: Path, prompt: str) -> str:
    """An answer that is not streamed; the instance that gave it."""
    raw = await client.chat.completions.with_raw_response.create(
        model=str(model), messages=[{"role": "user", "content": prompt}], max_tokens=TOKENS
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage and 0 < answer.usage.completion_tokens <= TOKENS
    return raw.headers["x-lodestar-instance"]


async def stream(client: AsyncOpenAI, model: Path, prompt: str) -> tuple[float, float]:
    """Seconds to the first event, and to the first text, of a streamed answer that ended well."""
    start, opened, first, ends, usage = time.monotonic(), 0.0, 0.0, [], None
    async for chunk in await client.chat.completions.create(
        model=str(model),
        messages=[{"role": "user", "content": prompt}],
        max_tokens=TOKENS,
        stream=True,
    ):
        opened = opened or time.monotonic() - start
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic() - start
        if chunk.choices and chunk.choices[0].finish_reason:
            ends.append(chunk.choices[0].finish_reason)
        usage = chunk.usage or usage
    assert len(ends) == 1 and ends[0] in ("length", "stop")
    assert usage and 0 < usage.completion_tokens <= TOKENS
    return opened, first


def test_an_engine_without_metrics(
    router: Router, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with AsyncOpenAI(
            base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:
            assert (await client.models.list()).data == []
            assert await ask(client, model, "hello")
            text = await client.completions.create(
                model=str(model), prompt="hello", max_tokens=TOKENS
            )
            assert text.choices[0].text
            # What it says to what it does not serve comes through as it said it.
            with pytest.raises(APIStatusError) as refused:
                await ask(client, Path("none"), "hello")
            assert refused.value.status_code == 400
            assert "pinned" in refused.value.response.json()["detail"]
            # It tells nothing of its load; the router counts what it sent.
            at_once = await asyncio.gather(*(ask(client, model, f"{i} at once") for i in range(6)))
            assert len(set(at_once)) == 2
            # One after the other, for each takes one at a time.
            times = [await stream(client, model, f"{i} " + "long " * 300) for i in range(6)]
        opened, firsts = (sum(column) for column in zip(*times, strict=True))
        measured = router.samples("lodestar_ttft_seconds_sum")
        assert sum(router.samples("lodestar_ttft_seconds_count").values()) == len(times)
        # From the first token, not from the role that comes before it; what passes until then is
        # the client's own delay as much as the router's.
        assert 0.5 * (firsts - opened) < sum(measured.values()) <= firsts
        with capsys.disabled():
            print(
                f"\ntransformers: TTFT {firsts:.2f} s in all at the client,"
                f" {sum(measured.values()):.2f} s by the router"
            )

    asyncio.run(main())
    assert not any(router.samples("lodestar_instance_reports_total").values())
    assert not any(router.samples("lodestar_instance_failures_total").values())
    requests = router.samples("lodestar_requests_total")
    assert sum(requests.values()) == 16 and sum("2xx" in name for name in requests) >= 2
    assert set(router.samples("lodestar_retries_total").values()) <= {0.0}
