"""Connections to engines: answers as they are parsed, keeping and dropping, usage and events."""

from __future__ import annotations

import asyncio

import pytest

from lodestar_fast.proxy.parse_response import ResponseParser
from lodestar_fast.proxy.sse import aborted, scan, usage
from tests.fake_engine import DONE_EVENT, ERROR_EVENT, HEAD_JSON, Call, plain, raw, token
from tests.fake_engine import usage as usage_object
from tests.proxy_rig import Rig, chat, with_rig

pytestmark = pytest.mark.usefixtures("both_ways")

# -- the parser --


def pieces_of(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_interim_answers_and_trailers_are_dropped(step: int) -> None:
    parser, body = ResponseParser(), b""
    for piece in pieces_of(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n"
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nServer: u\r\nConnection: X-B\r\nX-B: 1\r\nKeep-Alive: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\nX-Evil: 1\r\n"
        b"Content-Type: text/event-stream\r\nX-Last: 1\r\n\r\n",
        step,
    ):
        fields, more = parser.parse(piece)
        body += more
    assert (parser.status, body, parser.complete, parser.broken) == (200, b"ab", True, None)
    assert fields == b"Server: u\r\n"
    assert not parser.sse
    assert parser.chunked and parser.keep_alive and not parser.extra


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"204"])
def test_answers_without_a_body(status: bytes) -> None:
    parser = ResponseParser()
    parser.parse(b"HTTP/1.1 " + status + b"\r\n\r\n")
    assert parser.complete and not parser.until_close and parser.keep_alive


def test_answers_that_end_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.parse(b"HTTP/1.1 200 OK\r\n\r\nabc")[1] == b"abc"
    assert parser.until_close and not parser.keep_alive and not parser.complete


