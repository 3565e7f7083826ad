"""Policies that look at load alone: what is in flight, waiting or in use, and no prefix.

Counts are the router's own, exact at the moment of the decision, where a system's source uses what
its engines last reported; so a burst between two reports does not go to one instance.
"""

from libc.math cimport exp, fmax

from lodestar_fast.core.lodestar cimport (
    LS_HEURISTIC, ls_candidate, ls_instance, ls_ring_mean,
)
from lodestar_fast.core.policies cimport Best, Candidates, Policy, offer, start


cdef class RoundRobin(Policy):
    """Each routable instance in turn.

    Cost: one pass. Weak when: instances or requests differ, as they do.
    """

    name = "round_robin"

    def __cinit__(self):
        self.last = -1

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef Py_ssize_t i, choice = 0
        for i in range(c.n):  # rows are ordered by slot
            if <Py_ssize_t>c.r.candidates[i].slot > self.last:
                choice = i
                break
        self.last = c.r.candidates[choice].slot
        return choice

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        c.sure(choice)


cdef class Random(Policy):
    """Any instance, uniformly.

    Cost: one draw. Weak when: load is high; queues form by chance alone.
    """

    name = "random"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        return <Py_ssize_t>(c.uniform() * c.n)

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        cdef Py_ssize_t i
        for i in range(c.n):
            c.odds[i] = 1.0 / c.n


cdef class LeastRequest(Policy):
    """Fewest requests in flight, by the router's own count.

    Cost: one pass. Weak when: prompts differ in length, engines in speed, or caches matter.
    """

    name = "least_request"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        return c.least_inflight()


cdef class PowerOfTwo(Policy):
    """The one of two random instances with fewer requests in flight (Mitzenmacher 2001).

    Cost: two draws, for any number of instances. Weak when: least_request is; it does not herd.
    """

    name = "power_of_two"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        if c.n == 1:
            return 0
        cdef Py_ssize_t a = <Py_ssize_t>(c.uniform() * c.n)
        cdef Py_ssize_t b = (a + 1 + <Py_ssize_t>(c.uniform() * (c.n - 1))) % c.n
        return b if c.r.candidates[b].inflight < c.r.candidates[a].inflight else a

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        """Of n (n - 1) ordered pairs, those in which i has fewer in flight, or as many and is
        first."""
        cdef Py_ssize_t i, k, wins
        cdef const ls_candidate *x = c.r.candidates
        if c.n == 1:
            c.sure(0)
            return
        for i in range(c.n):
            wins = -1  # it ties with itself
            for k in range(c.n):
                wins += (x[i].inflight < x[k].inflight) + (x[i].inflight <= x[k].inflight)
            c.odds[i] = wins / (<double>c.n * (c.n - 1))


cdef class LeastKV(Policy):
    """Least KV cache in use: the larger of what the engine reports and what the router dispatched.

    Source: AIBrix `least-kv-cache`; with the router's own count a burst between two reports shows.

    Cost: one pass. Weak when: work, not memory, is short; an idle engine with a full prefix cache
    counts as empty, and one whose capacity nobody told and that reports nothing as well.
    """

    name = "least_kv"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        start(&best)
        for i in range(c.n):
            offer(c, &best, i, fmax(x[i].occupancy, c.r.instances[x[i].slot].kv_usage))
        return best.i


cdef class LeastPrefillTokens(Policy):
    """Fewest uncached tokens dispatched and not computed yet: min Q.

    Source: the queue term by itself, as prefill-aware balancers use it.

    Cost: one pass. Weak when: engines differ in speed, decoding is what fills them, or it matters
    who holds the prompt.
    """

    name = "least_prefill_tokens"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef Best best
        cdef Py_ssize_t i
        start(&best)
        for i in range(c.n):
            offer(c, &best, i, c.r.candidates[i].queued)
        return best.i


cdef class LeastLatency(Policy):
    """Least expected latency from averages: queue + prefill + decode.

        s Q + s L + N d     s: seconds per uncached token, Q: queued tokens, L: prompt tokens,
                            d: recent mean seconds between tokens, N: output_tokens, a guess

    Source: AIBrix `least-latency`, whose averages per instance are those of its last requests.

    Cost: one pass. Weak when: caches matter, which averages do not see; the output is longer or
    shorter than the guess; an instance was idle, for its averages are then old.
    """

    name = "least_latency"

    def __cinit__(self, *, double output_tokens=200.0):
        if not output_tokens >= 0:
            raise ValueError(f"output_tokens: {output_tokens} is negative")
        self.output_tokens = output_tokens

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        cdef double decode
        start(&best)
        for i in range(c.n):
            decode = ls_ring_mean(&c.r.instances[x[i].slot].inter_token)
            offer(c, &best, i,
                  x[i].speed * (x[i].queued + c.r.prompt_tokens) + self.output_tokens * decode)
        return best.i


cdef class Throughput(Policy):
    """Least tokens per second at present: 2 x prompt + generation.

    Prompt: prompt tokens dispatched, a mean that fades over `seconds`. Generation: requests that
    decode over their recent time between tokens. Source: AIBrix `throughput`, with its weights.

    Cost: one pass, one exponential an instance. Weak when: engines differ: the quick ones have a
    high throughput, and are avoided for it.
    """

    name = "throughput"

    def __cinit__(self, *, double seconds=10.0):
        if not seconds > 0:
            raise ValueError(f"seconds: {seconds} is not above 0")
        self.seconds = seconds

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_instance *x
        cdef Best best
        cdef Py_ssize_t i, slot
        cdef double gap, generation
        start(&best)
        for i in range(c.n):
            slot = c.r.candidates[i].slot
            x = &c.r.instances[slot]
            if self.epochs[slot] != x.epoch:  # another tenant
                self.epochs[slot], self.prompt[slot] = x.epoch, 0
            self.prompt[slot] *= exp(-fmax(0.0, c.r.now - self.at[slot]) / self.seconds)
            self.at[slot] = c.r.now
            gap = ls_ring_mean(&x.inter_token)
            generation = x.decode_requests / gap if gap > 0 else 0
            offer(c, &best, i, 2 * self.prompt[slot] / self.seconds + generation)
        self.prompt[c.r.candidates[best.i].slot] += c.r.prompt_tokens
        return best.i


cdef class VllmDP(Policy):
    """Least 4 x waiting + running.

    Source: vLLM's balancer over data-parallel ranks. Waiting: requests without a first token.

    Cost: one pass. Weak when: prompts differ in length; it counts requests, not work.
    """

    name = "vllm_dp"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        start(&best)
        for i in range(c.n):
            offer(c, &best, i, 3.0 * x[i].waiting + x[i].inflight)
        return best.i
