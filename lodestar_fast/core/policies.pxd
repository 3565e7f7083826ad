from libc.stdint cimport uint64_t

from lodestar_fast.core.lodestar cimport ls_router


cdef class Candidates:
    cdef ls_router *r              # NULL outside pick(): every access from Python is refused then
    cdef readonly Py_ssize_t n     # how many
    cdef int reason_code           # pick() sets it: an ls_reason, -1 before
    cdef public double predicted   # pick() may set it: seconds, NaN before

    cdef double uniform(self) noexcept
    cdef Py_ssize_t least_inflight(self) noexcept
    cdef uint64_t session(self) noexcept
    cdef int check(self, Py_ssize_t i) except -1


cdef class Policy:
    cpdef Py_ssize_t pick(self, Candidates c) except? -1
    # Predicted TTFT of candidate i at the last pick(), seconds; NaN if nothing was predicted.
    cdef double forecast(self, Py_ssize_t i) noexcept


# The least of some scores; of equal ones any, at random.
cdef struct Best:
    Py_ssize_t i, ties
    double least


cdef inline void start(Best *best) noexcept:
    best.i, best.ties, best.least = 0, 0, 0


cdef inline void offer(Candidates c, Best *best, Py_ssize_t i, double score) noexcept:
    if best.ties == 0 or score < best.least:
        best.i, best.ties, best.least = i, 1, score
    elif score == best.least:
        best.ties += 1
        if c.uniform() * best.ties < 1:
            best.i = i
