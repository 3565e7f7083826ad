"""For the engine's tests: helpers, and a slow, obvious engine to compare the compiled one with.

Written from the rules, not from the code: blocks are objects, the cache is an ordered dict, the
cost formula is EngineSpec.iteration_seconds. No cancelled-request tricks, no counters kept twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lodestar_fast.sim.blocks import BlockPool
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.gpus import EngineSpec, spec

Tokens = list[tuple[int, int, bool]]  # what step() returns


def unit(**overrides: object) -> EngineSpec:
    """An engine whose iterations take a second, whatever is in them: time is a count of steps."""
    return spec("a30", w=0.0, c=0.0, a=0.0, k=0.0, s=0.0, h=1000.0, **overrides)


def chain(name: int, blocks: int) -> list[int]:
    """Hashes of a prompt of its own, the same for the same name."""
    return [name * 10_000 + index + 1 for index in range(blocks)]


def steps(engine: Engine, count: int) -> list[Tokens]:
    return [engine.step(engine.next_time()) for _ in range(count)]


def drain(engine: Engine) -> Tokens:
    out = []
    while engine.next_time() < math.inf:
        out += engine.step(engine.next_time())
    return out


def check_books(pool: BlockPool) -> None:
    """What must hold of a pool whatever happened."""
    references, order = pool.reference_counts(), pool.eviction_order()
    assert pool.used + pool.cached + pool.free == pool.total
    assert sum(count > 0 for count in references) == pool.used
    assert min(references) >= 0
    assert len(order) == pool.free + pool.cached
    assert [bool(hash) for hash in order] == [False] * pool.free + [True] * pool.cached


@dataclass(eq=False)
class Block:
    key: object = None  # what a later prompt finds it by
    users: int = 0


@dataclass(eq=False)
class Job:
    rid: int
    keys: list[object]
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0
    scheduled: int = 0
    cached: int | None = None
    blocks: list[Block] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.prompt + self.generated

    def key(self, index: int) -> object:
        return self.keys[index] if index < len(self.keys) else (id(self), index)


class Oracle:
    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.unused = [Block() for _ in range(spec.blocks)]  # by order of eviction
        self.known: list[Block] = []  # those with a key, oldest first
        self.active: list[Job] = []
        self.queue: list[Job] = []
        self.end = math.inf
        self.preemptions = 0

    # blocks

    def find(self, key: object) -> Block | None:
        return next((block for block in self.known if block.key == key), None)

    def take(self) -> Block:
        block = self.unused.pop(0)
        if block.key is not None:
            self.known.remove(block)
        block.key, block.users = None, 1
        return block

    def release(self, job: Job) -> None:
        for block in reversed(job.blocks):
            block.users -= 1
            if block.users == 0:
                self.unused.insert(0 if block.key is None else len(self.unused), block)
        job.blocks, job.computed, job.scheduled = [], 0, 0

    def count(self, tokens: int) -> int:
        return -(-tokens // self.spec.block)

    # calls

    def submit(self, rid: int, keys: list[int], prompt: int, output: int, now: float) -> None:
        self.queue.append(Job(rid, list(keys[: prompt // self.spec.block]), prompt, output))
        if self.end == math.inf:
            self.start(now)

    def cancel(self, rid: int) -> bool:
        for place in (self.active, self.queue):
            for job in place:
                if job.rid == rid:
                    place.remove(job)
                    self.release(job)
                    return True
        return False

    def step(self) -> Tokens:
        out = []
        for job in list(self.active):
            job.computed += job.scheduled
            if self.spec.prefix_caching:
                for index in range(job.computed // self.spec.block):
                    if job.blocks[index].key is None:
                        job.blocks[index].key = job.key(index)
                        self.known.append(job.blocks[index])
            if job.scheduled and job.computed == job.total:
                job.generated += 1
                done = job.generated == job.output
                out.append((job.rid, job.generated, done))
                if done:
                    self.active.remove(job)
                    self.release(job)
            job.scheduled = 0
        self.start(self.end)
        return out

    # scheduling

    def start(self, now: float) -> None:
        self.left = self.spec.max_batched_tokens
        if self.spec.chunked:
            if not self.run():
                self.admit()
        else:
            self.admit()
            if not any(job.scheduled for job in self.active):
                self.run()
        batch = [job for job in self.active if job.scheduled]
        self.end = now + self.cost(batch) if batch else math.inf

    def cost(self, batch: list[Job]) -> float:
        pairs = context = 0.0
        for job in batch:
            if job.generated and job.scheduled == 1:
                context += job.computed + 1
            else:
                pairs += job.scheduled * (job.computed + job.scheduled / 2)
        tokens = sum(job.scheduled for job in batch)
        return self.spec.iteration_seconds(tokens, pairs, context, len(batch))

    def run(self) -> bool:
        preempted = False
        for job in list(self.active):
            if job not in self.active or self.left == 0:
                break
            n = min(job.total - job.computed, self.left)
            need = self.count(job.computed + n) - len(job.blocks)
            while need > len(self.unused):
                victim = self.active.pop()
                self.release(victim)
                self.queue.insert(0, victim)
                self.preemptions += 1
                preempted = True
                if victim is job:
                    return True
            job.blocks += [self.take() for _ in range(need)]
            job.scheduled = n
            self.left -= n
        return preempted

    def admit(self) -> None:
        spare = 0 if self.spec.chunked else self.spec.blocks // 100
        while self.queue and self.left > 0 and len(self.active) < self.spec.max_seqs:
            job = self.queue[0]
            hits: list[Block] = []
            while len(hits) < (job.total - 1) // self.spec.block:
                block = self.find(job.key(len(hits))) if self.spec.prefix_caching else None
                if block is None:
                    break
                hits.append(block)
            start = len(hits) * self.spec.block
            n = job.total - start
            if self.spec.chunked:
                n = min(n, self.left)
            elif n > self.left and any(other.scheduled for other in self.active):
                return
            need = self.count(start + n) - len(hits)
            if need + sum(block.users == 0 for block in hits) > len(self.unused) - spare:
                return
            for block in hits:
                if block.users == 0:
                    self.unused.remove(block)
                block.users += 1
            job.blocks = hits + [self.take() for _ in range(need)]
            job.computed, job.scheduled = start, n
            job.cached = start if job.cached is None else job.cached
            self.left -= n
            self.active.append(self.queue.pop(0))
