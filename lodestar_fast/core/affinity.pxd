from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES
from lodestar_fast.core.policies cimport Candidates, Policy


cdef class PrefixCache(Policy):
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class PrefixThreshold(Policy):
    cdef readonly double threshold


cdef class Preble(Policy):
    cdef readonly double threshold, rebalance, window, output_tokens
    cdef double prefill[LS_MAX_INSTANCES]   # seconds by slot, fading
    cdef double at[LS_MAX_INSTANCES]        # when it was brought up to date
    cdef uint32_t epochs[LS_MAX_INSTANCES]  # whose numbers these are

    cdef double cost(self, Candidates c, Py_ssize_t i) noexcept
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept


cdef class CacheAware(Policy):
    cdef readonly double cache_threshold, balance_abs, balance_rel


cdef class LlmdWeighted(Policy):
    cdef readonly double prefix, queue, kv


cdef class LlmdSticky(Policy):
    cdef readonly long waiting
    cdef readonly double kv


cdef class SessionAffinity(Policy):
    cdef readonly double bound
