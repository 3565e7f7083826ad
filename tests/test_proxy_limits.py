"""Deadlines, places, keys, models and our own failures: what the router answers by itself.

Deadlines are met by sweeping with a time in the future; nobody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from lodestar_fast.errors import NoInstanceError
from tests.fake_engine import HEAD_SSE, head_only, pieces, plain, stall, token
from tests.proxy_rig import CHAT, Rig, chat, with_rig

pytestmark = pytest.mark.usefixtures("both_ways")

QUEUE = {"max_concurrent_requests": 1, "queue_size": 1, "queue_timeout": 5.0}


def queue_of(*items: bytes) -> asyncio.Queue[bytes | None]:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    for item in items:
        queue.put_nowait(item)
    return queue


# -- deadlines --


@with_rig(limits={"header_timeout": 7.0})
async def test_header_timeout(rig: Rig) -> None:
    client = await rig.client()
    client.send(b"POST / HT")
    await rig.until(lambda: any(c.busy for c in rig.context.connections))
    rig.expire(6.0)
    rig.expire(8.0)
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (408, "header_timeout")
    assert reply.field("connection") == "close"
    assert await client.ended()
    assert rig.outcome() == ("other", "4xx", "completed")


@with_rig()
async def test_a_silent_connection_is_closed_without_a_word(rig: Rig) -> None:
    client = await rig.client()
    await rig.until(lambda: rig.context.connections)
    rig.expire(11.0)
    assert await client.ended()
    assert rig.outcomes() == {}


@with_rig()
async def test_an_idle_connection_is_closed_after_keep_alive(rig: Rig) -> None:
    client = await rig.client()
    client.post()
    await client.reply()
    rig.expire(70.0)
    client.post()
    assert (await client.reply()).status == 200
    rig.expire(80.0)
    assert await client.ended()


@with_rig(limits={"body_timeout": 7.0})
async def test_body_timeout(rig: Rig) -> None:
    client = await rig.client()
    client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    await rig.until(lambda: any(c.busy for c in rig.context.connections))
    rig.expire(6.0)
    rig.expire(8.0)
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (408, "body_timeout")
    assert rig.outcome() == ("/v1/completions", "4xx", "completed")


@pytest.mark.parametrize("answer", [stall, head_only], ids=["silent", "head"])
def test_first_byte_timeout(answer: object) -> None:
    @with_rig(engines=3, limits={"first_byte_timeout": 7.0})
    async def test(rig: Rig) -> None:
        client = await rig.client()
        for engine in rig.engines:
            engine.default = answer  # type: ignore[assignment]
        client.post()
        for engine in rig.engines[:2]:  # another one is tried, once
            call = await engine.called()
            rig.expire(6.0)
            rig.expire(8.0)
            await call.gone.wait()
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (504, "first_byte_timeout")
        assert rig.router.names() == ["TIMEOUT"] * 2
        assert rig.instances[0].failures == ["first_byte_timeout"]
        assert rig.outcome() == (CHAT, "5xx", "engine_error")

    test()


@with_rig(limits={"request_timeout": 7.0})
async def test_request_timeout(rig: Rig) -> None:
    rig.engines[0].default = stall
    client = await rig.client()
    client.post()
    await rig.engines[0].called()
    rig.expire(8.0)
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (504, "request_timeout")
    assert rig.router.names() == ["TIMEOUT"]


@pytest.mark.parametrize("limit", ["stream_idle_timeout", "request_timeout"])
def test_a_stream_that_stops_is_cut(limit: str) -> None:
    @with_rig(limits={limit: 7.0})
    async def test(rig: Rig) -> None:
        first = token(0)
        queue = queue_of(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
        rig.engines[0].script.append(pieces(queue))
        client = await rig.client()
        client.post(chat(stream=True))
        reply = await client.head()
        await client.chunk(reply)
        rig.expire(6.0)
        rig.expire(8.0)
        await client.rest(reply)
        assert not reply.whole
        assert b"[DONE]" not in reply.body and limit.encode() in reply.body
        assert rig.router.names() == ["FIRST_TOKEN", "TIMEOUT"]
        assert rig.instances[0].failures == [limit]
        assert rig.outcome() == (CHAT, "2xx", "engine_error")
        queue.put_nowait(None)

    test()


@with_rig(engines=0, limits={"connect_timeout": 7.0})
async def test_connect_timeout(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        rig.add(full.getsockname()[1])
        with socket.create_connection(full.getsockname()):  # nobody accepts: others must wait
            client = await rig.client()
            client.post()
            await rig.until(lambda: rig.router.routes)
            rig.expire(6.0)
            assert rig.router.names() == []
            rig.expire(8.0)
            reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "connect_timeout")
    assert rig.router.names() == ["FAILED"]


# -- places --


@with_rig(limits={"max_concurrent_requests": 1})
async def test_beyond_the_places_requests_are_shed(rig: Rig) -> None:
    gate = queue_of(HEAD_SSE)
    rig.engines[0].script.append(pieces(gate))
    first, second = await rig.client(), await rig.client()
    first.post()
    await rig.engines[0].called()
    second.post()
    reply = await second.reply()
    assert (reply.status, reply.error["code"]) == (503, "overloaded")
    assert reply.field("retry-after") == "1"
    assert rig.outcome() == (CHAT, "5xx", "shed")
    first.close()
    await rig.until(lambda: rig.context.inflight == 0)
    second.post()
    assert (await second.reply()).status == 200
    gate.put_nowait(None)


@with_rig(limits=QUEUE)
async def test_a_queued_request_gets_the_place_that_becomes_free(rig: Rig) -> None:
    gate = asyncio.Event()

    async def slow(call: object) -> None:
        await gate.wait()
        await plain(200, b"{}")(call)  # type: ignore[arg-type]

    rig.engines[0].script.append(slow)
    first, second, third = [await rig.client() for _ in range(3)]
    first.post()
    await rig.engines[0].called()
    second.post()
    await rig.until(lambda: rig.context.queued == 1)
    third.post()
    assert (await third.reply()).error["code"] == "overloaded"
    gate.set()
    assert (await first.reply()).status == 200
    assert (await second.reply()).status == 200


@with_rig(limits=QUEUE)
async def test_queue_timeout_and_leaving_the_queue(rig: Rig) -> None:
    rig.engines[0].default = stall
    first, second, third = [await rig.client() for _ in range(3)]
    first.post()
    await rig.engines[0].called()
    second.post()
    await rig.until(lambda: rig.context.queued == 1)
    rig.expire(6.0)
    reply = await second.reply()
    assert (reply.status, reply.error["code"]) == (503, "queue_timeout")
    assert rig.outcome() == (CHAT, "5xx", "shed")
    third.post()
    await rig.until(lambda: rig.context.queued == 1)
    third.close()
    await rig.until(lambda: rig.context.queued == 0)
    assert rig.outcomes()[CHAT, "none", "client_abort"] == 1


# -- who may ask, and for what --


@with_rig(api_keys=frozenset((b"key-a", b"key-b")))
async def test_api_keys(rig: Rig) -> None:
    client = await rig.client()
    for line in ("", "Authorization: Bearer nope\r\n", "Authorization: Basic key-a\r\n"):
        client.post(extra=line)
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.field("www-authenticate") == "Bearer"
    for line in ("Authorization: Bearer key-a\r\n", "authorization: bearer key-b\r\n"):
        client.post(extra=line)
        assert (await client.reply()).status == 200
    client.get("/v1/models")
    assert (await client.reply()).status == 401
    client.get("/health")
    assert (await client.reply()).status == 200


@with_rig(engines=2)
async def test_only_instances_that_serve_the_model_are_asked(rig: Rig) -> None:
    rig.instances[0].models, rig.instances[1].models = ("m", "base"), ("other",)
    client = await rig.client()
    for model, engine in (("m", 0), ("other", 1), ("m", 0), ("base", 0)):
        client.post({"model": model, "messages": []})
        assert (await client.reply()).status == 200
        call = await asyncio.wait_for(rig.engines[engine].called(), 5)
        assert model.encode() in call.body
    client.post({"model": "none", "messages": []})
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert reply.error["param"] == "model"
    rig.instances[1].models = ()  # not known: it is asked
    rig.context.models_changed()
    client.post({"model": "none", "messages": []})
    assert (await client.reply()).status == 200


@with_rig()
async def test_no_instance(rig: Rig) -> None:
    rig.router.error = NoInstanceError("none")
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "no_instance")
    assert reply.field("retry-after") == "1"
    assert rig.outcome() == (CHAT, "5xx", "engine_error")


@with_rig()
async def test_without_a_ticket_a_request_is_shed(rig: Rig) -> None:
    rig.router.full = True
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "overloaded")
    assert rig.outcome() == (CHAT, "5xx", "shed")
    assert rig.router.events == []


# -- our own failures --


@with_rig()
async def test_a_failure_of_ours_is_a_500_and_nothing_else(
    rig: Rig,
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        rig.router.error = RuntimeError("on purpose")
        client = await rig.client()
        client.post()
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (500, "internal_error")
        assert rig.outcome() == (CHAT, "5xx", "router_error")
        rig.router.error = None
        other = await rig.client()
        other.post()
        assert (await other.reply()).status == 200
        other.get("/version")  # answered by a function that raises
        assert (await other.reply()).status == 500
    finally:
        logging.disable(logging.NOTSET)


def _raise(*args: object) -> None:
    raise RuntimeError("on purpose")


@with_rig()
async def test_a_failure_of_ours_behind_the_last_byte_ends_the_connection(rig: Rig) -> None:
    logging.disable(logging.CRITICAL)
    try:
        rig.instances[0].note_success = _raise  # type: ignore[method-assign]
        client = await rig.client()
        client.post()
        assert (await client.reply()).whole
        assert await client.ended()
        assert rig.outcome() == (CHAT, "2xx", "router_error")
    finally:
        logging.disable(logging.NOTSET)


@with_rig()
async def test_a_failure_of_ours_in_mid_stream_cuts_the_stream(rig: Rig) -> None:
    first = token(0)
    queue = queue_of(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
    rig.engines[0].script.append(pieces(queue))
    logging.disable(logging.CRITICAL)
    try:
        client = await rig.client()
        client.post(chat(stream=True))
        reply = await client.head()
        await client.chunk(reply)
        rig.router.observing = _raise
        queue.put_nowait(b"%x\r\n%b\r\n" % (len(first), first))
        await client.rest(reply)
        assert not reply.whole
        assert b"internal_error" in reply.body
        assert rig.outcome() == (CHAT, "2xx", "router_error")
        await (await rig.engines[0].called()).gone.wait()
    finally:
        logging.disable(logging.NOTSET)
        rig.router.observing = rig.router.inner.observe
    queue.put_nowait(None)
