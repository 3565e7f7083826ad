"""KV events of engines over ZeroMQ: recorded ones, broken ones, real sockets, simulated engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast.config import FleetConfig
from lodestar_fast.core import Event, Router
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy import kv_events
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.kv_events import Listener, Stream, address, check
from lodestar_fast.sim.engine_events import events_of
from tests.engine_client import CHAT, HELLO, connected, engines, on_loop, until
from tests.fake_engine import free_port
from tests.oracle import make_router

RECORDED = Path(__file__).parent / "data/vllm-0.32.0-kv-events.jsonl"
STORED = {"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": None}
CLEARED = {"type": "AllBlocksCleared"}


def frames(sequence: int, *events: Any) -> list[bytes]:
    payload = msgspec.msgpack.encode([1.5, events, 0])
    return [b"kv@x", sequence.to_bytes(8, "big"), payload]


class FakeRouter:
    def __init__(self) -> None:
        self.forgotten = asyncio.Semaphore(0)
        self.times = 0

    def forget_prefixes(self, slot: int) -> None:
        self.times += 1
        self.forgotten.release()


def an_instance(router: Any, template: str = "", port: int = 1) -> tuple[Any, Instance]:
    fleet: Any = SimpleNamespace(router=router, config=FleetConfig(kv_events=template))
    return fleet, Instance(fleet, 0, f"http://127.0.0.1:{port}", "127.0.0.1", port)


def stream() -> tuple[Stream, FakeRouter]:
    router = FakeRouter()
    return Stream(an_instance(router)[1]), router


def test_recorded_messages_are_counted_and_their_gap_is() -> None:
    told, router = stream()
    for line in RECORDED.read_text().splitlines():
        told.take([bytes.fromhex(frame) for frame in json.loads(line)])
    assert told.events == {"block_stored": 3, "block_removed": 25}
    assert told.blocks == {"block_stored": 62, "block_removed": 25}
    assert told.faults == {"missed": 6}
    assert router.times == 0


def test_events_as_arrays_are_read_alike() -> None:
    told, router = stream()
    told.take(
        frames(0, ["BlockStored", [1, b"2", 3], None, [7] * 48, 16, None], ["BlockRemoved", [1]])
    )
    told.take(frames(1, ["AllBlocksCleared"], ["Unheard"]))
    assert told.blocks["block_stored"] == 3 and told.blocks["block_removed"] == 1
    assert told.events["all_blocks_cleared"] == told.events["other"] == router.times == 1
    assert not told.faults


def test_a_sequence_that_begins_anew_is_another_process() -> None:
    told, router = stream()
    told.renewed = True
    for sequence in (7, 8, 0, 1):
        told.take(frames(sequence, STORED))
    assert told.faults == {"restarted": 1}
    assert router.times == 1
    for sequence in (9, 2, 10, 3):  # on the same connection: several publishers, no restart
        told.take(frames(sequence, STORED))
    assert told.faults == {"restarted": 1, "missed": 14, "disorder": 2}
    assert router.times == 1


def test_a_restart_that_is_known_already_loses_nothing_twice() -> None:
    told, router = stream()
    told.renewed = True
    told.take(frames(7, STORED))
    told._instance.forget()  # the checks have seen it; then requests came
    told.take(frames(0, STORED))
    assert told.faults == {"restarted": 1}
    assert router.times == 1


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [b"topic"],
        [b"topic", b"123", b"\x90"],
        [b"topic", bytes(8), b"\xc1"],
        [b"topic", bytes(8), msgspec.msgpack.encode({"events": []})],
        [b"topic", bytes(8), msgspec.msgpack.encode([1.0, [17]])],
        [b"topic", bytes(8), msgspec.msgpack.encode([1.0, [{"type": 3}]])],
        [b"topic", bytes(8), msgspec.msgpack.encode([1.0, [{"block_hashes": 3}]])],
        [b"topic", bytes(8), msgspec.msgpack.encode([1.0, [[]]])[:-1]],
    ],
    ids=str,
)
def test_a_broken_message_is_counted_and_named_once(
    broken: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    told, router = stream()
    for _ in range(3):
        told.take(broken)
    assert told.faults["broken"] == 3 and router.times == 0
    assert len(caplog.messages) == 1
    told.take(frames(1, CLEARED))
    assert router.times == 1


@given(st.lists(st.binary(max_size=40), max_size=4), st.binary(max_size=60))
def test_any_bytes_are_survived(message: list[bytes], payload: bytes) -> None:
    told, _ = stream()
    told.take(message)
    told.take([b"", bytes(8), payload])
    assert told.faults["broken"] + told.events.total() <= 2 + len(payload)


# addresses


@pytest.mark.parametrize(
    ("template", "host", "wanted"),
    [
        ("tcp://{host}:5557", "10.0.0.1", "tcp://10.0.0.1:5557"),
        ("tcp://{host}:{port+1000}", "e", "tcp://e:9101"),
        ("tcp://{host}:{port-1}", "::1", "tcp://[::1]:8100"),
        ("tcp://elsewhere:{port}", "e", "tcp://elsewhere:8101"),
        ("ipc:///run/kv-{port}", "e", "ipc:///run/kv-8101"),
    ],
)
def test_addresses_are_made_from_the_engine_s(template: str, host: str, wanted: str) -> None:
    check(template)
    assert address(template, host, 8101) == wanted


@pytest.mark.parametrize(
    "template", ["5557", "tcp://{host}", "udp://{host}:1", "tcp://{name}:1", "tcp://{host+1}:1"]
)
def test_what_is_no_address_is_refused_at_start(template: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.kv_events \(--kv-events\)"):
        check(template)


def test_without_pyzmq_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "find_spec", lambda name: None)
    check("")
    with pytest.raises(ConfigError, match=r"pip install 'lodestar-fast\[kv-events\]'"):
        check("tcp://{host}:5557")


# sockets


class Publisher:
    """Knows when it is listened to: an XPUB socket is told of subscriptions."""

    def __init__(self, port: int = 0) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.linger = 0
        self.port = port or self.socket.bind_to_random_port("tcp://127.0.0.1")
        if port:
            self.socket.bind(f"tcp://127.0.0.1:{port}")

    async def listened_to(self) -> None:
        assert await asyncio.to_thread(self.socket.recv) == b"\x01"

    def send(self, sequence: int, *events: Any) -> None:
        self.socket.send_multipart(frames(sequence, *events))

    def close(self) -> None:
        self.context.destroy(linger=0)


@asynccontextmanager
async def watched(fleet: Any, instance: Instance) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.ensure_future(kv_events.watch(listener, fleet, instance))
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not listener.streams
        listener.close()


@on_loop
async def test_a_publisher_that_goes_and_comes_back_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_events, "_LOOK", 0.001)
    monkeypatch.setattr(kv_events, "_RECONNECT", (1, 1))
    router = FakeRouter()
    first = Publisher()
    fleet, instance = an_instance(router, f"tcp://{{host}}:{{port+{first.port - 1}}}")
    async with watched(fleet, instance) as listener:
        await first.listened_to()
        for sequence in range(500):  # more than are taken at a time
            first.send(sequence, STORED)
        first.socket.send_multipart([b"no", b"message"])
        first.send(503, STORED, CLEARED)
        await router.forgotten.acquire()
        told = listener.streams[instance.id]
        assert told.connected
        assert told.events == {"block_stored": 501, "all_blocks_cleared": 1}
        assert told.faults == {"broken": 1, "missed": 3}
        first.close()
        await until(lambda: not told.connected)
        second = Publisher(first.port)
        await second.listened_to()
        second.send(0, STORED)
        await router.forgotten.acquire()
        assert told.connected and told.faults["restarted"] == 1
        second.close()


@on_loop
async def test_a_new_configuration_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "_LOOK", 0.001)
    router = FakeRouter()
    first, second = Publisher(), Publisher()
    fleet, instance = an_instance(router, f"tcp://127.0.0.1:{first.port}")
    async with watched(fleet, instance):
        await first.listened_to()
        fleet.config = FleetConfig(kv_events=f"tcp://127.0.0.1:{second.port}")
        await second.listened_to()
        second.send(0, CLEARED)
        await router.forgotten.acquire()
    first.close()
    second.close()


@on_loop
async def test_an_impossible_address_is_named_and_listened_to_no_further(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet, instance = an_instance(FakeRouter(), "tcp://{host}:{port-30}", port=20)
    async with watched(fleet, instance) as listener:
        await until(lambda: bool(caplog.messages))
        assert "no KV events" in caplog.messages[0] and not listener.streams


# simulated engines


def test_a_journal_becomes_events_of_blocks_that_follow_each_other() -> None:
    stored, removed, other = events_of([(0, 11), (11, 12), 5, (0, 9)])
    assert stored["block_hashes"] == [11, 12] and stored["parent_block_hash"] is None
    assert removed == {"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU"}
    assert other["block_hashes"] == [9]
    assert events_of([(12, 13), (13, 14)])[0]["parent_block_hash"] == 12
    assert len(events_of([(12, 13), (0, 13), (13, 14)])) == 2


@on_loop
async def test_a_simulated_engine_that_clears_its_cache_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_events, "_LOOK", 0.001)
    port = free_port()
    router: Router = make_router(instances=1)
    prompt = b"x" * 6400
    asked = HELLO | {"max_tokens": 2, "messages": [{"role": "user", "content": prompt.decode()}]}
    fleet, instance = an_instance(router, f"tcp://127.0.0.1:{port}")
    async with (
        watched(fleet, instance) as listener,
        engines(speedup=1000, kv_events_port=port) as running,
        connected(running) as client,
    ):
        await until(lambda: any(told.connected for told in listener.streams.values()))
        told = listener.streams[instance.id]
        router.observe(router.route(prompt, 1.0).ticket, Event.DONE, 2.0)
        assert router._match(prompt) == {0: 100}
        while told.blocks["block_stored"] < 100:  # a subscription takes a moment to arrive
            assert (await client.ask("POST", CHAT, asked))[0] == 200
            assert (await client.ask("POST", "/reset_prefix_cache"))[0] == 200
        await until(lambda: told.events["all_blocks_cleared"] > 0)
        assert router._match(prompt) == {}
