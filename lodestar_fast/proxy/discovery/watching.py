"""Runs the sources that the configuration names, and keeps what each said of itself."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from lodestar_fast.config import DiscoveryConfig
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.api_server import ApiServer
from lodestar_fast.proxy.discovery.dns import DnsSource
from lodestar_fast.proxy.discovery.file import FileSource
from lodestar_fast.proxy.discovery.kubernetes import KubernetesSource
from lodestar_fast.proxy.discovery.membership import Membership
from lodestar_fast.proxy.discovery.source import DiscoveryError, Source, backoff

log = logging.getLogger(__name__)

_SWEEP = 1.0  # seconds between looks for engines to forget
_COMPLAINT = 60.0  # seconds between log lines about one trouble that goes on


def sources(config: DiscoveryConfig) -> list[Source]:
    """Raises ConfigError naming the option."""
    found: list[Source] = []
    if config.discovery_file:
        found.append(FileSource(config.discovery_file, config.discovery_interval))
    for target in dict.fromkeys(config.discovery_dns):
        try:
            found.append(DnsSource(target, config.discovery_interval))
        except ConfigError as e:
            raise ConfigError(f"discovery.discovery_dns (--discovery-dns): {e}") from None
    if config.kubernetes_selector:
        try:
            api = ApiServer(config.kubernetes_api, config.kubernetes_credentials)
        except ConfigError as e:
            raise ConfigError(f"discovery.kubernetes_api (--kubernetes-api): {e}") from None
        found.append(
            KubernetesSource(
                api,
                config.kubernetes_selector,
                config.kubernetes_namespace,
                config.kubernetes_port,
                config.kubernetes_resync,
            )
        )
    return found


class Health(NamedTuple):
    """How a source does, for the metrics. age: seconds since it last told; since the start if it
    never did."""

    age: float
    syncs: int
    errors: dict[str, int]


class _Report:
    """Takes what one source tells."""

    def __init__(self, name: str, members: Membership, now: Callable[[], float]) -> None:
        self._name = name
        self._members = members
        self._now = now
        self._told_at = now()
        self._complained: tuple[str, float] | None = None  # what about, until when
        self.syncs = 0
        self.errors: Counter[str] = Counter()

    def found(self, urls: Collection[str]) -> None:
        self._members.claim(self._name, sorted(urls))
        self.alive()

    def alive(self) -> None:
        self._told_at = self._now()
        self.syncs += 1
        if self._complained:
            self._complained = None
            log.info("discovery by %s: works again", self._name)

    def failed(self, error: DiscoveryError) -> None:
        self.errors[error.kind] += 1
        now = self._now()
        if (
            self._complained is None
            or self._complained[0] != error.kind
            or (now >= self._complained[1])
        ):
            self._complained = error.kind, now + _COMPLAINT
            log.warning(
                "discovery by %s: %s: %s; what it said last stays", self._name, error.kind, error
            )

    def health(self) -> Health:
        return Health(self._now() - self._told_at, self.syncs, dict(self.errors))


class Discovery:
    """All sources of one router."""

    def __init__(
        self, members: Membership, now: Callable[[], float], incidents: Counter[str]
    ) -> None:
        """incidents: failures of ours, counted by kind."""
        self.members = members
        self._now = now
        self._incidents = incidents
        self._config = DiscoveryConfig()
        self._tasks: list[asyncio.Task[None]] = []
        self._reports: dict[str, _Report] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def use(self, config: DiscoveryConfig) -> None:
        """Ask these sources from now on. What others listed is drained; what a source listed
        stays until it has been asked anew. Raises ConfigError, and then nothing has changed."""
        wanted = sources(config)
        self.members.linger = config.discovery_linger
        if self._sweeper is None:
            self._sweeper = asyncio.ensure_future(self._sweep())
        if config == self._config:
            return
        self._config = config
        for task in self._tasks:
            task.cancel()
        names = [source.name for source in wanted]
        for name in self._reports.keys() - set(names):
            self.members.withdraw(name)
        self._reports = {
            name: self._reports.get(name) or _Report(name, self.members, self._now)
            for name in names
        }
        self._tasks = [asyncio.ensure_future(self._keep_asking(source)) for source in wanted]

    async def _keep_asking(self, source: Source) -> None:
        failures = 0
        while True:
            try:
                await source.watch(self._reports[source.name])
            except Exception:
                # A bug of ours; losing the source for good would freeze the fleet.
                failures += 1
                log.exception("discovery by %s failed", source.name)
                self._incidents["discovery"] += 1
            await asyncio.sleep(backoff(max(failures, 1)))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self.members.sweep()

    def health(self) -> dict[str, Health]:
        """By source; those that list engines once and for all are not in it."""
        return {name: report.health() for name, report in self._reports.items()}

    async def close(self) -> None:
        """Stop asking."""
        tasks = self._tasks + ([self._sweeper] if self._sweeper else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
