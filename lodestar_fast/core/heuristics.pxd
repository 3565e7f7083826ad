from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES
from lodestar_fast.core.policies cimport Candidates, Policy


cdef class RoundRobin(Policy):
    cdef Py_ssize_t last           # slot of the last choice, -1 before

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class Random(Policy):
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class LeastRequest(Policy):
    pass


cdef class PowerOfTwo(Policy):
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class LeastKV(Policy):
    pass


cdef class LeastPrefillTokens(Policy):
    pass


cdef class LeastLatency(Policy):
    cdef readonly double output_tokens


cdef class Throughput(Policy):
    cdef readonly double seconds
    cdef double prompt[LS_MAX_INSTANCES]    # tokens, by slot, fading
    cdef double at[LS_MAX_INSTANCES]        # when it was brought up to date
    cdef uint32_t epochs[LS_MAX_INSTANCES]  # whose numbers these are


cdef class VllmDP(Policy):
    pass
