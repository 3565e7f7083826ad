"""Which instance gets a request: one class for each rule, and the table of them.

A policy sees Candidates: the instances that may be chosen, a row of csrc/features.h each, and the
few plain numbers that heuristics are made of. It returns the index of one and says why. To add a
policy: write a class here (for an experiment: a Python subclass of Policy), and a row in POLICIES.

Every rule that compares breaks ties at random, from the router's seed: with ties to the lower slot
an idle fleet would send all its load to the first instance.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
cimport cython
from libc.math cimport NAN, sqrt
from libc.stdlib cimport free

from lodestar_fast.core.lodestar cimport (
    LS_COLD, LS_EFORMAT, LS_EMAGIC, LS_ESCHEMA, LS_ESIZE, LS_EVALUE, LS_GUARD, LS_HEURISTIC,
    LS_LEARNED, LS_ONLY_ONE, LS_OUT_OF_RANGE, LS_REASONS, LS_SIMDS, LS_WIDTH, aligned_alloc,
    ls_candidate, ls_feature_table, ls_model_load, ls_model_score, ls_random, ls_simd_has,
    ls_simd_names,
)

from lodestar_fast.core.enums import Reason
from lodestar_fast.errors import BlobError

cdef tuple REASONS = tuple(Reason)
cdef dict COLUMNS = {ls_feature_table[i].name.decode(): i for i in range(LS_WIDTH)}


@cython.final
cdef class Candidates:
    """The routable instances of one decision, ordered by slot; valid only inside pick()."""

    cdef double uniform(self) noexcept:
        return ls_random(&self.r.rng)

    cdef Py_ssize_t least_inflight(self) noexcept:
        """Fewest requests in flight."""
        cdef Py_ssize_t i, best = 0, ties = 1
        for i in range(1, self.n):
            if self.r.candidates[i].inflight < self.r.candidates[best].inflight:
                best, ties = i, 1
            elif self.r.candidates[i].inflight == self.r.candidates[best].inflight:
                ties += 1
                if self.uniform() * ties < 1:
                    best = i
        return best

    cdef int check(self, Py_ssize_t i) except -1:
        if self.r == NULL:
            raise RuntimeError("candidates are valid only inside pick()")
        if i < 0 or i >= self.n:
            raise IndexError(f"candidate {i} of {self.n}")
        return 0

    @property
    def reason(self):
        """A Reason; None before pick() has set it."""
        return None if self.reason_code < 0 else REASONS[self.reason_code]

    @reason.setter
    def reason(self, int value):
        if value < 0 or value >= LS_REASONS:
            raise ValueError(f"{value} is no Reason")
        self.reason_code = value

    @property
    def prompt_tokens(self):
        self.check(0)
        return self.r.prompt_tokens

    def slot(self, Py_ssize_t i):
        self.check(i)
        return self.r.candidates[i].slot

    def feature(self, Py_ssize_t i, str name):
        """A column of features.h, scaled. Raises KeyError for an unknown name."""
        self.check(i)
        cdef Py_ssize_t column = COLUMNS[name]
        return self.r.rows[i * LS_WIDTH + column]

    def own_tokens(self, Py_ssize_t i):
        """Prompt tokens not believed cached on i."""
        self.check(i)
        return self.r.candidates[i].own

    def queued_tokens(self, Py_ssize_t i):
        """Uncached tokens ahead on i, progress deducted."""
        self.check(i)
        return self.r.candidates[i].queued

    def hit_tokens(self, Py_ssize_t i):
        self.check(i)
        return self.r.candidates[i].hit_tokens

    def inflight(self, Py_ssize_t i):
        """Requests dispatched to i and not finished."""
        self.check(i)
        return self.r.candidates[i].inflight

    def waiting(self, Py_ssize_t i):
        """Of those, without a first token."""
        self.check(i)
        return self.r.candidates[i].waiting

    def random(self):
        """Uniform in [0, 1) from the router's seed."""
        self.check(0)
        return self.uniform()


