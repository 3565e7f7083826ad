"""SRV records, which the standard library cannot look up: RFC 1035 and 2782 over UDP, then TCP.

Asks the name servers of resolv.conf, in turn, with its search domains. Answers are untrusted: a
reply must carry the question's random id, and a name that points in circles ends.
"""

from __future__ import annotations

import asyncio
import random
import struct
from pathlib import Path
from typing import NamedTuple

_RESOLV_CONF = "/etc/resolv.conf"
_TIMEOUT = 2.0  # a server, a question
_SRV = 33
_TRUNCATED = 0x0200
_REPLY = 0x8000
_NO_SUCH_NAME = 3
_JUMPS = 16  # compression pointers followed in one name


class Servers(NamedTuple):
    """What resolv.conf says."""

    addresses: list[tuple[str, int]]
    search: list[str]
    ndots: int  # names with fewer dots are tried with the search domains first


def read_servers(path: str = _RESOLV_CONF) -> Servers:
    """Raises OSError."""
    addresses, search, ndots = [], [], 1
    for line in Path(path).read_text().splitlines():
        key, *words = line.split() or [""]
        if key == "nameserver" and words:
            addresses.append((words[0], 53))
        elif key in ("search", "domain"):
            search = words
        elif key == "options":
            for word in words:
                if word.startswith("ndots:") and word[6:].isdigit():
                    ndots = int(word[6:])
    return Servers(addresses or [("127.0.0.1", 53)], search, ndots)


async def services(name: str, servers: Servers | None = None) -> list[tuple[str, int]]:
    """Host and port of the SRV records of a name. Raises OSError if no server answers."""
    if servers is None:
        servers = await asyncio.to_thread(read_servers)
    error = OSError("no such name")
    for full in candidates(name, servers):
        for address in servers.addresses:
            try:
                code, found = await _ask(full, address)
            except (OSError, TimeoutError, ValueError) as e:
                error = OSError(f"name server {address[0]}: {e or 'no answer'}")
                continue
            if code == 0:
                if found:
                    return found
                break  # the name is there, but has no such records
            if code == _NO_SUCH_NAME:
                break
            error = OSError(f"name server {address[0]}: code {code}")
    raise error


def candidates(name: str, servers: Servers) -> list[str]:
    """The full names to try, in the order of resolv.conf's rules."""
    if name.endswith("."):
        return [name]
    searched = [f"{name}.{domain}" for domain in servers.search]
    return [name, *searched] if name.count(".") >= servers.ndots else [*searched, name]


async def _ask(name: str, server: tuple[str, int]) -> tuple[int, list[tuple[str, int]]]:
    """Response code and records. Raises OSError, TimeoutError, ValueError."""
    id = random.SystemRandom().getrandbits(16)
    question = encode(id, name)
    async with asyncio.timeout(_TIMEOUT):
        reply = await _over_udp(question, server)
        if struct.unpack_from(">H", reply, 2)[0] & _TRUNCATED:
            reply = await _over_tcp(question, server)
    return decode(reply, id)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, id: bytes) -> None:
        self._id = id
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[:2] == self._id and len(data) >= 12 and not self.reply.done():
            self.reply.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(exc)


async def _over_udp(question: bytes, server: tuple[str, int]) -> bytes:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Udp(question[:2]), remote_addr=server
    )
    try:
        transport.sendto(question)
        return await protocol.reply
    finally:
        transport.close()


async def _over_tcp(question: bytes, server: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack(">H", len(question)) + question)
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise ValueError("cut short") from None
    finally:
        writer.close()


def encode(id: int, name: str) -> bytes:
    """A question for the SRV records of a name. Raises ValueError if it cannot be one."""
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels) or len(name) > 253:
        raise ValueError(f"`{name}` is not a DNS name")
    head = struct.pack(">HHHHHH", id, 0x0100, 1, 0, 0, 0)  # recursion desired
    return (
        head
        + b"".join(bytes([len(label)]) + label for label in labels)
        + struct.pack(">BHH", 0, _SRV, 1)
    )


def decode(reply: bytes, id: int) -> tuple[int, list[tuple[str, int]]]:
    """Response code, and target and port of each SRV record. Raises ValueError."""
    try:
        got, flags, questions, answers = struct.unpack_from(">HHHH", reply)
        if got != id or not flags & _REPLY:
            raise ValueError("not a reply to the question")
        at = 12
        for _ in range(questions):
            at = _name(reply, at)[1] + 4
        found = []
        for _ in range(answers):
            at = _name(reply, at)[1]
            kind, _, _, length = struct.unpack_from(">HHIH", reply, at)
            at += 10
            if kind == _SRV:
                _, _, port = struct.unpack_from(">HHH", reply, at)
                found.append((_name(reply, at + 6)[0], port))
            at += length
    except (struct.error, IndexError, UnicodeDecodeError):
        raise ValueError("malformed reply") from None
    return flags & 0xF, found


def _name(reply: bytes, at: int) -> tuple[str, int]:
    """The name at an offset, and the offset after it."""
    labels: list[str] = []
    end = 0
    for _ in range(_JUMPS):
        while (length := reply[at]) and length < 0xC0:
            labels.append(reply[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
        if not length:
            return ".".join(labels), end or at + 1
        end = end or at + 2
        at = struct.unpack_from(">H", reply, at)[0] & 0x3FFF
    raise ValueError("a name that points in circles")
