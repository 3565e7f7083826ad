"""One simulated vLLM engine: continuous batching over a paged KV cache, iteration by iteration.

Driven by sim/run in virtual time and by sim/engine_http in real time, with the same calls. It reads
no clock and draws randomness only from its own seed: equal calls give equal answers. What one
iteration costs is in sim/gpus (header), what a block is in sim/blocks.

An iteration is put together when the one before ends (or a request arrives at an idle engine):

  V1 (spec.chunked)
  1. Running requests in order of admission: one token for each decode, what the token budget leaves
     for an unfinished prefill. If a block is lacking, the latest running request is preempted: it
     gives up its blocks, goes to the head of the queue and will be recomputed. Then 2 is skipped.
  2. Admission, first come first served, while budget, sequences and blocks last. The longest prefix
     of full blocks in the cache is reused, at most up to the token before the last, which must be
     computed to get an answer. The first request that does not fit blocks those behind it.
  V0 (not spec.chunked)
  1. Whole prompts are admitted as in 2, as long as they fit the budget together (one longer prompt
     is run alone) and leave 1 % of the blocks. If there is one, the batch is prefill only.
  2. Otherwise one token for each running request, with preemption.

Its effects appear at its end: tokens come out, full blocks become findable, and the next one starts
at that very moment, however late step() is called. vLLM lets a request hit blocks that are computed
in the same iteration; here they can be hit from the next one on.

Cost: O(running requests) an iteration, O(prompt blocks) an admission attempt; nothing is O(cache).
"""

from array import array
from collections import deque

from cpython.buffer cimport PyObject_CheckBuffer
from cython cimport final
from libc.math cimport INFINITY, M_PI, cos, exp, isfinite, log, pow, sqrt
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from lodestar_fast.sim.blocks cimport BlockPool, mix


cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15  # steps of splitmix64; any odd constant would do


@final
cdef class Request:
    """What the engine knows of one request; never leaves this module."""

    def __dealloc__(self):
        free(self.blocks)

    cdef uint64_t hash_of(self, int32_t index) noexcept:
        """As given for prompt blocks; the rest (output, or no hash given) is nobody else's."""
        if index < self.hashes.shape[0]:
            return self.hashes[index] or 1
        return mix(mix(self.serial + GOLDEN) ^ <uint64_t>index) | 1

    cdef int hold(self, int32_t capacity) except -1:
        """Room for its block table, once it is admitted."""
        if self.blocks == NULL:
            self.blocks = <int32_t *>malloc(capacity * sizeof(int32_t))
            if self.blocks == NULL:
                raise MemoryError
        return 0

    cdef Request copy(self, int32_t capacity):
        cdef Request twin = Request.__new__(Request)
        twin.rid, twin.serial = self.rid, self.serial
        twin.prompt, twin.output = self.prompt, self.output
        twin.generated, twin.computed = self.generated, self.computed
        twin.scheduled, twin.cached, twin.gone = self.scheduled, self.cached, self.gone
        twin.held, twin.published, twin.running = self.held, self.published, self.running
        twin.hashes = self.hashes  # never written to: shared
        if self.held:
            twin.hold(capacity)
            memcpy(twin.blocks, self.blocks, self.held * sizeof(int32_t))
        return twin


