"""Engines behind a DNS name, looked up again and again: a headless Service needs no RBAC for it.

`name:port` asks for addresses (A, AAAA; IPv4 wins where there are both, since they are the same
engines twice). `_port._protocol.name` asks for SRV records, which bring the port. The system's
resolver and a cluster's answer from caches with short lives, so records' own TTL is not looked at.

An engine goes when an answer without it comes. No answer, or one with nothing in it, removes none:
a resolver that fails and a Service without a ready pod look alike, and health checks tell the
second case anyway.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.source import DiscoveryError, Report, poll
from lodestar_fast.proxy.fleet import parse_url

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as DnsPython

_TIMEOUT = 10.0


class Resolver(Protocol):
    """Both raise OSError or TimeoutError if there is no answer."""

    async def addresses(self, host: str) -> list[str]: ...

    async def services(self, name: str) -> list[tuple[str, int]]:
        """Host and port of each SRV record."""


class SystemResolver:
    """What the machine is set up for: hosts file, search domains, its name servers.

    The standard library finds addresses; SRV records are asked for with dnspython.
    """

    def __init__(self, srv: DnsPython | None = None) -> None:
        self._srv = srv

    async def addresses(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]

    async def services(self, name: str) -> list[tuple[str, int]]:
        import dns.asyncresolver
        import dns.exception

        if self._srv is None:
            self._srv = await asyncio.to_thread(dns.asyncresolver.Resolver)  # reads resolv.conf
        try:
            answer = await self._srv.resolve(name, "SRV", search=True)
        except dns.exception.DNSException as e:
            raise OSError(str(e) or type(e).__name__) from None
        return [(record.target.to_text(omit_final_dot=True), record.port) for record in answer]


class DnsSource:
    """One name; see the top of this module."""

    def __init__(self, target: str, every: float, resolver: Resolver | None = None) -> None:
        """Raises ConfigError. every: seconds between two look-ups."""
        self.name = f"dns:{target}"
        self._every = every
        self._resolver = resolver or SystemResolver()
        self._host, self._port = parse_target(target)

    async def watch(self, report: Report) -> None:
        await poll(self._look, self._every, report)

    async def _look(self) -> Collection[str]:
        try:
            async with asyncio.timeout(_TIMEOUT):
                urls = await self._ask()
        except TimeoutError:
            raise DiscoveryError("timeout", f"{self._host}: no answer") from None
        except OSError as e:
            raise DiscoveryError("no_answer", f"{self._host}: {e.strerror or e}") from None
        if not urls:
            raise DiscoveryError("empty", f"{self._host}: an answer without an address")
        return urls

    async def _ask(self) -> Collection[str]:
        if self._port is not None:
            return {_url(a, self._port) for a in _one_family(await self._addresses(self._host))}
        pairs = await self._resolver.services(self._host)
        found = await asyncio.gather(*(self._addresses(host) for host, _ in pairs))
        return {
            _url(address, port)
            for (_, port), addresses in zip(pairs, found, strict=True)
            for address in _one_family(addresses)
        }

    async def _addresses(self, host: str) -> list[str]:
        return await self._resolver.addresses(host)


def parse_target(target: str) -> tuple[str, int | None]:
    """Host and port; the port is None if SRV records are to tell it. Raises ConfigError."""
    if target.startswith("_"):
        if ":" in target or target.count(".") < 2:
            raise ConfigError(f"`{target}`: SRV names are of the form _port._protocol.name")
        if find_spec("dns") is None:
            raise ConfigError(f"`{target}`: SRV records need dnspython, `pip install dnspython`")
        return target, None
    _, host, port = parse_url(f"http://{target}")
    if not target.endswith(f":{port}"):
        raise ConfigError(f"`{target}`: a port is missing, name:port")
    return host, port


def _one_family(addresses: list[str]) -> list[str]:
    """The IPv4 ones, or all if there are none."""
    return [a for a in addresses if ":" not in a] or addresses


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
