"""What a request wants besides an early first token: an early end, its SLO kept, a low price."""

from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport (
    LS_WIDTH, ls_candidate, ls_model_tpot, ls_model_upper,
)
from lodestar_fast.core.policies cimport Candidates
from lodestar_fast.core.record cimport LS_E2E, LS_TTFT, LS_TTFT_TPOT

# Chosen in simulation, on the fleets of deploy/objectives.md. An engine computes prompts in pieces,
# beside which its answers go on, if slower: the time counts half. With an SLO one's own wait counts
# a tenth, for it is in time anyway; not at all and all ties would be broken by chance.
cdef double PREFILL_DELAYS = 0.5
cdef double IN_TIME = 0.1

OBJECTIVES = {"ttft": LS_TTFT, "ttft+tpot": LS_TTFT_TPOT, "e2e": LS_E2E}


cdef inline double excess(double seconds, double limit) noexcept:
    """How many times the limit; 0 if there is none, or nothing is known."""
    return seconds / limit if limit > 0 and seconds == seconds else 0


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
        c.answer = 0
        if model != NULL and model.tells_tpot:
            ls_model_tpot(model, c.r.rows, <uint32_t>c.n, self.tpot)
            c.answer = model.answer
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

    cdef double over(self, Candidates c, Py_ssize_t i) noexcept:
        """How many times its SLO candidate i is predicted to take."""
        return max(excess(self.upper[i], c.r.slo_ttft), excess(self.tpot[i], c.r.slo_tpot))

    cdef void keep_slo(self, Candidates c, const float *seconds, double margin) noexcept:
        cdef bint some = False
        cdef double over, unit = c.r.slo_ttft if c.r.slo_ttft > 0 else c.r.slo_tpot
        cdef Py_ssize_t i
        for i in range(c.n):
            self.score[i] = self.over(c, i)
            some = some or self.score[i] <= 1
        for i in range(c.n):
            over = self.score[i]
            if not some:
                self.score[i] = over * unit + self.plain[i] - seconds[i]
            elif over > 1:
                self.score[i] = INFINITY
            else:
                self.score[i] = self.plain[i] - (1 - IN_TIME) * seconds[i] + self.bill(c, i)
            self.bar[i] = self.score[i] / margin
