"""The queue of requests that wait for a place: bounded, by priority, then by arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

from lodestar_fast.proxy.lines import first_of

PRIORITIES = (-1000, 1000)  # what a client names beyond is taken as the nearer end


def priority_of(fields: bytes, name: bytes) -> int:
    """The priority that a request's field lines name; 0 if none is named, or no whole number.

    name: of the field, in lower case; empty: priorities are not read.
    """
    if not name:
        return 0
    value = first_of(fields, (name,))
    if value is None or not value.removeprefix(b"-").isdigit() or len(value) > 9:
        return 0
    return min(max(int(value), PRIORITIES[0]), PRIORITIES[1])


class Waiting:
    """Requests in the order in which they are served: least priority first, then first come."""

    def __init__(self) -> None:
        self._order: list[tuple[int, int, Any]] = []
        self._keys: dict[Any, tuple[int, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, item: Any) -> bool:
        return item in self._keys

    def add(self, item: Any, priority: int) -> None:
        self._count += 1
        self._keys[item] = (priority, self._count)
        insort(self._order, (priority, self._count, item))

    def remove(self, item: Any) -> None:
        """Raises KeyError if it does not wait."""
        del self._order[bisect_left(self._order, (*self._keys.pop(item),))]

    def last(self, priority: int) -> Any:
        """Who would be served last, if that is less urgent than priority; else None."""
        return self._order[-1][2] if self._order and self._order[-1][0] > priority else None

    def items(self) -> list[Any]:
        """All that wait, in order."""
        return [item for _, _, item in self._order]
