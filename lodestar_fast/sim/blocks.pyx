"""The KV block pool of one simulated engine, and the hashes that identify prompt blocks.

Used by sim/engine alone (hash_prompt by whoever feeds it, fill_prompt by sim/workload, which makes
the prompts whose blocks these are). It knows blocks and hashes, nothing
of requests or time. Every operation is O(1); a pool is one allocation, so a copy is one memcpy.

A block is in one of three states:

    used     referenced by at least one request
    cached   unreferenced, still found by its hash; in the ring, evicted from the ring's head
    free     unreferenced and worthless; also in the ring, kept before all cached ones

    ring:  [sentinel] -> free ... free -> cached (oldest) ... cached (newest) -> [sentinel]

A released block with a hash goes to the tail, one without to the head. Whoever releases a request's
blocks last to first therefore gets vLLM's order: least recently used first, tails before heads.
Two blocks may carry one hash (two requests computed the same prompt at once); the older is found.
"""

from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython cimport final
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import array


cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, as in splitmix64
cdef int64_t MOST_ID = 1 << 60  # four times an id, and what kind it is of, are one number
cdef array.array HASHES = array.array("Q")  # template for cloning


cdef uint64_t mix(uint64_t x) noexcept nogil:
    """The finaliser of splitmix64: every bit of x moves every bit of the result."""
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


def hash_prompt(const unsigned char[::1] prompt not None, int block_bytes=64):
    if block_bytes < 8 or block_bytes % 8:
        raise ValueError(f"block_bytes must be a positive multiple of 8, got {block_bytes}")
    cdef Py_ssize_t count = prompt.shape[0] // block_bytes, i, j
    cdef array.array out = array.clone(HASHES, count, zero=False)
    cdef uint64_t h = GOLDEN, word
    for i in range(count):
        for j in range(0, block_bytes, 8):
            memcpy(&word, &prompt[i * block_bytes + j], 8)
            h = (h ^ word) * <uint64_t>0xFF51AFD7ED558CCD
            h ^= h >> 32
        h = mix(h + GOLDEN) | 1  # never 0, which means "no hash"
        out.data.as_ulonglongs[i] = h
    return out


cdef char *repeat(char *at, int64_t length, int64_t number) noexcept:
    """Writes the number's 8 bytes over and over; the place behind them."""
    cdef int64_t i = 0
    while i + 8 <= length:
        memcpy(at + i, &number, 8)
        i += 8
    memcpy(at + i, &number, length - i)
    return at + length


def fill_prompt(runs, int64_t block_bytes, int64_t total, int64_t shared_bytes, int64_t shared,
                int64_t own):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char *at = PyBytes_AS_STRING(out)
    cdef int64_t left = total, n, block, count
    numbers = iter(runs)
    for block, count in zip(numbers, numbers, strict=True):
        if not -MOST_ID <= block <= MOST_ID - count:
            raise OverflowError(f"block ids from {block} on, {count} of them")
        while count > 0 and left > 0:
            n = min(block_bytes, left)
            at = repeat(at, n, 4 * block)
            left -= n
            block += 1
            count -= 1
    n = min(shared_bytes, left)
    at = repeat(at, n, 4 * shared + 1)
    repeat(at, left - n, 4 * own + 2)
    return out


