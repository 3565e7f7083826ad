"""The engines: who they are, and which of them may get requests now.

An instance is *healthy* when its last health checks passed and it is not ejected. It may be chosen
(*routable*) when it is healthy and not draining; when no instance is healthy, every one that is not
draining may be chosen, since a guess is better than a refusal (Envoy's panic mode).

Two sources move it. *Checks* (health.py): health_failures bad ones in a row take it out, one good
one brings it back. *Requests* (exchange): EJECT_AFTER failures in a row eject it. An ejection holds
for 1 s, then 2, 4 ... 30 s when it recurs, and ends with the first good check after that; then the
instance is on probation: one more failure ejects it again, one success clears it.

Fleet does no I/O itself: watchers (health, scrape) are coroutines that it runs for each instance.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from lodestar_fast.clock import Clock
from lodestar_fast.config import FleetConfig
from lodestar_fast.errors import ConfigError

log = logging.getLogger(__name__)

# Failed requests in a row. HAProxy and Envoy eject after 5 to 10; with retries on other engines a
# dead one costs each request it sees a round trip, so a little sooner.
EJECT_AFTER = 3
HOLD_FIRST, HOLD_MOST = 1.0, 30.0
# Kinds of note_failure() that are no sign of a broken engine: it sheds load, or the task was long.
SOFT = frozenset({"busy", "request_timeout"})

Watcher = Callable[["Instance"], Coroutine[Any, Any, None]]


def parse_url(url: str) -> tuple[str, str, int]:
    """The URL as we write it, its host and its port. Raises ConfigError naming the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise ConfigError(f"`{url}` is not a URL: {e}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"`{url}` is not an engine URL of the form http://host:port")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"`{url}`: an engine URL has a host and a port, nothing else")
    host = parts.hostname
    if port == 0 or not host.isascii() or any(c <= " " for c in host):
        raise ConfigError(f"`{url}` is not an engine URL of the form http://host:port")
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port or 80}", host, port or 80


class Instance:
    """One engine. The attributes are for everyone to read; only this module writes them."""

    def __init__(self, fleet: Fleet, slot: int, url: str, host: str, port: int) -> None:
        self.slot = slot
        # Stable over restarts and opaque: clients may see it.
        self.id = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
        self.url = url
        self.host = host
        self.port = port
        self.pool: Any = None
        self.models: tuple[str, ...] = ()  # ids it serves; empty: not known, any is tried
        self.cards: dict[str, msgspec.Raw] = {}  # id -> its entry in the engine's /v1/models
        self.draining = False
        self.answers = False  # what the checks say
        self.healthy = False  # it answers, and is not ejected
        self.routable = False
        self.failures: dict[str, int] = {}  # since the start, by kind
        self.ejections = 0
        self.reports = 0  # load reports read
        self._fleet = fleet
        self._misses = 0  # checks failed in a row
        self._strikes = 0  # requests failed in a row
        self._ejected = False
        self._until = 0.0  # an ejection holds until then
        self._hold = HOLD_FIRST  # how long the next one holds
        self._refused = False  # nothing listened there since the last good check
        self._silent_since_start = True
        self._tasks: list[asyncio.Task[None]] = []

    def note_success(self) -> None:
        """A request got its whole answer."""
        self._strikes = 0

    def note_failure(self, kind: str) -> None:
        """A request failed through the instance's fault. kind: a bounded set, a metric label."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        if kind in SOFT:
            return
        self._strikes += 1
        if self._strikes < EJECT_AFTER or self._ejected:
            return
        self._ejected = True
        self.ejections += 1
        self._until = self._fleet.now() + self._hold
        log.warning("engine %s %s: ejected for %g s: %s", self.id, self.url, self._hold, kind)
        self._hold = min(2 * self._hold, HOLD_MOST)
        self._fleet.refresh()

    def note_check(self, fault: str, text: str = "") -> None:
        """A health check's outcome. fault: its kind, a metric label; empty: it passed."""
        if fault:
            self._note_miss(fault, text)
        else:
            self._note_answer()
        if self.judge() != self.healthy:  # seldom; a refresh looks at every instance
            self._fleet.refresh()

    def _note_miss(self, fault: str, text: str) -> None:
        self.failures[fault] = self.failures.get(fault, 0) + 1
        self._misses += 1
        self._refused = self._refused or fault == "check_refused"
        if self.answers and self._misses >= self._fleet.config.health_failures:
            self.answers = False
            log.warning("engine %s %s: out: %s", self.id, self.url, text or fault)
        elif self._silent_since_start:
            self._silent_since_start = False
            log.warning("engine %s %s: not there yet: %s", self.id, self.url, text or fault)

    def _note_answer(self) -> None:
        now = self._fleet.now()
        self._misses = 0
        self._silent_since_start = False
        if not self.answers:
            self.answers = True
            log.info("engine %s %s: answers", self.id, self.url)
        if self._refused:  # its process had gone, and its cache with it
            self._refused = False
            self._fleet.router.forget_prefixes(self.slot)
        if self._ejected and now >= self._until:
            self._ejected = False
            self._strikes = EJECT_AFTER - 1
            log.info("engine %s %s: back on probation", self.id, self.url)
        elif not self._ejected and now >= self._until + HOLD_MOST:
            self._hold = HOLD_FIRST

    def judge(self) -> bool:
        """Whether it is healthy, as the checks and the requests have it."""
        return self.answers and not self._ejected


