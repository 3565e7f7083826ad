"""`lodestar engine`: connections, cancelling, real time, options, the process itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.clock import VirtualClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim import engine_connection
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.engine_http import add_arguments, fleet_of, run, start
from lodestar_fast.sim.engine_openai import Generation
from lodestar_fast.sim.engine_replica import Replica
from lodestar_fast.sim.gpus import spec
from tests.engine_client import CHAT, HELLO, connected, engines, on_loop, until
from tests.engine_oracle import unit

STREAM = HELLO | {"stream": True, "max_tokens": 5}


# connections


@on_loop
async def test_a_connection_serves_one_request_after_another() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        for _ in range(3):
            assert (await client.ask("POST", CHAT, STREAM))[0] == 200
            assert (await client.ask("GET", "/health"))[0] == 200


@on_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        count = 3 * engine_connection.MAX_PIPELINED
        for index in range(count):
            client.send("POST", CHAT, STREAM, headers=f"x-request-id: {index}\r\n")
            client.send("GET", "/version")
        for index in range(count):
            _, headers, body = await client.answer()
            assert headers["x-request-id"] == str(index)
            assert body.endswith(b"data: [DONE]\n\n")
            assert (await client.answer())[2] == b'{"version": "0.32.0"}'


@on_loop
async def test_connection_close_is_honoured() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        _, headers, _ = await client.ask("POST", CHAT, STREAM, headers="connection: close\r\n")
        assert headers["connection"] == "close"
        assert await client.reader.read() == b""


def test_an_idle_connection_is_closed_only_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_connection, "KEEP_ALIVE", 0.05)

    @on_loop
    async def test() -> None:
        async with engines() as running, connected(running) as unused, connected(running) as used:
            await used.ask("GET", "/health")
            assert await used.reader.read() == b""  # waits for the end of the stream
            assert (await unused.ask("GET", "/health"))[0] == 200

    test()


@on_loop
async def test_expect_100_continue() -> None:
    async with engines(speedup=100) as running, connected(running) as client:
        client.send("POST", CHAT, HELLO, headers="expect: 100-continue\r\n")
        assert await client.head() == (100, {})
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: e\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_not_plain_http_is_refused_and_hung_up(data: bytes) -> None:
    @on_loop
    async def test() -> None:
        async with engines() as running, connected(running) as client:
            client.writer.write(data)
            assert (await client.answer())[0] == 400
            assert await client.reader.read() == b""

    test()


def test_a_body_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_connection, "MAX_BODY", 1000)

    @on_loop
    async def test() -> None:
        async with engines() as running, connected(running) as client:
            status, headers, _ = await client.ask("POST", CHAT, b"x" * 1001)
            assert (status, headers["connection"]) == (413, "close")
            assert await client.reader.read() == b""

    test()


# cancelling


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_leaves_loses_its_request(stream: bool, half: bool) -> None:
    @on_loop
    async def test() -> None:
        async with engines(clock=VirtualClock()) as running, connected(running) as client:
            engine = running.replicas[0].engine
            client.send("POST", CHAT, STREAM | {"stream": stream})
            await until(lambda: engine.running == 1)
            assert engine.pool.used > 0
            if half:
                client.writer.write_eof()
            else:
                client.writer.close()
            await until(lambda: engine.running == 0)
            assert engine.pool.used == 0
            assert running.replicas[0].metrics.finished == 0

    test()


@on_loop
async def test_a_queued_request_can_be_cancelled_and_the_rest_goes_on() -> None:
    clock = VirtualClock()
    running = await start([spec("h100", max_seqs=1)], clock=clock)
    engine = running.replicas[0].engine
    async with connected(running) as first, connected(running) as second:
        first.send("POST", CHAT, STREAM)
        await until(lambda: engine.running == 1)
        second.send("POST", CHAT, STREAM)
        await until(lambda: engine.waiting == 1)
        second.writer.close()
        await until(lambda: engine.waiting == 0)
        clock.advance_to(10.0)
        assert (await first.answer())[2].endswith(b"data: [DONE]\n\n")
    await running.close()


# real time


class Timers:
    """In place of an event loop: notes timers, runs them when told."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Any]] = []

    def call_later(self, delay: float, callback: Any) -> Any:
        entry = (delay, callback)
        self.due.append(entry)
        return argparse.Namespace(cancel=lambda: self.due.remove(entry))

    def fire(self) -> None:
        _, callback = self.due.pop()
        callback()


class Listener:
    """An answer that notes its tokens."""

    def __init__(self, tokens: int) -> None:
        self.generation = Generation(True, array("Q"), 10, tokens, True, False)
        self.rid, self.arrival, self.cached = 0, 0.0, 0
        self.got: list[int] = []

    def on_token(self, generated: int, finished: bool) -> None:
        self.got.append(generated)


