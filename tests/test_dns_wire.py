"""The words a DNS server speaks, as far as SRV records go."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from lodestar_fast.proxy.discovery import dns_wire
from lodestar_fast.proxy.discovery.dns_wire import Servers


def name(text: str) -> bytes:
    return b"".join(bytes([len(x)]) + x.encode() for x in text.split(".")) + b"\0"


class FakeServer(asyncio.DatagramProtocol):
    """A name server: over UDP it can cut answers short, so that TCP is asked."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[str, int]]] = {}
        self.asked: list[str] = []
        self.code = 0
        self.truncate = False
        self.noise = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.udp = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.noise:  # another's answer, and one that is none
            self.udp.sendto(bytes([data[0] ^ 1]) + data[1:], addr)
            self.udp.sendto(data[:2], addr)
        reply = self.reply(data)
        self.udp.sendto(self.cut(reply) if self.truncate else reply, addr)

    def cut(self, reply: bytes) -> bytes:
        return reply[:2] + b"\x83\x80" + reply[4:6] + b"\0\0" + reply[8:12]

    def reply(self, question: bytes) -> bytes:
        """Targets are compressed against the question, as real servers do."""
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        asked = ".".join(labels)
        self.asked.append(asked)
        found = self.records.get(asked)
        code = self.code or (3 if found is None else 0)
        head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(found or ()), 0, 0)
        body = question[12:]
        for target, port in found or ():
            first, _, _ = target.partition(".")
            data = struct.pack(">HHH", 0, 100, port) + bytes([len(first)]) + first.encode()
            data += struct.pack(">H", 0xC000 | (12 + len(labels[0]) + len(labels[1]) + 2))
            body += struct.pack(">HHHIH", 0xC00C, 33, 1, 30, len(data)) + data
        return head + body

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        reply = self.reply(await reader.readexactly(length))
        writer.write(struct.pack(">H", len(reply)) + reply)
        writer.close()


def with_server(body: Callable[[FakeServer, Servers], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fake = FakeServer()
        tcp = await asyncio.start_server(fake.stream, "127.0.0.1", 0)
        at = tcp.sockets[0].getsockname()
        udp, _ = await loop.create_datagram_endpoint(lambda: fake, local_addr=at)
        try:
            async with asyncio.timeout(20):
                await body(fake, Servers([at], ["ns.svc.local", "svc.local"], 5))
        finally:
            udp.close()
            tcp.close()

    asyncio.run(main())


SRV = "_http._tcp.vllm"
FOUND = [("p1.vllm.ns.svc.local", 8000), ("p2.vllm.ns.svc.local", 8001)]


@pytest.mark.parametrize("truncate", [False, True], ids=["udp", "tcp"])
def test_a_server_is_asked_with_the_search_domains(truncate: bool) -> None:
    async def body(fake: FakeServer, servers: Servers) -> None:
        fake.truncate, fake.noise = truncate, True
        fake.records[f"{SRV}.ns.svc.local"] = FOUND
        assert await dns_wire.services(SRV, servers) == FOUND
        fake.records = {f"{SRV}.svc.local": FOUND}
        fake.asked.clear()
        found = await dns_wire.services(SRV, servers)
        assert [port for _, port in found] == [8000, 8001]
        assert list(dict.fromkeys(fake.asked)) == [f"{SRV}.ns.svc.local", f"{SRV}.svc.local"]

    with_server(body)


def test_no_answer_is_an_error() -> None:
    async def body(fake: FakeServer, servers: Servers) -> None:
        with pytest.raises(OSError, match="no such name"):
            await dns_wire.services(SRV, servers)
        fake.code = 2
        with pytest.raises(OSError, match="code 2"):
            await dns_wire.services(SRV, servers)
        fake.code = 0
        fake.records[f"{SRV}.ns.svc.local"] = FOUND
        dead = Servers([("127.0.0.1", 1), *servers.addresses], servers.search, 5)
        assert await dns_wire.services(SRV, dead) == FOUND, "the next server is asked"

    with_server(body)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\0\x07",
        struct.pack(">HHHHHH", 8, 0x8180, 0, 0, 0, 0),
        struct.pack(">HHHHHH", 7, 0x0100, 0, 0, 0, 0),
        struct.pack(">HHHHHH", 7, 0x8180, 1, 0, 0, 0),
        struct.pack(">HHHHHH", 7, 0x8180, 0, 1, 0, 0) + b"\xc0\x0c",
        struct.pack(">HHHHHH", 7, 0x8180, 0, 1, 0, 0) + b"\0" + struct.pack(">HHIH", 33, 1, 0, 9),
        struct.pack(">HHHHHH", 7, 0x8180, 1, 0, 0, 0) + b"\x05ab",
    ],
)
def test_a_malformed_reply_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError):
        dns_wire.decode(reply, 7)


def test_what_can_be_no_name_is_not_asked_for() -> None:
    for bad in ("a..b", "a" * 64, ".".join(["abcdefgh"] * 40), "é.b"):
        with pytest.raises(ValueError):
            dns_wire.encode(1, bad)
    assert dns_wire.encode(1, "_a._tcp.b.")[12:] == name("_a._tcp.b") + b"\0\x21\0\x01"


def test_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# by the kubelet\nsearch ns.svc.cluster.local svc.cluster.local\n"
        "nameserver 10.96.0.10\nnameserver fd00::a\noptions edns0 ndots:5\n"
    )
    servers = dns_wire.read_servers(str(path))
    assert servers.addresses == [("10.96.0.10", 53), ("fd00::a", 53)]
    assert servers.ndots == 5 and len(servers.search) == 2
    assert dns_wire.candidates("a.b.", servers) == ["a.b."]
    path.write_text("")
    assert dns_wire.read_servers(str(path)) == Servers([("127.0.0.1", 53)], [], 1)
