"""The published gateway's prefix index: which instance was sent which prefix, and when.

One table for the whole fleet, evicted by least recent insertion and by age. Entered when a request
is routed, before anything is computed; engines say nothing of what they evict. A look-up refreshes
nothing. Source: `prefixcacheindexer/hash.go` of the artifact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

TTL_SECONDS = 600.0  # its runs' setting; the default is 20 minutes


class Index:
    """capacity: blocks, of all instances together."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, dict[int, float]] = OrderedDict()  # hash: {slot: inserted}

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, hashes: Iterable[int]) -> dict[int, tuple[int, float]]:
        """By slot: leading blocks it was sent, at least one, and when the last of them was."""
        found: dict[int, tuple[int, float]] = {}
        alive: set[int] | None = None
        last: dict[int, float] = {}
        depth = 0
        for block in hashes:
            holders = self._blocks.get(block)
            if holders is None:
                break
            if alive is None:
                alive = set(holders)
            elif not alive <= holders.keys():
                for slot in alive - holders.keys():
                    found[slot] = depth, last[slot]
                alive &= holders.keys()
                if not alive:
                    return found
            last = holders
            depth += 1
        for slot in alive or ():
            found[slot] = depth, last[slot]
        return found

    def insert(self, hashes: Iterable[int], slot: int, now: float) -> None:
        """A prompt's blocks, sent to slot now. Times must not run backwards."""
        blocks = self._blocks
        for block in hashes:
            holders = blocks.get(block)
            if holders is None:
                blocks[block] = {slot: now}
            else:
                holders[slot] = now
                blocks.move_to_end(block)
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)
        while blocks and max(next(iter(blocks.values())).values()) < now - TTL_SECONDS:
            blocks.popitem(last=False)