def test_a_late_timer_is_made_up_for() -> None:
    clock, timers = VirtualClock(), Timers()
    replica = Replica(Engine(unit()), "m", clock, timers)  # type: ignore[arg-type]
    first, second = Listener(10), Listener(2)
    replica.submit(first)
    assert [delay for delay, _ in timers.due] == [1.0]
    clock.advance_to(3.7)  # three iterations late
    timers.fire()
    assert first.got == [1, 2, 3]
    assert [delay for delay, _ in timers.due] == [pytest.approx(0.3)]
    clock.advance_to(5.2)
    replica.submit(second)  # what ended before it came is done first
    assert (first.got, second.got) == ([1, 2, 3, 4, 5], [])
    assert [delay for delay, _ in timers.due] == [pytest.approx(0.8)]
    clock.advance_to(7.0)
    timers.fire()
    assert second.got == [1]
    assert replica.metrics.ttft.sum == pytest.approx(1.0 + 1.8)


def test_speedup_divides_the_time_on_the_clock() -> None:
    clock, timers = VirtualClock(100.0), Timers()
    replica = Replica(Engine(unit()), "m", clock, timers, speedup=4.0)  # type: ignore[arg-type]
    replica.submit(Listener(1))
    assert [delay for delay, _ in timers.due] == [0.25]
    clock.advance_to(100.2)
    timers.fire()
    assert replica.now() == pytest.approx(0.8)
    assert [delay for delay, _ in timers.due] == [pytest.approx(0.05)]
    clock.advance_to(100.25)
    timers.fire()
    assert timers.due == []


def test_a_cancelled_answer_hears_no_more() -> None:
    clock, timers = VirtualClock(), Timers()
    replica = Replica(Engine(unit()), "m", clock, timers)  # type: ignore[arg-type]
    gone, stays = Listener(3), Listener(3)
    replica.submit(gone)
    replica.submit(stays)
    replica.cancel(gone)
    replica.cancel(gone)
    clock.advance_to(9.0)
    timers.fire()
    assert (gone.got, stays.got) == ([], [1, 2, 3])


# options and the process


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_a_fleet_from_options() -> None:
    assert [e.gpu for e in fleet_of(options())] == ["a30"]
    assert [e.gpu for e in fleet_of(options("--gpu", "l20", "--count", "2"))] == ["l20", "l20"]
    mixed = fleet_of(options("--fleet", "a30+h100", "--kv-tokens", "5000"))
    assert [(e.gpu, e.kv_tokens) for e in mixed] == [("a30", 5000), ("h100", 5000)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--gpu q1", "--gpu: unknown GPU 'q1'"),
        ("--count 0", "--count must"),
        ("--fleet a30 --gpu a30", "--fleet takes the place"),
        ("--fleet a30x2", "'a30x2'"),
        ("--port 70000", "--port 70000"),
        ("--port -1", "--port -1"),
        ("--port 65535 --count 2", "ports up to 65535"),
        ("--speedup 0", "--speedup must"),
        ("--speedup nan", "--speedup must"),
        ("--jitter 1", "--jitter must"),
        ("--seed -1", "--seed must"),
        ("--kv-tokens 3", "--kv-tokens must"),
        ("--kv-tokens 999999999999", "--kv-tokens must"),
        ("--count 5000", "--count must"),
    ],
)
def test_wrong_options_are_named(argv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(options(*argv.split()))


@on_loop
async def test_a_taken_port_is_a_config_error_and_leaves_nothing_open() -> None:
    async with engines() as running:
        taken = int(running.urls[0].rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"--port {taken}"):
            await start([spec("a30")], port=taken)
        with pytest.raises(ConfigError, match="--host"):
            await start([spec("a30")], host="256.0.0.1")


def test_the_process_says_where_it_listens_and_ends_on_sigterm() -> None:
    code = (
        "import argparse, sys; from lodestar_fast.sim import engine_http as e;"
        "p = argparse.ArgumentParser(); e.add_arguments(p); sys.exit(e.run(p.parse_args()))"
    )
    command = [sys.executable, "-c", code, "--port", "0", "--fleet", "a30+h100", "--model", "m"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        listing = json.loads(process.stdout.readline())["engines"]
        assert [entry["gpu"] for entry in listing] == ["a30", "h100"]

        async def ask() -> None:
            port = int(listing[1]["url"].rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: e\r\n\r\n")
            assert b'"id": "m"' in await reader.readuntil(b"}]}")
            os.kill(process.pid, signal.SIGTERM)
            assert await reader.read() == b""
            writer.close()

        asyncio.run(ask())
        assert process.wait(10) == 0
