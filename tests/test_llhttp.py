"""The two ways to llhttp: that the direct one is taken, and that nobody can tell them apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lodestar_fast.proxy import llhttp
from lodestar_fast.proxy.parse_request import RequestParser
from lodestar_fast.proxy.parse_response import ResponseParser
from lodestar_fast.proxy.samples import SAMPLES

REQUESTS = [data for request, data in SAMPLES if request] + [
    b"POST /v1/completions HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\nX-Request-Id: r\r\n"
    b"Authorization: Bearer k\r\nConnection: keep-alive, x-drop\r\nX-Drop: 1\r\nE:\r\n\r\nabc",
    b"POST http://h/p?q HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: "
    b"100-continue\r\n\r\n5\r\nhello\r\n0\r\nTrailer: t\r\n\r\n",
]
ANSWERS = [data for request, data in SAMPLES if not request] + [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: x-drop\r\nX-Drop: 1\r\n\r\n6;e=1\r\ndata: \r\n0\r\nt: 1\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\n\r\n",
]
# What tends to matter when it appears, disappears or changes place.
BITS = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b"0", b"1\r\n", b"\r\n\r\n"]
BITS += [
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: x\r\n",
    b"HTTP/1.0",
]
BITS += [b"Connection: upgrade\r\n", b"Host: x\r\n", b"chunked", b"HTTP/1.1 100 Continue\r\n\r\n"]


def request(data: bytes) -> list[Any]:
    parser = RequestParser(4096, 1 << 16)
    taken = parser.parse(data)
    return [
        taken,
        parser.status,
        parser.reason,
        parser.complete,
        parser.head_done,
        *(parser.method, parser.target, parser.path, parser.fields, parser.request_id),
        *(parser.authorization, parser.old, parser.keep_alive, parser.expects, parser.body()),
    ]


def answer(data: bytes, cuts: list[int]) -> list[Any]:
    parser = ResponseParser()
    seen: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        seen.append(parser.parse(data[start:end]))
        if parser.broken:
            return [parser.broken, parser.complete]  # nothing else is looked at then
    return [
        *seen,
        *(parser.status, parser.length, parser.chunked, parser.until_close, parser.keep_alive),
        *(parser.sse, parser.head_done, parser.complete, parser.extra),
    ]


def mutated(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randrange(4)):
        at, size = rng.randrange(len(data) + 1), rng.choice((0, 0, 1, 2, 8))
        data = data[:at] + rng.choice([b"", *BITS]) + data[at + size :]
    return data


def both(parse: Callable[[], list[Any]]) -> None:
    """Assert that parse() gives the same either way."""
    try:
        llhttp.use(False)
        wanted = parse()
        llhttp.use(True)
        assert parse() == wanted
    finally:
        llhttp.use(not llhttp.WHY_NOT)


def test_llhttp_is_called_directly() -> None:
    """Fails where httptools changed under us; then serving works, and costs 4 us a request more."""
    assert llhttp.WHY_NOT == ""


@pytest.mark.skipif(bool(llhttp.WHY_NOT), reason=llhttp.WHY_NOT)
@pytest.mark.parametrize("seed", range(10))
def test_both_ways_agree_on_requests(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        data = mutated(rng, rng.choice(REQUESTS))
        both(lambda data=data: request(data))  # type: ignore[misc]


@pytest.mark.skipif(bool(llhttp.WHY_NOT), reason=llhttp.WHY_NOT)
@pytest.mark.parametrize("seed", range(10))
def test_both_ways_agree_on_answers(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        data = mutated(rng, rng.choice(ANSWERS))
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 5))))
        both(lambda data=data, cuts=cuts: answer(data, cuts))  # type: ignore[misc]
