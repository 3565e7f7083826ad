# Declarations for sim/engine; see blocks.pyi for what Python sees.
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef class BlockPool:
    cdef readonly int32_t total   # blocks in all
    cdef readonly int32_t free    # unreferenced, nothing worth keeping in them
    cdef readonly int32_t cached  # unreferenced, findable by hash, evicted in LRU order
    cdef public list journal      # of what becomes findable and what is evicted; None: not kept
    cdef uint32_t mask            # hash buckets - 1
    cdef size_t slab_bytes
    cdef void *slab               # all arrays below, one allocation
    cdef uint64_t *hashes         # by block; 0: not findable
    cdef int32_t *references      # by block
    cdef int32_t *next            # ring of unreferenced blocks; index `total` is its sentinel
    cdef int32_t *previous
    cdef int32_t *chain           # next block of the same bucket, -1 ends
    cdef int32_t *bucket          # by hash: first block, -1 none

    cdef void lay_out(self) noexcept
    cdef int32_t find(self, uint64_t hash) noexcept
    cdef int32_t take(self) noexcept
    cdef void acquire(self, int32_t block) noexcept
    cdef void release(self, int32_t block) noexcept
    cdef void publish(self, int32_t block, uint64_t hash) noexcept
    cdef void unpublish(self, int32_t block) noexcept
    cdef void link(self, int32_t block, int32_t before) noexcept
    cdef void unlink(self, int32_t block) noexcept
    cpdef bint clear(self)
    cpdef BlockPool copy(self)


cdef uint64_t mix(uint64_t x) noexcept nogil
