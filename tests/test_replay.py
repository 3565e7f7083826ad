"""The load generator and `lodestar replay` against a small server that behaves and misbehaves."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lodestar_fast import replay as verb
from lodestar_fast.errors import ConfigError
from lodestar_fast.loadgen import find_model, replay
from lodestar_fast.sim.workload import Request, prompt_text
from lodestar_fast.summary import Record

CHUNK = 'data: {"choices":[{"index":0,"delta":%s}]}\n\n'
ROLE = CHUNK % '{"role":"assistant","content":""}'
TOKEN = CHUNK % '{"content":"word "}'
USAGE = (
    'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,'
    '"prompt_tokens_details":{"cached_tokens":16}}}\n\n'
)
DONE = "data: [DONE]\n\n"
HEADERS = {
    "x-lodestar-instance": "abc",
    "x-lodestar-reason": "learned",
    "x-lodestar-predicted-ttft-ms": "12.5",
    "x-lodestar-decision-us": "7",
}
TRACE = '{"meta":{"block_size":null}}\n{"t":0,"in":40,"out":3}\n{"t":0.02,"in":20,"out":2}\n'


class Server:
    """Answers by the requested number of tokens; what it was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.release = asyncio.Event()
        self.release.set()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append({**body, "authorization": request.headers.get("authorization")})
        tokens = body["max_tokens"]
        if tokens == 503:
            return web.json_response({"error": {"message": "no engine alive"}}, status=503)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        await response.write(ROLE.encode())
        await self.release.wait()
        if tokens == 404:  # an error after the head
            await response.write(b'data: {"error":{"message":"out of memory"}}\n\n' + DONE.encode())
            return response
        if tokens == 99:  # breaks off
            await response.write(TOKEN.encode())
            assert request.transport is not None
            request.transport.abort()
            return response
        if tokens == 98:  # speaks another language
            await response.write(b'data: {"choices":"none"}\n\ndata: 7\n\n: hm\n\n')
            await response.write(DONE.encode())
            return response
        half = len(TOKEN) // 2
        for _ in range(tokens):
            await response.write(TOKEN[:half].encode())
            await asyncio.sleep(0)
            await response.write(TOKEN[half:].encode())
        if body["stream_options"]["include_usage"] and tokens != 7:
            text = body["messages"][0]["content"]
            await response.write((USAGE % (len(text) // 4, tokens)).encode())
        await response.write(DONE.encode())
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "llama"}]})