@pytest.mark.parametrize(
    "extra", [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", b"\r\nHTTP/1.1 200"]
)
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_bytes_behind_an_answer_are_noted(answer: bytes, extra: bytes) -> None:
    parser = ResponseParser()
    assert parser.parse(answer + extra)[1] == b"ok"
    assert parser.complete and parser.extra and parser.broken is None


# -- events and usage --


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_events_are_counted_however_they_are_cut(step: int) -> None:
    data = (
        b": ping\n\nid: 3\nevent: chunk\n" + token(0) + b'data:{"x"}\r\n\r\n' + ERROR_EVENT + b"\n"
        b'event: error\ndata: {"type":"error"}\n\n'
        b'data: {"err":1}\n\n'
        b'{"data": "data: no"}\nevent: errors\ndata:\n\n' + DONE_EVENT
    )
    scanner = scan(pieces_of(data, step))
    assert (scanner.events, scanner.errors, scanner.other) == (3, 2, True)


@pytest.mark.parametrize(
    ("data", "carries"),
    [
        (b'{"choices":[{"delta":{"role":"assistant"},"index":0}]}', False),  # transformers serve
        (b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', False),  # vLLM
        (b'{"choices":[{"delta": {"role": "assistant", "content": null}}]}', False),  # llama.cpp
        (b'{"type":"message_start","message":{"role":"assistant","content":[]}}', False),
        (b'{"response":{"output":[],"text":null},"type":"response.in_progress"}', False),
        (b'{"delta":"Hi","type":"response.output_text.delta"}', True),
        (b'{"choices":[{"delta":{"role":"assistant","content":"Hi"}}]}', True),
        (b'{"choices":[{"delta":{"role": "assistant", "reasoning": "Hm"}}]}', True),
        (b'{"choices":[{"delta":{"role":null,"content":null,"reasoning_content":"Hm"}}]}', True),
        (b'{"choices":[{"delta":{"role":"assistant","tool_calls":[{"index":0}]}}]}', True),
        (b'{"choices":[{"text":"","finish_reason":null}]}', True),
        (b"{}", True),
    ],
)
def test_what_opens_a_stream_carries_no_token(data: bytes, carries: bool) -> None:
    event = b"data: " + data + b"\n\n"
    scanner = scan([event])
    assert (scanner.events, scanner.opening) == (1, not carries)
    for cut in range(1, len(event)):
        scanner = scan([event[:cut], event[cut:]])
        assert (scanner.events, scanner.opening) == (1, not carries), event[:cut]
    scanner = scan(pieces_of(event, 1))
    assert (scanner.events, scanner.opening) == (1, not carries)
    # Only before the first token.
    scanner = scan([event, event + token(0), token(1) + event])
    assert (scanner.events, scanner.opening) == (5, 0 if carries else 2)


@pytest.mark.parametrize("step", [1, 50, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("size", [4000, 4096, 5000, 20_000])
def test_an_opening_event_may_be_long(size: int, step: int) -> None:
    opening = b'data: {"type":"response.created","instructions":"%b"}\n\n' % (b"x" * size)
    scanner = scan(pieces_of(opening + token(0), step))
    assert (scanner.events, scanner.opening) == (2, 1)


def test_tail_is_the_end_of_what_was_fed() -> None:
    data = bytes(range(256)) * 100
    for step in (1, 1000, 4096, 5000, 25_600):
        tail = scan(pieces_of(data, step)).tail()
        assert data.endswith(tail) and 4096 <= len(tail) <= 8192
    assert scan([]).tail() == b""


def numbers(tail: bytes) -> tuple[int, int, int]:
    return usage(tail)


def test_usage() -> None:
    assert numbers(b'{"usage":' + usage_object(10, 3, 8) + b"}") == (10, 3, 8)
    assert numbers(b'"usage": {"input_tokens":5,"output_tokens":2}') == (5, 2, -1)
    assert numbers(b'"usage":{"prompt_tokens":1}, "usage": null}') == (1, -1, -1)
    assert numbers(b'"usage":{"prompt_tokens":1}..."usage":{"prompt_tokens":2}') == (2, -1, -1)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b'"usage":null',
        b'"usage":',
        b'"usage":{"prompt_tokens":',
        b'"usage":{"prompt_tokens":12',
        b'"usage":{"prompt_tokens":-1}',
        b'"usage":{"prompt_tokens":1e9}',
        b'"usage":{"prompt_tokens":1.5}',
        b'"usage":{"prompt_tokens":"7"}',
        b'"usage":{"prompt_tokens":1073741824}',
        b'"usage":{"prompt_tokens":99999999999999999999999999}',
        b'"content":"\\"usage\\":{\\"prompt_tokens\\":7}"',
    ],
)
def test_usage_that_cannot_be_trusted_is_none(tail: bytes) -> None:
    assert numbers(tail) == (-1, -1, -1)


def test_more_cached_than_prompted_is_nonsense() -> None:
    assert numbers(b'"usage":{"prompt_tokens":1,"cached_tokens":2}') == (1, -1, -1)


def test_aborted() -> None:
    assert aborted(b'{"finish_reason":"abort"}') and aborted(b'{"finish_reason": "abort", "x": 1}')
    assert not aborted(b'{"content":"abort","finish_reason":"stop"}')
    assert not aborted(b'"text":"\\"finish_reason\\":\\"abort\\""')


# -- connections --


@with_rig()
async def test_connections_are_kept_and_used_again(rig: Rig) -> None:
    client = await rig.client()
    for _ in range(5):
        client.post()
        assert (await client.reply()).status == 200
    assert len(rig.engines[0].connections) == 1
    pool = rig.instances[0].pool
    assert (pool.idle, pool.open, pool.busy) == (1, 1, 0)
    assert rig.context.counters.snapshot()["upstream_opened"] == 1


@with_rig(limits={"engine_keep_alive": 4.0})
async def test_idle_connections_are_closed_before_the_engine_does(rig: Rig) -> None:
    client = await rig.client()
    client.post()
    await client.reply()
    rig.expire(3.0)
    assert rig.instances[0].pool.idle == 1
    rig.expire(5.0)
    assert rig.instances[0].pool.open == 0
    await rig.until(lambda: not rig.engines[0].connections)


@pytest.mark.parametrize(
    "answer",
    [
        plain(200, b"{}", b"connection: close\r\n"),
        raw(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        raw(HEAD_JSON + b"content-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n"),
        raw(HEAD_JSON + b"content-length: 2\r\n\r\n{}garbage"),
        raw(HEAD_JSON + b"\r\n{}", close=True),
    ],
    ids=["close", "1.0", "answer behind", "garbage behind", "until close"],
)
def test_a_doubtful_connection_is_not_used_again(answer: object) -> None:
    @with_rig()
    async def test(rig: Rig) -> None:
        rig.engines[0].script.append(answer)  # type: ignore[arg-type]
        client = await rig.client()
        for expected in (b"{}", b'{"ok":true}'):
            client.post()
            reply = await client.reply()
            assert (reply.status, reply.body, reply.whole) == (200, expected, True)
        first, second = rig.engines[0].calls
        assert first.connection is not second.connection
        assert rig.instances[0].failures == []

    test()


@with_rig(limits={"engine_keep_alive": 1000.0})  # its age is not what closes it
async def test_an_unasked_answer_on_an_idle_connection_reaches_nobody(rig: Rig) -> None:
    client = await rig.client()
    client.post()
    await client.reply()
    (connection,) = rig.engines[0].connections
    connection.transport.write(HEAD_JSON + b"content-length: 4\r\n\r\nevil")
    await rig.until(lambda: rig.instances[0].pool.open == 0)
    client.post()
    assert (await client.reply()).body == b'{"ok":true}'
    assert rig.context.counters.snapshot()["extra_bytes"] == 1


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_kept_connection_that_was_closed_under_us_is_no_failure(end: str) -> None:
    async def end_it(call: Call) -> None:
        getattr(call, end)()

    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        client = await rig.client()
        for _ in range(2):  # round robin: one connection to each
            client.post()
            await client.reply()
        # The engine ends the connection as the next request arrives on it.
        rig.engines[0].script.append(end_it)
        client.post()
        assert (await client.reply()).status == 200
        assert len(rig.engines[0].calls) == 3
        assert len(rig.router.routes) == 3
        assert rig.instances[0].failures == []
        assert rig.context.counters.snapshot()["stale_connections"] == 1
        assert rig.context.counters.snapshot()["retries"] == {}

    test()


@with_rig(engines=2)
async def test_a_new_connection_that_is_closed_is_a_failure(rig: Rig) -> None:
    async def close(call: Call) -> None:
        call.close()

    client = await rig.client()
    for _ in range(2):
        client.post()
        await client.reply()
    rig.engines[0].script += [close, close]  # the kept one, and the fresh one after it
    client.post()
    assert (await client.reply()).status == 200
    assert rig.instances[0].failures == ["reset"]


@with_rig()
async def test_a_closed_pool_keeps_nothing(rig: Rig) -> None:
    gate = asyncio.Event()
    rig.engines[0].script.append(
        raw(HEAD_JSON + b"content-length: 2\r\n\r\n{}", gate=gate),
    )
    idle, busy = await rig.client(), await rig.client()
    busy.post()
    await rig.engines[0].called()
    idle.post()
    await idle.reply()
    pool = rig.instances[0].pool
    assert (pool.idle, pool.busy) == (1, 1)
    pool.close()
    assert (pool.idle, pool.open) == (0, 1)
    gate.set()
    assert (await busy.reply()).body == b"{}"
    assert pool.open == 0


@with_rig()
async def test_leaving_while_connecting_gives_the_connection_up(rig: Rig) -> None:
    rig.instances[0].host = "192.0.2.1"
    client = await rig.client()
    client.post(chat())
    await rig.until(lambda: rig.router.routes)
    client.abort()
    await rig.until(lambda: rig.instances[0].pool.open == 0)
    assert rig.router.names() in (["ABANDONED"], ["FAILED"])


@with_rig()
async def test_many_at_once_each_get_their_own_answer(rig: Rig) -> None:
    async def echo(call: Call) -> None:
        await plain(200, call.body)(call)

    rig.engines[0].default = echo

    async def one(i: int) -> None:
        client = await rig.client()
        for j in range(5):
            client.post(chat(f"{i}.{j}"))
            assert f'"{i}.{j}"'.encode() in (await client.reply()).body

    await asyncio.gather(*(one(i) for i in range(50)))
    assert rig.instances[0].successes == 250
