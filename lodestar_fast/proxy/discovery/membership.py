"""Which engines there are, when several sources say so: the union of what each lists.

An engine belongs to every source that lists it. When the last of them stops, it is drained: it gets
no new requests, those that run go on, its checks too. It is forgotten when none runs any more and
it has been gone for a while; one that comes back before that takes requests again at once, and what
was learned of it still holds. An engine that an operator drained stays so, whatever sources say.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.fleet import Fleet, parse_url
from lodestar_fast.proxy.instance import Instance

log = logging.getLogger(__name__)

STATIC = "static"  # worker_urls
ADMIN = "admin"  # POST /workers
# Sources whose word is not said again, so that an operator's can end it.
_SPOKEN = frozenset({STATIC, ADMIN})


class _Gone(NamedTuple):
    """An engine that no source lists any more."""

    since: float
    drained: bool  # an operator had drained it before


class Membership:
    """Keeps the fleet in step with what sources list."""

    def __init__(self, fleet: Fleet, linger: float = 0.0) -> None:
        """linger: seconds that an engine without requests is kept after it has gone."""
        self.linger = linger
        self.changes = Counter({"added": 0, "gone": 0, "returned": 0, "refused": 0})
        self._fleet = fleet
        self._claims: dict[str, dict[str, None]] = {STATIC: {}, ADMIN: {}}
        self._gone: dict[str, _Gone] = {}
        self._refused: dict[str, str] = {}  # url -> why it is not in the fleet

    def claim(self, source: str, urls: Collection[str]) -> list[str]:
        """All that a source lists now. Engines that could not be added, with the reason.

        URLs are of the form that parse_url() gives.
        """
        self._claims[source] = dict.fromkeys(urls)
        self._settle()
        return [self._refused[url] for url in urls if url in self._refused]

    def withdraw(self, source: str) -> None:
        """A source is asked no more."""
        self._claims.pop(source, None)
        self._settle()

    def add(self, url: str) -> Instance:
        """On an operator's word: there, and not drained. Raises ConfigError."""
        url = parse_url(url)[0]
        self._claims[ADMIN][url] = None
        self._settle()
        if url in self._refused:
            del self._claims[ADMIN][url]
            raise ConfigError(self._refused.pop(url))
        return self._fleet.add(url)

    def remove(self, instance: Instance) -> list[str]:
        """On an operator's word: forgotten at once; its running requests end as they will.

        The sources that would bring it back, and then nothing is done.
        """
        others = [name for name in self.owners(instance.url) if name not in _SPOKEN]
        if not others:
            for name in _SPOKEN:
                self._claims[name].pop(instance.url, None)
            self._forget(instance)
        return others

    def owners(self, url: str) -> list[str]:
        """The sources that list an engine; none if it has gone."""
        return [name for name, urls in self._claims.items() if url in urls]

    def counts(self) -> dict[str, int]:
        """Engines by source."""
        return {name: len(urls) for name, urls in self._claims.items()}

    def would_be(self, source: str, urls: Iterable[str]) -> int:
        """How many engines would be listed if that source listed these."""
        others = [claim for name, claim in self._claims.items() if name != source]
        return len(set(urls).union(*others))

    def sweep(self) -> None:
        """Forget what has been gone for long enough; make another try at what had no room."""
        now = self._fleet.now()
        for instance in list(self._fleet.all):
            gone = self._gone.get(instance.url)
            if gone and now >= gone.since + self.linger and not self._busy(instance):
                self._forget(instance)
                log.info("engine %s %s: forgotten", instance.id, instance.url)
        if self._refused:
            self._settle()

    def _settle(self) -> None:
        """Bring the fleet into step with the claims."""
        wanted = {url: None for claim in self._claims.values() for url in claim}
        known = {instance.url: instance for instance in self._fleet.all}
        for url, instance in known.items():
            if url not in wanted and url not in self._gone:
                self._gone[url] = _Gone(self._fleet.now(), instance.draining)
                self._fleet.drain(instance.id)
                self.changes["gone"] += 1
                log.info("engine %s %s: gone, drained", instance.id, url)
        refused, self._refused = self._refused, {}
        for url in wanted:
            if url not in known:
                self._try_to_add(url, url in refused)
            elif gone := self._gone.pop(url, None):
                if not gone.drained:
                    self._fleet.add(url)
                self.changes["returned"] += 1
                log.info("engine %s %s: back", known[url].id, url)

    def _try_to_add(self, url: str, again: bool) -> None:
        try:
            try:
                instance = self._fleet.add(url)
            except ConfigError:
                if not self._make_room():
                    raise
                instance = self._fleet.add(url)
        except ConfigError as e:
            self._refused[url] = str(e)
            if not again:
                self.changes["refused"] += 1
                log.error("engine not added: %s", e)
        else:
            self.changes["added"] += 1
            log.info("engine %s %s: found by %s", instance.id, url, ", ".join(self.owners(url)))

    def _make_room(self) -> bool:
        """Forget the one that has been gone for longest, an idle one first. False: none has."""
        gone = [i for i in self._fleet.all if i.url in self._gone]
        if not gone:
            return False
        self._forget(min(gone, key=lambda i: (self._busy(i), self._gone[i.url].since)))
        return True

    def _busy(self, instance: Instance) -> bool:
        return bool(self._fleet.router.instance(instance.slot)["inflight"])

    def _forget(self, instance: Instance) -> None:
        self._gone.pop(instance.url, None)
        self._fleet.remove(instance.id)
