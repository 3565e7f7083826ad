# Declarations for sim/engine; see engine.pyi for what Python sees.
from libc.stdint cimport int32_t, int64_t, uint64_t

from lodestar_fast.sim.blocks cimport BlockPool


cdef class Request:
    cdef int64_t rid
    cdef uint64_t serial          # of its submission: seeds the hashes of blocks that are its own
    cdef int64_t prompt           # tokens
    cdef int64_t output           # tokens to generate, known from the start in a simulation
    cdef int64_t generated        # tokens so far
    cdef int64_t computed         # tokens whose keys and values are in the cache
    cdef int64_t scheduled        # tokens of it in the running iteration
    cdef int64_t cached           # prompt tokens hit at first admission, -1 before
    cdef bint running             # admitted, holds blocks
    cdef bint gone                # cancelled while it waited: skipped when its turn comes
    cdef int32_t held             # blocks it references
    cdef int32_t published        # how many of these are findable
    cdef int32_t *blocks
    cdef const uint64_t[::1] hashes

    cdef uint64_t hash_of(self, int32_t index) noexcept
    cdef int hold(self, int32_t capacity) except -1
    cdef Request copy(self, int32_t capacity)


cdef class Engine:
    cdef readonly object spec
    cdef public double slow
    cdef readonly BlockPool pool
    cdef double w, c, a, k, s, h, q, jitter
    cdef bint chunked, caching
    cdef int64_t budget
    cdef int32_t max_seqs, block, watermark
    cdef uint64_t rng
    cdef double end               # of the running iteration; inf when idle
    cdef double last              # when the latest iteration started
    cdef uint64_t submitted
    cdef list active              # of Request, in order of admission
    cdef object queue             # deque of Request
    cdef dict live                # rid -> Request
    cdef readonly dict finished   # rid -> cached tokens, of the latest step
    cdef readonly int64_t waiting
    cdef readonly int64_t preemptions
    cdef readonly int64_t prompt_tokens
    cdef readonly int64_t generation_tokens
    cdef readonly int64_t prefix_queries
    cdef readonly int64_t prefix_hits
    # The batch of the running iteration, as put together by start().
    cdef int64_t tokens           # N of the cost model
    cdef int64_t decode_context   # K, in tokens
    cdef int32_t batch            # R
    cdef double pairs             # A, in pairs; halves are possible

    cdef bint advance(self, list out, int64_t rid) except -1
    cdef void publish(self, Request r) noexcept
    cdef void release(self, Request r) noexcept
    cdef int start(self, double now) except -1
    cdef bint schedule_running(self, int64_t *left) except -1
    cdef int admit(self, int64_t left) except -1
    cdef int64_t admit_one(self, Request r, int64_t left) except -1
    cdef void add_to_batch(self, Request r, int64_t n) noexcept
    cdef int32_t blocks_for(self, int64_t tokens) noexcept
    cdef double noise(self) noexcept
    cpdef Engine copy(self)
