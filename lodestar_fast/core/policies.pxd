from libc.stdint cimport uint8_t, uint32_t

from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES, ls_model, ls_router


cdef class Candidates:
    cdef ls_router *r              # NULL outside pick(): every access from Python is refused then
    cdef readonly Py_ssize_t n     # how many
    cdef int reason_code           # pick() sets it: an ls_reason, -1 before
    cdef public double predicted   # pick() may set it: seconds, NaN before

    cdef double uniform(self) noexcept
    cdef Py_ssize_t least_inflight(self) noexcept
    cdef int check(self, Py_ssize_t i) except -1


cdef class Policy:
    cpdef Py_ssize_t pick(self, Candidates c) except? -1
    # Predicted TTFT of candidate i at the last pick(), seconds; NaN if nothing was predicted.
    cdef double forecast(self, Py_ssize_t i) noexcept


cdef class RoundRobin(Policy):
    cdef Py_ssize_t last           # slot of the last choice, -1 before


cdef class Random(Policy):
    pass


cdef class LeastRequest(Policy):
    pass


cdef class PowerOfTwo(Policy):
    pass


cdef class PrefixCache(Policy):
    pass


cdef class Lmetric(Policy):
    pass


cdef class Lodestar(Policy):
    cdef readonly double margin, load_weight, kv_weight, kv_start
    cdef ls_model *buffers         # two: one in use, one to load into
    cdef ls_model *model           # in use; NULL before the first load
    cdef float seconds[LS_MAX_INSTANCES]
    cdef uint8_t outside[LS_MAX_INSTANCES]

    cdef double score(self, Candidates c, Py_ssize_t i) noexcept
