"""The prefix index in lists and dictionaries: csrc/radix.c and csrc/truth.c must agree with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

RUN = 16  # LS_RUN
T = TypeVar("T")


@dataclass(eq=False)
class Node:
    """A run of blocks, its place in the prompts that pass, and who holds how much of it."""

    id: int
    run: list[int]
    start: int
    parent: Node | None
    holders: dict[int, Holding] = field(default_factory=dict)


@dataclass(eq=False)
class Holding:
    """What a slot holds of a node; node None: room that answers took."""

    node: Node | None
    stamp: int = 0
    held: int = 0


@dataclass
class Path:
    """Where an insert went; fields as in csrc/index.h."""

    stamp: int
    tail: int = 0
    node: int = 0
    blocks: int = 0
    before: int = 0
    turned: int = 0


class PrefixIndex:
    """csrc/radix.c and truth.c with dictionaries and lists: same runs, recency and evictions."""

    def __init__(self, max_nodes: int, max_holdings: int) -> None:
        self.max_nodes, self.max_holdings = max_nodes, max_holdings
        self.runs: dict[int, Node] = {}  # by the first hash
        self.recent: list[Node] = []  # newest first
        self.shelves: dict[int, list[Holding]] = defaultdict(list)  # by slot, the same
        self.spacers: dict[int, Holding] = {}  # by slot, the one that grows
        self.turned: dict[int, int] = defaultdict(int)  # by slot, blocks ever entered
        self.pinned: set[int] = set()
        self.stamp = self.evictions = 0
        self.free_ids: list[int] = []
        self.fresh_id = 1

    @property
    def holdings(self) -> int:
        return sum(map(len, self.shelves.values()))

    def match(self, hashes: Sequence[int]) -> dict[int, tuple[int, int]]:
        """By slot: blocks held, and when the last of them were used."""
        hits, pos = {}, 0
        while pos < len(hashes) and (node := self.runs.get(hashes[pos])):
            same = common(node.run, hashes[pos:])
            for slot, h in node.holders.items():
                hits[slot] = pos + min(h.held, same), h.stamp
            pos += same
        return hits

    def blocks(self, slot: int, spacers: bool = False) -> int:
        return sum(h.held for h in self.shelves[slot] if spacers or h.node)

    def insert(self, slot: int, hashes: Sequence[int], capacity: int) -> Path:
        self.stamp += 1
        path, shelf = Path(self.stamp), self.shelves[slot]
        last: Node | None = None
        while path.blocks < len(hashes):
            pos = path.blocks
            node = self.runs.get(hashes[pos])
            grows = last and len(last.run) < RUN and last.run == hashes[last.start : pos]
            if node is None and last and grows:
                added = hashes[pos : pos + RUN - len(last.run)]
                last.run += added
                last.holders[slot].held = len(last.run)
                self.turned[slot] += len(added)
                path.blocks += len(added)
                continue
            if node:
                place_behind(self.recent, node, last)
            if node and (h := node.holders.get(slot)):
                path.before = h.stamp
            else:
                if not self._make_room(node or last):
                    break
                if node is None:
                    node = self._new(list(hashes[pos : pos + RUN]), pos, last)
                h = node.holders[slot] = Holding(node)
            place_behind(shelf, h, last.holders[slot] if last else None)
            same = common(node.run, hashes[pos:])
            self.turned[slot] += max(0, same - h.held)
            h.held, h.stamp = max(h.held, same), self.stamp
            path.blocks += same
            path.node, path.tail, last = node.id, node.run[0], node
        if last:
            path.turned = self.turned[slot]
            self.pinned.add(self.stamp)
        if capacity:
            self._trim(slot, capacity)
        return path

    def release(self, slot: int, path: Path, capacity: int) -> None:
        self.pinned.discard(path.stamp)
        if capacity and self.turned[slot] - path.turned > capacity // 8:
            self._touch(slot, self._end(path))

    def spend(self, slot: int, blocks: int, capacity: int) -> None:
        if capacity // RUN >= self.max_holdings:
            return
        blocks, most = min(blocks, capacity), capacity // 64 + 1
        while blocks:
            spacer = self.spacers.get(slot)
            if spacer is None or spacer.held == most:
                if not self._make_room(None):
                    break
                spacer = self.spacers[slot] = Holding(None, self.stamp)
                self.shelves[slot].insert(0, spacer)
            n = min(blocks, most - spacer.held)
            spacer.held += n
            self.turned[slot] += n
            blocks -= n
        self._trim(slot, capacity)

    def withdraw(self, slot: int, path: Path, keep: int) -> None:
        node, end = self._end(path), path.blocks
        while node and end > keep:
            if h := node.holders.get(slot):
                if h.stamp != path.stamp:
                    return
                h.held = min(h.held, keep - node.start)
                if h.held <= 0:
                    self._drop(slot, h)
            node, end = node.parent, node.start

    def outlive(self, slot: int, stamp: int) -> None:
        shelf = self.shelves[slot]
        while shelf and shelf[-1].stamp <= stamp:
            self._drop(slot, shelf[-1])

    def forget(self, slot: int) -> None:
        while self.shelves[slot]:
            self._drop(slot, self.shelves[slot][-1])

    def _end(self, path: Path) -> Node | None:
        """The last node of a path, unless it has gone."""
        node = self.runs.get(path.tail)
        return node if node and node.id == path.node else None

    def _new(self, run: list[int], start: int, parent: Node | None) -> Node:
        if not self.free_ids:
            self.free_ids.append(self.fresh_id)
            self.fresh_id += 1
        node = self.runs[run[0]] = Node(self.free_ids.pop(), run, start, parent)
        place_behind(self.recent, node, parent)
        return node

    def _touch(self, slot: int, node: Node | None) -> None:
        while node:
            if h := node.holders.get(slot):
                place_behind(self.shelves[slot], h, None)
            node = node.parent

    def _trim(self, slot: int, capacity: int) -> None:
        shelf, first, around = self.shelves[slot], None, False
        while (excess := self.blocks(slot, spacers=True) - capacity) > 0:
            h = shelf[-1]
            around = around or h is first
            if h.node and h.stamp in self.pinned and not around:
                first = first or h
                self._touch(slot, h.node)
            elif h.held <= excess:
                self._drop(slot, h)
            else:
                h.held -= excess

    def _make_room(self, keep: Node | None) -> bool:
        while len(self.runs) == self.max_nodes or self.holdings == self.max_holdings:
            if not self.recent or self.recent[-1] is keep:
                return False
            oldest = self.recent[-1]
            self.evictions += len(oldest.run)
            for slot, h in list(oldest.holders.items()):
                self._drop(slot, h)
        return True

    def _drop(self, slot: int, h: Holding) -> None:
        self.shelves[slot].remove(h)
        if h.node is None:
            if self.spacers.get(slot) is h:
                del self.spacers[slot]
            return
        del h.node.holders[slot]
        if not h.node.holders:
            del self.runs[h.node.run[0]]
            self.recent.remove(h.node)
            self.free_ids.append(h.node.id)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements two sequences share at their start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def place_behind(order: list[T], item: T, before: T | None) -> None:
    if item in order:
        order.remove(item)
    order.insert(0 if before is None else order.index(before) + 1, item)
