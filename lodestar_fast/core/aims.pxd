from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES, ls_model, ls_router
from lodestar_fast.core.policies cimport Candidates


cdef inline bint has_slo(const ls_router *r) noexcept:
    return r.slo_ttft > 0 or r.slo_tpot > 0


cdef class Aims:
    cdef readonly str objective
    cdef readonly double tpot_weight     # of what comes after the first token; 0: it counts nothing
    cdef readonly double price_weight
    cdef int code                        # ls_objective
    cdef double plain[LS_MAX_INSTANCES]  # the scores of the default objective, filled by the policy
    cdef double score[LS_MAX_INSTANCES]
    cdef double bar[LS_MAX_INSTANCES]    # what the best must be below if this is the fallback's
    cdef double rest             # tokens to come of an answer under way, in the mean; 0: not known
    cdef float upper[LS_MAX_INSTANCES]
    cdef float tpot[LS_MAX_INSTANCES]
    cdef float late[LS_MAX_INSTANCES]  # of others, requests that will be for this one's sake

    cdef bint apply(self, const ls_router *r) noexcept
    # Fill score, bar, upper and tpot from plain and from predicted times to first token.
    cdef void weigh(
        self, Candidates c, const ls_model *model, const float *seconds, double margin) noexcept
    cdef double bill(self, Candidates c, Py_ssize_t i) noexcept
    cdef double harm(self, Candidates c, Py_ssize_t i) noexcept
    cdef void keep_slo(self, Candidates c, const float *seconds, double margin) noexcept