cdef class Policy:
    """Chooses one candidate.

    Contract: pick() returns 0 <= i < c.n and sets c.reason; reads no clock; draws randomness only
    from c.random(); does not allocate. Every subclass is run through tests/test_policies.py.
    """
    name = ""

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        raise NotImplementedError(f"{type(self).__name__}.pick")

    cdef double forecast(self, Py_ssize_t i) noexcept:
        return NAN

    def load(self, blob):
        """Take weights, if it has a model. Returns the version in use. Raises BlobError."""
        return self.version

    @property
    def version(self):
        """Of the weights in use, 0 if none."""
        return 0


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


cdef class Random(Policy):
    """Any instance, uniformly.

    Cost: one draw. Weak when: load is high; queues form by chance alone.
    """

    name = "random"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        return <Py_ssize_t>(c.uniform() * c.n)


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


cdef class PrefixCache(Policy):
    """AIBrix's prefix-cache rule: the longest believed hit among instances that are not too busy.

    B = requests in flight. If max B - min B > 8: least request. Else the longest hit with
    B <= mean + 1 standard deviation, fewer B first among equal hits; nobody: least request.
    Source: the AIBrix gateway's `prefix-cache` strategy with its default thresholds.

    Cost: two passes. Weak when: one long shared prefix draws load up to the thresholds; it does not
    know how long what is queued will take.
    """

    name = "prefix_cache"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef double total = 0, squares = 0, mean, limit
        cdef uint32_t low = x[0].inflight, high = x[0].inflight
        cdef Py_ssize_t i, best = -1
        for i in range(c.n):
            low = min(low, x[i].inflight)
            high = max(high, x[i].inflight)
            total += x[i].inflight
            squares += <double>x[i].inflight * x[i].inflight
        if high - low > 8:
            return c.least_inflight()
        mean = total / c.n
        limit = mean + sqrt(max(0.0, squares / c.n - mean * mean))
        for i in range(c.n):
            if x[i].hit_blocks == 0 or x[i].inflight > limit:
                continue
            if best < 0 or x[i].hit_blocks > x[best].hit_blocks or (
                x[i].hit_blocks == x[best].hit_blocks and x[i].inflight < x[best].inflight
            ):
                best = i
        return c.least_inflight() if best < 0 else best


cdef Py_ssize_t pick_lmetric(Candidates c) noexcept:
    cdef const ls_candidate *x = c.r.candidates
    cdef Py_ssize_t i, best = 0, ties = 1
    cdef double score, least = 0
    for i in range(c.n):
        score = (<double>x[i].queued + x[i].own) * (x[i].inflight + 1.0)
        if i == 0 or score < least:
            best, least, ties = i, score, 1
        elif score == least:
            ties += 1
            if c.uniform() * ties < 1:
                best = i
    return best


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


