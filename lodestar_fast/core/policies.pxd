from libc.stdint cimport uint8_t, uint64_t

from lodestar_fast.core.lodestar cimport ls_router


# The least of some scores; of equal ones any, at random.
cdef struct Best:
    Py_ssize_t i, ties
    double least


cdef class Candidates:
    cdef ls_router *r              # NULL outside pick(): every access from Python is refused then
    cdef readonly Py_ssize_t n     # how many
    cdef int reason_code           # pick() sets it: an ls_reason, -1 before
    cdef public double predicted   # pick() may set it: seconds, NaN before

    # Of decisions that are kept (decisions.pyx); both are NULL if none are. What each candidate was
    # offered with, NaN if it was not; the probability with which it was to be chosen, NaN: unknown.
    cdef double *scores
    cdef float *odds
    # And what a learned policy thought of them, set by it: predicted seconds, whether out of range,
    # the coefficients of the linear part, its margin over the fallback's choice, and the log factor
    # that moving a whole prefix from where it is cached must be worth.
    cdef const float *seconds
    cdef const uint8_t *outside
    cdef const float *linear
    cdef double margin, unsure
    cdef Py_ssize_t fallback       # -1: there is none
    # If the request wants more than an early first token (aims.pyx), else NULL: the upper quantile
    # of that time, and the time per output token, seconds; NaN: not known.
    cdef const float *upper
    cdef const float *tpot
    # With an SLO, else NULL: how many others are expected to miss theirs for this request's sake.
    cdef const float *late
    # And the objective (ls_objective), whether prices count, and how long the answer should be:
    # tokens, 0: not known.
    cdef int objective
    cdef bint priced
    cdef double answer
    # Set while Guarded asks the learned policy, if LMETRIC was asked before: its choice, and the
    # state of the random numbers behind it. Asked again it would choose the same.
    cdef bint lmetric_known
    cdef Py_ssize_t lmetric
    cdef uint64_t lmetric_rng

    cdef void begin(self) noexcept
    cdef void note(self, Best *best, Py_ssize_t i, double score) noexcept
    cdef void even_odds(self, Py_ssize_t choice) noexcept
    cdef void sure(self, Py_ssize_t choice) noexcept
    cdef double uniform(self) noexcept
    cdef Py_ssize_t least_inflight(self) noexcept
    cdef uint64_t session(self) noexcept
    cdef int check(self, Py_ssize_t i) except -1


cdef class Policy:
    cpdef Py_ssize_t pick(self, Candidates c) except? -1
    # Predicted TTFT of candidate i at the last pick(), seconds; NaN if nothing was predicted.
    cdef double forecast(self, Py_ssize_t i) noexcept
    cdef double physics(self, Candidates c, Py_ssize_t i) noexcept
    # Fill c.odds: how likely each candidate was to be chosen by the last pick(), which took choice.
    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept
    cdef str mode(self)            # it decides in; empty if it knows none


cdef inline void start(Best *best) noexcept:
    best.i, best.ties, best.least = 0, 0, 0


cdef inline void offer(Candidates c, Best *best, Py_ssize_t i, double score) noexcept:
    if c.scores != NULL:
        c.note(best, i, score)
    if best.ties == 0 or score < best.least:
        best.i, best.ties, best.least = i, 1, score
    elif score == best.least:
        best.ties += 1
        if c.uniform() * best.ties < 1:
            best.i = i
