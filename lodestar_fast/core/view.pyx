"""What can be read of a router: by metrics, by the admin port, by tests. Changes nothing."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from lodestar_fast.core.lodestar cimport (
    LS_ABANDONED, LS_BOUNDS, LS_DONE, LS_FAILED, LS_MAX_BLOCKS, LS_REASONS, LS_SLOS, LS_TIMEOUT,
    ls_bounds, ls_hash_blocks, ls_hist, ls_hit, ls_index_blocks, ls_index_match, ls_index_stats,
    ls_index_stats_t, ls_ring, ls_ring_get, ls_ring_mean, ls_router_bytes_per_token,
    ls_router_check,
)

from lodestar_fast.core.enums import Reason
from lodestar_fast.errors import InvariantError

cdef tuple REASONS = tuple(Reason)
cdef tuple TOLD = ("unknown", "missed", "kept")  # ls_slo
cdef const char *ZEROS = b"\0" * 16


cdef class RouterView:
    """The reading half of a Router, and the state that its two halves share. See view.pyi."""

    def __cinit__(self):
        if type(self) is RouterView:
            raise TypeError("only a Router can be read")

    cdef ls_instance *known(self, Py_ssize_t slot) except NULL:
        if slot < 0 or slot >= self.r.slots or not self.r.instances[slot].used:
            raise ValueError(f"slot: {slot} is no instance")
        return &self.r.instances[slot]

    def slots(self):
        return [slot for slot, name in enumerate(self.names) if name is not None]

    def stats(self):
        cdef ls_index_stats_t index
        ls_index_stats(self.r.index, &index)
        n = &self.r.counters
        return {
            "decisions": {REASONS[i].name.lower(): n.decisions[i] for i in range(LS_REASONS)},
            "policy": self._policy.name,
            "policy_error": self.policy_error,
            "weights_version": self._policy.version,
            "predicted_ttft": histogram(&n.predicted),
            "prediction_error": histogram(&n.error),
            "slo": {
                (TOLD[k], "kept" if kept else "missed"): n.slo[k][kept]
                for k in range(LS_SLOS) for kept in range(2)
            },
            "predicted_hit_tokens": n.prefix_predicted_tokens,
            "delivered_hit_tokens": n.prefix_delivered_tokens,
            "bytes_per_token": ls_router_bytes_per_token(self.r),
            "index_bytes": index.used_bytes,
            "index_budget_bytes": index.budget_bytes,
            "index_nodes": (index.nodes, index.max_nodes),
            "index_holdings": (index.holdings, index.max_holdings),
            "index_evictions": index.evictions,
            "tickets_open": n.tickets_open,
            "tickets_full": n.tickets_full,
            "observes_ignored": n.observes_ignored,
            "reports_ignored": n.reports_ignored,
            "samples": n.samples,
            "samples_waiting": self.r.waiting_samples,
            "samples_dropped": n.samples_dropped,
        }

    def instance(self, Py_ssize_t slot):
        cdef ls_instance *x = self.known(slot)
        return {
            "slot": slot,
            "name": self.names[slot],
            "routable": bool(x.routable),
            "kv_tokens": x.kv_tokens,
            "learned_kv_tokens": x.learned_tokens,
            "prefix_caching": bool(x.prefix_caching),
            "prefix_blocks": ls_index_blocks(self.r.index, <uint32_t>slot),
            "inflight": x.prefill_requests + x.decode_requests,
            "prefill_requests": x.prefill_requests,
            "prefill_own_tokens": x.prefill_own,
            "prefill_prompt_tokens": x.prefill_prompt,
            "decode_requests": x.decode_requests,
            "decode_context_tokens": x.decode_context,
            "speed": x.speed.shrunk,
            "speed_labels": x.speed.labels,
            "recent_ttft": ls_ring_mean(&x.ttft),
            "recent_prefill_rate": ls_ring_mean(&x.prefill_rate),
            "recent_inter_token": ls_ring_mean(&x.inter_token),
            "reported": bool(x.reported),
            "reported_at": x.reported_at,
            "reported_running": x.running,
            "reported_waiting": x.waiting,
            "reported_kv_usage": x.kv_usage,
            "ttft": histogram(&x.ttft_hist),
            "price": x.price,
            "decisions": x.decisions,
            "done": x.finals[<int>LS_DONE],
            "failed": x.finals[<int>LS_FAILED],
            "abandoned": x.finals[<int>LS_ABANDONED],
            "timeout": x.finals[<int>LS_TIMEOUT],
        }

    def ring(self, Py_ssize_t slot, str name not None):
        cdef ls_instance *x = self.known(slot)
        cdef const ls_ring *ring = &x.ttft
        if name != "ttft":
            ring = &x.prefill_rate if name == "prefill_rate" else &x.inter_token
        return [ls_ring_get(ring, i) for i in range(ring.length)]

    def fingerprint(self):
        cdef uint64_t key
        ls_hash_blocks(&self.r.key, b"fingerprint", 11, ZEROS, 16, 16, &key, 1)
        return f"{key:016x}-{self.r.config.block_bytes}"

    # -- for tests and benches --

    def _hash(self, bytes prompt not None, bytes seed not None=b""):
        """Chained hashes of the prompt's whole blocks."""
        cdef uint32_t n = self.hash_into(prompt, seed)
        return [self.r.hashes[i] for i in range(n)]

    def _hash_count(self, bytes prompt not None, Py_ssize_t repeat=1):
        cdef uint32_t n = 0
        for _ in range(repeat):
            n = self.hash_into(prompt, b"")
        return n

    def _match(self, bytes prompt not None, bytes seed not None=b"", Py_ssize_t repeat=1):
        """{slot: blocks of this prompt it is believed to hold}."""
        cdef uint32_t n = self.hash_into(prompt, seed)
        for _ in range(repeat):
            memset(self.r.hits, 0, self.r.slots * sizeof(ls_hit))
            ls_index_match(self.r.index, self.r.hashes, n, self.r.hits)
        return {
            slot: self.r.hits[slot].blocks
            for slot in range(self.r.slots) if self.r.hits[slot].blocks
        }

    cdef uint32_t hash_into(self, bytes prompt, bytes seed) noexcept:
        return ls_hash_blocks(
            &self.r.key, PyBytes_AS_STRING(seed), PyBytes_GET_SIZE(seed),
            PyBytes_AS_STRING(prompt), PyBytes_GET_SIZE(prompt), self.r.config.block_bytes,
            self.r.hashes, LS_MAX_BLOCKS)

    def _check(self):
        """Raise InvariantError unless every counter and link is as it must be. Slow."""
        if ls_router_check(self.r) < 0:
            raise InvariantError("counters and open tickets, or the index, disagree")


cdef tuple histogram(const ls_hist *hist):
    """(upper bounds, counts and one more above all, sum)."""
    return (
        [ls_bounds[i] for i in range(LS_BOUNDS)],
        [hist.count[i] for i in range(LS_BOUNDS + 1)],
        hist.sum,
    )
