from libc.stdint cimport uint64_t

from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES, ls_router
from lodestar_fast.core.policies cimport Candidates, Policy


cdef class Guarded(Policy):
    cdef readonly Policy learned, fallback
    cdef bint on_lmetric             # `fallback` is LMETRIC: `learned` need not ask it again
    cdef readonly double share       # of the requests that `learned` decides, 0..1
    cdef int reason_else             # an ls_reason: why `fallback` decides the others
    cdef bint asks                   # whether `learned` is asked at all
    cdef uint64_t *sides             # the table of on_learned_side()
    cdef public str mode_name        # as the operator set it, for records of decisions
    cdef double mixed                # share of the learned policy's choice in the last decision
    cdef Py_ssize_t wanted           # that choice
    cdef float safe_odds[LS_MAX_INSTANCES]
    # Fading means over the decisions that `learned` was asked about.
    cdef readonly double regret      # log of physical estimates, its choice over the fallback's
    cdef readonly double absurd      # predictions that are no number of seconds
    cdef readonly double raised      # exceptions instead of choices
    cdef readonly str last_error
    # Since the start.
    cdef readonly long long asked, agreed
    cdef readonly double predicted_learned, predicted_fallback

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept
    cdef str mode(self)
    cdef Py_ssize_t ask(self, Candidates c)
    cdef Py_ssize_t fall_back(
        self, Candidates c, Py_ssize_t choice, uint64_t rng, int reason) noexcept
    cdef bint on_learned_side(self, const ls_router *r) noexcept
    cdef uint64_t *entry(self, uint64_t hash) noexcept
