"""Policies that take the least of one sum of costs, the believed hit deducted from the prompt."""

from libc.math cimport exp, fmax, fmin

from lodestar_fast.core.lodestar cimport LS_HEURISTIC, LS_MAX_INSTANCES, ls_candidate, ls_instance
from lodestar_fast.core.policies cimport Best, Candidates, Policy, offer, start


cdef Py_ssize_t pick_lmetric(Candidates c) noexcept:
    cdef const ls_candidate *x = c.r.candidates
    cdef Best best
    cdef Py_ssize_t i
    start(&best)
    for i in range(c.n):
        offer(c, &best, i, (<double>x[i].queued + x[i].own) * (x[i].inflight + 1.0))
    return best.i


cdef class Lmetric(Policy):
    """LMETRIC: least (queued + own uncached tokens) x (requests in flight + 1).

    Source: the LMETRIC paper's product of the prefill work ahead and the batch it joins; all from
    the router's own counters, progress in the queue deducted.

    Cost: one pass. Weak when: engines differ in speed, which it does not know, or KV is short.
    """

    name = "lmetric"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        return pick_lmetric(c)


cdef class Mooncake(Policy):
    """Mooncake's Conductor: least queue time + prefill time, by each instance's own speed.

        s (Q + L - hit)     s: seconds per uncached token, learned; Q: queued tokens
        or, if another's hit is over `balance` times as long:
        transfer (best hit - hit) + s (Q + L - best hit), if that is less

    transfer: seconds per token to fetch a prefix from its holder; 0: engines cannot, as here.
    Source: the Mooncake paper (FAST '25), algorithm 1. It rejects requests that would miss their
    SLO; here each request goes somewhere.

    Cost: two passes. Weak when: decoding slows prefill down, which this sum does not know.
    """

    name = "mooncake"

    def __cinit__(self, *, double transfer=0.0, double balance=1.5):
        if not (transfer >= 0 and balance >= 1):
            raise ValueError("transfer: negative, or balance below 1")
        self.transfer, self.balance = transfer, balance

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        cdef double longest = 0, seconds, fetched
        for i in range(c.n):
            longest = fmax(longest, x[i].hit_tokens)
        start(&best)
        for i in range(c.n):
            seconds = x[i].speed * (<double>x[i].queued + x[i].own)
            if self.transfer > 0 and longest > self.balance * x[i].hit_tokens:
                fetched = self.transfer * (longest - x[i].hit_tokens)
                fetched += x[i].speed * (x[i].queued + c.r.prompt_tokens - longest)
                seconds = fmin(seconds, fetched)
            offer(c, &best, i, seconds)
        return best.i


cdef class Dynamo(Policy):
    """Dynamo's KV router: least overlap_weight x prefill blocks + decode blocks.

        prefill blocks: (Q + L - hit) / block_tokens
        decode blocks: (tokens of all requests in flight + L) / block_tokens

    temperature 0: the least cost; above: drawn by exp(-cost / (temperature x range of costs)).
    Source: NVIDIA Dynamo's router, its defaults (weight 1, temperature 0, blocks of 16).

    Cost: one pass, and one exponential an instance when drawing. Weak when: engines differ in
    speed; a block computed and a block held count alike, so long contexts outweigh waiting prompts.
    """

    name = "dynamo"

    def __cinit__(
        self, *, double overlap_weight=1.0, double temperature=0.0, double block_tokens=16.0
    ):
        if not (overlap_weight >= 0 and temperature >= 0 and block_tokens >= 1):
            raise ValueError("overlap_weight, temperature: negative, or block_tokens below 1")
        self.overlap_weight, self.temperature = overlap_weight, temperature
        self.block_tokens = block_tokens

    cdef double cost(self, Candidates c, Py_ssize_t i) noexcept:
        cdef const ls_candidate *x = &c.r.candidates[i]
        cdef const ls_instance *instance = &c.r.instances[x.slot]
        cdef double held = <double>instance.decode_context + instance.prefill_prompt
        return (
            self.overlap_weight * (<double>x.queued + x.own) + held + c.r.prompt_tokens
        ) / self.block_tokens

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef Best best
        cdef Py_ssize_t i
        cdef double most = 0, total = 0, mark, scale
        start(&best)
        for i in range(c.n):
            self.costs[i] = self.cost(c, i)
            most = fmax(most, self.costs[i])
            offer(c, &best, i, self.costs[i])
        if self.temperature == 0 or most == best.least:
            return best.i
        scale = self.temperature * (most - best.least)
        for i in range(c.n):
            self.costs[i] = exp((best.least - self.costs[i]) / scale)
            total += self.costs[i]
        mark = c.uniform() * total
        for i in range(c.n):
            mark -= self.costs[i]
            if mark < 0:
                return i
        return best.i

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        cdef Py_ssize_t i
        cdef double least, most, total = 0
        if self.temperature == 0:
            c.even_odds(choice)
            return
        least = most = c.scores[0]
        for i in range(1, c.n):
            least, most = fmin(least, c.scores[i]), fmax(most, c.scores[i])
        if most == least:
            c.even_odds(choice)
            return
        for i in range(c.n):
            c.odds[i] = exp((least - c.scores[i]) / (self.temperature * (most - least)))
            total += c.odds[i]
        for i in range(c.n):
            c.odds[i] /= total


cdef class ExpectedCompletion(Policy):
    """The calibrated one-liner: least (Q + L - hit) c + w.

    c, w: seconds per token and per iteration of the instance's hardware, as told by know(); of an
    instance that nobody told of, its learned speed and 0. Source: what an operator would write who
    has measured each GPU; the simulator tells the true coefficients of its engines.

    Cost: one pass. Weak when: coefficients age (a throttled GPU); decodes and KV pressure count
    for nothing.
    """

    name = "expected_completion"

    def know(self, Py_ssize_t slot, double c, double w):
        """The coefficients of a slot, seconds. Raises ValueError if they make no sense."""
        if not (0 <= slot < LS_MAX_INSTANCES and c > 0 and w >= 0):
            raise ValueError(f"slot {slot}: c is {c}, w is {w}")
        self.c[slot], self.w[slot] = c, w

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        cdef double speed
        start(&best)
        for i in range(c.n):
            speed = self.c[x[i].slot] or x[i].speed
            offer(c, &best, i, (<double>x[i].queued + x[i].own) * speed + self.w[x[i].slot])
        return best.i
