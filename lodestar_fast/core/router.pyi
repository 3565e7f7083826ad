"""Types of core/router.pyx. Times are float seconds on any one monotonic clock."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeAlias

from lodestar_fast.core.policies import Policy

Buffer: TypeAlias = bytes | bytearray | memoryview

class Reason(IntEnum):
    """Why an instance was chosen. The lower-case name is the metric label."""

    LEARNED = 0  # the model's choice
    GUARD = 1  # the model's gain was inside the margin: the fallback heuristic's choice stands
    COLD = 2  # no model yet: the fallback heuristic
    OUT_OF_RANGE = 3  # a candidate's row is outside what training has seen: the fallback
    EXPLORE = 4
    HEURISTIC = 5  # the configured policy is a heuristic
    ONLY_ONE = 6  # a single candidate
    ERROR = 7  # the policy raised: fewest requests in flight

class Event(IntEnum):
    """What became of a dispatched request."""

    FIRST_TOKEN = 0  # the first byte that carries a token arrived
    TOKENS = 1  # `tokens` more output tokens arrived
    USAGE = 2  # the engine said: `tokens` prompt tokens, of them `cached` from its cache
    DONE = 3  # final: complete; tokens = output tokens if known, else 0
    FAILED = 4  # final: the engine failed
    ABANDONED = 5  # final: the client left
    TIMEOUT = 6  # final: gave up waiting for the engine

class Decision:
    """Immutable answer of Router.route(); cannot be built from Python."""

    @property
    def ticket(self) -> int: ...  # give it to observe(); 0 = table full, not tracked
    @property
    def slot(self) -> int: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def predicted(self) -> float: ...  # predicted TTFT in seconds, NaN if no model was asked
    @property
    def hit_blocks(self) -> int: ...  # prefix blocks the instance is believed to hold
    @property
    def hit_tokens(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...  # as given, or estimated from the bytes

class Router:
    """The decision core: instances, prefix index, tickets, samples. One thread owns it.

    Memory is sized here once: index_bytes for the prefix index (a hard budget), ring
    measurements kept per instance, max_instances slots, max_tickets requests in flight.
    Routing and observing allocate nothing on the C side.

    Raises ValueError naming the argument that is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        block_bytes: int = 64,
        index_bytes: int = 64 << 20,
        ring: int = 64,
        max_instances: int = 64,
        max_tickets: int = 16384,
        max_samples: int = 8192,
        seed: int = 0,
    ) -> None: ...

    policy: Policy

    # -- membership: rare --
    def add_instance(self, name: str, *, kv_tokens: int = 0, prefix_caching: bool = True) -> int:
        """A slot, stable until remove_instance(). kv_tokens 0: capacity not known yet."""
    def remove_instance(self, slot: int) -> None:
        """Forget the slot and its blocks. Open tickets stay valid to observe() and count nowhere."""
    def configure_instance(self, slot: int, *, kv_tokens: int, prefix_caching: bool) -> None:
        """What the engine says of itself: KV capacity in tokens, and whether it caches prefixes."""
    def set_routable(self, slot: int, routable: bool) -> None:
        """Unhealthy and draining instances stay known and are not chosen."""
    def forget_prefixes(self, slot: int) -> None:
        """The engine restarted or cleared its cache."""

    # -- the driver's three verbs: hot --
    def route(
        self,
        prompt: Buffer,
        now: float,
        prompt_tokens: int = 0,
        seed: Buffer = b"",
        avoid: Iterable[int] = (),
        streaming: bool = True,
    ) -> Decision:
        """Choose an instance and dispatch to it: its counters, its blocks and a ticket are entered.

        prompt: the bytes that identify the prefix; prompt_tokens 0: estimated from them.
        seed: what else the engine's cache depends on (model, LoRA, cache_salt, tools), hashed first.
        avoid: slots already tried.  Raises NoInstanceError if none is left.
        """
    def observe(
        self, ticket: int, event: Event, now: float, tokens: int = 0, cached: int = -1
    ) -> None:
        """Report an event of a dispatched request. Unknown or closed tickets are ignored, counted."""
    def report(self, slot: int, now: float, running: int, waiting: int, kv_usage: float) -> None:
        """What the engine says of its load. Not finite or negative values are ignored, counted."""

    # -- the learner's side --
    def drain(self) -> bytes:
        """Samples since the last call: header and rows as core.SAMPLE_DTYPE says; b"" if none."""

    # -- read by metrics and admin --
    def stats(self) -> dict[str, Any]:
        """Counters since the start; see metrics.py for the names and their meaning."""
    def instance(self, slot: int) -> dict[str, Any]:
        """One instance's live state: inflight, prefill and decode counts, speed, recent TTFT..."""
    def slots(self) -> list[int]: ...
