"""Who gets in: places in all and on an engine, the queue, priorities, connections, bodies, readers
that do not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast.config import LimitsConfig
from lodestar_fast.proxy.downstream import Downstream
from lodestar_fast.proxy.waiting import Waiting, priority_of
from tests.fake_engine import Answer, Call, plain, stall
from tests.proxy_rig import CHAT, Client, Rig, chat, with_rig

SHED = (CHAT, "5xx", "shed")


class Gate:
    """Answers that wait until they are let go, one by one."""

    def __init__(self) -> None:
        self.held: list[asyncio.Event] = []

    @property
    def answer(self) -> Answer:
        async def answer(call: Call) -> None:
            event = asyncio.Event()
            self.held.append(event)
            await event.wait()
            await plain(200, call.body)(call)

        return answer

    def open(self) -> None:
        self.held.pop(0).set()


async def held(rig: Rig, text: str, extra: str = "") -> Client:
    """A client whose request is at an engine or in the queue."""
    client = await rig.client()
    before = rig.context.inflight + rig.context.queued
    client.post(chat(text), extra=extra)
    await rig.until(lambda: rig.context.inflight + rig.context.queued > before)
    return client


# -- places on an engine --


@with_rig(engines=2, limits={"max_engine_requests": 1})
async def test_a_full_engine_gets_no_more(rig: Rig) -> None:
    for engine in rig.engines:
        engine.default = stall
    await held(rig, "a")
    assert rig.context.full == (0,)
    await held(rig, "b")
    assert sorted(rig.context.full) == [0, 1]
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (503, "overloaded")
    assert reply.field("retry-after") == "1" and rig.outcomes() == {SHED: 1}
    rig.clients[0].abort()
    await rig.until(lambda: rig.context.full == (1,))


@with_rig(engines=2, limits={"max_engine_requests": 1, "queue_size": 8})
async def test_one_waits_for_an_engine_that_serves_its_model(rig: Rig) -> None:
    rig.instances[0].models, rig.instances[1].models = ("m",), ("other",)
    gates = [Gate(), Gate()]
    for engine, gate in zip(rig.engines, gates, strict=True):
        engine.default = gate.answer
    first = await held(rig, "1")
    second, third = await held(rig, "2"), await held(rig, "3")
    assert rig.context.queued == 2
    other = await rig.client()
    other.post({"model": "other", "messages": []})
    await rig.until(lambda: gates[1].held)
    assert rig.context.queued == 2, "it has an engine of its own, and does not wait"
    for client, text in ((first, "1"), (second, "2"), (third, "3")):
        await rig.until(lambda: gates[0].held)
        gates[0].open()
        reply = await client.reply()
        assert json.loads(reply.body)["messages"][0]["content"] == text, "in their order"
    gates[1].open()
    assert (await other.reply()).status == 200


@with_rig(engines=2, limits={"max_engine_requests": 1})
async def test_a_retry_does_not_go_to_a_full_engine(rig: Rig) -> None:
    rig.engines[1].default = stall
    rig.engines[0].default = plain(500, b"{}")
    rig.instances[1].models = ("full",)
    client = await rig.client()
    client.post({"model": "full", "messages": []})
    await rig.engines[1].called()
    rig.instances[1].models = ()
    rig.context.models_changed()
    client = await rig.client()
    client.post()
    assert (await client.reply()).status == 500
    assert len(rig.engines[1].calls) == 1


@with_rig(limits={"max_engine_requests": 2})
async def test_a_cap_may_change(rig: Rig) -> None:
    rig.engines[0].default = stall
    for text in ("a", "b"):
        await held(rig, text)
    assert rig.context.full == (0,)
    rig.context.reconfigure(LimitsConfig(), False, None, b"", False)
    assert rig.context.full == ()
    await held(rig, "c")
    rig.context.reconfigure(LimitsConfig(max_engine_requests=3), False, None, b"", False)
    assert rig.context.full == (0,)


# -- the queue --


@with_rig(limits={"max_concurrent_requests": 1, "queue_size": 9, "priority_header": "X-Priority"})
async def test_the_most_urgent_is_first(rig: Rig) -> None:
    gate = Gate()
    rig.engines[0].default = gate.answer
    order = [("now", ""), ("late", "X-Priority: 5\r\n"), ("usual", "")]
    order += [("odd", "X-Priority: soon\r\n"), ("urgent", "x-priority: -5\r\n")]
    for text, extra in order:
        await held(rig, text, extra)
    served = []
    for _ in order:
        await rig.until(lambda: gate.held)
        body = rig.engines[0].calls[-1].body
        served.append(json.loads(body)["messages"][0]["content"])
        gate.open()
        await rig.until(lambda: not gate.held)
    assert served == ["now", "urgent", "usual", "odd", "late"]
    for client in rig.clients:
        assert (await client.reply()).status == 200


@with_rig(limits={"max_concurrent_requests": 1, "queue_size": 1, "priority_header": "x-priority"})
async def test_the_less_urgent_gives_way_in_a_full_queue(rig: Rig) -> None:
    gate = Gate()
    rig.engines[0].default = gate.answer
    first = await held(rig, "first")
    usual = await held(rig, "usual")
    urgent = await rig.client()
    urgent.post(chat("urgent"), extra="X-Priority: -1\r\n")
    reply = await usual.reply()
    assert (reply.status, reply.error["code"]) == (503, "overloaded")
    gate.open()
    assert (await first.reply()).status == 200
    await rig.until(lambda: gate.held)
    gate.open()
    assert b"urgent" in (await urgent.reply()).body


@with_rig(limits={"max_concurrent_requests": 1, "queue_size": 9})
async def test_retry_after_follows_from_how_fast_requests_end(rig: Rig) -> None:
    client = await rig.client()
    for _ in range(5):
        for _ in range(2):
            client.post()
            assert (await client.reply()).status == 200
        rig.context.sweep(0.0)
    rig.engines[0].default = stall
    for _ in range(10):
        await held(rig, "x")
    # 8 a second for 5 sweeps are smoothed to 8 * (1 - 0.9**5), and the eleventh waits for 10. The
    # loop's own sweeps, which see none end, make it a little more.
    client = await rig.client()
    client.post()
    reply = await client.reply()
    assert reply.status == 503 and 3 < int(reply.field("retry-after") or 0) < 12


@with_rig(limits={"max_concurrent_requests": 1, "queue_size": 1})
async def test_a_failure_of_ours_on_leaving_the_queue(rig: Rig) -> None:
    gate = Gate()
    rig.engines[0].default = gate.answer
    first, second = await held(rig, "1"), await held(rig, "2")
    rig.router.error = RuntimeError("on purpose")
    gate.open()
    assert (await first.reply()).status == 200
    assert (await second.reply()).status == 500


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=30))
def test_waiting_is_in_order_whoever_leaves(entries: list[tuple[int, bool]]) -> None:
    waiting = Waiting()
    for i, (priority, _) in enumerate(entries):
        waiting.add(i, priority)
    for i, (_, leaves) in enumerate(entries):
        if leaves:
            waiting.remove(i)
    left = [i for i, (_, leaves) in enumerate(entries) if not leaves]
    assert waiting.items() == sorted(left, key=lambda i: (entries[i][0], i))
    assert len(waiting) == len(left) and all(i in waiting for i in left)
    most = max((entries[i][0] for i in left), default=0)
    assert waiting.last(most) is None
    if left:
        assert waiting.last(most - 1) == waiting.items()[-1]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (b"x-priority: 7\r\n", 7),
        (b"a: b\r\nX-PRIORITY: -3\r\n", -3),
        (b"x-priority: 99999\r\n", 1000),
        (b"x-priority: 1e3\r\n", 0),
        (b"x-priority: " + b"9" * 5000 + b"\r\n", 0),
        (b"x-priority-not: 7\r\n", 0),
        (b"", 0),
    ],
)
def test_priorities(lines: bytes, wanted: int) -> None:
    assert priority_of(lines, b"x-priority") == wanted
    assert priority_of(lines, b"") == 0


# -- connections, bodies --


@with_rig(limits={"max_connections": 2})
async def test_connections_are_bounded(rig: Rig) -> None:
    first, second = await rig.client(), await rig.client()
    await rig.until(lambda: len(rig.context.connections) == 2)
    third = await rig.client()
    reply = await third.reply()
    assert (reply.status, reply.error["code"]) == (503, "too_many_connections")
    assert await third.ended()
    assert rig.context.counters.snapshot()["connections_refused"] == 1
    first.close()
    await rig.until(lambda: len(rig.context.connections) == 1)
    fourth = await rig.client()
    for client in (second, fourth):
        client.post()
        assert (await client.reply()).status == 200


def started(n: int, length: int = 100_000) -> bytes:
    """A request and the first n bytes of its body."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + b" " * n