def with_server(test: Callable[[Server, str], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        server = Server()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.chat)
        app.router.add_get("/v1/models", server.models)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            await test(server, f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    asyncio.run(main())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ask(*output_tokens: int) -> list[Request]:
    return [Request(i, 0.01 * i, 40, n) for i, n in enumerate(output_tokens)]


async def play(requests: list[Request], url: str, **options: Any) -> list[Record]:
    seen: list[Record] = []
    records = await replay(
        requests, {"x": url}, model="m", on_record=lambda _, record: seen.append(record), **options
    )
    assert sorted(r.index for r in seen) == [r.index for r in records["x"]]
    return records["x"]


def test_measures_an_answer() -> None:
    async def test(server: Server, url: str) -> None:
        (record,) = await play(ask(5), url)
        assert not record.error and record.status == 200
        assert record.ttft is not None and record.tpot is not None and record.e2e is not None
        assert 0 < record.ttft <= record.e2e
        assert record.tpot == pytest.approx((record.e2e - record.ttft) / 4)
        assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (40, 5, 16)
        assert (record.instance, record.reason) == ("abc", "learned")
        assert record.predicted == pytest.approx(0.0125)
        assert record.decision == pytest.approx(7e-6)
        body = server.asked[0]
        assert body["messages"] == [{"role": "user", "content": prompt_text(ask(5)[0])}]
        assert body["max_tokens"] == 5 and body["ignore_eos"] and body["stream"]

    with_server(test)


def test_chunks_are_counted_when_there_is_no_usage() -> None:
    async def test(server: Server, url: str) -> None:
        (record,) = await play(ask(7), url)
        assert not record.error and record.output_tokens == 7 and record.cached_tokens is None

    with_server(test)


def test_the_role_is_no_token() -> None:
    async def test(server: Server, url: str) -> None:
        server.release.clear()
        task = asyncio.create_task(play(ask(3), url))
        async with asyncio.timeout(10):
            while not server.asked:
                await asyncio.sleep(0)
        held = asyncio.get_running_loop().time()
        asyncio.get_running_loop().call_later(0.2, server.release.set)
        (record,) = await task
        assert record.ttft is not None and record.ttft >= 0.19, held

    with_server(test)


def test_failures_are_records() -> None:
    async def test(server: Server, url: str) -> None:
        refused, broken, wrong, odd, fine = await play(ask(503, 99, 404, 98, 2), url)
        assert (refused.status, refused.error) == (503, "503: no engine alive")
        assert broken.error and broken.ttft is not None
        assert wrong.error == "error in the stream: out of memory"
        assert odd.error == "no token in the answer"
        assert not fine.error

    with_server(test)


def test_slow_answer_is_given_up() -> None:
    async def test(server: Server, url: str) -> None:
        server.release.clear()
        (record,) = await play(ask(3), url, timeout=0.1)
        assert record.error == "no end within 0.1 s" and record.ttft is None
        server.release.set()

    with_server(test)


def test_open_loop_does_not_wait_for_answers() -> None:
    async def test(server: Server, url: str) -> None:
        server.release.clear()
        task = asyncio.create_task(play(ask(*[2] * 30), url))
        async with asyncio.timeout(20):
            while len(server.asked) < 30:
                await asyncio.sleep(0.01)
        server.release.set()
        assert not any(record.error for record in await task)

    with_server(test)


def test_every_target_gets_the_same() -> None:
    async def test(server: Server, url: str) -> None:
        records = await replay(
            ask(2, 3), {"a": url, "b": url}, model="m", on_record=lambda *_: None
        )
        assert [r.output_tokens for r in records["a"]] == [2, 3]
        assert [r.output_tokens for r in records["b"]] == [2, 3]
        assert len(server.asked) == 4

    with_server(test)


def test_unreachable_target_is_a_record() -> None:
    (record,) = asyncio.run(play(ask(2), f"http://127.0.0.1:{free_port()}"))
    assert record.error.startswith("ClientConnectorError") and record.status == 0


def test_find_model() -> None:
    async def test(server: Server, url: str) -> None:
        assert await find_model(url) == "llama"
        with pytest.raises(ConfigError, match="--url: GET .* 404"):
            await find_model(url + "/wrong")

    with_server(test)
    with pytest.raises(ConfigError, match="--url: cannot reach"):
        asyncio.run(find_model(f"http://127.0.0.1:{free_port()}"))


# -- the verb


def run_verb(*words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words))


def test_verb_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, key, out = tmp_path / "t.jsonl", tmp_path / "key", tmp_path / "out.json"
    trace.write_text(TRACE)
    key.write_text("secret\n")

    async def test(server: Server, url: str) -> None:
        words = ["--trace", str(trace), "--url", url, "--api-key-file", str(key)]
        words += ["--json", str(out), "--seed", "3"]
        assert await asyncio.to_thread(run_verb, *words) == 0
        assert {body["authorization"] for body in server.asked} == {"Bearer secret"}
        assert {body["model"] for body in server.asked} == {"llama"}

    with_server(test)
    content = json.loads(out.read_text())
    assert (content["schema"], content["command"]) == (1, "replay")
    (run,) = content["runs"]
    assert (run["requests"], run["failed"], run["seed"]) == (2, 0, 3)
    assert run["hit_ratio"] == pytest.approx(32 / 60, abs=1e-4)
    assert run["ttft_ms"]["p50"] > 0 and run["policy"] is None and run["fleet"] is None
    printed = capsys.readouterr()
    assert "2 requests, 0 failed" in printed.out and "TTFT" in printed.out
    assert "2 requests of t over 0 s" in printed.err


def test_verb_fails_if_nothing_was_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(TRACE.replace('"out":3', '"out":503').replace('"out":2', '"out":503'))

    async def test(server: Server, url: str) -> None:
        assert await asyncio.to_thread(run_verb, "--trace", str(trace), "--url", url) == 1

    with_server(test)
    assert "failed: 2 x 503: no engine alive" in capsys.readouterr().out


def test_short_trace_is_repeated(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(TRACE)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = ["--trace", str(trace), "--url", "http://x", "--rate", "10", "--seconds", "20"]
    requests = verb.workload(parser.parse_args(words)).requests
    assert 150 < len(requests) < 250 and 19 < requests[-1].arrival < 20
    assert len({request.index for request in requests}) == len(requests)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--url", "ftp://x"], "--url: ftp://x is not an http"),
        (["--url", "http://127.0.0.1:1"], "--url: cannot reach http://127.0.0.1:1"),
        (["--url", "http://x", "--block-tokens", "50"], "--block-tokens"),
        (["--url", "http://x", "--max-input", "5"], "--max-input: no request"),
        (["--url", "http://x", "--api-key-file", "/none/such"], "--api-key-file: cannot read"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(TRACE)
    with pytest.raises(ConfigError) as caught:
        run_verb("--trace", str(trace), *words)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--rate", "0"], ["--seconds", "nan"], ["--seed", "-1"]])
def test_bad_numbers_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb("--trace", "t", "--url", "http://x", *words)
    assert words[0] in capsys.readouterr().err
