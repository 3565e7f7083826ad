"""Client connections: what is refused, what is answered here, keep-alive, order, old clients."""

from __future__ import annotations

import asyncio

import pytest

from lodestar_fast.proxy.head import host_is_valid, id_is_valid
from lodestar_fast.proxy.parse_request import RequestParser
from tests.fake_engine import HEAD_JSON, plain, raw, stall, stream, token
from tests.proxy_rig import CHAT, Rig, chat, with_rig

pytestmark = pytest.mark.usefixtures("both_ways")

POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
BODY = b'{"prompt":"x"}'
WITH_BODY = POST + b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = (
    POST + b"Transfer-Encoding: chunked\r\n\r\n"
    b'5;ext="1"\r\n{"pro\r\n9\r\nmpt":"x"}\r\n0\r\nX-Request-Id: evil\r\nAuthorization: x\r\n\r\n'
)


def parsed(data: bytes, step: int) -> RequestParser:
    """A parser that was fed the message in pieces of that size."""
    parser, at = RequestParser(65536, 1 << 20), 0
    while at < len(data) and not (parser.complete or parser.status):
        at += parser.parse(data[at : at + step])
    return parser


# -- the parser --


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (WITH_BODY + b"\r\n" + BODY, BODY),
        (WITH_BODY + b"Upgrade: h2c\r\nConnection: upgrade\r\n\r\n" + BODY, BODY),
        (CHUNKED, BODY),
        (CHUNKED.replace(b"Host", b"Upgrade: x\r\nConnection: upgrade\r\nHost"), BODY),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n6\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n" * 3),
        (POST + b"\r\n", b""),
        (b"\r\n\r\n" + POST + b"\r\n", b""),
    ],
)
def test_messages_end_where_they_end(data: bytes, body: bytes, step: int) -> None:
    parser = parsed(data + b"GET / HTTP/1.1\r\n", step)
    assert (parser.complete, parser.status) == (True, 0)
    assert parser.body() == body
    assert parser.path == b"/v1/completions"
    assert parser.authorization is None and parser.request_id is None
    assert b"evil" not in parser.fields


def test_bytes_behind_a_message_are_not_taken() -> None:
    data = WITH_BODY + b"\r\n" + BODY
    assert RequestParser(65536, 1 << 20).parse(data + b"GET") == len(data)
    assert RequestParser(65536, 1 << 20).parse(CHUNKED + b"GET") == len(CHUNKED)


REFUSED = [
    (b"GET /\r\n\r\n", 505),
    (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"POST * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"POST /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST file:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST http:// HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: \r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        400,
    ),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n", 413),
    (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417),
    (b"POST / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (b"POST / HTTP/1.1\nHost: a\n\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"1\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 70_000 + b"\r\na\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20, 400),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n200000\r\n" + b"x" * 2_000_000, 413),
]


@pytest.mark.parametrize("step", [1000, 1_000_000])
@pytest.mark.parametrize(("data", "status"), REFUSED, ids=range(len(REFUSED)))
def test_what_llhttp_leaves_to_us_is_refused(data: bytes, status: int, step: int) -> None:
    assert parsed(data, step).status == status


def test_absolute_targets_become_paths() -> None:
    data = b"POST HTTP://user/v1/completions?a=b HTTP/1.1\r\nHost: a\r\n\r\n"
    parser = parsed(data, 1000)
    assert (parser.target, parser.path) == (b"/v1/completions?a=b", b"/v1/completions")


def test_hop_by_hop_fields_and_those_that_connection_names_stop_here() -> None:
    parser = parsed(
        POST + b"Connection: x-one, close\r\nX-One: 1\r\nX-Two: 2\r\nTE: trailers\r\n"
        b"Keep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: x\r\nTrailer: x\r\nExpect: 100-continue\r\n\r\n",
        1000,
    )
    assert parser.fields == b"X-Two: 2\r\n"
    assert not parser.keep_alive