@final
cdef class Engine:
    def __cinit__(self, spec, uint64_t seed=0, double jitter=0.0, BlockPool pool=None):
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, got {jitter}")
        self.spec = spec
        self.w, self.c, self.a, self.k = spec.w, spec.c, spec.a, spec.k
        self.s, self.h, self.q = spec.s, spec.h, spec.q
        self.chunked, self.caching = spec.chunked, spec.prefix_caching
        self.budget, self.max_seqs, self.block = spec.max_batched_tokens, spec.max_seqs, spec.block
        self.pool = BlockPool(spec.blocks) if pool is None else pool
        self.watermark = spec.reserved_blocks
        self.slow = 1.0
        self.jitter = jitter
        self.rng = seed
        self.end = INFINITY
        self.last = -INFINITY
        self.active, self.queue = [], deque()
        self.live, self.finished = {}, {}

    def submit(self, int64_t rid, block_hashes, int64_t prompt_tokens, int64_t output_tokens,
               double now):
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"prompt and output are at least one token, got {prompt_tokens} and {output_tokens}"
            )
        if rid in self.live:
            raise ValueError(f"request {rid} is already here")
        cdef int64_t most = (<int64_t>(self.pool.total - self.watermark)) * self.block
        # The last token's keys and values are never computed.
        if prompt_tokens > most or output_tokens - 1 > most - prompt_tokens:
            raise ValueError(
                f"{prompt_tokens} + {output_tokens} tokens never fit a cache of {most}"
            )
        if not isfinite(now) or self.end < now:
            raise ValueError(f"step() up to {now} first: an iteration ends at {self.end}")
        cdef Request r = Request.__new__(Request)
        r.rid, r.prompt, r.output, r.cached = rid, prompt_tokens, output_tokens, -1
        r.hashes = block_hashes if PyObject_CheckBuffer(block_hashes) else array("Q", block_hashes)
        self.submitted += 1
        r.serial = self.submitted
        self.live[rid] = r
        self.queue.append(r)
        self.waiting += 1
        if self.end == INFINITY:
            self.start(max(self.last, now))

    def cancel(self, int64_t rid, double now):
        cdef Request r = self.live.pop(rid, None)
        if r is None:
            return False
        if r.running:
            self.release(r)
            self.active.remove(r)
        else:
            r.gone = True  # skipped when its turn comes; a search would be O(queue)
            self.waiting -= 1
        return True

    def next_time(self):
        return self.end

    def step(self, double now):
        if self.end == INFINITY or not now >= self.end:  # also NaN
            raise ValueError(f"nothing ends by {now}: the next is at {self.end}")
        cdef list out = []
        self.finished.clear()
        self.advance(out, -1)
        return out

    def first_token(self, int64_t rid, double limit):
        cdef double end
        self.finished.clear()
        while self.end <= limit and self.end < INFINITY:
            end = self.end
            if self.advance(None, rid):
                return end
        return INFINITY

    cdef bint advance(self, list out, int64_t rid) except -1:
        """Completes the iteration that runs, and starts the next. out: takes what step() returns,
        or None. Whether the first token of rid came out."""
        cdef list still = []
        cdef Request r
        cdef bint done, begun = False
        for r in self.active:
            if r.scheduled:
                r.computed += r.scheduled
                r.scheduled = 0
                if self.caching:
                    self.publish(r)
                if r.computed == r.prompt + r.generated:
                    r.generated += 1
                    self.generation_tokens += 1
                    if r.generated == 1:
                        self.prompt_tokens += r.prompt
                        begun = begun or r.rid == rid
                    done = r.generated == r.output
                    if out is not None:
                        out.append((r.rid, r.generated, done))
                    if done:
                        self.release(r)
                        del self.live[r.rid]
                        self.finished[r.rid] = r.cached
                        continue
            still.append(r)
        self.active = still
        self.start(self.end)
        return begun

    cdef void publish(self, Request r) noexcept:
        """Makes the blocks findable that became full."""
        cdef int32_t full = <int32_t>(r.computed // self.block)
        while r.published < full:
            self.pool.publish(r.blocks[r.published], r.hash_of(r.published))
            if self.pool.journal is not None:
                self.pool.journal.append((
                    r.hash_of(r.published - 1) if r.published else 0, r.hash_of(r.published),
                ))
            r.published += 1

    cdef void release(self, Request r) noexcept:
        """Gives up its blocks, last first, so that the tail is evicted before the head."""
        while r.held:
            r.held -= 1
            self.pool.release(r.blocks[r.held])
        r.published = 0
        r.computed = r.scheduled = 0
        r.running = False

    cdef int start(self, double now) except -1:
        """Puts the next iteration together; the engine is idle if there is nothing to do."""
        cdef int64_t left = self.budget
        cdef bint preempted
        self.last = now
        self.tokens = self.decode_context = self.batch = 0
        self.pairs = 0
        if self.chunked:
            preempted = self.schedule_running(&left)
            if not preempted:
                self.admit(left)
        else:
            self.admit(left)
            if self.batch == 0:
                self.schedule_running(&left)
        if self.batch == 0:
            self.end = INFINITY
            return 0
        cdef double ms = (
            self.h
            + pow(pow(self.w, self.q) + pow(self.c * self.tokens, self.q), 1 / self.q)
            + self.a * 1e-6 * self.pairs
            + self.k * 1e-3 * self.decode_context
            + self.s * self.batch
        )
        if self.jitter:
            ms *= self.noise()
        self.end = now + ms * 1e-3 * self.slow
        return 0

    cdef void add_to_batch(self, Request r, int64_t n) noexcept:
        r.scheduled = n
        self.tokens += n
        self.batch += 1
        if r.generated and n == 1:
            self.decode_context += r.computed + 1
        else:
            self.pairs += n * (r.computed + 0.5 * n)

    cdef bint schedule_running(self, int64_t *left) except -1:
        """A share of the batch for each running request; true if one had to be preempted."""
        cdef Request r, victim
        cdef Py_ssize_t i = 0
        cdef int64_t n
        cdef int32_t need
        cdef bint preempted = False
        while i < len(self.active) and left[0] > 0:
            r = self.active[i]
            n = min(r.prompt + r.generated - r.computed, left[0])
            need = self.blocks_for(r.computed + n) - r.held
            while need > self.pool.free + self.pool.cached:
                preempted = True
                victim = self.active.pop()
                self.release(victim)
                self.queue.appendleft(victim)
                self.waiting += 1
                self.preemptions += 1
                if victim is r:
                    return True
            while need > 0:
                r.blocks[r.held] = self.pool.take()
                r.held += 1
                need -= 1
            self.add_to_batch(r, n)
            left[0] -= n
            i += 1
        return preempted

    cdef int admit(self, int64_t left) except -1:
        cdef Request r
        cdef int64_t taken
        while self.queue and left > 0 and len(self.active) < self.max_seqs:
            r = self.queue[0]
            if not r.gone:
                taken = self.admit_one(r, left)
                if taken == 0:
                    return 0
                left -= taken
                self.active.append(r)
                self.waiting -= 1
            self.queue.popleft()
        return 0

    cdef int64_t admit_one(self, Request r, int64_t left) except -1:
        """Gives r its blocks and its share of the batch: the tokens, 0 if it does not fit now."""
        cdef int32_t available = self.pool.free + self.pool.cached - self.watermark
        if available <= 0:
            return 0
        r.hold(self.blocks_for(r.prompt + r.output))
        cdef int64_t total = r.prompt + r.generated, n
        cdef int32_t hits = 0, idle = 0, block, need, i
        if self.caching:
            while hits < (total - 1) // self.block:
                block = self.pool.find(r.hash_of(hits))
                if block < 0:
                    break
                idle += self.pool.references[block] == 0
                r.blocks[hits] = block
                hits += 1
        n = total - <int64_t>hits * self.block
        if self.chunked:
            n = min(n, left)
        elif n > left and self.batch:
            return 0
        need = self.blocks_for(<int64_t>hits * self.block + n) - hits
        if need + idle > available:  # hits that nobody references are themselves evictable
            return 0
        for i in range(hits):
            self.pool.acquire(r.blocks[i])
        for i in range(need):
            r.blocks[hits + i] = self.pool.take()
        r.held, r.published = hits + need, hits
        r.computed = <int64_t>hits * self.block
        r.running = True
        if r.cached < 0:
            r.cached = r.computed
            if self.caching:
                self.prefix_queries += r.prompt
                self.prefix_hits += r.cached
        self.add_to_batch(r, n)
        return n

    cdef int32_t blocks_for(self, int64_t tokens) noexcept:
        return <int32_t>((tokens + self.block - 1) // self.block)

    cdef double noise(self) noexcept:
        """A log-normal factor with median 1 (Box-Muller on two steps of splitmix64)."""
        self.rng += GOLDEN
        cdef double u = (mix(self.rng) >> 11) * 2.0**-53
        self.rng += GOLDEN
        cdef double v = (mix(self.rng) >> 11) * 2.0**-53
        return exp(self.jitter * sqrt(-2 * log(1 - u)) * cos(2 * M_PI * v))

    def cached_tokens(self, int64_t rid):
        cdef Request r = self.live.get(rid)
        if r is not None:
            return max(r.cached, 0)
        return self.finished[rid]

    @property
    def running(self):
        return len(self.active)

    @property
    def kv_usage(self):
        return self.pool.used / self.pool.total

    cpdef Engine copy(self):
        cdef Engine twin = Engine.__new__(
            Engine, self.spec, self.rng, self.jitter, self.pool.copy()
        )
        cdef Request r, other
        twin.slow = self.slow
        twin.end, twin.last = self.end, self.last
        twin.submitted, twin.waiting = self.submitted, self.waiting
        twin.preemptions = self.preemptions
        twin.prompt_tokens, twin.generation_tokens = self.prompt_tokens, self.generation_tokens
        twin.prefix_queries, twin.prefix_hits = self.prefix_queries, self.prefix_hits
        for r in self.active:
            other = r.copy(self.blocks_for(r.prompt + r.output))
            twin.active.append(other)
            twin.live[r.rid] = other
        for r in self.queue:
            if not r.gone:
                other = r.copy(0)
                twin.queue.append(other)
                twin.live[r.rid] = other
        twin.finished.update(self.finished)
        return twin
