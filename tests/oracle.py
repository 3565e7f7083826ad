"""Slow, obvious versions of what the C library does, and builders for tests of the core."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.core import Candidates, Policy, Reason, Router
from lodestar_fast.core.policies import Lodestar

Array = NDArray[np.float32]


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


def work(prompt: int, own: int | None = None) -> int:
    """The last own tokens, each with its attention to all before it: 30,000 cost another token."""
    own = prompt if own is None else own
    return math.floor(own + own * (prompt - own / 2) / 30_000 + 0.5)


class Speeds:
    """csrc/speed.c from the list of labels of each instance: (instant, start, work), in order."""

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
        """The first tokens of one instant: (dispatched, tokens of work) of each request."""
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
        self.upper = (0.25, 0.5)  # log factors
        self.answer = 120.0
        self.tpot = draw.uniform(0, 0.01, width).astype("<f4")

    def blob(self, **changes: int) -> bytes:
        """The bytes; changes: header fields to falsify."""
        head = {
            "magic": 0x4C535742,
            "format": 2,
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
        parts += [struct.pack("<3f", *self.upper, self.answer), self.tpot.tobytes()]
        return b"".join(parts)

    def predict_upper(self, x: Array) -> NDArray[np.float64]:
        """Of ten first tokens nine come within, seconds."""
        queue = x[:, features.INDEX["queue_seconds"]] > np.float32(0.03)
        out: NDArray[np.float64] = self.predict(x) * np.exp(np.array(self.upper)[queue.astype(int)])
        return out

    def predict_tpot(self, x: Array) -> NDArray[np.float64]:
        out: NDArray[np.float64] = np.maximum(x.astype(float) @ self.tpot.astype(float), 1e-4)
        return out

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
