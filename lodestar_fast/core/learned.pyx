"""The learned policy, and the weights it predicts with."""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY, NAN, exp
from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from lodestar_fast.core.aims cimport has_slo
from lodestar_fast.core.costs cimport pick_lmetric
from lodestar_fast.core.lodestar cimport (
    LS_COLD, LS_COLD_UPPER, LS_EFORMAT, LS_EMAGIC, LS_ESCHEMA, LS_ESIZE, LS_EVALUE, LS_EXPLORE,
    LS_GUARD, LS_LEARNED, LS_MAX_INSTANCES, LS_ONLY_ONE, LS_OUT_OF_RANGE, LS_SIMDS, LS_WIDTH,
    aligned_alloc, ls_candidate, ls_model, ls_model_load, ls_model_score, ls_simd_has,
    ls_simd_names,
)
from lodestar_fast.core.policies cimport Best, Candidates, Policy, offer, start

from lodestar_fast.errors import BlobError

cdef double UNMEASURED = 60.0    # seconds after which an idle engine's speed is worth a look
cdef double MOST_SAVED = 1.0     # seconds of regret; a longer calm buys no more at once
cdef double BATCH_TOKENS = 1000.0  # that wait are a queue; fewer, and one iteration takes them all
cdef double HALF_ANSWERED = 0.5  # of its answer: where a request is in the mean


