"""What a policy is, what it sees, and the table of them.

A policy sees Candidates: the instances that may be chosen, a row of csrc/features.h each, and the
few plain numbers that heuristics are made of. It returns the index of one and says why. To add a
policy: write a class in the module of its kind (for an experiment: a Python subclass of Policy),
and a row in POLICIES.

    heuristics.pyx   load alone            affinity.pyx   who has the prefix, with limits of load
    costs.pyx        one sum of costs      learned.pyx    the learned policy; aims.pyx: its SLOs

Every rule that compares breaks ties at random, from the router's seed: with ties to the lower slot
an idle fleet would send all its load to the first instance.
"""

cimport cython
from libc.math cimport NAN
from libc.stdint cimport uint64_t

from lodestar_fast.core.lodestar cimport (
    LS_REASONS, LS_WIDTH, ls_feature_row, ls_feature_table, ls_random, ls_schema_hash,
)

from lodestar_fast.core.enums import Reason

cdef tuple REASONS = tuple(Reason)
cdef dict COLUMNS = {ls_feature_table[i].name.decode(): i for i in range(LS_WIDTH)}


@cython.final
cdef class Candidates:
    """The routable instances of one decision, ordered by slot; valid only inside pick()."""

    cdef double uniform(self) noexcept:
        return ls_random(&self.r.rng)

    cdef Py_ssize_t least_inflight(self) noexcept:
        """Fewest requests in flight."""
        cdef Best b
        cdef Py_ssize_t i
        start(&b)
        for i in range(self.n):
            offer(self, &b, i, self.r.candidates[i].inflight)
        return b.i

    cdef void begin(self) noexcept:
        """Before pick(): nothing is known of what the policy thinks."""
        cdef Py_ssize_t i
        self.seconds, self.outside, self.linear = NULL, NULL, NULL
        self.margin, self.unsure, self.fallback = NAN, NAN, -1
        for i in range(self.n):
            self.scores[i] = NAN

    cdef void note(self, Best *best, Py_ssize_t i, double score) noexcept:
        """Keep what a candidate is offered with; the first offer begins anew."""
        cdef Py_ssize_t k
        if best.ties == 0:
            for k in range(self.n):
                self.scores[k] = NAN
        self.scores[i] = score

    cdef void even_odds(self, Py_ssize_t choice) noexcept:
        """Those that were offered with the least score were equally likely. If the choice is none
        of them, or nothing was offered, the odds are unknown."""
        cdef Py_ssize_t i, ties = 0
        cdef double least = self.scores[choice]
        cdef bint known = least == least
        for i in range(self.n):
            ties += self.scores[i] == least
            if self.scores[i] < least:
                known = False
        for i in range(self.n):
            self.odds[i] = NAN if not known else 1.0 / ties if self.scores[i] == least else 0

    cdef void sure(self, Py_ssize_t choice) noexcept:
        """No other one could have been chosen."""
        cdef Py_ssize_t i
        for i in range(self.n):
            self.odds[i] = i == choice

    cdef uint64_t session(self) noexcept:
        """What the requests of one session share: the given key, else the prompt's first block."""
        if self.r.session:
            return self.r.session
        return self.r.hashes[0] if self.r.blocks else 0

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

    cdef double physics(self, Candidates c, Py_ssize_t i) noexcept:
        """What candidate i costs by plain physics, no model asked. Seconds."""
        return c.r.candidates[i].expected

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        c.even_odds(choice)

    cdef str mode(self):
        return ""

    def load(self, blob):
        """Take weights, if it has a model. Returns the version in use. Raises BlobError."""
        return self.version

    @property
    def version(self):
        """Of the weights in use, 0 if none."""
        return 0


def feature_table():
    """The rows of csrc/features.h: (name, unit, scale, help)."""
    cdef const ls_feature_row *row
    cdef list rows = []
    for i in range(LS_WIDTH):
        row = &ls_feature_table[i]
        rows.append((row.name.decode(), row.unit.decode(), row.scale, row.help.decode()))
    return rows


def schema_hash():
    """64-bit FNV-1a over "name|unit|scale;" of all rows."""
    return ls_schema_hash()


# These modules need the classes above.
from lodestar_fast.core.affinity import (
    CacheAware, LlmdSticky, LlmdWeighted, Preble, PrefixCache, PrefixThreshold, SessionAffinity,
)
from lodestar_fast.core.costs import Dynamo, ExpectedCompletion, Lmetric, Mooncake
from lodestar_fast.core.heuristics import (
    LeastKV, LeastLatency, LeastPrefillTokens, LeastRequest, PowerOfTwo, Random, RoundRobin,
    Throughput, VllmDP,
)
from lodestar_fast.core.learned import Lodestar

POLICIES = {
    policy.name: policy
    for policy in (
        RoundRobin, Random, LeastRequest, PowerOfTwo, LeastKV, LeastPrefillTokens, LeastLatency,
        Throughput, VllmDP,
        PrefixCache, PrefixThreshold, Preble, CacheAware, LlmdWeighted, LlmdSticky, SessionAffinity,
        Lmetric, Mooncake, Dynamo, ExpectedCompletion,
        Lodestar,
    )
}
