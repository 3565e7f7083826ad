"""What the data path counts. See counters.pyi."""

from libc.stdint cimport uint64_t


cdef enum Outcome:
    COMPLETED
    ENGINE_ERROR
    ROUTER_ERROR
    SHED
    CLIENT_ABORT
    OUTCOMES_N

cdef enum:
    STATUS_CLASSES = 6  # none, 1xx .. 5xx
    MAX_PATHS = 32
    MAX_BUCKETS = 32


cdef class Histogram:
    cdef readonly tuple bounds
    cdef double _bounds[MAX_BUCKETS]
    cdef uint64_t _counts[MAX_BUCKETS]  # not cumulative; the last one used is +Inf
    cdef int _n
    cdef double _sum

    cdef void add(self, double seconds) noexcept


cdef class Counters:
    cdef uint64_t _requests[MAX_PATHS][STATUS_CLASSES][OUTCOMES_N]
    cdef dict _paths  # bytes -> index
    cdef bytes _last_path  # asked for, nearly always the same object again
    cdef int _last_index
    cdef int routed  # the index of a path is below it: the path is one of ROUTES
    cdef list _labels
    cdef dict _retries
    cdef readonly Histogram request_seconds
    cdef readonly Histogram decision_seconds
    cdef uint64_t connections_total
    cdef uint64_t stale_connections
    cdef uint64_t extra_bytes
    cdef uint64_t upstream_opened
    cdef uint64_t retries_refused
    cdef uint64_t connections_refused
    cdef uint64_t slo_ignored

    cdef int path_index(self, bytes path)
    cdef void count(self, int path, int status, Outcome outcome, double seconds) noexcept
    cpdef void add_retry(self, str reason)
