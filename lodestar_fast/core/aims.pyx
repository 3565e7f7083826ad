"""What a request wants besides an early first token: an early end, its SLO kept, a low price."""

from libc.math cimport INFINITY, NAN, exp, log, log1p, sqrt
from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport (
    LS_WIDTH, ls_candidate, ls_model_tpot, ls_model_upper, ls_pace,
)
from lodestar_fast.core.policies cimport Candidates
from lodestar_fast.core.record cimport LS_E2E, LS_TTFT, LS_TTFT_TPOT

# Chosen in simulation, on the fleets of deploy/objectives.md and cells of the matrix.
# An engine computes prompts in pieces, beside which its answers go on, if slower: the time counts
# half. With an SLO one's own wait counts a tenth as far as it is in time; not at all and all ties
# would be broken by chance.
cdef double PREFILL_DELAYS = 0.5
cdef double IN_TIME = 0.1
cdef double LOST = 2.0       # a request that is not in time, in waits as long as its limit
cdef double SHADOW = 1.0     # work anywhere displaces other work, at the fleet's mean harm
cdef double SPREAD = 0.25    # standard deviation of a time between tokens, as a share of the limit
cdef double PRESENT = 0.7    # weight of the pace of the answers under way, beside the prediction
cdef double A_SECOND = 1.0   # the limit of a wait for which none is asked
cdef double NINE_OF_TEN = 1.2816  # standard deviations below which nine of ten lie
cdef double NARROW = 0.05    # least standard deviation of a logarithm of TTFT
cdef double LEAST_SPREAD = 1e-3  # seconds

OBJECTIVES = {"ttft": LS_TTFT, "ttft+tpot": LS_TTFT_TPOT, "e2e": LS_E2E}


cdef inline double likely(double deviations) noexcept:
    """That a normal variable is below so many standard deviations; within 0.01, a logistic one."""
    return 1 / (1 + exp(-1.702 * deviations))


cdef class Aims:
    """Scores for requests that want more than the policy's default. See aims.pyi."""

    def __cinit__(
        self, *, str objective="ttft", double tpot_weight=0.3, double price_weight=0
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: {objective!r} is none of {', '.join(OBJECTIVES)}")
        if not (0 <= tpot_weight < INFINITY and 0 <= price_weight < INFINITY):
            raise ValueError(f"tpot_weight, price_weight: {tpot_weight}, {price_weight}")
        self.objective, self.code = objective, OBJECTIVES[objective]
        self.tpot_weight = (0.0, tpot_weight, 1.0)[self.code]
        self.price_weight = price_weight

    cdef bint apply(self, const ls_router *r) noexcept:
        return self.code != LS_TTFT or self.price_weight > 0 or has_slo(r)

    cdef void weigh(
        self, Candidates c, const ls_model *model, const float *seconds, double margin
    ) noexcept:
        cdef const ls_candidate *x = c.r.candidates
        cdef double rest
        cdef Py_ssize_t i
        c.answer = self.rest = 0
        if model != NULL and model.tells_tpot:
            ls_model_tpot(model, c.r.rows, <uint32_t>c.n, self.tpot)
            c.answer = self.rest = model.answer
            if c.r.request.most_tokens > 0:
                c.answer = min(c.answer, <double>c.r.request.most_tokens)
        else:
            for i in range(c.n):
                self.tpot[i] = NAN
        for i in range(c.n):
            self.upper[i] = ls_model_upper(model, c.r.rows + i * LS_WIDTH, seconds[i])
        c.upper, c.tpot, c.objective, c.priced = (
            self.upper, self.tpot, self.code, self.price_weight > 0)
        if has_slo(c.r):
            c.late = self.late
            self.keep_slo(c, seconds, margin)
            return
        for i in range(c.n):
            self.score[i] = self.plain[i] + self.bill(c, i)
            if c.answer > 0:
                rest = max(0.0, c.answer - 1) * self.tpot[i]
                rest += PREFILL_DELAYS * x[i].own_seconds * (x[i].inflight - x[i].waiting)
                self.score[i] += self.tpot_weight * rest
            self.bar[i] = self.score[i] - (1 - 1 / margin) * self.plain[i]

    cdef double bill(self, Candidates c, Py_ssize_t i) noexcept:
        """What candidate i asks for the request, in seconds of waiting."""
        cdef const ls_candidate *x = &c.r.candidates[i]
        cdef double taken = x.own_seconds
        if c.answer > 1:
            taken += (c.answer - 1) * self.tpot[i] / (x.inflight - x.waiting + 1)
        return self.price_weight * c.r.instances[x.slot].price * taken

    cdef void keep_slo(self, Candidates c, const float *seconds, double margin) noexcept:
        cdef const ls_candidate *x = c.r.candidates
        cdef double answer = c.answer if c.answer != 1 else 0  # one token has no time between
        cdef double unit = c.r.slo_ttft if c.r.slo_ttft > 0 else A_SECOND
        cdef double early, kept, harm, wait, rate = 0
        cdef Py_ssize_t i
        for i in range(c.n):
            self.tpot[i] = present_pace(&c.r.instances[x[i].slot].pace, self.tpot[i])
            early = kept = 1
            if c.r.slo_ttft > 0:
                wait = log(c.r.slo_ttft / seconds[i])
                early = likely(
                    wait / max(NARROW, log(self.upper[i] / seconds[i]) / NINE_OF_TEN))
            if c.r.slo_tpot > 0 and answer > 0:
                kept = likely((c.r.slo_tpot - self.tpot[i]) / (SPREAD * c.r.slo_tpot))
            harm = self.harm(c, i)
            self.late[i] = <float>harm
            rate += harm / max(1.0, <double>x[i].own)
            wait = self.plain[i] + self.bill(c, i)
            if c.r.slo_ttft > 0:
                wait -= (1 - IN_TIME) * early * seconds[i]
            wait = unit * log1p(wait / unit)
            self.score[i] = wait + LOST * unit * (1 - early * kept + harm)
            self.bar[i] = self.score[i] - (1 - 1 / margin) * wait
        rate *= SHADOW * LOST * unit / c.n
        for i in range(c.n):
            self.score[i] += rate * x[i].own
            self.bar[i] += rate * x[i].own

    cdef double harm(self, Candidates c, Py_ssize_t i) noexcept:
        """How many of those on candidate i will not have their tokens in time for its sake."""
        cdef const ls_candidate *x = &c.r.candidates[i]
        cdef const ls_pace *pace = &c.r.instances[x.slot].pace
        cdef double n = <double>pace.promises, limit, slack, spread, ahead
        if n == 0 or not self.rest > 0:
            return 0
        limit, slack = 1e-6 * pace.limits / n, 1e-3 * pace.slack / n
        spread = max(0.0, 1e-6 * pace.squares / n - slack * slack)
        spread = max(LEAST_SPREAD, sqrt(spread + (SPREAD * self.rest * limit) ** 2))
        ahead = slack + self.rest * (limit - self.tpot[i])
        return n * (likely(ahead / spread) - likely((ahead - x.own_seconds) / spread))


cdef inline float present_pace(const ls_pace *pace, float predicted) noexcept:
    """Seconds a token, of the prediction and of what the answers under way have taken so far."""
    if pace.tokens == 0:
        return predicted
    return <float>(
        (1 - PRESENT) * predicted + PRESENT * 1e-3 * <double>pace.ms / <double>pace.tokens)
