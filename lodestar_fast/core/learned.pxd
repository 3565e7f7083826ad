from libc.stdint cimport uint8_t, uint32_t

from lodestar_fast.core.aims cimport Aims
from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES, ls_model
from lodestar_fast.core.policies cimport Candidates, Policy


cdef class Lodestar(Policy):
    cdef readonly double margin, load_weight, wait_weight, crowd_weight, spare_weight
    cdef readonly double affinity_weight, kv_weight, kv_start
    cdef readonly Aims aims
    cdef readonly double explore_share
    cdef readonly double saved     # seconds of regret that may be spent
    cdef readonly double spent     # those that were
    cdef double explored[LS_MAX_INSTANCES]  # when last, by slot
    cdef bint exploring            # the decision being made
    cdef double crowd              # of the decision being made, as the four below
    cdef double delay_weight       # by seconds of delay: spare_weight over the mean
    cdef uint32_t longest          # tokens of the longest hit
    cdef double moved_weight       # log factor of each token of it that a candidate lacks
    cdef double growth             # tokens: what an answer is still to take of the cache
    cdef bint aimed                # it has another aim than an early first token
    cdef ls_model *buffers         # two: one in use, one to load into
    cdef ls_model *model           # in use; NULL before the first load
    cdef float seconds[LS_MAX_INSTANCES]
    cdef uint8_t outside[LS_MAX_INSTANCES]
    cdef float safe_odds[LS_MAX_INSTANCES]  # of LMETRIC's choice, while decisions are kept

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept
    cdef void weigh_fleet(self, Candidates c) noexcept
    cdef Py_ssize_t to_explore(self, Candidates c, Py_ssize_t best, double least) noexcept
    cdef double priced(self, Candidates c, Py_ssize_t i, double seconds) noexcept
    cdef double score(self, Candidates c, Py_ssize_t i) noexcept
    cdef double bar(self, Candidates c, Py_ssize_t i) noexcept
