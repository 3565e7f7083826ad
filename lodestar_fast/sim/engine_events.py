"""KV events of a simulated engine over ZeroMQ, in the form of vLLM 0.32.

Three frames a message: topic, sequence number, batch in msgpack. What a block is called is the
simulator's own hash of it, and token ids are left out: there is no tokenizer. That the cache was
emptied is told at once; vLLM tells it with the next iteration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import BLOCK_TOKENS

OPTION = "--kv-events-port"
TOPIC = b"kv-events"


def events_of(journal: Iterable[int | tuple[int, int]]) -> list[dict[str, Any]]:
    """What a pool's journal says: one event for blocks that follow each other, one an eviction."""
    events: list[dict[str, Any]] = []
    last = 0  # the block that the latest event ends with, if one more may follow
    for entry in journal:
        if isinstance(entry, int):
            events.append({"type": "BlockRemoved", "block_hashes": [entry], "medium": "GPU"})
            last = 0
            continue
        parent, block = entry
        if not last or parent != last:
            events.append(
                {
                    "type": "BlockStored",
                    "block_hashes": [],
                    "parent_block_hash": parent or None,
                    "token_ids": [],
                    "block_size": BLOCK_TOKENS,
                    "lora_id": None,
                    "medium": "GPU",
                }
            )
        events[-1]["block_hashes"].append(block)
        last = block
    return events


class Publisher:
    """Publishes the events of one engine. Raises ConfigError if pyzmq or the port is not there."""

    def __init__(self, host: str, port: int) -> None:
        try:
            import zmq
        except ModuleNotFoundError:
            raise ConfigError(
                f"{OPTION}: needs pyzmq: pip install 'lodestar-fast[kv-events]'"
            ) from None
        self._sequence = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IPV6, 1)
        try:
            self._socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"{OPTION} {port}: {error.strerror}") from None

    def send(self, events: list[dict[str, Any]], now: float) -> None:
        """A message, if there are events. now: seconds since 1970."""
        if not events:
            return
        payload = msgspec.msgpack.encode([now, events, 0])
        self._socket.send_multipart((TOPIC, self._sequence.to_bytes(8, "big"), payload))
        self._sequence += 1

    def close(self) -> None:
        self._context.destroy(linger=0)
