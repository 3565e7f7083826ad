"""Types of core/view.pyx."""

from __future__ import annotations

from typing import Any

class RouterView:
    """The reading half of a Router; not made on its own."""

    def stats(self) -> dict[str, Any]:
        """Counters since the start. H: (upper bounds, counts and one more above all, sum), seconds.

        decisions {reason: n} | predicted_ttft H, prediction_error H: of decisions with a prediction
        policy, policy_error (its last exception or ""), weights_version
        predicted_hit_tokens, delivered_hit_tokens: believed cached, reported cached; of the
        requests whose engine reported | bytes_per_token: learned from usage
        index_bytes (in use), index_budget_bytes, index_evictions (blocks given up for want of room)
        index_nodes, index_holdings: (in use, at most)
        tickets_open, tickets_full (decisions not tracked), observes_ignored, reports_ignored
        samples, samples_waiting, samples_dropped (lost because drain() came late)
        """
    def instance(self, slot: int) -> dict[str, Any]:
        """One instance's live state. Raises ValueError for a slot that is no instance.

        slot, name, routable, prefix_caching, prefix_blocks (believed held)
        kv_tokens (as told, 0: not), learned_kv_tokens (by what answers said; 0: as told)
        inflight = prefill_requests (no first token yet) + decode_requests
        prefill_own_tokens (to compute), prefill_prompt_tokens, decode_context_tokens
        speed (seconds per token of work, shrunk), speed_labels
        recent_ttft, recent_inter_token (seconds), recent_prefill_rate (tokens per second): means
        reported, reported_at, reported_running, reported_waiting, reported_kv_usage
        ttft H | decisions, done, failed, abandoned, timeout: counts since it was added
        """
    def ring(self, slot: int, name: str) -> list[float]:
        """The values of a ring, newest first: "ttft", "prefill_rate" or "inter_token"."""
    def slots(self) -> list[int]: ...
    def fingerprint(self) -> str:
        """Tells whether two routers name prefixes alike: of the secret key and the block size."""

    # -- for tests and benches --
    def _hash(self, prompt: bytes, seed: bytes = b"") -> list[int]:
        """Chained hashes of the prompt's whole blocks."""
    def _hash_count(self, prompt: bytes, repeat: int = 1) -> int:
        """Hash as route() does, so often; how many blocks."""
    def _match(self, prompt: bytes, seed: bytes = b"", repeat: int = 1) -> dict[int, int]:
        """{slot: blocks of this prompt it is believed to hold}. Hashed once, looked up so often."""
    def _check(self) -> None:
        """Raise InvariantError unless every counter and link is as it must be. Slow."""
