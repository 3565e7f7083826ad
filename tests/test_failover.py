"""When engines fail: retry budget, busy marks, half-open probes, engines that are gone, keys."""

from __future__ import annotations

import asyncio

import pytest

from tests.fake_engine import (
    HEAD_SSE,
    Answer,
    hang_up,
    head_only,
    pieces,
    plain,
    reset,
    stall,
    stream,
    token,
)
from tests.proxy_rig import CHAT, Rig, chat, with_rig

NO_BUDGET = {"retry_budget": 0.0, "retry_floor": 0}


# -- the retry budget --


@pytest.mark.parametrize("answer", [reset, hang_up, plain(500, b"{}"), plain(503, b"{}")])
def test_without_budget_a_failure_is_passed_on(answer: Answer) -> None:
    @with_rig(engines=2, limits=NO_BUDGET)
    async def test(rig: Rig) -> None:
        rig.engines[0].default = answer
        client = await rig.client()
        client.post()
        assert (await client.reply()).status >= 500
        assert not rig.engines[1].calls
        counts = rig.context.counters.snapshot()
        assert counts["retries_refused"] == 1 and counts["retries"] == {}

    test()


@with_rig(engines=0, limits=NO_BUDGET)
async def test_refused_connections_need_no_budget(rig: Rig) -> None:
    rig.add_dead()
    await rig.grow()
    client = await rig.client()
    client.post()
    assert (await client.reply()).status == 200


@with_rig(engines=2, limits={"retry_budget": 0.25, "retry_floor": 0})
async def test_the_budget_is_a_share_of_what_is_in_flight(rig: Rig) -> None:
    failing, slow = rig.engines
    failing.default, slow.default = reset, stall
    for _ in range(3):  # the first is tried again; of two or three in flight no second one is
        client = await rig.client()
        before = len(failing.calls) + len(slow.calls)
        client.post()
        await rig.until(lambda before=before: len(failing.calls) + len(slow.calls) > before)
        if len(failing.calls) == 2:
            assert (await client.reply()).status == 502
            break
        await slow.called()
    assert rig.context.retrying == 1
    counts = rig.context.counters.snapshot()
    assert counts["retries_refused"] == 1 and counts["retries"] == {"reset": 1}


