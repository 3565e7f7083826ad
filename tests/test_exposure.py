"""What the metrics and the log show of requests: nothing that clients or engines can choose."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.test_server import Lodestar, request, run
from tests.tiny_engine import TinyEngine, page

CHAT = "POST /v1/chat/completions"


async def metrics(lodestar: Lodestar) -> dict[str, float]:
    """Every sample of the page: series -> value."""
    _, text = await lodestar.get("/metrics", lodestar.admin)
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


NONSENSE = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-5",
    "1e308",
    "9" * 18,
    "9" * 400,
    '"x"',
    "null",
    "[1]",
)


def test_absurd_numbers_of_engines_leave_the_metrics_finite() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.ready()
        for number in NONSENSE:
            # A page without a load would not be asked for again at once.
            text = "vllm:num_requests_running 3\nvllm:num_requests_waiting 4\n"
            text += f"vllm:kv_cache_usage_perc {number}\nvllm:prompt_tokens_total {number}\n"
            engine.pages["/metrics"] = page(text.encode())
            asked = engine.asked.count("GET /metrics")
            while engine.asked.count("GET /metrics") < asked + 2:
                await lodestar.get("/version")
            usage = (
                f'{{"prompt_tokens":{number},"completion_tokens":{number},'
                f'"prompt_tokens_details":{{"cached_tokens":{number}}}}}'
            )
            engine.events.put_nowait(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
            engine.events.put_nowait(f'data: {{"choices":[],"usage":{usage}}}\n\n'.encode())
            engine.events.put_nowait(None)
            prompt = {"model": "tiny", "stream": True, "messages": [number]}
            assert (await request(lodestar.data, CHAT, json.dumps(prompt).encode()))[0] == 200
        values = await metrics(lodestar)
        assert all(math.isfinite(value) for value in values.values()), {
            series: value for series, value in values.items() if not math.isfinite(value)
        }
        tokens = {s: v for s, v in values.items() if "tokens" in s and "speed" not in s}
        assert tokens and all(abs(value) < 1e12 for value in tokens.values())

    run(body, "--policy", "lmetric", clean=False)


def test_invented_names_make_no_series() -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        await lodestar.until("/v1/models", lambda _, text: b"tiny" in text)
        await request(lodestar.data, "GET /nowhere")
        before = len(await metrics(lodestar))
        for i in range(100):
            await request(lodestar.data, f"GET /invented/{i}")
            await request(lodestar.data, f"INVENTED{i} /v1/models")
            await request(lodestar.data, f"POST /v1/invented/{i}", b"{}", f"host{i}")
            model = b'{"model":"invented-%d","messages":[]}' % i
            assert (await request(lodestar.data, CHAT, model))[0] == 404
        after = await metrics(lodestar)
        assert len(after) - before < 150
        assert not [series for series in after if "invented" in series.lower()]

    run(body, "--policy", "lmetric")


@pytest.mark.parametrize("policy", ["lmetric", "lodestar"])
def test_prompts_answers_and_keys_are_nowhere_to_be_seen(tmp_path: Path, policy: str) -> None:
    """Not in the log at its most talkative, not on the admin port."""
    for name in ("client", "admin", "engine"):
        (tmp_path / name).write_text(f"{name}-xyzzy\n")
    shown = b""

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        nonlocal shown
        await lodestar.ready()
        prompt = b'{"model":"tiny","stream":true,"messages":"prompt-xyzzy"}'
        good = "localhost\r\nAuthorization: Bearer client-xyzzy"
        admin = "localhost\r\nAuthorization: Bearer admin-xyzzy"
        wrong = "localhost\r\nAuthorization: Bearer wrong-xyzzy"
        engine.events.put_nowait(b"data: answer-xyzzy\n\n")
        engine.events.put_nowait(b'data: {"error":"answer-xyzzy"}\n\n')
        engine.events.put_nowait(None)
        status, text = await request(lodestar.data, f"{CHAT}?key=target-xyzzy", prompt, good)
        assert status == 200 and b"answer-xyzzy" in text
        for line, body, host in (
            (CHAT, prompt, wrong),
            (CHAT, b"{prompt-xyzzy", good),
            (CHAT, b'{"model":"prompt-xyzzy"}', good),
            ("GET /target-xyzzy", b"", good),
            ("POST /workers", b'{"url":"http://user:prompt-xyzzy@a"}', wrong),
        ):
            port = lodestar.admin if "workers" in line else lodestar.data
            assert (await request(port, line, body, host))[0] in (400, 401, 404)
        await engine.stop()
        status, text = await request(lodestar.data, CHAT, prompt, good)
        assert status >= 500 and b"xyzzy" not in text
        for path in ("/metrics", "/workers", "/admin/model"):
            status, text = await request(lodestar.admin, f"GET {path}", host=admin)
            assert status == 200
            shown += text

    keys = [f"--{name}-key-file" for name in ("api", "admin", "engine-api")]
    files = [str(tmp_path / name) for name in ("client", "admin", "engine")]
    options = [word for pair in zip(keys, files, strict=True) for word in pair]
    log = run(body, "--policy", policy, "--log-level", "debug", *options, clean=False)
    assert log and shown
    assert "xyzzy" not in log and b"xyzzy" not in shown
