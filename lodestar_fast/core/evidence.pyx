"""What sample batches say of the learned policy: is it right, and is it better than its fallback?

A watchdog reads a batch here before the learner gets it. Three questions:

1. How far are predictions off? Median of |log(measured / predicted)| over the last 128.
2. How do requests fare that the learned policy decided, and those that the fallback did? Compared
   is log(measured / reference), where the reference is the TTFT that plain physics gave the
   fallback's choice at that moment. It does not depend on who decided, so dividing by it takes out
   what a request and the load of the moment explain, and leaves what the choice did.

3. Do predictions drift? A cumulated sum (CUSUM) to either side of log(measured / predicted), in
   standard deviations of the last 512 or so from their mean, DRIFT_SLACK of each forgiven: over
   DRIFT it is no chance any more. One for the fleet, one for each engine. In simulation, 200 s: no
   alarm in three healthy cells, none where one trace follows another; an engine three times as
   slow was found after 2 to 10 s, a fleet 1.7 times as slow after 4 s, one engine ten times as
   slow after 76 s, as hardly anybody is sent there. Near saturation the queues themselves are a
   drift (8 A30 at 22.5/s).

What ends before its first token (the client left, we gave up) has waited at least so long: it
counts where that is already longer than predicted. An engine's failure is not the model's.

Clients have a hand in what is measured. So no tenant counts for more than shares.py allows, and
where enough verified first tokens came of late, the operator's own, the first question is answered
by them alone: then others can neither hide that the model is wrong nor make it look so.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
cimport cython
from libc.math cimport fabs, isfinite, log, sqrt
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from lodestar_fast.core.lodestar cimport (
    LS_ABANDONED, LS_CONTROL, LS_DEMOTED, LS_EXPLORE, LS_F_own_seconds, LS_F_queue_seconds,
    LS_FIRST_TOKEN, LS_GUARD, LS_IDLE_SECONDS, LS_LEARNED, LS_MAX_INSTANCES, LS_OUT_OF_RANGE,
    LS_SAMPLE_HEADER, LS_SAMPLE_MAGIC, LS_SHADOW, LS_TIMEOUT, LS_VERIFIED, ls_sample,
    ls_schema_hash,
)

from lodestar_fast.errors import BlobError
from lodestar_fast.shares import LEAST, most

cdef enum:
    AGREED = 0                  # the learned policy decided, as the fallback would have
    DEVIATED = 1                # it decided otherwise
    CONTROL = 2                 # the fallback decided

cdef double FLOOR = 0.005       # seconds added to both sides: below, a ratio is noise
cdef double MOST_RATIO = 4.0    # log; one request counts at most so much
cdef double DRIFT = 20.0        # standard deviations
cdef double DRIFT_SLACK = 1.0
cdef double MOST_OFF = 3.0      # standard deviations; one request counts at most so much
cdef double HABIT = 1 / 512.0   # weight of one request in the fading means
cdef int LEAST_CHECKED = 16     # verified first tokens that answer in place of all ...
cdef double LATELY = 300.0      # ... if they are not older than so many seconds
cdef double SAME = 1e-3         # relative difference of two estimates of one instance


cdef bint passed(cusum *sums, double off, double weight) noexcept:
    """Add one request; whether that was too much, then from 0."""
    sums.up = max(0.0, sums.up + weight * (off - DRIFT_SLACK))
    sums.down = max(0.0, sums.down + weight * (-off - DRIFT_SLACK))
    if sums.up <= DRIFT and sums.down <= DRIFT:
        return False
    sums.up = sums.down = 0
    return True


@cython.final
cdef class Evidence:
    def __cinit__(self):
        self.spread, self.drifted = 0.25, -2
        self.factors = {}

    cdef void follow(self, unsigned int slot, double error, double weight) noexcept:
        cdef double off = max(-MOST_OFF, min(MOST_OFF, (error - self.habit) / sqrt(self.spread)))
        self.spread += ((error - self.habit) ** 2 - self.spread) * HABIT * weight
        self.habit += (error - self.habit) * HABIT * weight
        if slot < LS_MAX_INSTANCES and passed(&self.engines[slot], off, weight):
            self.engine_drifts += 1
            self.drifted, self.slower = <int>slot, off > 0
        if passed(&self.fleet, off, weight):
            self.fleet_drifts += 1
            self.drifted, self.slower = -1, off > 0

    def take(self, batch):
        cdef Py_buffer view
        cdef uint32_t head[6]
        cdef uint64_t schema
        cdef Py_ssize_t i
        cdef const ls_sample *first
        PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
        try:
            if view.len < LS_SAMPLE_HEADER:
                raise BlobError(f"sample batch of {view.len} bytes has no header")
            memcpy(head, view.buf, sizeof(head))
            memcpy(&schema, <const char *>view.buf + 8, sizeof(schema))
            if (
                head[0] != LS_SAMPLE_MAGIC or schema != ls_schema_hash()
                or head[5] != sizeof(ls_sample)
                or view.len != LS_SAMPLE_HEADER + <Py_ssize_t>head[4] * <Py_ssize_t>head[5]
            ):
                raise BlobError("not a sample batch of this build")
            first = <const ls_sample *>(<const char *>view.buf + LS_SAMPLE_HEADER)
            for i in range(head[4]):
                if telling(&first[i]):
                    self.senders[self.sent % SENT] = first[i].tenant
                    self.sent += 1
            self.factors = self.shared_out()
            for i in range(head[4]):
                if telling(&first[i]):
                    self.weigh(&first[i])
        finally:
            PyBuffer_Release(&view)

    cdef dict shared_out(self):
        """What a request of each tenant counts that sends more than its share."""
        cdef dict counts = {}
        cdef Py_ssize_t i
        for i in range(min(self.sent, SENT)):
            counts[self.senders[i]] = counts.get(self.senders[i], 0) + 1
        if len(counts) < 2:
            return {}
        allowed = most(counts.values())
        return {
            tenant: max(LEAST, allowed / n)
            for tenant, n in counts.items() if n > allowed and tenant != LS_VERIFIED
        }

    cdef int weigh(self, const ls_sample *s) except -1:
        cdef Py_ssize_t at
        cdef bint censored = s.event != LS_FIRST_TOKEN
        cdef double weight = self.factors.get(s.tenant, 1.0) if self.factors else 1.0
        cdef double error = log((s.ttft + FLOOR) / (s.predicted + FLOOR))
        self.measured += 1
        self.newest = max(self.newest, s.dispatched)
        self.errors[self.at], self.weights[self.at] = fabs(error), weight
        if s.tenant == LS_VERIFIED:
            at = self.checks % WINDOW
            self.checked[at][0], self.checked[at][1] = fabs(error), s.dispatched
            self.checks += 1
        if not censored:
            self.follow(s.slot, error, weight)
        self.at = (self.at + 1) % WINDOW
        self.held = min(self.held + 1, WINDOW)
        if not censored:
            at = self.paired % PAIRS
            self.pairs[at][0], self.pairs[at][1] = s.predicted, s.ttft
            self.reasons[at] = s.reason
            self.paired += 1
        if not s.reference > 0:
            return 0
        cdef int arm
        cdef double chosen
        if s.reason in (LS_SHADOW, LS_CONTROL, LS_DEMOTED):
            arm = CONTROL
        elif s.reason in (LS_LEARNED, LS_GUARD, LS_OUT_OF_RANGE, LS_EXPLORE):
            chosen = LS_IDLE_SECONDS + s.x[LS_F_own_seconds] + s.x[LS_F_queue_seconds]
            arm = AGREED if fabs(chosen - s.reference) <= SAME * s.reference else DEVIATED
        else:
            return 0
        cdef tally *t = &self.arms[arm]
        cdef double ratio = log((s.ttft + FLOOR) / (s.reference + FLOOR))
        ratio = max(-MOST_RATIO, min(MOST_RATIO, ratio))
        cdef double step = ratio - t.mean
        t.n += weight
        t.mean += weight * step / t.n
        t.square += weight * step * (ratio - t.mean)
        t.ttft += weight * s.ttft
        self.requests[arm == CONTROL] += 1
        self.seconds[arm == CONTROL] += s.ttft
        return 0

    @property
    def window(self):
        return self.held

    @property
    def error(self):
        cdef Py_ssize_t i
        cdef double passed = 0, total = 0
        cdef list checked = self.verified_errors()
        if len(checked) >= LEAST_CHECKED:
            return sorted(checked)[len(checked) // 2]
        cdef list pairs = sorted([(self.errors[i], self.weights[i]) for i in range(self.held)])
        for i in range(self.held):
            total += self.weights[i]
        for error, weight in pairs:
            passed += weight
            if passed > total / 2:
                return error
        return float("nan")

    cdef list verified_errors(self):
        """Those that are not too old."""
        cdef Py_ssize_t i
        return [
            self.checked[i][0] for i in range(min(self.checks, WINDOW))
            if self.checked[i][1] >= self.newest - LATELY
        ]

    @property
    def verified(self):
        cdef Py_ssize_t n = len(self.verified_errors())
        return n if n >= LEAST_CHECKED else 0

    def recent(self):
        cdef Py_ssize_t i, n = min(self.paired, PAIRS)
        return [(self.pairs[i][0], self.pairs[i][1], self.reasons[i]) for i in (
            (self.paired - n + k) % PAIRS for k in range(n))]

    def forget(self):
        self.held = self.at = self.checks = 0
        memset(&self.fleet, 0, sizeof(self.fleet))
        memset(self.engines, 0, sizeof(self.engines))
        self.compare_anew()

    def compare_anew(self):
        memset(self.arms, 0, sizeof(self.arms))

    def learned(self):
        cdef tally both = self.arms[AGREED]
        cdef const tally *t = &self.arms[DEVIATED]
        cdef double step = t.mean - both.mean
        if both.n + t.n == 0:
            return about(&both)
        both.square += t.square + step * step * both.n * t.n / (both.n + t.n)
        both.mean += step * t.n / (both.n + t.n)
        both.n += t.n
        both.ttft += t.ttft
        return about(&both)

    def totals(self):
        names = ("learned", "fallback")
        return {name: (self.requests[i], self.seconds[i]) for i, name in enumerate(names)}

    def agreed(self):
        return about(&self.arms[AGREED])

    def deviated(self):
        return about(&self.arms[DEVIATED])

    def control(self):
        return about(&self.arms[CONTROL])


cdef bint telling(const ls_sample *s) noexcept:
    """Whether it is a first token, or an end before it, that says something of a prediction."""
    cdef bint censored = s.event == LS_ABANDONED or s.event == LS_TIMEOUT
    if not (s.event == LS_FIRST_TOKEN or censored) or not isfinite(s.ttft):
        return False
    return isfinite(s.predicted) and not (censored and s.ttft <= s.predicted)


cdef tuple about(const tally *t):
    """(n, mean log ratio, its standard error, mean TTFT in seconds)."""
    cdef double nan = float("nan")
    if t.n == 0:
        return 0, nan, nan, nan
    return t.n, t.mean, sqrt(t.square / t.n / max(1.0, t.n - 1)), t.ttft / t.n