@final
cdef class BlockPool:
    def __cinit__(self, int32_t total, bint blank=False):
        """blank: leave the slab unwritten, for copy()."""
        if total < 1:
            raise ValueError(f"a pool has at least one block, got {total}")
        if total > 1 << 28:
            raise ValueError(f"at most {1 << 28} blocks, got {total}")
        self.total = total
        cdef uint32_t buckets = 16
        while buckets < 2 * <uint32_t>total:
            buckets *= 2
        self.mask = buckets - 1
        self.slab_bytes = (
            (total + 1) * (sizeof(uint64_t) + 4 * sizeof(int32_t)) + buckets * sizeof(int32_t)
        )
        self.slab = malloc(self.slab_bytes)
        if self.slab == NULL:
            raise MemoryError
        self.lay_out()
        if blank:
            return
        memset(self.slab, 0, self.slab_bytes)
        cdef int32_t i
        memset(self.bucket, 0xFF, buckets * sizeof(int32_t))  # all -1
        for i in range(total + 1):
            self.next[i] = i + 1 if i < total else 0
            self.previous[i] = i - 1 if i > 0 else total
        self.free = total

    def __dealloc__(self):
        free(self.slab)

    cdef void lay_out(self) noexcept:
        cdef size_t n = self.total + 1
        self.hashes = <uint64_t *>self.slab
        self.references = <int32_t *>(self.hashes + n)
        self.next = self.references + n
        self.previous = self.next + n
        self.chain = self.previous + n
        self.bucket = self.chain + n

    cdef int32_t find(self, uint64_t hash) noexcept:
        """The oldest block with this hash, or -1."""
        cdef int32_t block = self.bucket[(hash * GOLDEN >> 32) & self.mask]
        while block >= 0 and self.hashes[block] != hash:
            block = self.chain[block]
        return block

    cdef int32_t take(self) noexcept:
        """A block to write into, referenced once; evicts the oldest cached one if none is free.

        The caller has checked that free + cached > 0.
        """
        cdef int32_t block = self.next[self.total]
        self.unlink(block)
        if self.hashes[block]:
            if self.journal is not None:
                self.journal.append(self.hashes[block])
            self.unpublish(block)
            self.cached -= 1
        else:
            self.free -= 1
        self.references[block] = 1
        return block

    cdef void acquire(self, int32_t block) noexcept:
        """One more reference to a published block, cached or used."""
        if self.references[block] == 0:
            self.unlink(block)
            self.cached -= 1
        self.references[block] += 1

    cdef void release(self, int32_t block) noexcept:
        self.references[block] -= 1
        if self.references[block]:
            return
        if self.hashes[block]:
            self.link(block, self.total)
            self.cached += 1
        else:
            self.link(block, self.next[self.total])
            self.free += 1

    cdef void publish(self, int32_t block, uint64_t hash) noexcept:
        """Makes a used block without a hash findable. hash is not 0."""
        cdef int32_t *at = &self.bucket[(hash * GOLDEN >> 32) & self.mask]
        while at[0] >= 0:
            at = &self.chain[at[0]]
        at[0] = block
        self.chain[block] = -1
        self.hashes[block] = hash

    cdef void unpublish(self, int32_t block) noexcept:
        cdef int32_t *at = &self.bucket[(self.hashes[block] * GOLDEN >> 32) & self.mask]
        while at[0] != block:
            at = &self.chain[at[0]]
        at[0] = self.chain[block]
        self.hashes[block] = 0

    cdef void link(self, int32_t block, int32_t before) noexcept:
        cdef int32_t after = self.previous[before]
        self.next[after] = self.previous[before] = block
        self.next[block] = before
        self.previous[block] = after

    cdef void unlink(self, int32_t block) noexcept:
        self.next[self.previous[block]] = self.next[block]
        self.previous[self.next[block]] = self.previous[block]

    cpdef bint clear(self):
        cdef int32_t block
        if self.free + self.cached < self.total:
            return False
        for block in range(self.total):
            if self.hashes[block]:
                self.unpublish(block)
        self.free, self.cached = self.total, 0
        return True

    cpdef BlockPool copy(self):
        cdef BlockPool twin = BlockPool.__new__(BlockPool, self.total, True)
        memcpy(twin.slab, self.slab, self.slab_bytes)
        twin.free = self.free
        twin.cached = self.cached
        return twin

    @property
    def used(self):
        return self.total - self.free - self.cached

    def reference_counts(self):
        return [self.references[i] for i in range(self.total)]

    def eviction_order(self):
        cdef list order = []
        cdef int32_t block = self.next[self.total]
        while block != self.total:
            order.append(self.hashes[block])
            block = self.next[block]
        return order

    def contains(self, uint64_t hash):
        return self.find(hash) >= 0
