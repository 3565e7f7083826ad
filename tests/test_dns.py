"""SRV records from a name server on this machine, over UDP and TCP."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import cast

import dns.asyncresolver
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery import dns as discovery_dns
from lodestar_fast.proxy.discovery.dns import DnsSource, SystemResolver, parse_target
from lodestar_fast.proxy.discovery.source import DiscoveryError

SRV = "_http._tcp.vllm"
FULL = f"{SRV}.ns.svc.local."
PODS = [("p1.vllm.ns.svc.local", 8000), ("p2.vllm.ns.svc.local", 8001)]


class FakeServer(asyncio.DatagramProtocol):
    """truncate: answers over UDP are cut, so that TCP is asked. code: of every answer, if not 0."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[str, int]]] = {}
        self.asked: list[str] = []
        self.code = 0
        self.truncate = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.udp = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.reply(data)
        if self.truncate:
            reply = reply[:2] + struct.pack(">H", 0x8380) + reply[4:6] + bytes(6)
            reply += data[12 : len(data)]
        self.udp.sendto(reply, addr)

    def reply(self, wire: bytes) -> bytes:
        question = dns.message.from_wire(wire)
        name = question.question[0].name.to_text()
        self.asked.append(name)
        reply = dns.message.make_response(question)
        found = self.records.get(name)
        reply.set_rcode(dns.rcode.Rcode(self.code or (3 if found is None else 0)))
        if found:
            texts = [f"0 100 {port} {target}." for target, port in found]
            reply.answer.append(dns.rrset.from_text(name, 5, "IN", "SRV", *texts))
        return reply.to_wire()

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        reply = self.reply(await reader.readexactly(length))
        writer.write(struct.pack(">H", len(reply)) + reply)
        writer.close()


def with_server(body: Callable[[FakeServer, SystemResolver], Awaitable[None]]) -> None:
    async def main() -> None:
        fake = FakeServer()
        tcp = await asyncio.start_server(fake.stream, "127.0.0.1", 0)
        at = tcp.sockets[0].getsockname()
        loop = asyncio.get_running_loop()
        udp, _ = await loop.create_datagram_endpoint(lambda: fake, local_addr=at)
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = [at[0]], at[1]
        resolver.search = [dns.name.from_text(n) for n in ("ns.svc.local", "svc.local")]
        resolver.ndots, resolver.lifetime = 5, 5.0
        try:
            async with asyncio.timeout(20):
                await body(fake, SystemResolver(resolver))
        finally:
            udp.close()
            tcp.close()

    asyncio.run(main())


@pytest.mark.parametrize("truncate", [False, True], ids=["udp", "tcp"])
def test_search_domains_are_tried(truncate: bool) -> None:
    async def body(fake: FakeServer, resolver: SystemResolver) -> None:
        fake.truncate = truncate
        fake.records[FULL] = PODS
        assert sorted(await resolver.services(SRV)) == PODS
        fake.records = {f"{SRV}.svc.local.": PODS}
        fake.asked.clear()
        assert sorted(await resolver.services(SRV)) == PODS
        assert list(dict.fromkeys(fake.asked)) == [FULL, f"{SRV}.svc.local."]

    with_server(body)


@pytest.mark.parametrize("code", [0, 2], ids=["no_such_name", "server_failure"])
def test_no_answer_is_an_error_that_a_source_reports(code: int) -> None:
    async def body(fake: FakeServer, resolver: SystemResolver) -> None:
        fake.code = code
        with pytest.raises(OSError, match="."):
            await resolver.services(SRV)
        with pytest.raises(DiscoveryError) as e:
            await DnsSource(SRV, 1.0, resolver)._look()
        assert e.value.kind == "no_answer" and SRV in str(e.value)

    with_server(body)


def test_without_dnspython_an_srv_name_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_target(SRV) == (SRV, None)
    monkeypatch.setattr(discovery_dns, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{SRV}.*dnspython"):
        parse_target(SRV)