@pytest.mark.parametrize("host", [b"a", b"a.b-c_d:80", b"127.0.0.1", b"[::1]:8", b"[::1]", b"a:"])
def test_hosts(host: bytes) -> None:
    assert host_is_valid(host)


@pytest.mark.parametrize(
    "host",
    [b"", b"a b", b"a,b", b"a/b", b"u@a", b"a:x", b":1", b"[::1", b"a:123456", b"\xff"],
)
def test_odd_hosts(host: bytes) -> None:
    assert not host_is_valid(host)


def test_request_ids() -> None:
    assert id_is_valid(b"abc-DEF_1.2:3") and id_is_valid(b"x" * 128)
    for bad in (b"", b"x" * 129, b"a b", b"a\tb", b"a;b", b"\xe4"):
        assert not id_is_valid(bad)


# -- on the wire --


@with_rig()
async def test_the_head_that_an_engine_gets(rig: Rig) -> None:
    client = await rig.client()
    client.post(
        extra="X-Request-Id: mine-1\r\nAuthorization: Bearer k\r\nConnection: x-a\r\nX-A: 1\r\n"
    )
    reply = await client.reply()
    call = await rig.engines[0].called()
    assert call.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert call.field(b"host") == [b"127.0.0.1:%d" % rig.engines[0].port]
    assert call.field(b"x-request-id") == [b"mine-1"]
    assert call.field(b"authorization") == [b"Bearer k"]
    assert call.field(b"x-a") == call.field(b"connection") == []
    assert reply.field("x-request-id") == "mine-1"


@with_rig()
async def test_request_ids_are_made_where_they_lack(rig: Rig) -> None:
    client = await rig.client()
    rig.engines[0].default = plain(200, b"{}", b"X-Request-Id: engine\r\n")
    seen = set()
    for extra in ("", "X-Request-Id: not valid\r\n", ""):
        client.post(extra=extra)
        reply = await client.reply()
        call = await rig.engines[0].called()
        assert [reply.field("x-request-id").encode()] == call.field(b"x-request-id")  # type: ignore[union-attr]
        seen.add(reply.field("x-request-id"))
    assert len(seen) == 3


@with_rig()
async def test_chunked_requests_arrive_with_a_length(rig: Rig) -> None:
    client = await rig.client()
    client.send(CHUNKED + WITH_BODY + b"\r\n" + BODY)
    for _ in range(2):
        assert (await client.reply()).status == 200
        call = await rig.engines[0].called()
        assert call.body == BODY
        assert call.field(b"content-length") == [b"%d" % len(BODY)]
        assert call.field(b"transfer-encoding") == []


