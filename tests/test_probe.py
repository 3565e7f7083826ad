"""The GET client of health checks and scrapes: kept connections, caps, irregular answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from lodestar_fast.proxy.health import check, parse_models
from lodestar_fast.proxy.probe import Heard, Probe, ProbeError
from tests.tiny_engine import TinyEngine, page

LONG = 30.0  # a time-out that no test waits for


def run(body: Callable[[TinyEngine, Probe], Awaitable[None]], max_bytes: int = 1000) -> None:
    async def main() -> None:
        async with TinyEngine() as engine:
            probe = Probe("127.0.0.1", engine.port, max_bytes=max_bytes)
            await body(engine, probe)
            probe.close()

    uvloop.run(main())


async def kind_of(probe: Probe, path: str = "/x", timeout: float = LONG) -> str:
    with pytest.raises(ProbeError) as e:
        await probe.get(path, timeout)
    return e.value.kind


def test_answers_come_over_one_connection() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = page(b"hello", 203)
        for _ in range(3):
            assert await probe.get("/x", LONG) == (203, b"hello")
        assert engine.connections == 1

    run(body)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n1\r\ny\r\n0\r\n\r\n",
            b"hey",
        ),
        (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 204 No\r\n\r\n", b""),
    ],
    ids=["chunked", "interim", "until-close", "no-content"],
)
def test_each_framing(answer: bytes, body: bytes) -> None:
    async def test(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = answer
        for _ in range(2):
            assert (await probe.get("/x", LONG))[1] == body

    run(test)


def test_a_connection_closed_while_idle_is_replaced() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = page(b"1")
        await probe.get("/x", LONG)
        port = engine.port
        await engine.stop()
        await engine.start(port)
        assert await probe.get("/x", LONG) == (200, b"1")

    run(body)


def test_nobody_there_is_refused() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        await engine.stop()
        assert await kind_of(probe) == "refused"
        nowhere = Probe("no.such.host.invalid", 80, max_bytes=10)
        assert await kind_of(nowhere) == "unreachable"

    run(body)


def test_silence_ends_at_the_timeout_and_the_next_question_is_fresh() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages |= {"/silent": None, "/x": page(b"1")}
        assert await kind_of(probe, "/silent", 0.02) == "timeout"
        assert await probe.get("/x", LONG) == (200, b"1")
        assert engine.connections == 2

    run(body)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (page(b"x" * 1001), "too_large"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000,
            "too_large",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"y" * 70_000, "too_large"),
        (b"220 mail ready\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "malformed"),
        (b"HTTP/1.1 101 Up\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nx", "closed"),
    ],
    ids=["long", "endless-chunks", "endless-head", "smtp", "two-lengths", "upgrade", "short"],
)
def test_irregular_answers(answer: bytes, kind: str) -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages |= {"/x": answer, "/good": page(b"1")}
        assert await kind_of(probe) == kind
        assert await probe.get("/good", LONG) == (200, b"1")

    run(body)


def test_bytes_after_an_answer_never_become_the_next_one() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages |= {"/x": page(b"mine") + page(b"smuggled"), "/y": page(b"yours")}
        assert await probe.get("/x", LONG) == (200, b"mine")
        assert await probe.get("/y", LONG) == (200, b"yours")
        assert engine.connections == 2

    run(body)


def test_repeated_questions_share_a_connection_and_end_when_told() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = page(b"1", 203)
        heard: list[tuple[int, bytes]] = []

        def hear(status: int, body: bytes, spent: float) -> float | None:
            assert spent > 0
            heard.append((status, body))
            probe.authorize(b"key%d" % len(heard))
            return 0.0 if len(heard) < 4 else None

        await probe.repeat("/x", LONG, hear)
        assert heard == [(203, b"1")] * 4
        assert [b"Bearer key%d\r" % n in engine.heads[n] for n in (1, 2, 3)] == [True] * 3
        assert await probe.get("/x", LONG) == (203, b"1")
        assert engine.connections == 1

    run(body)


def saying(*pauses: float, then: Callable[[], None] = lambda: None) -> Heard:
    """Says these after the first answers, and that it is the last one after the next. After the
    first, `then` is called."""
    said: list[float | None] = [*pauses, None]

    def hear(status: int, body: bytes, spent: float) -> float | None:
        if len(said) > len(pauses):
            then()
        return said.pop(0)

    return hear


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (None, "timeout"),
        (page(b"x" * 1001), "too_large"),
        (b"220 mail ready\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nx", "closed"),
        (page(b"mine") + page(b"smuggled"), "malformed"),
    ],
    ids=["silence", "long", "smtp", "short", "two-answers"],
)
@pytest.mark.parametrize("late", [False, True], ids=["first", "second"])
def test_an_irregular_answer_ends_a_series(answer: bytes | None, kind: str, late: bool) -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = page(b"1") if late else answer
        # What nobody asked for is noticed before there is another question.
        pauses = (0.0, LONG) if late else (LONG,)
        hear = saying(*pauses, then=lambda: engine.pages.update({"/x": answer}))
        with pytest.raises(ProbeError) as e:
            await probe.repeat("/x", 0.05, hear)
        assert e.value.kind == kind
        engine.pages["/x"] = page(b"2")
        assert await probe.get("/x", LONG) == (200, b"2")

    run(body)


def test_a_series_goes_on_over_another_connection_when_the_engine_closes_one() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall"
        await probe.repeat("/x", LONG, saying(0.0))
        assert engine.connections == 2
        engine.pages["/x"] = page(b"1")
        tasks: list[asyncio.Task[None]] = []

        async def restart() -> None:
            port = engine.port
            await engine.stop()
            await engine.start(port)

        def then() -> None:
            tasks.append(asyncio.ensure_future(restart()))

        await probe.repeat("/x", LONG, saying(0.1, then=then))
        assert engine.connections == 4 and tasks[0].done()

    run(body)


def test_who_closes_without_an_answer_is_not_asked_at_once_again() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = b""
        await engine.stop()
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", engine.port
        )
        with pytest.raises(ProbeError, match="closed"):
            await probe.repeat("/x", LONG, saying(0.0))
        server.close()

    run(body)


def test_an_exception_of_the_hearer_ends_a_series_and_is_its_own() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/x"] = page(b"1")

        def fail() -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await probe.repeat("/x", LONG, saying(0.0, then=fail))

    run(body)


def test_an_engine_without_health_path_is_asked_for_its_models() -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        del engine.pages["/health"]
        await check(probe, LONG)
        assert engine.asked == ["GET /health", "GET /v1/models"]

    run(body)


@pytest.mark.parametrize("status", [500, 503, 401, 302])
def test_other_answers_are_bad_health(status: int) -> None:
    async def body(engine: TinyEngine, probe: Probe) -> None:
        engine.pages["/health"] = page(b"", status)
        with pytest.raises(ProbeError, match=f"status: {status}"):
            await check(probe, LONG)

    run(body)


def test_models_keep_their_entries_as_the_engine_wrote_them() -> None:
    body = b'{"object":"list","data":[{"id":"a", "x":1.50},{"id":"b"}]}'
    assert {id: bytes(raw) for id, raw in parse_models(body).items()} == {
        "a": b'{"id":"a", "x":1.50}',
        "b": b'{"id":"b"}',
    }


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":[{"id":1}]}', b'{"data":{}}', b"\xff"])
def test_what_is_no_model_list_names_no_models(body: bytes) -> None:
    assert parse_models(body) == {}
