"""Types of core/router.pyx. Times are float seconds on any one monotonic clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, final

from lodestar_fast.core.decisions import Decisions
from lodestar_fast.core.enums import Event as Event
from lodestar_fast.core.enums import Reason as Reason
from lodestar_fast.core.policies import Policy
from lodestar_fast.core.view import RouterView

_Buffer: TypeAlias = bytes | bytearray | memoryview

@final
class Decision:
    """Immutable answer of Router.route(); cannot be built from Python."""

    @property
    def ticket(self) -> int: ...  # give it to observe(); 0 = table full, not tracked
    @property
    def slot(self) -> int: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def reason_code(self) -> int: ...  # the same as a plain number
    @property
    def predicted(self) -> float: ...  # predicted TTFT in seconds, NaN if no model was asked
    @property
    def hit_blocks(self) -> int: ...  # prefix blocks the instance is believed to hold
    @property
    def hit_tokens(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...  # as given, or estimated from the bytes
    @property
    def weights_version(self) -> int: ...  # behind `predicted`, 0 if there is none

@final
class Router(RouterView):
    """The decision core: instances, prefix index, tickets, samples. One thread owns it.

    Memory is sized here once: index_bytes for the prefix index (a hard budget), ring
    measurements kept per instance, max_instances slots, max_tickets requests in flight.
    Routing and observing allocate nothing on the C side.

    Raises ValueError naming the argument that is out of range, MemoryError. seed: of the policies'
    random numbers. key: 64 secret bytes under which prompts are hashed, so that clients
    cannot make prompts that collide; None: from the seed, which is for tests and simulations.
    slo_ttft, slo_tpot: of requests that say nothing of theirs, seconds, 0: none.
    decisions: how many of the last ones are kept as they were made, 2.5 KB each (4.5 with
    prefix_marks: the prompts' prefixes, hashed, for a log that can be replayed).

    A policy that raises, picks no candidate or gives no reason is overruled: fewest requests in
    flight, Reason.ERROR. Inside pick() every method that changes the router raises RuntimeError.
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
        decisions: int = 0,
        prefix_marks: bool = False,
        slo_ttft: float = 0.0,
        slo_tpot: float = 0.0,
        seed: int = 0,
        key: bytes | None = None,
    ) -> None: ...

    policy: Policy
    @property
    def decisions(self) -> Decisions | None: ...  # the last ones; None: none are kept

    # -- membership: rare --
    def add_instance(self, name: str, *, kv_tokens: int = 0, prefix_caching: bool = True) -> int:
        """A slot, stable until remove_instance(). kv_tokens 0: capacity not known yet."""
    def remove_instance(self, slot: int) -> None:
        """Forget the slot and its blocks. Open tickets may be observed and count nowhere."""
    def configure_instance(self, slot: int, *, kv_tokens: int, prefix_caching: bool) -> None:
        """What the engine says of itself: KV capacity in tokens, and whether it caches prefixes."""
    def set_price(self, slot: int, price: float) -> None:
        """What an hour of it costs, in whatever unit: for a price_weight. Raises ValueError."""
    def trust(self, tenants: Iterable[bytes]) -> None:
        """Whose requests are the operator's own, in place of those named before: their samples are
        verified, which clients have no hand in."""
    def set_routable(self, slot: int, routable: bool) -> None:
        """Unhealthy and draining instances stay known and are not chosen."""
    def forget_prefixes(self, slot: int) -> None:
        """The engine restarted or cleared its cache."""

    # -- the driver's three verbs: hot --
    def route(
        self,
        prompt: _Buffer,
        now: float,
        prompt_tokens: int = 0,
        seed: _Buffer = b"",
        avoid: Iterable[int] = (),
        streaming: bool = True,
        session: bytes | None = None,
        slo_ttft: float = -1.0,
        slo_tpot: float = -1.0,
        tenant: bytes | None = None,
        max_tokens: int = 0,
    ) -> Decision:
        """Choose an instance and dispatch to it: its counters, its blocks and a ticket are entered.

        prompt: the bytes that identify the prefix; prompt_tokens 0: estimated from them.
        seed: what else the engine's cache depends on (model, LoRA, cache_salt), hashed first.
        avoid: slots already tried. session: whom the request belongs to; policy session_affinity
        keeps what is equal together. slo_ttft, slo_tpot: seconds to the first token and between
        tokens that it asks for, 0: nothing, -1: it says nothing, the router's own hold; policy
        lodestar heeds them. max_tokens: that the answer may have at most, 0: not known.
        tenant: who asks; the learner lets nobody teach it too much. Session and tenant are kept as
        keyed hashes only.

        Raises NoInstanceError if none is left; ValueError if now is not finite, a number of tokens
        is out of 0..100,000,000, or an SLO is negative (but for -1) or above 1e6.
        """
    def observe(
        self, ticket: int, event: Event, now: float, tokens: int = 0, cached: int = -1
    ) -> None:
        """Report an event of a dispatched request.

        Ignored and counted: tickets that are not open, events that cannot follow (a second first
        token, or one of a request that is not streamed), tokens outside 0..100,000,000.
        Raises OverflowError for numbers beyond 64 bits.
        """
    def report(self, slot: int, now: float, running: int, waiting: int, kv_usage: float) -> None:
        """What the engine says of its load. Not finite or negative values are ignored, counted."""

    # -- the learner's side --
    def drain(self) -> bytes:
        """Samples since the last call: header and rows as core.SAMPLE_DTYPE says; b"" if none."""
