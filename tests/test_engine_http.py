"""`lodestar engine` over real sockets: formats of requests, answers, pages and errors.

Where an engine gets a VirtualClock, the test moves its time: while the clock stands still, a
request is held exactly where it is.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lodestar_fast.clock import VirtualClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.engine_http import Slowing, slowings, start
from lodestar_fast.sim.gpus import spec
from tests.engine_client import CHAT, HELLO, connected, dumps, engines, on_loop, until

LONG = "word" * 100  # 100 tokens; with "user" before it in a chat 101, six full blocks


def events(body: bytes) -> list[Any]:
    lines = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [d if (d := line[6:]) == "[DONE]" else json.loads(d) for line in lines]


# formats


@on_loop
async def test_a_chat_stream_is_as_vllm_sends_it() -> None:
    async with engines(speedup=50) as running, connected(running) as client:
        asked = HELLO | {"max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
        status, headers, body = await client.ask(
            "POST", CHAT, asked, headers="x-request-id: demo-1\r\n"
        )
        assert status == 200
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["x-request-id"] == "demo-1"
        role, *tokens, last, counts, done = events(body)
        assert {e["id"] for e in (role, *tokens, last, counts)} == {"chatcmpl-demo-1"}
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [e["choices"][0]["delta"] for e in (*tokens, last)] == [
            {"content": " the"},
            {"content": " sun"},
            {"content": " and"},
        ]
        assert last["choices"][0]["finish_reason"] == "length"
        assert all(e["choices"][0]["finish_reason"] is None for e in (role, *tokens))
        assert counts["choices"] == []
        assert counts["usage"] == {
            "prompt_tokens": 4,  # "userhello there" has 15 bytes
            "total_tokens": 7,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert done == "[DONE]"


@on_loop
async def test_headers_come_at_once_and_the_role_with_the_first_token() -> None:
    clock = VirtualClock()
    async with engines(clock=clock) as running, connected(running) as client:
        client.send("POST", CHAT, HELLO | {"stream": True, "max_tokens": 2})
        assert (await client.head())[0] == 200
        engine = running.replicas[0].engine
        assert (engine.running, engine.generation_tokens) == (1, 0)
        clock.advance_to(engine.next_time())
        data = await client.reader.readuntil(b'" the"}')
        assert data.count(b"data: ") == 2
        assert engine.generation_tokens == 1


@on_loop
async def test_completions_stream_without_usage_unless_asked() -> None:
    async with engines(speedup=50) as running, connected(running) as client:
        asked = {"prompt": "hello", "stream": True, "max_tokens": 2}
        _, _, body = await client.ask("POST", "/v1/completions", asked)
        first, second, done = events(body)
        assert [e["choices"][0]["text"] for e in (first, second)] == [" the", " sun"]
        assert first["object"] == "text_completion"
        assert first["id"].startswith("cmpl-")
        assert done == "[DONE]"


@on_loop
async def test_plain_answers_have_usage_and_default_lengths() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        chat = await client.chat()
        assert chat["usage"]["completion_tokens"] == 64
        assert len(chat["choices"][0]["message"]["content"]) == 4 * 64
        _, _, body = await client.ask("POST", "/v1/completions", {"prompt": [5, 6, 7]})
        answer = json.loads(body)
        assert answer["usage"]["prompt_tokens"] == 3
        assert answer["usage"]["completion_tokens"] == 16
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": ""}, 1),
        ({"prompt": "12345"}, 2),
        ({"prompt": ["12345"]}, 2),
        ({"prompt": [[9] * 40]}, 40),
        ({"prompt": "ä" * 4}, 2),  # bytes, not characters
    ],
)
def test_prompt_tokens(fields: dict[str, object], tokens: int) -> None:
    @on_loop
    async def test() -> None:
        async with engines(speedup=100) as running, connected(running) as client:
            _, _, body = await client.ask("POST", "/v1/completions", fields | {"max_tokens": 1})
            assert json.loads(body)["usage"]["prompt_tokens"] == tokens

    test()


@on_loop
async def test_the_same_prompt_is_cached_the_second_time_also_in_parts() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        cached = []
        parts = [{"type": "text", "text": LONG[:200]}, {"type": "text", "text": LONG[200:]}]
        for content in (LONG, LONG, parts, "x" + LONG):
            answer = await client.chat(messages=[{"role": "user", "content": content}])
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        tools = await client.chat(messages=[{"role": "user", "content": LONG}], tools=[{"a": 1}])
        assert cached == [0, 96, 96, 0]
        assert tools["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@on_loop
async def test_the_openai_client_is_content() -> None:
    import openai

    async with engines(speedup=100) as running:
        async with openai.AsyncOpenAI(base_url=running.urls[0] + "/v1", api_key="none") as client:
            models = await client.models.list()
            (model,) = [entry.id for entry in models.data]
            messages: Any = HELLO["messages"]
            plain = await client.chat.completions.create(
                model=model, messages=messages, max_completion_tokens=5
            )
            assert plain.choices[0].message.content == " the sun and sea are"
            assert plain.usage and plain.usage.completion_tokens == 5
            stream = await client.chat.completions.create(
                model=model, messages=messages, max_tokens=4, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == " the sun and sea"
            assert chunks[-1].usage and chunks[-1].usage.prompt_tokens == 4
            completion = await client.completions.create(model=model, prompt="x", max_tokens=1)
            assert completion.choices[0].text == " the"
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.chat.completions.create(model="other", messages=messages)
            with pytest.raises(openai.BadRequestError, match="one answer"):
                await client.chat.completions.create(model=model, messages=messages, n=2)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "JSON decode error"),
        (b"\xff", 400, "1 validation error"),
        (b"[]", 400, "Expected `object`"),
        (b"{}", 400, "messages"),
        (dumps({"messages": []}), 400, "empty conversation"),
        (dumps({"messages": "x"}), 400, "Expected `array`"),
        (dumps(HELLO | {"model": "nope"}), 404, "`nope` does not exist"),
        (dumps(HELLO | {"n": 2}), 400, "n must be 1"),
        (dumps(HELLO | {"max_tokens": 0}), 400, "at least 1"),
        (dumps(HELLO | {"max_tokens": 1 << 40}), 400, "cannot be greater than"),
        (dumps(HELLO | {"max_tokens": "7"}), 400, "Expected `int"),
        (dumps(HELLO | {"stream_options": {}}), 400, "`stream=True`"),
        (dumps({"messages": [{"role": "user", "content": "x" * 40_000}]}), 400, "maximum context"),
    ],
)
def test_bad_chats_are_refused_in_vllms_shape(body: bytes, status: int, message: str) -> None:
    @on_loop
    async def test() -> None:
        running = await start([spec("h100", kv_tokens=9_600)])
        async with connected(running) as client:
            got, _, answer = await client.ask("POST", CHAT, body)
            error = json.loads(answer)["error"]
            assert (got, error["code"]) == (status, status)
            assert message in error["message"]
            assert (await client.ask("GET", "/health"))[0] == 200  # the connection goes on
        await running.close()

    test()


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [1, "a"], [-1], [1 << 40], [[1], [2]]])
def test_bad_prompts_are_refused(prompt: object) -> None:
    @on_loop
    async def test() -> None:
        async with engines() as running, connected(running) as client:
            status, _, body = await client.ask("POST", "/v1/completions", {"prompt": prompt})
            assert (status, json.loads(body)["error"]["param"]) == (400, "prompt")

    test()


@on_loop
async def test_pages() -> None:
    async with engines("2xa30+h100", model="m") as running, connected(running, 2) as client:
        assert (await client.ask("GET", "/health"))[::2] == (200, b"")
        assert json.loads((await client.ask("GET", "/version?x=1"))[2]) == {"version": "0.32.0"}
        (model,) = json.loads((await client.ask("GET", "/v1/models"))[2])["data"]
        assert (model["id"], model["max_model_len"]) == ("m", 131_072)
        assert (await client.ask("GET", "/nope"))[::2] == (404, b'{"detail":"Not Found"}')
        status, headers, _ = await client.ask("GET", CHAT)
        assert (status, headers["allow"]) == (405, "POST")
        status, headers, _ = await client.ask("POST", "/health")
        assert (status, headers["allow"]) == (405, "GET")
        plain = await client.ask("POST", CHAT, HELLO, headers="content-type: text/plain\r\n")
        assert (plain[0], b"Unsupported Media Type" in plain[2]) == (400, True)
        client.send("HEAD", "/health")
        assert (await client.head())[0] == 405


@on_loop
async def test_metrics_have_vllms_names_and_follow_the_engine() -> None:
    clock = VirtualClock()
    async with engines(clock=clock, model='a"b') as running:
        async with connected(running) as client, connected(running) as scraper:
            client.send("POST", CHAT, {"messages": [{"role": "user", "content": LONG}]})
            engine = running.replicas[0].engine
            await until(lambda: engine.running == 1)

            async def scrape() -> dict[tuple[str, str], float]:
                _, headers, page = await scraper.ask("GET", "/metrics")
                assert headers["content-type"].startswith("text/plain")
                families = text_string_to_metric_families(page.decode())
                samples = [sample for family in families for sample in family.samples]
                assert {s.labels["model_name"] for s in samples} == {'a"b'}
                found = {}
                for s in samples:
                    which = [s.labels.get(key, "") for key in ("le", "finished_reason", "reason")]
                    found[s.name.removeprefix("vllm:"), "".join(which)] = s.value
                return found

            before = await scrape()
            assert before["num_requests_running", ""] == 1
            assert before["num_requests_waiting", ""] == 0
            assert before["kv_cache_usage_perc", ""] == engine.kv_usage > 0
            clock.advance_to(10.0)
            await client.answer()
            after = await scrape()
            assert after["num_requests_running", ""] == 0
            assert after["prompt_tokens_total", ""] == 101
            assert after["generation_tokens_total", ""] == 64
            assert after["prefix_cache_queries_total", ""] == 101
            assert after["prefix_cache_hits_total", ""] == 0
            assert after["num_preemptions_total", ""] == 0
            assert after["request_success_total", "length"] == 1
            assert after["time_to_first_token_seconds_bucket", "0.02"] == 1
            assert after["time_to_first_token_seconds_bucket", "0.005"] == 0
            assert after["e2e_request_latency_seconds_count", ""] == 1
            assert after["cache_config_info", ""] == 1


# engines that become slow


def test_slow_options() -> None:
    assert slowings(["1=3@60", "0=2.5"], 2) == [Slowing(1, 3.0, 60.0), Slowing(0, 2.5, 0.0)]


@pytest.mark.parametrize("word", ["2=3@1", "1=0", "1=3@", "x=3", "1=-3", "1=1001"])
def test_bad_slow_options_are_named(word: str) -> None:
    with pytest.raises(ConfigError, match="--slow "):
        slowings([word], 2)