class Fleet:
    """The instances by slot and by id; keeps the router's view of them in step."""

    def __init__(
        self,
        context: Any,
        config: FleetConfig,
        router: Any,
        clock: Clock,
        make_pool: Callable[[Any, Instance], Any],
        incidents: Counter[str],
    ) -> None:
        """make_pool(context, instance): the connections that carry requests. incidents: failures
        outside requests, counted by kind."""
        self.config = config
        self.router = router
        self.now = clock.now
        self._context = context
        self._make_pool = make_pool
        self._incidents = incidents
        self._by_id: dict[str, Instance] = {}
        self._watchers: tuple[Watcher, ...] = ()
        self._models = b""

    @property
    def all(self) -> Iterable[Instance]:
        return self._by_id.values()

    def __len__(self) -> int:
        return len(self._by_id)

    def by_id(self, id: str) -> Instance | None:
        return self._by_id.get(id)

    @property
    def ready(self) -> bool:
        """An instance answers and takes requests.

        Ejections do not count here: requests that make every engine fail must not make a load
        balancer take the router out as well.
        """
        return any(i.answers and not i.draining for i in self.all)

    def add(self, url: str) -> Instance:
        """The instance of a URL: a new one, unhealthy until its first check, or the one there is.

        One that was draining takes requests again. Raises ConfigError if the URL is none or the
        router has no slot left.
        """
        url, host, port = parse_url(url)
        for known in self.all:
            if known.url == url:
                known.draining = False
                self.refresh()
                return known
        try:
            slot = self.router.add_instance(url)
        except (ValueError, OverflowError) as e:
            raise ConfigError(f"`{url}`: {e}") from None
        instance = Instance(self, slot, url, host, port)
        instance.pool = self._make_pool(self._context, instance)
        self.router.set_routable(slot, False)
        self._by_id[instance.id] = instance
        self._context.instances[slot] = instance
        self.refresh()
        self._models_changed()
        for watcher in self._watchers:
            self._run(watcher, instance)
        return instance

    def remove(self, id: str) -> bool:
        """Forget an instance; its running requests end as they will. False if there is none."""
        instance = self._by_id.pop(id, None)
        if instance is None:
            return False
        for task in instance._tasks:
            task.cancel()
        self.router.remove_instance(instance.slot)
        del self._context.instances[instance.slot]
        instance.pool.close()
        self.refresh()
        self._models_changed()
        return True

    def drain(self, id: str) -> bool:
        """Send an instance no new requests. False if there is none."""
        instance = self._by_id.get(id)
        if instance is None:
            return False
        instance.draining = True
        self.refresh()
        return True

    def refresh(self) -> None:
        """Bring health and the router's view into step after something changed."""
        changed = False
        for instance in self.all:
            healthy = instance.judge()
            changed = changed or healthy != instance.healthy
            instance.healthy = healthy
        panic = not any(i.healthy and not i.draining for i in self.all)
        for instance in self.all:
            routable = not instance.draining and (instance.healthy or panic)
            if routable != instance.routable:
                instance.routable = routable
                self.router.set_routable(instance.slot, routable)
        if changed:
            self._models_changed()

    # -- models --

    def set_models(self, instance: Instance, cards: dict[str, msgspec.Raw]) -> None:
        """What an engine's /v1/models says: id -> its entry as JSON."""
        if cards != instance.cards:
            instance.cards = cards
            instance.models = tuple(cards)
            self._models_changed()

    def _models_changed(self) -> None:
        self._models = b""
        self._context.models_changed()

    def models(self) -> bytes:
        """The body of GET /v1/models: the union over healthy instances, an id's first entry."""
        if not self._models:
            union: dict[str, msgspec.Raw] = {}
            for instance in self.all:
                if instance.healthy:
                    union = instance.cards | union
            body = {"object": "list", "data": list(union.values())}
            self._models = msgspec.json.encode(body)
        return self._models

    # -- watchers --

    def watch(self, *watchers: Watcher) -> None:
        """Run these for each instance, now and later, for as long as it is there."""
        self._watchers += watchers
        for instance in self.all:
            for watcher in watchers:
                self._run(watcher, instance)

    def _run(self, watcher: Watcher, instance: Instance) -> None:
        instance._tasks.append(asyncio.ensure_future(self._keep_running(watcher, instance)))

    async def _keep_running(self, watcher: Watcher, instance: Instance) -> None:
        """A watcher that raises has a bug; losing it for good would freeze the instance's state."""
        while True:
            try:
                await watcher(instance)
            except Exception:
                log.exception("engine %s %s: a watcher failed", instance.id, instance.url)
                self._incidents["watcher"] += 1
            await asyncio.sleep(self.config.health_check_interval)

    async def close(self) -> None:
        """Stop the watchers and close all connections."""
        tasks = [task for instance in self.all for task in instance._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for instance in self.all:
            instance.pool.close()
