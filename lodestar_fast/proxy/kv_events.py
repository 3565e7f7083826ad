"""Listens to what engines say of their KV caches: events over ZeroMQ, as vLLM and others publish.

A message is three frames: topic, sequence number (8 bytes, big endian), and in msgpack the batch
[time, events, ...]; an event is a map, or an array in older releases. Each look takes what has come
since the last one; ZeroMQ connects, and again when a connection is lost, in a thread of its own.

What they change: AllBlocksCleared, and a sequence that begins anew on a new connection, mean that
the cache is empty, and the router forgets what it believed there. BlockStored and BlockRemoved are
counted, no more: they name blocks by the engine's hashes over tokens, the router knows prompts by
hashes over bytes, and only the engine's tokenizer could join the two. What was evicted the router
knows by capacity and recency, and answers correct it (csrc/truth.c). Messages that were missed are
counted too, and nothing is forgotten for them: most events are of single blocks.

A message that is not understood is counted, and hurts nobody.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

_OPTION = "fleet.kv_events (--kv-events)"
_PLACES = re.compile(r"\{(host|port)([+-]\d{1,5})?\}")
_LOOK = 0.05  # seconds between looks; an engine's iteration takes about as long
_MOST = 200  # messages before others on the event loop have their turn
_MESSAGE_BYTES = 64 << 20  # a longer message ends the connection
_RECONNECT = (100, 5000)  # milliseconds: the first pause and the longest
_TYPES = {
    "BlockStored": "block_stored",
    "BlockRemoved": "block_removed",
    "AllBlocksCleared": "all_blocks_cleared",
}


class _Batch(msgspec.Struct, array_like=True):
    time: float
    events: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: str = ""
    block_hashes: list[msgspec.Raw] = []


class _Row(msgspec.Struct, array_like=True):
    type: str = ""
    block_hashes: list[msgspec.Raw] = []


_batch = msgspec.msgpack.Decoder(_Batch)
_event = msgspec.msgpack.Decoder(_Event)
_row = msgspec.msgpack.Decoder(_Row)


def _decode(raw: msgspec.Raw) -> _Event | _Row:
    first = memoryview(raw)[0]
    is_array = 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)
    return _row.decode(raw) if is_array else _event.decode(raw)


def address(template: str, host: str, port: int) -> str:
    """Where the engine at that host and port publishes. Raises ConfigError."""

    def put(place: re.Match[str]) -> str:
        if place[1] == "host" and not place[2]:
            return f"[{host}]" if ":" in host else host
        number = port + int(place[2] or 0)
        if place[1] != "port" or not 0 < number < 65536:
            raise ConfigError(f"{_OPTION}: `{place[0]}` of {host}:{port} cannot be")
        return str(number)

    return _PLACES.sub(put, template)


def check(template: str) -> None:
    """Raises ConfigError if it says no place, or what is needed to listen is not installed."""
    if not template:
        return
    sample = address(template, "host", 30000)
    if not re.fullmatch(r"tcp://[^\s{}]+:\d{1,5}|ipc://[^\s{}]+", sample):
        raise ConfigError(
            f"{_OPTION}: `{template}` is no tcp://{{host}}:PORT; {{port+N}} counts from the "
            "engine's own port"
        )
    if find_spec("zmq") is None:
        raise ConfigError(f"{_OPTION}: needs pyzmq: pip install 'lodestar-fast[kv-events]'")


class Stream:
    """What one engine has said."""

    def __init__(self, instance: Instance) -> None:
        self.connected = False
        self.renewed = False  # connected since a restart was last seen: there may be another
        self.events: Counter[str] = Counter()  # by type
        self.blocks: Counter[str] = Counter()  # that they name, by type
        self.faults: Counter[str] = Counter()  # by kind, as in metrics_events.py
        self._instance = instance
        self._next = -1  # sequence number of the message to come; -1: none has come
        self._losses = instance.losses  # as of the last message

    def take(self, frames: list[bytes]) -> None:
        """A message."""
        try:
            _, number, payload = frames
            if len(number) != 8:
                raise ValueError("a sequence number has 8 bytes")
            events = [_decode(raw) for raw in _batch.decode(payload).events]
        except (ValueError, msgspec.MsgspecError) as e:
            self.faults["broken"] += 1
            if self.faults["broken"] == 1:
                log.warning("engine %s: a KV event that is none: %s", self._instance.id, e)
            return
        self._follow(int.from_bytes(number, "big"))
        for event in events:
            kind = _TYPES.get(event.type, "other")
            self.events[kind] += 1
            if event.block_hashes:
                self.blocks[kind] += len(event.block_hashes)
            if kind == "all_blocks_cleared":
                log.info("engine %s: has cleared its cache", self._instance.id)
                self._instance.forget()
        self._losses = self._instance.losses

    def _follow(self, sequence: int) -> None:
        if self._next >= 0 and sequence > self._next:
            self.faults["missed"] += sequence - self._next
        elif sequence < self._next and not self.renewed:  # several publish on one connection
            self.faults["disorder"] += 1
        elif sequence < self._next:  # another process publishes there
            self.faults["restarted"] += 1
            self.renewed = False
            if self._instance.losses == self._losses:  # and nobody else has noticed
                self._instance.forget()
        self._next = sequence + 1


class Listener:
    """The streams of all instances, by id; those that are listened to."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """Made when first needed: it has threads."""
        if self._context is None:
            import zmq

            self._context = zmq.Context()
        return self._context

    def close(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None


class _Subscription:
    """A socket that listens at an address, and another one that tells of its connections."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], place: str, stream: Stream) -> None:
        """Raises zmq.ZMQError if that is no address."""
        import zmq

        self._zmq = zmq
        self._stream = stream
        self._socket = context.socket(zmq.SUB)
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.IPV6, 1)
            self._socket.set(zmq.MAXMSGSIZE, _MESSAGE_BYTES)
            self._socket.set(zmq.RECONNECT_IVL, _RECONNECT[0])
            self._socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT[1])
            # An engine whose machine has gone sends no goodbye.
            self._socket.set(zmq.HEARTBEAT_IVL, 5000)
            self._socket.set(zmq.SUBSCRIBE, b"")
            self._monitor = self._socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
            self._socket.connect(place)
        except zmq.ZMQError:
            self.close()
            raise

    def close(self) -> None:
        self._stream.connected = False
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()

    def look(self) -> bool:
        """Takes what has come. True if there may be more."""
        assert self._monitor is not None
        while (news := self._receive(self._monitor)) is not None:
            event = int.from_bytes(news[0][:2], "little")
            connected = event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._stream.connected = connected
            self._stream.renewed = self._stream.renewed or connected
        for _ in range(_MOST):
            message = self._receive(self._socket)
            if message is None:
                return False
            self._stream.take(message)
        return True

    def _receive(self, socket: zmq.Socket[bytes]) -> list[bytes] | None:
        try:
            return socket.recv_multipart(self._zmq.NOBLOCK)
        except self._zmq.Again:
            return None