cdef class Lodestar(Policy):
    """The learned policy: least predicted time to first token, with two costs to others added.

        score = (T + load_weight s own (waiting + decoding)) (1 + kv_weight max(0, kv - kv_start))

    T: the model's prediction in seconds (csrc/mlp.c); s: the instance's speed, seconds per token;
    own: tokens it would compute, which delays those who decode there; kv: KV occupancy.
    LMETRIC's choice stands (GUARD) unless the best score is below its score / margin; without
    weights it decides alone (COLD). OUT_OF_RANGE marks a choice whose row lies outside the
    range of training: its T is the linear part alone.

    Cost: a forward pass per instance. Weak when: the load changes faster than it learns; then
    the linear part, which is physical, and the margin hold it.
    """

    name = "lodestar"

    def __cinit__(
        self, *, double margin=1.10, double load_weight=0.005, double kv_weight=2.0,
        double kv_start=0.85,
    ):
        if not margin >= 1:
            raise ValueError(f"margin: {margin} is below 1")
        if not (load_weight >= 0 and kv_weight >= 0):
            raise ValueError("load_weight, kv_weight: negative")
        self.margin, self.load_weight = margin, load_weight
        self.kv_weight, self.kv_start = kv_weight, kv_start
        self.buffers = <ls_model *>aligned_alloc(64, 2 * sizeof(ls_model))
        if self.buffers == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.buffers)

    cdef double score(self, Candidates c, Py_ssize_t i) noexcept:
        cdef const ls_candidate *x = &c.r.candidates[i]
        cdef double t = self.seconds[i] + self.load_weight * x.speed * x.own * x.inflight
        return t * (1 + self.kv_weight * max(0.0, x.occupancy - self.kv_start))

    cdef double forecast(self, Py_ssize_t i) noexcept:
        return self.seconds[i] if self.model != NULL else NAN

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        cdef Py_ssize_t i, best = 0, ties = 1, fallback
        cdef double score, least = 0
        if self.model != NULL:
            ls_model_score(self.model, c.r.rows, <uint32_t>c.n, self.seconds, self.outside)
        if c.n == 1:
            c.reason_code = LS_ONLY_ONE
            c.predicted = self.seconds[0] if self.model != NULL else NAN
            return 0
        fallback = pick_lmetric(c)
        if self.model == NULL:
            c.reason_code = LS_COLD
            return fallback
        for i in range(c.n):
            score = self.score(c, i)
            if i == 0 or score < least:
                best, least, ties = i, score, 1
            elif score == least:
                ties += 1
                if c.uniform() * ties < 1:
                    best = i
        c.reason_code = LS_LEARNED
        if best != fallback and not least < self.score(c, fallback) / self.margin:
            best = fallback
            c.reason_code = LS_GUARD
        if self.outside[best]:
            c.reason_code = LS_OUT_OF_RANGE
        c.predicted = self.seconds[best]
        return best

    def load(self, blob):
        """Take weights (csrc/lodestar.h draws the blob). Returns their version. Raises BlobError.

        They are checked in the idle buffer first: routing sees the old ones or the new ones.
        """
        cdef ls_model *idle = self.buffers if self.model != self.buffers else self.buffers + 1
        cdef Py_buffer view
        PyObject_GetBuffer(blob, &view, PyBUF_SIMPLE)
        cdef int error = ls_model_load(idle, view.buf, view.len)
        PyBuffer_Release(&view)
        if error < 0:
            raise BlobError(f"weights refused: {FAULTS[error]}")
        self.model = idle
        return self.model.version

    @property
    def version(self):
        """Of the weights in use, 0 if none."""
        return self.model.version if self.model != NULL else 0

    def predict(self, rows, seconds, *, str simd=None, Py_ssize_t repeat=1):
        """Score rows of scaled features, outside any decision: for tests, benches, validation."""
        cdef const float[::1] x = memoryview(rows).cast("B").cast("f")
        cdef float[::1] out = memoryview(seconds).cast("B").cast("f")
        cdef Py_ssize_t n = out.shape[0]
        if self.model == NULL or not 0 < n <= LS_MAX_INSTANCES or x.shape[0] != n * LS_WIDTH:
            raise ValueError(f"{x.shape[0]} numbers for {n} rows, or no weights are loaded")
        best = self.model.simd
        if simd is not None:
            self.model.simd = SIMDS[simd]
        for _ in range(repeat):
            ls_model_score(self.model, &x[0], <uint32_t>n, &out[0], self.outside)
        self.model.simd = best
        return sum([self.outside[i] for i in range(n)])


# What this processor can run; the last one is used.
SIMDS = {ls_simd_names[i].decode(): i for i in range(LS_SIMDS) if ls_simd_has(i)}

cdef dict FAULTS = {
    LS_EMAGIC: "not a weight blob",
    LS_EFORMAT: "another format version",
    LS_ESCHEMA: "made for another table of features",
    LS_ESIZE: "layer sizes or length do not fit",
    LS_EVALUE: "a number is not finite, or bounds are crossed",
}

POLICIES = {
    policy.name: policy
    for policy in (RoundRobin, Random, LeastRequest, PowerOfTwo, PrefixCache, Lmetric, Lodestar)
}
