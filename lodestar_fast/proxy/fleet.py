"""The engines: which there are, and which of them may get requests now.

An instance (instance.py) is *healthy* when its last health checks passed and it is not ejected. It
may be chosen (*routable*) when it is healthy, not draining, and has room: one that comes back is
given few requests at first. When none may be chosen, all may that answer their checks, ejected or
not; when none answers, every one that is not draining: a guess is better than a refusal (Envoy's
panic mode).

Fleet does no I/O itself: watchers (health, scrape) are coroutines that it runs for each instance.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from lodestar_fast.clock import Clock
from lodestar_fast.config import FleetConfig
from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.prices import Prices

log = logging.getLogger(__name__)

Watcher = Callable[[Instance], Coroutine[Any, Any, None]]


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
        engine_key: bytes = b"",
    ) -> None:
        """make_pool(context, instance): the connections that carry requests. incidents: failures
        outside requests, counted by kind. engine_key: for the checks of engines that want one."""
        self.config = config  # replaced by use(); watchers read it anew
        self._prices = Prices(config.engine_prices)
        self.engine_key = engine_key
        self.router = router
        self.now = clock.now
        self._context = context
        self._make_pool = make_pool
        self._incidents = incidents
        self._by_id: dict[str, Instance] = {}
        self._watchers: tuple[Watcher, ...] = ()
        self._models = b""

    def use(self, config: FleetConfig, engine_key: bytes) -> None:
        """Put new settings to use, whose prices were checked."""
        self._prices = Prices(config.engine_prices)
        self.config, self.engine_key = config, engine_key
        for instance in self.all:
            self.router.set_price(instance.slot, self._prices.of(instance.url))

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
        self.router.set_price(slot, self._prices.of(url))
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
        self.on_trial(instance, False)
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
        chosen = self._choosable()
        for instance in self.all:
            routable = instance in chosen
            if routable != instance.routable:
                changed = True
                instance.routable = routable
                self.router.set_routable(instance.slot, routable)
        if changed:
            self._models_changed()

    def _choosable(self) -> set[Instance]:
        """The instances that may get requests; see the top of this module for the order."""
        there = [i for i in self.all if not i.draining]
        return (
            {i for i in there if i.healthy and i.has_room}
            or {i for i in there if i.answers}
            or set(there)
        )

    # -- called by instances --

    def on_trial(self, instance: Instance, yes: bool) -> None:
        """Tell the data path whether an instance is to hear of each request it is sent."""
        if yes:
            self._context.on_trial[instance.slot] = instance
        else:
            self._context.on_trial.pop(instance.slot, None)

    def give_up(self, instance: Instance, silent_since: float) -> None:
        """End the requests of an instance from which nothing came after that time."""
        if n := self._context.give_up(instance, silent_since):
            log.warning("engine %s %s: gone; %d requests given up", instance.id, instance.url, n)

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