@with_rig()
async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    bodies = [b'{"n":%d}' % i for i in range(20)]
    rig.engines[0].script += [plain(200, body) for body in bodies]
    client = await rig.client()
    one = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    client.send(one * 20 + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
    for body in bodies:
        assert (await client.reply()).body == body
    for _ in range(2000):
        assert (await client.reply()).body == b'{"status":"ok"}'
    assert rig.outcomes()["/health", "2xx", "completed"] == 2000


@with_rig()
async def test_early_bytes_are_bounded_and_none_is_lost(rig: Rig) -> None:
    big = b'{"x":"%b"}' % (b"y" * 100_000)
    client = await rig.client()
    rig.engines[0].script.append(stall)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(big)
    client.send((head + big) * 200)
    await rig.engines[0].called()
    for _ in range(1000):  # many more reads than it would take them all
        await asyncio.sleep(0)
    assert client.writer.transport.get_write_buffer_size() > 0
    rig.expire()
    for i in range(200):
        assert (await client.reply()).status == (504 if i == 0 else 200)


@with_rig(limits={"max_body_bytes": 1000})
async def test_too_large_a_body_is_refused_before_it_is_read(rig: Rig) -> None:
    client = await rig.client()
    client.send(POST + b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    client.send(b"x" * 1_000_000)
    assert await client.ended()


@with_rig()
async def test_expect_100_continue(rig: Rig) -> None:
    client = await rig.client()
    client.send(WITH_BODY + b"Expect: 100-continue\r\n\r\n")
    assert (await client.head()).status == 100
    client.send(BODY)
    assert (await client.reply()).status == 200
    call = await rig.engines[0].called()
    assert call.body == BODY and call.field(b"expect") == []


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("POST /v1/unknown", 404, "unknown_url"),
        ("POST /metrics", 404, "unknown_url"),
        ("GET /v1/chat/completions", 405, "method_not_allowed"),
        ("POST /health", 405, "method_not_allowed"),
        ("OPTIONS /v1/completions", 405, "method_not_allowed"),
        ("POST /v1/completions/", 404, "unknown_url"),
        ("POST //v1/completions", 404, "unknown_url"),
        ("POST /v1%2Fcompletions", 404, "unknown_url"),
        ("GET /v1/models", 404, "unknown_url"),  # the rig's local() knows none
    ],
)
def test_only_the_allow_list_is_served(line: str, status: int, code: str) -> None:
    @with_rig()
    async def test(rig: Rig) -> None:
        client = await rig.client()
        client.send(f"{line} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (status, code)
        assert (reply.field("allow") is not None) == (status == 405)
        client.get("/health")  # the connection goes on
        assert (await client.reply()).status == 200
        assert not rig.engines[0].calls

    test()


@with_rig()
async def test_head_is_answered_without_a_body(rig: Rig) -> None:
    client = await rig.client()
    client.get("/health", "HEAD")
    reply = await client.reply("HEAD")
    assert (reply.status, reply.field("content-length"), reply.body) == (200, "15", b"")
    client.get("/health?x=1")
    assert (await client.reply()).body == b'{"status":"ok"}'


@with_rig()
async def test_framing_errors_end_the_connection(rig: Rig) -> None:
    client = await rig.client()
    client.send(POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx" + POST + b"\r\n")
    reply = await client.reply()
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert reply.field("connection") == "close"
    assert await client.ended()
    assert not rig.engines[0].calls
    assert rig.outcome() == ("other", "4xx", "completed")


@with_rig()
async def test_clients_of_http_1_0(rig: Rig) -> None:
    rig.engines[0].script += [stream(token(0)), raw(HEAD_JSON + b"\r\n{}", close=True)]
    for _ in range(2):
        client = await rig.client()
        client.send(WITH_BODY.replace(b"1.1", b"1.0") + b"\r\n" + BODY)
        reply = await client.reply()
        assert reply.field("transfer-encoding") is None
        assert reply.field("connection") == "close"
        assert reply.body in (token(0), b"{}")
    client = await rig.client()
    for _ in range(2):
        client.send(WITH_BODY.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n" + BODY)
        reply = await client.reply()
        assert (reply.body, reply.field("connection")) == (b'{"ok":true}', "keep-alive")


@with_rig()
async def test_draining_ends_keep_alive_and_idle_clients(rig: Rig) -> None:
    idle, busy = await rig.client(), await rig.client()
    for client in (idle, busy):
        client.post()
        assert (await client.reply()).field("connection") is None
    rig.engines[0].script.append(stall)
    busy.post()
    await rig.until(lambda: rig.context.inflight == 1)
    rig.context.draining = True
    rig.expire(0.0)
    assert await idle.ended()
    assert len(rig.context.connections) == 1
    rig.expire(301.0)
    reply = await busy.reply()
    assert (reply.status, reply.field("connection")) == (504, "close")
    assert await busy.ended()


@with_rig()
async def test_connection_close_is_obeyed(rig: Rig) -> None:
    client = await rig.client()
    client.post(chat(), extra="Connection: close\r\n")
    reply = await client.reply()
    assert reply.field("connection") == "close"
    assert await client.ended()
    assert rig.outcome() == (CHAT, "2xx", "completed")