@with_rig(limits={"max_inflight_body_bytes": 100_000})
async def test_bodies_are_bounded_in_all(rig: Rig) -> None:
    rig.engines[0].default = stall
    waiting = await rig.client()
    waiting.send(started(40_000))
    await rig.until(lambda: rig.context.body_bytes == 40_000)
    running = await rig.client()
    running.post(chat("x" * 40_000))
    await rig.engines[0].called()
    for whole in (True, False):
        client = await rig.client()
        if whole:
            client.post(chat("x" * 40_000))
        else:
            client.send(started(40_000))
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (503, "bodies_too_large")
        assert reply.field("connection") == "close"
    waiting.abort()
    await rig.until(lambda: rig.context.body_bytes < 50_000)
    rig.engines[0].default = plain(200, b"{}")
    client = await rig.client()
    client.post(chat("x" * 40_000))
    assert (await client.reply()).status == 200
    assert rig.outcomes()[SHED] == 2


# -- readers --


async def _stuffed(rig: Rig) -> Client:
    """A client that has not taken a long answer."""
    rig.engines[0].default = plain(200, b"x" * 30_000_000)
    options: Any = {"limit": 1024}
    client = await rig.client(**options)
    client.post()
    await rig.until(lambda: any(c.blocked for c in rig.context.connections))
    return client


@with_rig(limits={"write_timeout": 7.0})
async def test_a_reader_that_takes_nothing_is_cut(rig: Rig) -> None:
    await _stuffed(rig)
    rig.expire(6.0)
    assert rig.context.connections
    rig.expire(8.0)
    await rig.until(lambda: not rig.context.connections)
    assert rig.outcome() == (CHAT, "2xx", "client_abort")


class Transport:
    """Of a client that is behind."""

    unsent = 100_000
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True


@with_rig(limits={"write_timeout": 7.0})
async def test_a_reader_that_takes_a_little_is_not(rig: Rig) -> None:
    connection, transport = Downstream(rig.context), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.pause_writing()
    for after in (8.0, 16.0, 24.0):
        transport.unsent -= 1
        rig.expire(after)
        assert not transport.aborted, "it took something within the time"
    rig.expire(32.0)
    assert transport.aborted
    connection.connection_lost(None)
