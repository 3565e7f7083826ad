"""Slow, obvious versions of what the C library does, and builders for tests of the core."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.core import Candidates, Policy, Reason, Router
from lodestar_fast.core.policies import Lodestar

RUN = 16  # LS_RUN
T = TypeVar("T")


class Fixed(Policy):
    """Takes the slot that the test says."""

    name = "fixed"

    def __init__(self, slot: int = 0) -> None:
        self.want = slot

    def pick(self, c: Candidates) -> int:
        c.reason = Reason.HEURISTIC
        return [c.slot(i) for i in range(c.n)].index(self.want)


class Spy(Policy):
    """Keeps what it was shown of each slot; takes slot `want`."""

    name = "spy"

    def __init__(self, want: int = 0) -> None:
        self.want = want
        self.seen: dict[int, dict[str, float]] = {}
        self.queued: dict[int, float] = {}
        self.own: dict[int, float] = {}

    def pick(self, c: Candidates) -> int:
        c.reason = Reason.HEURISTIC
        slots = [c.slot(i) for i in range(c.n)]
        self.seen = {s: {n: c.feature(i, n) for n in features.INDEX} for i, s in enumerate(slots)}
        self.queued = {s: c.queued_tokens(i) for i, s in enumerate(slots)}
        self.own = {s: c.own_tokens(i) for i, s in enumerate(slots)}
        return slots.index(self.want)


def make_router(policy: Policy | None = None, instances: int = 3, **options: Any) -> Router:
    """A router with instances named i0, i1, ..."""
    kv_tokens = options.pop("kv_tokens", 0)
    router = Router(Fixed() if policy is None else policy, **options)
    for i in range(instances):
        router.add_instance(f"i{i}", kv_tokens=kv_tokens)
    return router


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


class Speeds:
    """csrc/speed.c from the list of labels of each instance: (instant, start, tokens), in order."""

    def __init__(self) -> None:
        self.typical, self.residuals = 0.00012, [0.5] * 5
        self.labels: dict[int, list[tuple[float, float]]] = {}  # slot: (interval, tokens)
        self.instants: dict[int, list[float]] = {}
        self.prior: dict[int, float] = {}

    @staticmethod
    def decayed(values: Iterable[float], start: float = 0.0) -> float:
        for value in values:
            start = math.exp(-1 / 200) * start + value
        return start

    def ratio(self, slot: int) -> float:
        labels = self.labels[slot]
        seconds = self.decayed((i for i, _ in labels), 2000 * self.prior[slot])
        return seconds / self.decayed((t + 150 for _, t in labels), 2000)

    def note(self, slot: int, at: float, starts: list[tuple[float, float]]) -> None:
        """The first tokens of one instant: (dispatched, uncached tokens) of each request."""
        labels, instants = self.labels.setdefault(slot, []), self.instants.setdefault(slot, [])
        if labels and labels[-1][0] > 0:
            interval, tokens = labels[-1]
            off = math.log(interval / (tokens + 150) / self.ratio(slot))
            self.residuals.append(min(3, max(-3, off)) ** 2)
        self.prior.setdefault(slot, self.typical)
        before = instants[-1] if instants else -math.inf
        interval = max(0.0, *(at - max(before, start) for start, _ in starts))
        labels.append((interval, sum(tokens for _, tokens in starts)))
        instants.append(at)

    def shrunk(self, slots: Iterable[int]) -> dict[int, float]:
        first, later = self.residuals[:5], self.residuals[5:]
        variance = self.decayed(later, sum(first)) / self.decayed([1] * len(later), 5)
        logs = {slot: math.log(self.ratio(slot)) for slot in slots if slot in self.labels}
        if not logs:
            return dict.fromkeys(slots, self.typical)
        noise = {slot: variance / self.decayed([1] * len(self.labels[slot])) for slot in logs}
        mean = sum(logs.values()) / len(logs)
        self.typical = math.exp(mean)
        spread = sum((log - mean) ** 2 - noise[slot] for slot, log in logs.items()) / len(logs)
        spread = max(0.0, spread) + 1e-5
        trust = {slot: spread / (spread + noise[slot]) for slot in logs}
        return {
            slot: math.exp(mean + (logs[slot] - mean) * trust[slot])
            if slot in logs
            else self.typical
            for slot in slots
        }


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements two sequences share at their start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def place_behind(order: list[T], item: T, before: T | None) -> None:
    if item in order:
        order.remove(item)
    order.insert(0 if before is None else order.index(before) + 1, item)


Array = NDArray[np.float32]


class Model:
    """A weight blob as arrays: random weights from a seed, and the prediction with numpy."""

    def __init__(self, hidden: Sequence[int] | None, seed: int = 0, version: int = 1) -> None:
        """hidden: widths of hidden layers; None: linear only."""
        draw, width = np.random.default_rng(seed), features.WIDTH
        self.version, self.bound = version, 0.6931472
        self.linear = draw.uniform(0, 1, width).astype("<f4")
        self.dims = [] if hidden is None else [width, *hidden, 1]
        self.clip_low, self.clip_high = np.full(width, -2, "<f4"), np.full(width, 2, "<f4")
        self.range_low = np.full(width, -np.inf, "<f4")
        self.range_high = np.full(width, np.inf, "<f4")
        self.layers: list[tuple[Array, Array]] = [
            (
                draw.normal(0, a**-0.5, (b, a)).astype("<f4"),
                draw.normal(0, 0.1, b).astype("<f4"),
            )
            for a, b in zip(self.dims[:-1], self.dims[1:], strict=True)
        ]

    def blob(self, **changes: int) -> bytes:
        """The bytes; changes: header fields to falsify."""
        head = {
            "magic": 0x4C535742,
            "format": 1,
            "schema": features.SCHEMA_HASH,
            "version": self.version,
            "width": features.WIDTH,
            "layers": len(self.layers),
        }
        head.update(changes)
        parts = [struct.pack("<IIQIII", *head.values())]
        parts.append(struct.pack(f"<{len(self.dims)}I", *self.dims))
        parts += [struct.pack("<f", self.bound), self.linear.tobytes()]
        if self.layers:
            clips = (self.clip_low, self.clip_high, self.range_low, self.range_high)
            parts += [part.tobytes() for part in clips]
            parts += [part.tobytes() for layer in self.layers for part in layer]
        return b"".join(parts)

    def predict(self, x: Array) -> NDArray[np.float64]:
        """Seconds for rows (n, WIDTH), in float64."""
        seconds = np.maximum(x.astype(float) @ self.linear.astype(float), 1e-4)
        if not self.layers:
            return seconds
        z = np.clip(x, self.clip_low, self.clip_high).astype(float)
        for i, (weight, bias) in enumerate(self.layers):
            z = (np.maximum(z, 0) if i else z) @ weight.T.astype(float) + bias
        inside = ((x >= self.range_low) & (x <= self.range_high)).all(axis=1)
        log_factor = np.where(inside, np.clip(z[:, 0], -self.bound, self.bound), 0)
        out: NDArray[np.float64] = seconds * np.exp(log_factor)
        return out


def rows(n: int, seed: int = 0) -> Array:
    """Random feature rows of plausible size."""
    draw = np.random.default_rng(seed)
    return draw.uniform(0, 1.5, (n, features.WIDTH)).astype("<f4")


def weighted(
    hidden: list[int] | None = None,
    seed: int = 0,
    policy: Lodestar | None = None,
    **changes: float,
) -> Lodestar:
    """The learned policy with random weights; changes: linear weights by name, all others 0."""
    model = Model(hidden, seed)
    if changes:
        model.linear[:] = 0
    for name, value in changes.items():
        model.linear[features.INDEX[name]] = value
    policy = policy or Lodestar()
    policy.load(model.blob())
    return policy
