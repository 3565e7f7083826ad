"""One request's life: what passes, what the router is told, when another engine is tried."""

from __future__ import annotations

import asyncio

import pytest

from lodestar_fast.core.router import Event
from lodestar_fast.errors import InvariantError
from lodestar_fast.proxy.states import STATES, STEPS, TRANSITIONS, follow
from tests.fake_engine import (
    DONE_EVENT,
    ERROR_EVENT,
    HEAD_JSON,
    HEAD_SSE,
    Answer,
    FakeEngine,
    hang_up,
    head_only,
    pieces,
    plain,
    raw,
    reset,
    stall,
    stream,
    token,
    usage,
)
from tests.proxy_rig import CHAT, Rig, chat, with_rig

pytestmark = pytest.mark.usefixtures("both_ways")

COMPLETED = (CHAT, "2xx", "completed")
BAD_REQUEST_EVENT = b'data: {"error": {"message": "too long", "code": 400}}\n\n'
EVENT_OF_USAGE = b'data: {"choices":[],"usage":%b}\n\n' % usage(100, 7, 64)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("step", STEPS)
def test_only_the_steps_of_the_table_are_taken(state: str, step: str) -> None:
    following = TRANSITIONS[state].get(step)
    if following is None:
        with pytest.raises(InvariantError, match=f"step {step} in state {state}"):
            follow(state, step)
    else:
        assert follow(state, step) == following


# -- what passes, and what is measured --


@with_rig()
async def test_plain_answer_passes_and_is_measured(rig: Rig) -> None:
    body = b'{"choices":[{"text":"a","finish_reason":"stop"}],"usage":%b}' % usage(50, 3, 16)
    rig.engines[0].script.append(plain(200, body))
    client = await rig.client()
    client.post(chat("hello", temperature=0.5))
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, body)
    assert reply.field("content-length") == str(len(body))
    assert rig.router.names() == ["USAGE", "DONE"]
    assert [e[2:] for e in rig.router.events] == [(50, 16), (3, -1)]
    assert not rig.router.routes[0]["streaming"]
    assert rig.router.routes[0]["prompt"] == b'[{"role": "user", "content": "hello"}]'
    assert rig.outcome() == COMPLETED
    assert rig.instances[0].successes == 1


@with_rig()
async def test_stream_passes_and_is_measured(rig: Rig) -> None:
    events = (token(0), token(1), token(2), EVENT_OF_USAGE, DONE_EVENT)
    rig.engines[0].script.append(stream(*events))
    client = await rig.client()
    client.post(chat(stream=True))
    reply = await client.reply()
    assert reply.whole and reply.body == b"".join(events)
    assert rig.router.names()[0] == "FIRST_TOKEN"
    assert rig.router.names()[-2:] == ["USAGE", "DONE"]
    told = sum(tokens for _, event, tokens, _ in rig.router.events if event == Event.TOKENS)
    assert 1 + told == 4
    assert rig.router.events[-2][2:] == (100, 64)
    assert rig.router.events[-1][2] == 7
    assert rig.router.routes[0]["streaming"]


@with_rig()
async def test_first_token_is_not_the_head(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue, "keep"))
    client = await rig.client()
    client.post(chat(stream=True))
    await rig.engines[0].called()
    queue.put_nowait(HEAD_SSE)
    queue.put_nowait(b"9\r\n: hello\n\n\r\n")  # a comment passes at once and is no token
    reply = await client.head()
    assert await client.chunk(reply) == b": hello\n\n"
    assert rig.router.names() == []
    first = token(0)
    queue.put_nowait(b"%x\r\n" % len(first) + first[:9])
    assert await client.chunk(reply) == first[:9]  # at once, though only the rest can tell
    assert rig.router.names() == []
    queue.put_nowait(first[9:] + b"\r\n")
    assert await client.chunk(reply) == first[9:]
    assert rig.router.names() == ["FIRST_TOKEN"]
    queue.put_nowait(b"0\r\n\r\n")
    queue.put_nowait(None)
    await client.rest(reply)
    assert reply.whole
    assert rig.router.names() == ["FIRST_TOKEN", "DONE"]


@with_rig()
async def test_pieces_pass_one_by_one(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue, "keep"))
    client = await rig.client()
    client.post(chat(stream=True))
    text = token(0) + token(1)
    queue.put_nowait(HEAD_SSE)
    reply = None
    for i in range(len(text)):
        queue.put_nowait(b"1\r\n" + text[i : i + 1] + b"\r\n")
        if i < len(b'data: {"i') - 1:  # until it cannot be an error any more
            continue
        reply = reply or await client.head()
        await client.chunk(reply)
        assert reply.body == text[: i + 1]
    queue.put_nowait(b"0\r\n\r\n")
    queue.put_nowait(None)
    assert reply is not None
    await client.rest(reply)
    assert reply.whole and reply.body == text


