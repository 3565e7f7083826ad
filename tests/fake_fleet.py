"""A Fleet of the proxy over stand-ins for the router, the data path's context and the pools."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lodestar_fast.clock import VirtualClock
from lodestar_fast.config import FleetConfig
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance


class FakeRouter:
    def __init__(self, places: int = 8) -> None:
        self.routable: dict[int, bool] = {}
        self.forgotten: list[int] = []
        self.prices: dict[int, float] = {}
        self._free = list(range(places))

    def add_instance(self, name: str) -> int:
        if not self._free:
            raise ValueError("max_instances reached")
        return self._free.pop(0)

    def remove_instance(self, slot: int) -> None:
        del self.routable[slot]
        self._free.append(slot)

    def set_routable(self, slot: int, routable: bool) -> None:
        self.routable[slot] = routable

    def set_price(self, slot: int, price: float) -> None:
        self.prices[slot] = price

    def instance(self, slot: int) -> dict[str, float]:
        return {"inflight": 0, "prefix_blocks": 0, "price": self.prices[slot]}

    def forget_prefixes(self, slot: int) -> None:
        self.forgotten.append(slot)


class FakeContext:
    def __init__(self) -> None:
        self.instances: dict[int, Instance] = {}
        self.on_trial: dict[int, Instance] = {}
        self.model_changes = 0
        self.given_up: list[tuple[str, float]] = []

    def give_up(self, instance: Instance, silent_since: float) -> int:
        self.given_up.append((instance.id, silent_since))
        return 1

    def models_changed(self) -> None:
        self.model_changes += 1


class FakePool:
    closed = False
    heard_at = float("-inf")

    def close(self) -> None:
        self.closed = True


class FleetFixture:
    def __init__(self, places: int = 8, **config: Any) -> None:
        self.router = FakeRouter(places)
        self.context = FakeContext()
        self.clock = VirtualClock()
        self.incidents: Counter[str] = Counter()
        self.fleet = Fleet(
            self.context,
            FleetConfig(**config),
            self.router,
            self.clock,
            lambda context, instance: FakePool(),
            self.incidents,
        )

    def add(self, count: int, healthy: bool = True) -> list[Instance]:
        instances = [self.fleet.add(f"http://e{i}:8000") for i in range(count)]
        if healthy:
            for instance in instances:
                instance.note_check("")
        return instances

    @property
    def routable(self) -> list[int]:
        return [slot for slot, yes in sorted(self.router.routable.items()) if yes]