async def watch(listener: Listener, fleet: Fleet, instance: Instance) -> None:
    """Listen to an instance, wherever fleet.config.kv_events says, until cancelled."""
    at = ""
    subscription: _Subscription | None = None
    try:
        while True:
            template = fleet.config.kv_events
            if template != at:  # at the start, and when the configuration was read again
                at = template
                if subscription is not None:
                    subscription.close()
                    subscription = None
                listener.streams.pop(instance.id, None)
                if template:
                    subscription = _subscribe(listener, template, instance)
            if subscription is not None:
                while subscription.look():
                    await asyncio.sleep(0)
            await asyncio.sleep(_LOOK if subscription is not None else 1.0)
    finally:
        listener.streams.pop(instance.id, None)
        if subscription is not None:
            subscription.close()


def _subscribe(listener: Listener, template: str, instance: Instance) -> _Subscription | None:
    """None, and a word in the log, if this instance cannot have such an address."""
    import zmq

    stream = Stream(instance)
    try:
        place = address(template, instance.host, instance.port)
        subscription = _Subscription(listener.context(), place, stream)
    except (ConfigError, zmq.ZMQError) as e:
        log.warning("engine %s %s: no KV events: %s", instance.id, instance.url, e)
        return None
    listener.streams[instance.id] = stream
    return subscription
