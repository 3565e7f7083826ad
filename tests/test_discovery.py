"""Sources one by one: files, names, and the words a DNS server speaks."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import cast

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery import dns_wire
from lodestar_fast.proxy.discovery.dns import DnsSource, parse_target
from lodestar_fast.proxy.discovery.dns_wire import Servers
from lodestar_fast.proxy.discovery.file import FileSource, parse
from lodestar_fast.proxy.discovery.source import DiscoveryError, Source, backoff, jitter

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"


class Heard:
    """A report that a test can wait on."""

    def __init__(self) -> None:
        self.urls: set[str] | None = None
        self.kinds: list[str] = []
        self.signs = 0  # found or alive
        self._news = asyncio.Event()

    def found(self, urls: Collection[str]) -> None:
        self.urls = set(urls)
        self.alive()

    def alive(self) -> None:
        self.signs += 1
        self._news.set()

    def failed(self, error: DiscoveryError) -> None:
        self.kinds.append(error.kind)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def until_urls(self, *urls: str) -> None:
        await self.until(lambda: self.urls == set(urls))

    async def until_failed(self, kind: str) -> None:
        """One more failure of that kind."""
        before = len(self.kinds)
        await self.until(lambda: kind in self.kinds[before:])


def watched(source: Source, body: Callable[[Heard], Awaitable[None]]) -> None:
    """Run a test body while a source reports to it."""

    async def main() -> None:
        heard = Heard()
        task = asyncio.ensure_future(source.watch(heard))
        try:
            async with asyncio.timeout(20):
                await body(heard)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


# -- files --


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f"{A}\n{B}\n", {A, B}),
        (f"# engines\n\n {A}/  # the old one\n{A}\n", {A}),
        (f'worker_urls = ["{A}", "{B}"]', {A, B}),
        (f'# engines\nworker_urls = [\n  "{A}",\n]\n', {A}),
        ("worker_urls = []", set()),
        ("# none for now\n", set()),
    ],
)
def test_a_file_is_urls_or_toml(text: str, urls: set[str]) -> None:
    assert set(parse(text, "f")) == urls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n\n",
        f"{A}\nnot a url\n",
        f"{A}\nhttps://e:1\n",
        f"{A} {B}",
        "worker_urls = 'http://e:1'",
        "worker_urls = [1]",
        f"worker_urls = ['{A}']\nmore = 1",
        f"urls = ['{A}']",
        "worker_urls = ['http://e:1",
        "\x00\x01",
        "{}",
    ],
)
def test_a_file_with_a_mistake_is_refused_whole(text: str) -> None:
    with pytest.raises(DiscoveryError) as e:
        parse(text, "engines.txt")
    assert e.value.kind == "invalid" and "engines.txt" in str(e.value)


def replace(path: Path, text: str | bytes) -> None:
    """As careful writers do: a new file takes the old one's name."""
    new = path.with_suffix(".new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.replace(new, path)


def test_a_file_is_followed_and_what_it_said_last_stays(tmp_path: Path) -> None:
    path = tmp_path / "engines"

    async def body(heard: Heard) -> None:
        await heard.until_failed("unreadable")
        assert heard.urls is None
        path.write_text(A)
        await heard.until_urls(A)
        replace(path, f"{B}\n")  # of the same length
        await heard.until_urls(B)
        replace(path, "")
        await heard.until_failed("invalid")
        replace(path, b"\xff\xfe")
        await heard.until_failed("invalid")
        replace(path, b"#" * (1 << 20) + b"#")
        await heard.until_failed("invalid")
        path.unlink()
        await heard.until_failed("unreadable")
        path.mkdir()
        await heard.until_failed("unreadable")
        path.rmdir()
        assert heard.urls == {B}
        replace(path, "# none\n")
        await heard.until_urls()

    watched(FileSource(str(path), 0.005), body)


def test_a_link_that_is_swapped_is_seen(tmp_path: Path) -> None:
    """As the kubelet updates a ConfigMap."""
    for name, url in (("1", A), ("2", B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "engines").write_text(url)
    (tmp_path / "data").symlink_to("1")

    async def body(heard: Heard) -> None:
        await heard.until_urls(A)
        (tmp_path / "new").symlink_to("2")
        os.replace(tmp_path / "new", tmp_path / "data")
        await heard.until_urls(B)

    watched(FileSource(str(tmp_path / "data" / "engines"), 0.005), body)


# -- names --


class FakeResolver:
    """Answers from tables; an error in them is raised."""

    def __init__(self) -> None:
        self.table: dict[str, list[str] | Exception] = {}
        self.records: dict[str, list[tuple[str, int]] | Exception] = {}
        self.asked = 0

    async def addresses(self, host: str) -> list[str]:
        self.asked += 1
        found = self.table[host]
        if isinstance(found, Exception):
            raise found
        return found

    async def services(self, name: str) -> list[tuple[str, int]]:
        found = self.records[name]
        if isinstance(found, Exception):
            raise found
        return found


def test_addresses_are_followed_and_failures_remove_none() -> None:
    resolver = FakeResolver()
    resolver.table["vllm.svc"] = OSError("nothing yet")

    async def body(heard: Heard) -> None:
        await heard.until_failed("no_answer")
        resolver.table["vllm.svc"] = ["10.0.0.1", "10.0.0.2", "fd00::1"]
        await heard.until_urls(A, B)
        for failure, kind in (
            (OSError("no such name"), "no_answer"),
            (TimeoutError(), "timeout"),
            ([], "empty"),
        ):
            resolver.table["vllm.svc"] = failure
            for _ in range(3):
                await heard.until_failed(kind)
        assert heard.urls == {A, B}
        resolver.table["vllm.svc"] = ["10.0.0.2"]
        await heard.until_urls(B)
        resolver.table["vllm.svc"] = ["fd00::1"]
        await heard.until_urls("http://[fd00::1]:8000")

    watched(DnsSource("vllm.svc:8000", 0.001, resolver), body)


def test_srv_records_bring_the_port() -> None:
    resolver = FakeResolver()
    name = "_http._tcp.vllm.svc"
    resolver.records[name] = [("p1.vllm.svc", 8000), ("p2.vllm.svc", 9000)]
    resolver.table = {"p1.vllm.svc": ["10.0.0.1"], "p2.vllm.svc": ["10.0.0.2"]}

    async def body(heard: Heard) -> None:
        await heard.until_urls(A, "http://10.0.0.2:9000")
        resolver.table["p2.vllm.svc"] = OSError("no such name")
        await heard.until_failed("no_answer")
        assert heard.urls == {A, "http://10.0.0.2:9000"}, "half an answer is none"
        resolver.records[name] = [("p1.vllm.svc", 8000)]
        await heard.until_urls(A)
        resolver.records[name] = []
        await heard.until_failed("empty")
        assert heard.urls == {A}

    watched(DnsSource(name, 0.001, resolver), body)


@pytest.mark.parametrize(
    "target",
    ["vllm", "vllm:", "vllm:x", "vllm:80/x", "_http.x", "_http._tcp.x:80", ":80", "a b:80"],
)
def test_a_target_must_tell_where_the_port_comes_from(target: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(target)


def test_targets() -> None:
    assert parse_target("vllm:80") == ("vllm", 80)
    assert parse_target("_http._tcp.vllm.svc") == ("_http._tcp.vllm.svc", None)


# -- the protocol --


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


# -- waiting --


def test_waits_are_jittered_and_bounded() -> None:
    assert all(0.8 <= jitter(1.0) <= 1.2 for _ in range(100))
    assert len({jitter(1.0) for _ in range(10)}) > 1
    assert all(0.5 <= backoff(1) <= 1 for _ in range(100))
    assert all(15 <= backoff(n) <= 30 for n in (6, 100, 10**6))
