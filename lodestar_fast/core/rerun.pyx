"""A decision set up again from what was kept of it, for another policy to be asked about.

Only what stands in a row is there: the candidates with their numbers, and of the instances what the
features tell. A policy that remembers earlier decisions, or looks into the prefix index, would
answer something else than it would have then; RERUN names those that do not.
"""

cimport cython
from libc.string cimport memset

from lodestar_fast.core.lodestar cimport (
    LS_INDEX_MIN_BYTES, LS_WIDTH, ls_candidate, ls_config, ls_feature_table, ls_instance,
    ls_ring_init, ls_ring_push, ls_router_free, ls_router_new,
)
from lodestar_fast.core.policies cimport Policy
from lodestar_fast.core.record cimport LS_RECORD_ROWS

RERUN = frozenset((
    "random", "least_request", "power_of_two", "least_kv", "least_prefill_tokens", "least_latency",
    "vllm_dp", "prefix_cache", "prefix_threshold", "llmd_weighted", "llmd_sticky", "lmetric",
    "mooncake", "expected_completion",
))
cdef dict COLUMNS = {ls_feature_table[i].name.decode(): i for i in range(LS_WIDTH)}


@cython.final
cdef class Scene:
    """See rerun.pyi."""

    def __cinit__(self):
        cdef ls_config config
        memset(&config, 0, sizeof(config))
        config.block_bytes, config.index_bytes, config.ring = 64, LS_INDEX_MIN_BYTES, 1
        config.max_instances = LS_RECORD_ROWS
        config.max_tickets, config.max_samples = 1, 1
        self.r = ls_router_new(&config)
        if self.r == NULL:
            raise MemoryError
        self.candidates = Candidates.__new__(Candidates)
        self.candidates.scores, self.candidates.odds = self.scores, self.odds_

    def __dealloc__(self):
        ls_router_free(self.r)

    def odds(self, Policy policy not None, dict row not None):
        cdef list candidates = row["candidates"]
        cdef Py_ssize_t i, n = len(candidates), choice
        cdef Candidates c = self.candidates
        if not 0 < n <= LS_RECORD_ROWS:
            raise ValueError(f"{n} candidates")
        for i in range(n):
            self.place(i, candidates[i])
        self.r.n, self.r.prompt_tokens = <unsigned int>n, <unsigned int>row["in"]
        self.r.now = row["at"]
        self.r.slots = <unsigned int>n
        c.r, c.n, c.reason_code = self.r, n, -1
        try:
            c.begin()
            choice = policy.pick(c)
            policy.odds(c, choice)
        finally:
            c.r, c.n = NULL, 0
        return [self.odds_[i] for i in range(n)]

    cdef int place(self, Py_ssize_t i, dict kept) except -1:
        """One candidate, and the instance it stands for."""
        cdef ls_candidate *to = &self.r.candidates[i]
        cdef ls_instance *x = &self.r.instances[i]
        cdef list values = kept["x"]
        cdef Py_ssize_t k
        if len(values) != LS_WIDTH:
            raise ValueError(f"{len(values)} features, not {LS_WIDTH}")
        to.slot = <unsigned int>i
        to.hit_blocks, to.hit_tokens = kept["hit_blocks"], kept["hit"]
        to.waiting, to.inflight = kept["waiting"], kept["inflight"]
        to.own, to.queued, to.speed = kept["own"], kept["queued"], kept["speed"]
        to.occupancy, to.expected = kept["occupancy"], kept["expected"]
        to.own_seconds = values[COLUMNS["own_seconds"]]
        for k in range(LS_WIDTH):
            self.r.rows[i * LS_WIDTH + k] = <float>(values[k] * ls_feature_table[k].scale)
        x.used, x.routable, x.epoch = 1, 1, 1
        x.prefill_requests, x.decode_requests = to.waiting, to.inflight - to.waiting
        x.kv_usage = values[COLUMNS["reported_kv_usage"]]
        x.speed.shrunk = to.speed
        ls_ring_init(&x.inter_token, self.r.ring_memory + i, 1)
        if values[COLUMNS["inter_token_seconds"]] > 0:
            ls_ring_push(&x.inter_token, values[COLUMNS["inter_token_seconds"]])
        return 0
