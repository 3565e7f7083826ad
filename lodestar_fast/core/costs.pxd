from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES
from lodestar_fast.core.policies cimport Candidates, Policy


# Also what the learned policy falls back on.
cdef Py_ssize_t pick_lmetric(Candidates c) noexcept


cdef class Lmetric(Policy):
    pass


cdef class Mooncake(Policy):
    cdef readonly double transfer, balance


cdef class Dynamo(Policy):
    cdef readonly double overlap_weight, temperature, block_tokens
    cdef double costs[LS_MAX_INSTANCES]

    cdef double cost(self, Candidates c, Py_ssize_t i) noexcept
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class ExpectedCompletion(Policy):
    cdef double c[LS_MAX_INSTANCES]  # seconds per token by slot; 0: not told
    cdef double w[LS_MAX_INSTANCES]  # seconds
