"""What a source of engines is, what it tells, and how it waits between two tries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from lodestar_fast.errors import LodestarError

_BACKOFF = 1.0  # seconds after a first failure, doubled up to
_BACKOFF_MOST = 30.0


class DiscoveryError(LodestarError):
    """A look that told nothing. kind: from a small set, a metric label; text: for the operator."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Report(Protocol):
    """Whom a source tells."""

    def found(self, urls: Collection[str]) -> None:
        """All engines there are now, by http://host:port. An empty collection means: none."""

    def alive(self) -> None:
        """What was found last is still so."""

    def failed(self, error: DiscoveryError) -> None:
        """Nothing could be learned; what was found last stays."""


class Source(Protocol):
    """One place that lists engines."""

    name: str  # a metric label

    async def watch(self, report: Report) -> None:
        """Tell the report what there is, and each change, until cancelled."""


def jitter(seconds: float) -> float:
    """About as long: many routers must not ask at one moment."""
    return seconds * random.uniform(0.8, 1.2)


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, at least 1: doubled, capped, jittered."""
    return min(_BACKOFF * 2.0 ** min(failures - 1, 10), _BACKOFF_MOST) * random.uniform(0.5, 1.0)


async def poll(look: Callable[[], Awaitable[Collection[str]]], every: float, to: Report) -> None:
    """Look again and again, about so many seconds apart. look() may raise DiscoveryError."""
    while True:
        try:
            to.found(await look())
        except DiscoveryError as e:
            to.failed(e)
        await asyncio.sleep(jitter(every))