cdef class Lodestar(Policy):
    """The learned policy: least predicted time to first token, with what it costs others added.

        score = (T + own (load_weight n + wait_weight w + crowd_weight crowd n))
                (1 + spare_weight d) (1 + kv_weight max(0, kv - kv_start)) exp(affinity_weight e m)

    T: the model's prediction in seconds (csrc/mlp.c); own: seconds it would compute, which delays
    the n in flight there, most of all the w without a first token. While many are free a delay
    ends with those who are there. When most have queues (crowd: harmonic mean of w + 1 over the
    instances, less 2, from 0; w at most one for each 1,000 tokens that wait, for short prompts are
    computed together), all who come later wait for it too: then work counts more than one's own
    wait, so long prompts go where few are, and prefixes stay where they are cached.

    d: own n, what all answers there together lose, over the mean of own (n + 1/2). As a factor it
    decides between engines that are about equally quick, and makes nobody queue, which a price in
    seconds does; it is 0 for requests with an SLO. kv: KV occupancy when those in flight and this
    one are half through the mean answer: where prompts are short, answers fill the cache.

    m: share of the prompt that the longest hit has and this one has not: to be computed, and
    kept, a second time. e: the log factor between a prediction and what nine of ten first tokens
    keep, as learned. So a whole prefix moves for what is no error of prediction, a part of it for
    less; 0, too, for requests with an SLO. Off by default.

    An idle engine whose speed was not measured for a minute may have recovered. A request goes
    there to see (EXPLORE) once what that costs beyond the best score is within what was saved:
    explore_share of all predicted seconds, less what was spent.

    LMETRIC's choice stands (GUARD) unless the best score is below its score / margin. Without
    weights T is plain physics at the speeds measured so far (COLD). OUT_OF_RANGE marks a choice
    whose row lies outside the range of training: its T is the linear part alone.

    Cost: a forward pass per instance. Weak when: the load changes faster than it learns; then
    the linear part, which is physical, and the margin hold it.
    """

    name = "lodestar"

    def __cinit__(
        self, *, double margin=1.10, double load_weight=0.005, double wait_weight=0.2,
        double crowd_weight=0.2, double spare_weight=0.5, double affinity_weight=1.0,
        double kv_weight=2.0, double kv_start=0.85, double explore_share=0.01, str objective="ttft",
        double tpot_weight=0.3, double price_weight=0,
    ):
        if not margin >= 1:
            raise ValueError(f"margin: {margin} is below 1")
        for weight in (
            load_weight, wait_weight, crowd_weight, spare_weight, affinity_weight, kv_weight
        ):
            if not weight >= 0:
                raise ValueError(
                    "load_weight, wait_weight, crowd_weight, spare_weight, affinity_weight, "
                    "kv_weight: negative"
                )
        if not 0 <= explore_share <= 1:
            raise ValueError(f"explore_share: {explore_share} is no share")
        self.margin, self.load_weight = margin, load_weight
        self.wait_weight, self.crowd_weight = wait_weight, crowd_weight
        self.spare_weight, self.affinity_weight = spare_weight, affinity_weight
        self.kv_weight, self.kv_start = kv_weight, kv_start
        self.aims = Aims(
            objective=objective, tpot_weight=tpot_weight, price_weight=price_weight)
        self.explore_share = explore_share
        cdef Py_ssize_t slot
        for slot in range(LS_MAX_INSTANCES):
            self.explored[slot] = -INFINITY
        self.buffers = <ls_model *>aligned_alloc(64, 2 * sizeof(ls_model))
        if self.buffers == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.buffers)

    cdef double score(self, Candidates c, Py_ssize_t i) noexcept:
        return self.aims.score[i] if self.aimed else self.priced(c, i, self.seconds[i])

    cdef double bar(self, Candidates c, Py_ssize_t i) noexcept:
        """What the best score must be below for i, the fallback's choice, not to stand."""
        return self.aims.bar[i] if self.aimed else self.score(c, i) / self.margin

    cdef double physics(self, Candidates c, Py_ssize_t i) noexcept:
        return self.priced(c, i, c.r.candidates[i].expected)

    cdef double priced(self, Candidates c, Py_ssize_t i, double seconds) noexcept:
        cdef const ls_candidate *x = &c.r.candidates[i]
        cdef double delayed = (self.load_weight + self.crowd_weight * self.crowd) * x.inflight
        delayed += self.wait_weight * x.waiting
        cdef double t = seconds + x.own_seconds * delayed
        cdef double kv = x.occupancy, capacity = <double>c.r.instances[x.slot].kv_tokens
        if capacity > 0:
            kv += self.growth * (x.inflight + 1) / capacity
        t *= 1 + self.delay_weight * x.own_seconds * x.inflight
        if x.hit_tokens < self.longest:
            t *= exp(self.moved_weight * (self.longest - x.hit_tokens))
        return t * (1 + self.kv_weight * max(0.0, kv - self.kv_start))

    cdef void weigh_fleet(self, Candidates c) noexcept:
        """What is the same in the scores of all candidates."""
        cdef const ls_candidate *x = c.r.candidates
        cdef double idle = 0  # an instance counts 1 if nobody waits there, less the more do
        cdef double delays = 0, waiting
        cdef Py_ssize_t i
        self.longest = 0
        for i in range(c.n):
            self.longest = max(self.longest, x[i].hit_tokens)
            waiting = min(<double>x[i].waiting, x[i].queued / BATCH_TOKENS)
            idle += 1.0 / (1.0 + waiting)
            delays += x[i].own_seconds * (x[i].inflight + 0.5)
        self.crowd = max(0.0, c.n / idle - 2)
        self.delay_weight = self.spare_weight * c.n / delays
        c.unsure = self.model.upper[0] if self.model != NULL else LS_COLD_UPPER
        c.unsure = self.affinity_weight * max(0.0, c.unsure)
        if has_slo(c.r):  # its own time counts for little as it is, in Aims
            self.delay_weight = c.unsure = 0
        self.moved_weight = c.unsure / c.r.prompt_tokens
        self.growth = HALF_ANSWERED * self.model.answer if self.model != NULL else 0

    cdef Py_ssize_t to_explore(self, Candidates c, Py_ssize_t best, double least) noexcept:
        """The candidate to try in place of the best, whose score is given; -1: none."""
        cdef Py_ssize_t i, found = -1
        cdef double extra, cheapest, measured
        cdef uint32_t slot
        self.saved = min(MOST_SAVED, self.saved + self.explore_share * self.seconds[best])
        if c.r.promised:
            return -1  # who asked to be in time pays for nothing
        cheapest = self.saved
        for i in range(c.n):
            slot = c.r.candidates[i].slot
            if i == best or c.r.candidates[i].inflight > 0:
                continue
            measured = max(c.r.instances[slot].speed.at, self.explored[slot])
            if measured == -INFINITY:  # a new one: its minute begins
                self.explored[slot] = c.r.now
                continue
            if c.r.now - measured < UNMEASURED:
                continue
            extra = self.score(c, i) - least
            if has_slo(c.r):  # who keeps it or not is for no one to pay
                extra = self.aims.plain[i] - self.aims.plain[best]
            if extra < cheapest:
                found, cheapest = i, extra
        if found >= 0:
            self.explored[c.r.candidates[found].slot] = c.r.now
            cheapest = max(0.0, cheapest)
            self.saved -= cheapest
            self.spent += cheapest
        return found

    cdef double forecast(self, Py_ssize_t i) noexcept:
        return self.seconds[i] if self.model != NULL else NAN

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        cdef Best found
        cdef Py_ssize_t i, best, fallback, trial = -1
        self.exploring = False
        if self.model != NULL:
            ls_model_score(self.model, c.r.rows, <uint32_t>c.n, self.seconds, self.outside)
            c.seconds, c.outside, c.linear = self.seconds, self.outside, self.model.linear
        else:
            for i in range(c.n):
                self.seconds[i], self.outside[i] = c.r.candidates[i].expected, False
        self.weigh_fleet(c)
        self.aimed = self.aims.apply(c.r)
        if self.aimed:
            for i in range(c.n):
                self.aims.plain[i] = self.priced(c, i, self.seconds[i])
            self.aims.weigh(c, self.model, self.seconds, self.margin)
        c.margin = self.margin
        if c.n == 1:
            c.reason_code = LS_ONLY_ONE
            c.predicted = self.forecast(0)
            if c.scores != NULL:
                c.scores[0] = self.score(c, 0)
            return 0
        if c.lmetric_known:
            fallback, c.r.rng = c.lmetric, c.lmetric_rng
        else:
            fallback = pick_lmetric(c)
        c.fallback = fallback
        if c.scores != NULL:
            c.even_odds(fallback)
            memcpy(self.safe_odds, c.odds, <size_t>c.n * sizeof(float))
        start(&found)
        for i in range(c.n):
            offer(c, &found, i, self.score(c, i))
        best = found.i
        c.reason_code = LS_LEARNED
        if best != fallback and not found.least < self.bar(c, fallback):
            best = fallback
            c.reason_code = LS_GUARD
        if self.explore_share > 0 and self.model != NULL:
            trial = self.to_explore(c, best, self.score(c, best))
        if self.outside[best]:
            c.reason_code = LS_OUT_OF_RANGE
        if trial >= 0:
            best, self.exploring, c.reason_code = trial, True, LS_EXPLORE
        if self.model == NULL:
            c.reason_code = LS_COLD
        c.predicted = self.forecast(best)
        return best

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        """Both choices break ties at random: over each pair of them, what pick() would take."""
        cdef Py_ssize_t i, k, ties = 0
        cdef double least
        if c.n == 1 or self.exploring:
            c.sure(choice)
            return
        least = c.scores[0]
        for i in range(1, c.n):
            least = min(least, c.scores[i])
        for i in range(c.n):
            ties += c.scores[i] == least
            c.odds[i] = 0
        for i in range(c.n):
            if self.safe_odds[i] == 0:
                continue
            if c.scores[i] == least or not least < self.bar(c, i):
                c.odds[i] += self.safe_odds[i]
                continue
            for k in range(c.n):
                if c.scores[k] == least:
                    c.odds[k] += self.safe_odds[i] / ties

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
