"""The data path as a whole: bytes in equal bytes out, flow control, a real client, policies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from typing import Any

import openai
import pytest

from lodestar_fast.core.policies import POLICIES
from tests.fake_engine import DONE_EVENT, HEAD_SSE, Call, pieces, plain, stream
from tests.proxy_rig import CHAT, Client, Rig, chat, with_rig

pytestmark = pytest.mark.usefixtures("both_ways")


def split(rng: random.Random, data: bytes) -> list[bytes]:
    """data in random pieces, small ones mostly."""
    parts, at = [], 0
    while at < len(data):
        n = rng.choice((1, 2, 3, 10, 200, 5000, 70_000))
        parts.append(data[at : at + n])
        at += n
    return parts


@pytest.mark.parametrize("seed", range(8))
def test_bodies_pass_byte_for_byte_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    text = rng.randbytes(rng.choice((0, 1, 1000, 300_000))).hex().encode()
    body = b'{"messages":"%b"}' % text
    answer = rng.randbytes(rng.choice((1, 1000, 300_000)))
    chunked_in, chunked_out = rng.random() < 0.5, rng.random() < 0.5

    def framed(data: bytes, chunked: bool) -> bytes:
        if not chunked:
            return b"content-length: %d\r\n\r\n%b" % (len(data), data)
        chunks = b"".join(b"%X\r\n%b\r\n" % (len(p), p) for p in split(rng, data))
        return b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def reply(call: Call) -> None:
        for piece in split(rng, b"HTTP/1.1 200 OK\r\n" + framed(answer, chunked_out)):
            call.send(piece)
            await asyncio.sleep(0)

    @with_rig()
    async def test(rig: Rig) -> None:
        rig.engines[0].default = reply
        client = await rig.client()
        for _ in range(3):
            head = b"POST %b HTTP/1.1\r\nhost: a\r\n" % CHAT.encode()
            for piece in split(rng, head + framed(body, chunked_in)):
                client.send(piece)
                await asyncio.sleep(0)
            got = await client.reply()
            assert got.whole and got.body == answer
            assert (await rig.engines[0].called()).body == body

    test()


SIZE, PART = 48 << 20, bytes(range(256)) * 256


async def flood(call: Call) -> None:
    """SIZE bytes as fast as they are taken; how many is noted in call.sent."""
    call.sent = 0
    call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
    while call.sent < SIZE:
        await call.connection.writable.wait()
        call.send(PART)
        call.sent += len(PART)


async def stuck(rig: Rig, client: Client) -> Call:
    """Wait until the engine cannot send more, since the client does not read."""
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    call = await rig.engines[0].called()
    await rig.until(
        lambda: (
            any(c.blocked for c in rig.context.connections)
            and not call.connection.writable.is_set()
        )
    )
    return call


@with_rig()
async def test_a_slow_reader_holds_the_engine_back(rig: Rig) -> None:
    rig.engines[0].script.append(flood)
    client = await rig.client()
    client.post()
    call = await stuck(rig, client)
    assert call.sent < SIZE // 2
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    reply = await client.reply()
    assert reply.whole and len(reply.body) == SIZE
    assert hashlib.sha256(reply.body).digest() == hashlib.sha256(PART * (SIZE >> 16)).digest()
    assert rig.outcome() == (CHAT, "2xx", "completed")


@with_rig()
async def test_a_reader_that_stops_for_good_is_cut(rig: Rig) -> None:
    rig.engines[0].script.append(flood)
    client = await rig.client()
    client.post()
    call = await stuck(rig, client)
    rig.expire(121.0)
    await call.gone.wait()
    assert rig.outcome() == (CHAT, "2xx", "client_abort")
    assert rig.router.names() == ["ABANDONED"]
    call.connection.writable.set()


@with_rig(explain=True)
async def test_explanations_are_given_when_asked_for(rig: Rig) -> None:
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert reply.field("x-lodestar-instance") == "i0"
    assert reply.field("x-lodestar-policy") == "rr"
    assert reply.field("x-lodestar-reason") in ("heuristic", "only_one")
    assert float(reply.field("x-lodestar-decision-us") or -1) > 0
    assert reply.field("x-lodestar-predicted-ttft-ms") is None


@with_rig()
async def test_no_explanations_otherwise(rig: Rig) -> None:
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert not [name for name, _ in reply.fields if name.lower().startswith("x-lodestar")]


CHUNKS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    *({"choices": [{"index": 0, "delta": {"content": t}}]} for t in ("Hel", "lo")),
    {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}},
]
ENVELOPE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
}


@with_rig()
async def test_the_openai_client(rig: Rig) -> None:
    events = [b"data: " + json.dumps(ENVELOPE | chunk).encode() + b"\n\n" for chunk in CHUNKS]
    whole = ENVELOPE | {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}],
    }
    rig.engines[0].script += [
        plain(200, json.dumps(whole).encode()),
        stream(*events, DONE_EVENT),
        plain(400, b'{"error":{"message":"no","type":"BadRequestError","code":400}}'),
        stream(*events, DONE_EVENT),
    ]
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{rig.port}/v1", api_key="none", max_retries=0
    ) as client:
        ask = client.chat.completions.create
        turn = chat()["messages"]
        answer = await ask(model="m", messages=turn)
        assert answer.choices[0].message.content == "Hello"
        assert answer._request_id
        text = ""
        async for chunk in await ask(model="m", messages=turn, stream=True):
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        assert text == "Hello"
        with pytest.raises(openai.BadRequestError, match="no"):
            await ask(model="m", messages=turn)
        with pytest.raises(openai.NotFoundError):
            await client.models.list()
        early = await ask(model="m", messages=turn, stream=True)
        await early.close()
    await rig.until(lambda: not rig.context.connections)


@with_rig()
async def test_the_openai_client_sees_that_a_stream_broke(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue))
    event = b"data: " + json.dumps(ENVELOPE | CHUNKS[1]).encode() + b"\n\n"
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(event), event))
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{rig.port}/v1", api_key="none", max_retries=0
    ) as client:
        chunks = await client.chat.completions.create(
            model="m", messages=chat()["messages"], stream=True
        )
        assert (await anext(chunks)).choices[0].delta.content == "Hel"
        queue.put_nowait(None)
        with pytest.raises(openai.APIError, match="closed the connection"):
            await anext(chunks)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_serves(policy: str) -> None:
    @with_rig(engines=3, policy=POLICIES[policy]())
    async def test(rig: Rig) -> None:
        async def one(i: int) -> None:
            client = await rig.client()
            for _ in range(10):
                client.post(chat(f"question {i}" * 40, stream=True))
                assert (await client.reply()).status == 200

        await asyncio.gather(*(one(i) for i in range(12)))
        assert rig.outcomes() == {(CHAT, "2xx", "completed"): 120}

    test()


@with_rig(limits={"max_body_bytes": 1 << 28, "max_inflight_body_bytes": 1 << 29})
async def test_a_body_larger_than_the_sockets_hold_arrives_whole(rig: Rig) -> None:
    """What the engine's socket does not take at once is sent by the transport."""
    text = random.Random(1).randbytes(12 << 20).hex().encode()
    body = b'{"messages":"%b"}' % text
    for _ in range(2):
        client = await rig.client()
        client.post(body)
        assert (await client.reply()).status == 200
        assert (await rig.engines[0].called()).body == body