# -- retries --


async def _served_by_the_other(rig: Rig, first: Answer, kind: str, body: object = None) -> None:
    rig.engines[0].script.append(first)
    client = await rig.client()
    client.post(body or chat())
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, b'{"ok":true}')
    assert reply.field("retry-after") is None
    assert rig.instances[0].failures == [kind]
    assert rig.instances[1].successes == 1
    assert rig.router.routes[1]["avoid"] == {0}
    assert rig.router.names() == ["FAILED", "DONE"]
    assert rig.context.counters.snapshot()["retries"] == {kind: 1}
    assert rig.outcome() == COMPLETED
    bodies = {call.body for engine in rig.engines for call in engine.calls}
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (reset, "reset"),
        (hang_up, "reset"),
        (raw(HEAD_JSON + b"content-length: 5\r\n\r\n", close=True), "reset"),
        (raw(b"\x00\x01garbage\r\n\r\n"), "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"), "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000), "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 12_000 + b"\r\n"), "malformed"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 9), "malformed"),
        (raw(b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), "malformed"),
        (raw(b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n"), "malformed"),
        (raw(b"HTTP/1.1 000 No\r\ncontent-length: 0\r\n\r\n"), "malformed"),
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx"), "malformed"),
        (plain(500, b"{}"), "status"),
        (plain(502, b"{}"), "status"),
        (plain(503, b"{}", b"retry-after: 7\r\n"), "busy"),
        (plain(429, b"{}"), "busy"),
        (stream(ERROR_EVENT, DONE_EVENT), "stream_error"),
        (stream(b"event: error\n", b'data: {"type":"error"}\n\n'), "stream_error"),
    ],
)
def test_failures_before_the_first_byte_are_retried(first: Answer, kind: str) -> None:
    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        await _served_by_the_other(rig, first, kind)

    test()


@with_rig(engines=0)
async def test_refused_connection_is_retried(rig: Rig) -> None:
    rig.add_dead()
    engine = await FakeEngine().start()
    rig.engines.append(engine)
    rig.add(engine.port)
    client = await rig.client()
    client.post()
    assert (await client.reply()).status == 200
    assert rig.instances[0].failures == ["connect"]
    assert rig.router.names() == ["FAILED", "DONE"]


@with_rig(engines=0)
async def test_no_engine_accepts(rig: Rig) -> None:
    for _ in range(2):
        rig.add_dead()
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "connect")
    assert reply.field("retry-after") == "1"
    assert rig.router.names() == ["FAILED", "FAILED"]
    assert rig.outcome() == (CHAT, "5xx", "engine_error")


@with_rig(engines=4, limits={"max_retries": 2})
async def test_tries_are_bounded_and_the_last_answer_passes(rig: Rig) -> None:
    for i, (engine, after) in enumerate(zip(rig.engines, (5, 3, 4, 1), strict=True)):
        engine.default = plain(503, b'{"from":%d}' % i, b"retry-after: %d\r\n" % after)
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.body) == (503, b'{"from":2}')
    assert reply.field("retry-after") == "3"
    assert [len(engine.calls) for engine in rig.engines] == [1, 1, 1, 0]
    assert rig.router.names() == ["FAILED"] * 3
    assert rig.outcome() == (CHAT, "5xx", "engine_error")


@with_rig(engines=1)
async def test_a_retry_after_outlives_an_engine_that_is_not_there(rig: Rig) -> None:
    rig.add_dead()
    rig.engines[0].default = plain(429, b"{}", b"retry-after: 9\r\n")
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.field("retry-after")) == (503, "9")


@pytest.mark.parametrize(
    "answer", [stream(ERROR_EVENT, DONE_EVENT), stream(ERROR_EVENT[:9], ERROR_EVENT[9:])]
)
def test_last_error_event_passes_unchanged(answer: Answer) -> None:
    @with_rig()
    async def test(rig: Rig) -> None:
        rig.engines[0].script.append(answer)
        client = await rig.client()
        client.post(chat(stream=True))
        reply = await client.reply()
        assert reply.status == 200 and reply.whole
        assert reply.body.startswith(ERROR_EVENT)
        assert rig.router.names() == ["FAILED"]
        assert rig.instances[0].failures == ["stream_error"]
        assert rig.outcome() == (CHAT, "2xx", "engine_error")

    test()


