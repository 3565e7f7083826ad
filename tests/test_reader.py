"""Connections read past their transports: which are, what ends them, that nothing of it is left.

What is done with the bytes is tested both ways wherever the fixture both_ways is used.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from lodestar_fast.proxy import reader
from tests.fake_engine import HEAD_JSON, pieces, plain
from tests.proxy_rig import Rig, with_rig

direct_only = pytest.mark.skipif(bool(reader.WHY_NOT), reason=reader.WHY_NOT)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def directly() -> Iterator[None]:
    """Past the transport from the first read on."""
    reader.use(1)
    yield
    reader.use(reader.USUAL)


def test_connections_are_read_directly() -> None:
    """Fails where uvloop changed under us; then serving works, and costs a microsecond more."""
    assert reader.WHY_NOT == "" and reader.USUAL > 1


@direct_only
@with_rig(1)
async def test_from_the_second_read_on_and_nothing_is_left(rig: Rig) -> None:
    rig.engines[0].default = plain(200, b"{}")
    client = await rig.client()
    counts = []
    for _ in range(4):
        client.post()
        assert (await client.reply()).whole
        counts.append(descriptors())
    # A second descriptor for the client's connection, and one for the engine's.
    assert counts[1:] == [counts[0] + 2] * 3
    client.close()
    await rig.until(lambda: not rig.context.connections)
    rig.instances[0].pool.close()
    # Both ends of both connections are in this process.
    await rig.until(lambda: descriptors() == counts[0] - 4)


@direct_only
@pytest.mark.usefixtures("directly")
@with_rig(0, limits={"engine_keep_alive": 60.0})
async def test_what_came_before_a_reset_is_not_lost(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as engine:
        engine.setblocking(False)
        instance = rig.add(engine.getsockname()[1])
        client = await rig.client()
        client.post()
        connection, _ = await loop.sock_accept(engine)
        with connection:
            await loop.sock_recv(connection, 10_000)
            connection.send(HEAD_JSON + b"content-length: 4\r\n\r\nbe")
            await client.head()  # by now its connection is read directly
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.send(b"en")  # and the reset is there before this is read
        assert await client.reader.readexactly(4) == b"been"
        await rig.until(lambda: not instance.pool.open)  # nor is the reset overlooked
    assert instance.failures == []


@direct_only
@pytest.mark.usefixtures("directly")
@with_rig(1)
async def test_a_reset_is_no_end(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue, "reset"))
    client = await rig.client()
    client.post()
    queue.put_nowait(HEAD_JSON + b"\r\nuntil the end")
    reply = await client.head()
    assert await client.chunk(reply) == b"until the end"
    queue.put_nowait(None)
    assert not (await client.rest(reply)).whole
    assert rig.instances[0].failures == ["truncated"]


@direct_only
@pytest.mark.usefixtures("directly")
@with_rig(1)
async def test_a_client_that_resets_cancels_its_request(rig: Rig) -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    rig.engines[0].script.append(pieces(queue))
    client = await rig.client()
    client.post()
    call = await rig.engines[0].called()
    client.abort()
    await call.gone.wait()
    queue.put_nowait(None)
    assert rig.outcome()[2] == "client_abort"
    assert rig.instances[0].failures == []


@direct_only
@pytest.mark.usefixtures("directly")
@with_rig(1)
async def test_without_descriptors_to_spare_transports_read(rig: Rig) -> None:
    rig.engines[0].default = plain(200, b"{}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = await rig.client()
    await rig.until(lambda: rig.context.connections)
    before = descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
    try:
        for _ in range(4):
            client.post()
            assert (await client.reply()).whole
        assert descriptors() == before + 2  # the engine's connection
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