@with_rig(engines=2, limits={"retry_budget": 0.0, "retry_floor": 1})
async def test_a_retry_that_is_answered_frees_its_budget(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    first = token(0)
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
    rig.engines[0].default = reset
    rig.engines[1].script.append(pieces(queue))
    client = await rig.client()
    client.post(chat(stream=True))
    reply = await client.head()
    await client.chunk(reply)
    assert rig.context.retrying == 0, "while the stream goes on"
    queue.put_nowait(b"0\r\n\r\n")
    await client.rest(reply)
    queue.put_nowait(None)


# -- first byte --


@with_rig(engines=2, limits={"first_byte_timeout": 7.0})
async def test_a_silent_engine_is_given_up_for_another(rig: Rig) -> None:
    rig.engines[0].default = stall
    client = await rig.client()
    client.post()
    call = await rig.engines[0].called()
    rig.expire(8.0)
    assert (await client.reply()).status == 200
    await call.gone.wait()
    assert rig.router.names() == ["TIMEOUT", "DONE"]


@with_rig(engines=2, limits={"first_byte_timeout": 7.0, "request_timeout": 7.5})
async def test_but_not_without_time_left(rig: Rig) -> None:
    rig.engines[0].default = stall
    client = await rig.client()
    client.post()
    await rig.engines[0].called()
    rig.expire(8.0)
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (504, "request_timeout")
    assert not rig.engines[1].calls


# -- busy engines --


@with_rig(engines=2)
async def test_a_busy_engine_is_left_alone_for_as_long_as_it_asked(rig: Rig) -> None:
    rig.engines[0].script.append(plain(503, b"{}", b"retry-after: 2\r\n"))
    client = await rig.client()
    for _ in range(5):
        client.post()
        assert (await client.reply()).status == 200
    assert len(rig.engines[0].calls) == 1
    assert [call["avoid"] for call in rig.router.routes[2:]] == [{0}] * 4


@with_rig(engines=2)
async def test_when_all_are_busy_the_smallest_retry_after_is_passed_on(rig: Rig) -> None:
    for i, engine in enumerate(rig.engines):
        engine.default = plain(429, b'{"from":%d}' % i, b"retry-after: %d\r\n" % (9 - i))
    client = await rig.client()
    for _ in range(2):  # the second time both have asked for time: they are tried all the same
        client.post()
        reply = await client.reply()
        assert (reply.status, reply.field("retry-after")) == (429, "8")
    assert [len(engine.calls) for engine in rig.engines] == [2, 2]


# -- half-open --


async def _half_open(rig: Rig, answer: Answer) -> None:
    rig.context.on_trial[0] = rig.instances[0]
    rig.engines[0].script.append(answer)
    client = await rig.client()
    client.post(chat(stream=True))
    await rig.engines[0].called()


@with_rig()
async def test_the_probe_is_over_with_the_first_token(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    await _half_open(rig, pieces(queue))
    assert rig.instances[0].trials == [True]
    first = token(0)
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
    reply = await rig.clients[0].head()
    await rig.clients[0].chunk(reply)
    assert rig.instances[0].trials == [True, False] and rig.instances[0].trials_well == 1
    queue.put_nowait(b"0\r\n\r\n")
    queue.put_nowait(None)
    await rig.clients[0].rest(reply)


@pytest.mark.parametrize(
    ("answer", "well"),
    [(reset, 0), (plain(500, b"{}"), 0), (plain(400, b"{}"), 1), (stream(token(0)), 1)],
)
def test_the_probe_is_over_however_it_ends(answer: Answer, well: int) -> None:
    @with_rig()
    async def test(rig: Rig) -> None:
        await _half_open(rig, answer)
        await rig.clients[0].reply()
        assert rig.instances[0].trials == [True, False]
        assert rig.instances[0].trials_well == well

    test()


@with_rig()
async def test_the_probe_is_over_when_the_client_leaves(rig: Rig) -> None:
    await _half_open(rig, stall)
    rig.clients[0].abort()
    await rig.until(lambda: rig.instances[0].trials == [True, False])
    assert rig.instances[0].failures == []


# -- engines that are gone though their connections are open --


@pytest.mark.parametrize("answer", [stall, head_only], ids=["silent", "head"])
def test_requests_of_an_engine_that_is_gone_go_to_another(answer: Answer) -> None:
    @with_rig(engines=2)
    async def test(rig: Rig) -> None:
        rig.engines[0].default = answer
        client = await rig.client()
        client.post(chat(stream=True))
        call = await rig.engines[0].called()
        assert rig.context.give_up(rig.instances[0], 0.0) == 0, "something was sent since then"
        assert rig.context.give_up(rig.instances[1], 1e9) == 0, "it is on the other"
        assert rig.context.give_up(rig.instances[0], 1e9) == 1
        assert (await client.reply()).status == 200
        await call.gone.wait()
        assert rig.instances[0].failures == ["engine_gone"]

    test()


@with_rig(engines=2)
async def test_a_stream_of_an_engine_that_is_gone_is_cut(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    first = token(0)
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
    rig.engines[0].script.append(pieces(queue))
    client = await rig.client()
    client.post(chat(stream=True))
    reply = await client.head()
    await client.chunk(reply)
    assert rig.context.give_up(rig.instances[0], 0.0) == 0
    assert rig.context.give_up(rig.instances[0], 1e9) == 1
    await client.rest(reply)
    assert not reply.whole and b'"engine_gone"' in reply.body and b"[DONE]" not in reply.body
    assert rig.outcome() == (CHAT, "2xx", "engine_error")
    queue.put_nowait(None)


# -- the end of the drain grace --


@with_rig()
async def test_what_runs_when_the_router_ends_is_told_why(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    first = token(0)
    queue.put_nowait(HEAD_SSE + b"%x\r\n%b\r\n" % (len(first), first))
    rig.engines[0].script += [pieces(queue), stall]
    streaming, waiting, idle = [await rig.client() for _ in range(3)]
    streaming.post(chat(stream=True))
    reply = await streaming.head()
    await streaming.chunk(reply)
    waiting.post()
    await rig.until(lambda: len(rig.engines[0].calls) == 2)
    rig.context.stop_all()
    await streaming.rest(reply)
    assert not reply.whole and b'"router_stopping"' in reply.body
    answer = await waiting.reply()
    assert (answer.status, answer.error["code"]) == (503, "router_stopping")
    assert rig.outcomes() == {(CHAT, "2xx", "router_error"): 1, (CHAT, "5xx", "router_error"): 1}
    assert rig.router.names().count("ABANDONED") == 2
    queue.put_nowait(None)


# -- models nobody is known to have --


@with_rig(engines=2)
async def test_an_engine_never_reached_does_not_make_a_model_possible(rig: Rig) -> None:
    rig.instances[0].models = ("m",)
    rig.instances[1].routable = False
    client = await rig.client()
    client.post({"model": "none", "messages": []})
    reply = await client.reply()
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    client.post()
    assert (await client.reply()).status == 200


@with_rig(engines=2)
async def test_where_nothing_is_known_nothing_is_denied(rig: Rig) -> None:
    for instance in rig.instances:
        instance.routable = False
    client = await rig.client()
    client.post({"model": "none", "messages": []})
    assert (await client.reply()).status == 200, "panic mode"


# -- keys --

BEARER = "Authorization: Bearer client-key\r\n"


def credentials(**context: object) -> list[bytes]:
    """What an engine gets of a client's Authorization."""
    seen: list[bytes] = []

    @with_rig(**context)  # type: ignore[arg-type]
    async def test(rig: Rig) -> None:
        client = await rig.client()
        client.post(extra=BEARER + "X-Other: 1\r\n")
        assert (await client.reply()).status == 200
        (call,) = rig.engines[0].calls
        assert call.field(b"x-other") == [b"1"]
        seen.extend(call.field(b"authorization"))

    test()
    return seen


def test_keys_that_engines_check_pass() -> None:
    assert credentials() == [b"Bearer client-key"]


def test_keys_that_the_router_checks_stay_with_it() -> None:
    keys = frozenset({b"client-key"})
    assert credentials(api_keys=keys) == []
    assert credentials(api_keys=keys, forward_client_key=True) == [b"Bearer client-key"]


def test_the_engines_own_key_replaces_the_clients() -> None:
    assert credentials(engine_key=b"engine-key") == [b"Bearer engine-key"]