@with_rig(engines=2)
async def test_error_event_about_the_request_is_not_the_engines_fault(rig: Rig) -> None:
    rig.engines[0].script.append(stream(BAD_REQUEST_EVENT, DONE_EVENT))
    client = await rig.client()
    client.post(chat(stream=True))
    reply = await client.reply()
    assert reply.body == BAD_REQUEST_EVENT + DONE_EVENT
    assert rig.instances[0].failures == []
    assert rig.outcome() == COMPLETED


@pytest.mark.parametrize("status", [400, 404, 422])
def test_answers_about_the_request_pass_unchanged(status: int) -> None:
    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        rig.engines[0].script.append(plain(status, b'{"error":"mine"}', b"x-mine: 1\r\n"))
        client = await rig.client()
        client.post()
        reply = await client.reply()
        assert (reply.status, reply.body) == (status, b'{"error":"mine"}')
        assert reply.field("x-mine") == "1"
        assert len(rig.router.routes) == 1
        assert rig.instances[0].failures == []
        assert rig.outcome() == (CHAT, "4xx", "completed")

    test()


# -- failures after the first byte --


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_stream_that_breaks_never_looks_complete(end: str) -> None:
    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        rig.engines[0].script.append(pieces(queue, end))
        client = await rig.client()
        client.post(chat(stream=True))
        queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(token(0)), token(0)))
        reply = await client.head()
        await client.chunk(reply)
        queue.put_nowait(None)
        await client.rest(reply)
        assert not reply.whole
        assert reply.body.startswith(token(0))
        assert b'data: {"error":' in reply.body and b"[DONE]" not in reply.body
        assert rig.router.names() == ["FIRST_TOKEN", "FAILED"]
        assert rig.instances[0].failures == ["truncated"]
        assert len(rig.router.routes) == 1
        assert rig.outcome() == (CHAT, "2xx", "engine_error")

    test()


@with_rig(engines=2)
async def test_a_short_body_is_never_completed(rig: Rig) -> None:
    rig.engines[0].script.append(raw(HEAD_JSON + b"content-length: 10\r\n\r\nabc", close=True))
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.body, reply.whole) == (200, b"abc", False)
    assert rig.outcome() == (CHAT, "2xx", "engine_error")


@with_rig()
async def test_error_in_mid_stream_is_the_engines_failure(rig: Rig) -> None:
    rig.engines[0].script.append(stream(token(0), ERROR_EVENT, DONE_EVENT))
    client = await rig.client()
    client.post(chat(stream=True))
    reply = await client.reply()
    assert reply.body == token(0) + ERROR_EVENT + DONE_EVENT
    assert rig.instances[0].failures == ["stream_error"]
    assert rig.router.names()[-1] == "FAILED"


@with_rig()
async def test_finish_reason_abort_is_the_engines_failure(rig: Rig) -> None:
    body = b'{"choices":[{"text":"abort","finish_reason": "abort"}]}'
    rig.engines[0].script += [plain(200, body), plain(200, b'{"text":"\\"abort\\""}')]
    client = await rig.client()
    for _ in range(2):
        client.post()
        await client.reply()
    assert rig.instances[0].failures == ["aborted"]
    assert rig.router.names() == ["FAILED", "DONE"]


# -- clients that leave --


@pytest.mark.parametrize("leave", ["close", "abort", "half-close"])
@pytest.mark.parametrize("answer", [stall, head_only], ids=["silent", "head"])
def test_leaving_cancels_the_engines_work(answer: Answer, leave: str) -> None:
    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        rig.engines[0].script.append(answer)
        client = await rig.client()
        client.post(chat(stream=True))
        call = await rig.engines[0].called()
        if leave == "half-close":
            client.writer.write_eof()
        else:
            getattr(client, leave)()
        await call.gone.wait()
        await rig.until(lambda: not rig.context.connections)
        assert rig.router.names() == ["ABANDONED"]
        assert rig.instances[0].failures == []
        assert len(rig.router.routes) == 1
        assert rig.outcome() == (CHAT, "none", "client_abort")

    test()


@with_rig()
async def test_leaving_in_mid_stream_cancels_the_engines_work(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue))
    client = await rig.client()
    client.post(chat(stream=True))
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(token(0)), token(0)))
    await client.chunk(await client.head())
    client.close()
    await (await rig.engines[0].called()).gone.wait()
    await rig.until(lambda: not rig.context.connections)
    assert rig.router.names() == ["FIRST_TOKEN", "ABANDONED"]
    assert rig.outcome() == (CHAT, "2xx", "client_abort")
    queue.put_nowait(None)
