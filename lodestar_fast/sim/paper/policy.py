"""The published router over a Simulation: counters, rows, rounds and the decision.

The package says what is taken over from where. A row holds one instance's features as the router
knows them; columns:

    0 prefill requests | 1 decode requests | 2 KV use | 3 running | 4 waiting | 5 prefill tokens |
    6 decode tokens | 7 fresh hit % | then, in a mixed fleet, 11 of the GPU | hit % | prompt tokens

0, 1, 5 and 6 are the router's own counts, 2 to 4 as last scraped, hits by its own index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lodestar_fast.core.enums import Reason
from lodestar_fast.core.policies import Candidates, Policy, PrefixCache
from lodestar_fast.core.router import Router
from lodestar_fast.sim.jobs import Job
from lodestar_fast.sim.paper import model
from lodestar_fast.sim.paper.index import Index
from lodestar_fast.sim.run import Simulation

Rows = NDArray[np.float32]

NUMERIC = 8  # columns before the GPU's
UNSERVED = (0, 1)  # counts that are 0 whenever it decides
GPU_NAMES = ("l20", "a10", "a30", "gpu-l3c", "a100", "h100", "l4", "l40", "l40s", "t4", "v100")
UNKNOWN_GPU = GPU_NAMES.index("gpu-l3c")

HALF_LIFE = 15.0  # seconds in which a hit loses half its freshness
FLUSH_SECONDS, FLUSH_LEAST = 10.0, 100
LONGEST_TTFT = 15.0
TRAINER_SECONDS, NEW_ROWS = 30.0, 1_000
FIFO, REPLAY = 5_000, 5_000
STORE = FIFO + REPLAY
INDEX_TOKENS, INDEX_ENGINES = 250_000, 8  # so many tokens for each so many engines
SATURATED_KV, WORTH_TOKENS, CANDIDATES = 0.8, 100, 2  # the filter: mean use, best hit, instances
GROUP_TOKENS = 80  # whose hash is the filter's key


@dataclass(slots=True)
class Row:
    """One finished request: the chosen instance's features, and sums over all instances'."""

    index: int
    x: Rows
    total: NDArray[np.float64]  # of each column over the instances
    square: NDArray[np.float64]
    instances: int
    ttft: float = math.nan


@dataclass(frozen=True)
class Served:
    """What scores: a network, and the statistics that its window had."""

    net: model.Network
    mean: Rows
    deviation: Rows


class Paper(Policy):
    """Policy, watcher and governor of one Simulation, which is to be set as `world` first.

    mended: rows are served as they are trained on, and dropout is off while serving.
    """

    name = "lodestar-paper"

    def __init__(self, *, mended: bool = False) -> None:
        self._mended = mended
        self._cold = PrefixCache()
        self._trained: model.Network | None = None  # of the newest round, over or not
        self._served: Served | None = None
        self._coming: tuple[float, Served] | None = None  # and when its round is over
        self._last_flush = self._last_check = 0.0
        self._rows: dict[int, Row] = {}  # by job, of what is in flight
        self._finished: list[Row] = []  # since the last flush
        self._store: list[Row] = []  # flushed, oldest first; the last _new of them are new
        self._new = 0
        self._replay: list[Row] = []
        self._decoding: dict[int, int] = {}  # prompt tokens of what decodes, by slot
        self._prefill: dict[int, int] = {}  # prompt tokens without a first token, by slot
        self._begun: set[int] = set()  # jobs whose first token has come
        self.rounds = 0

    @property
    def world(self) -> Simulation:
        return self._world

    @world.setter
    def world(self, world: Simulation) -> None:
        self._world = world
        engines = len(world.engines)
        tokens = INDEX_TOKENS * -(-engines // INDEX_ENGINES)
        self._block = world.engines[0].spec.block
        self._index = Index(tokens // self._block)
        self._mixed = len({engine.spec.gpu for engine in world.engines}) > 1
        self._width = NUMERIC + len(GPU_NAMES) * self._mixed + 2

    # -- deciding --

    def pick(self, c: Candidates) -> int:
        """The instance with the largest predicted reward, among those that the filter leaves."""
        world = self._world
        assert world.arriving is not None
        job, now = world.jobs[world.arriving], world.clock.now()
        x = self._features(c, self._hits(job, now))
        served = self._served
        if served is None:
            choice = self._cold.pick(c)
            c.reason = Reason.COLD
        else:
            seen = x.copy()
            if not self._mended:
                seen[:, UNSERVED] = 0.0
            z = (seen - served.mean) / served.deviation
            scores = served.net.predict(z, dropout=not self._mended)
            choice = max(self._allowed(c, x, job), key=scores.__getitem__)
            c.reason = Reason.LEARNED
            c.predicted = float(max(-scores[choice], 0.0))
        trained = x if self._mended else x.copy()
        if not self._mended:  # its snapshot comes after it has counted the request
            trained[choice, 0] += 1.0
            trained[choice, 5] += job.prompt_tokens
        wide = trained.astype(np.float64)
        self._rows[world.arriving] = Row(
            world.arriving, trained[choice], wide.sum(0), (wide**2).sum(0), c.n
        )
        return choice

    def _hits(self, job: Job, now: float) -> dict[int, tuple[float, float]]:
        """By slot with a match: whole percent of the prompt, and that times its freshness."""
        hits = {}
        for slot, (blocks, inserted) in self._index.match(job.hashes).items():
            percent = blocks * self._block * 100 // job.prompt_tokens
            fresh = percent * math.exp(-math.log(2.0) * (now - inserted) / HALF_LIFE)
            hits[slot] = float(percent), fresh
        return hits

    def _features(self, c: Candidates, hits: dict[int, tuple[float, float]]) -> Rows:
        x = np.zeros((c.n, self._width), np.float32)
        for i in range(c.n):
            slot, waiting = c.slot(i), c.waiting(i)
            percent, fresh = hits.get(slot, (0.0, 0.0))
            contexts = c.feature(i, "decode_context") * 1e6
            x[i, :NUMERIC] = (
                waiting,
                c.inflight(i) - waiting,
                c.feature(i, "reported_kv_usage"),
                c.feature(i, "reported_running") * 16,
                c.feature(i, "reported_waiting") * 16,
                self._prefill.get(slot, 0),
                max(0.0, contexts - self._decoding.get(slot, 0)),
                fresh,
            )
            if self._mixed:
                x[i, NUMERIC + self._gpu(slot)] = 1.0
            x[i, -2] = percent
        x[:, -1] = c.prompt_tokens
        return x

    def _gpu(self, slot: int) -> int:
        gpu = self._world.engines[slot].spec.gpu
        return GPU_NAMES.index(gpu) if gpu in GPU_NAMES else UNKNOWN_GPU

    def _allowed(self, c: Candidates, x: Rows, job: Job) -> list[int]:
        """Candidates that the saturation filter leaves; all, if it is not active."""
        group = GROUP_TOKENS // self._block
        if (
            float(x[:, 2].mean()) <= SATURATED_KV
            or float(x[:, -2].max()) / 100 * job.prompt_tokens <= WORTH_TOKENS
            or len(job.hashes) < group
            or c.n <= CANDIDATES
        ):
            return list(range(c.n))
        chosen: list[int] = []
        for k in range(CANDIDATES):
            i = hash((k, job.hashes[group - 1])) % c.n
            while i in chosen:
                i = (i + 1) % c.n
            chosen.append(i)
        return chosen

    # -- what it is told of its requests --

    def reported(self, slot: int) -> None:
        """What an engine reports is read from the candidates."""

    def dispatched(self, index: int, slot: int) -> None:
        """A decision has been carried out."""
        job = self._world.jobs[index]
        if self._world.engines[slot].spec.prefix_caching:
            self._index.insert(job.hashes, slot, self._world.clock.now())
        self._prefill[slot] = self._prefill.get(slot, 0) + job.prompt_tokens

    def first_token(self, index: int, slot: int) -> None:
        tokens = self._world.jobs[index].prompt_tokens
        self._begun.add(index)
        self._prefill[slot] -= tokens
        self._decoding[slot] = self._decoding.get(slot, 0) + tokens

    def ended(self, index: int, slot: int, failed: bool) -> None:
        tokens = self._world.jobs[index].prompt_tokens
        if index in self._begun:
            self._begun.remove(index)
            self._decoding[slot] -= tokens
        else:
            self._prefill[slot] -= tokens
        row = self._rows.pop(index)
        if not failed:
            row.ttft = self._world.outcomes[index].ttft
            self._finished.append(row)

    # -- learning --

    def tick(self, router: Router, now: float) -> None:
        """Once a second: flush, end a round, begin one, each if it is time."""
        if now - self._last_flush >= FLUSH_SECONDS - 1e-6:
            self._last_flush = now
            if len(self._finished) >= FLUSH_LEAST:
                rows = [row for row in self._finished if row.ttft <= LONGEST_TTFT]
                self._finished = []
                self._store += rows
                self._new += len(rows)
        if self._coming is not None and now >= self._coming[0]:
            self._served = self._coming[1]
            self._coming = None
            self._new = 0
            self._store = self._store[-STORE:]
        if now - self._last_check >= TRAINER_SECONDS - 1e-6:
            self._last_check = now
            if self._coming is None and self._new >= NEW_ROWS:
                self._coming = self._round(now)

    def _window(self) -> list[Row]:
        """What the round that begins is trained on, each row once."""
        history, fresh = self._store[: -self._new], self._store[-self._new :]
        fifo = history[-FIFO:]
        window = {row.index: row for row in (*fresh, *fifo)}
        window |= {row.index: row for row in self._replay[: STORE - len(fifo)]}
        rest = [row for row in history if row.index not in window]
        missing = min(max(0, STORE - len(window)), len(rest))
        draw = np.random.Generator(np.random.PCG64(model.SEED))
        for i in draw.choice(len(rest), missing, replace=False) if missing else ():
            window[rest[i].index] = rest[i]
        return list(window.values())

    def _round(self, now: float) -> tuple[float, Served]:
        """Train on the window; the result, and when its round will be over."""
        rows = self._window()
        x = np.stack([row.x for row in rows])
        rewards = np.array([-row.ttft for row in rows], np.float32)
        count = sum(row.instances for row in rows)
        mean = np.sum([row.total for row in rows], 0) / count
        deviation = np.sqrt(
            np.maximum(np.sum([row.square for row in rows], 0) / count - mean**2, 0.0)
        )
        raw = deviation <= 1e-6 * np.abs(mean)  # constants, and the GPU's columns
        raw[NUMERIC:-2] = True
        mean[raw], deviation[raw] = 0.0, 1.0
        mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
        z = (x - mean) / deviation
        order = model.replay_order(self._trained, z, rewards, REPLAY)
        self._replay = [rows[i] for i in order]
        self._trained = model.train(z, rewards)
        self.rounds += 1
        seconds = model.round_seconds(len(rows), round(count / len(rows)), self._width)
        return now + seconds, Served(self._trained, mean, deviation)
