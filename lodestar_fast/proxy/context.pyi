"""Types of proxy/context.pyx."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from lodestar_fast.clock import Clock
from lodestar_fast.config import LimitsConfig
from lodestar_fast.proxy.counters import Counters
from lodestar_fast.proxy.tracing import Tracer

class Instance(Protocol):
    """What the data path needs of an engine; proxy/fleet.py has the class."""

    slot: int
    id: str
    host: str
    port: int
    models: tuple[str, ...]  # empty: not known, any model may be sent
    routable: bool
    pool: Any  # proxy.upstream.Pool

    def note_failure(self, kind: str) -> None:
        """An engine's fault, seen on real traffic. kind is one of
        "connect" (refused, unreachable), "connect_timeout", "reset" (closed before the first body
        byte), "malformed" (not HTTP, oversized head), "status" (500, 502, 504), "busy" (429, 503: a
        sign of load rather than of failure), "stream_error" (SSE error event), "aborted"
        (finish_reason "abort"), "truncated" (closed within a body), "first_byte_timeout",
        "stream_idle_timeout", "request_timeout", "engine_gone" (see Context.give_up)."""
    def note_success(self) -> None:
        """A whole answer below 500 came (not 429)."""
    def note_trial(self, under_way: bool, well: bool = False) -> None:
        """On trial, it was sent a request; or that has its first token, or has ended. well: as it
        should."""

class Router(Protocol):
    """The part of core.Router that the data path calls."""

    def route(
        self,
        prompt: Any,
        now: float,
        prompt_tokens: int = 0,
        seed: Any = b"",
        avoid: Iterable[int] = (),
        streaming: bool = True,
    ) -> Any: ...
    def observe(
        self, ticket: int, event: Any, now: float, tokens: int = 0, cached: int = -1
    ) -> None: ...

class Context:
    """What all connections of one proxy share. Owned by one event loop's thread.

    router: core.Router. limits: read once, here. policy_name: for x-lodestar-policy. explain: add
    x-lodestar-* headers to answers. api_keys: None leaves the data port open. engine_key: sent to
    engines in place of what the client sent. forward_client_key: pass the client's key on though it
    is checked here.
    """

    router: Router
    instances: dict[int, Instance]  # slot -> Instance; the fleet adds and removes
    local: Callable[[bytes, bytes], tuple[int, bytes, bytes] | None] | None
    #   (method, path without query) -> (status, content type, body), None: no such route. Asked for
    #   GET; HEAD is asked as GET, and answered without the body.
    counters: Counters
    connections: set[Any]  # live Downstream
    draining: bool  # keep-alive off; idle clients are closed within a sweep; what runs, finishes
    inflight: int  # requests dispatched to an engine and not finished
    retrying: int  # of them, on a further try
    body_bytes: int  # of the bodies of requests in hand
    full: tuple[int, ...]  # slots with as many requests as an engine may have
    max_connections: int
    on_trial: dict[int, Instance]  # slot -> an instance that hears of each request
    policy_name: str
    explain: bool
    session_headers: tuple[bytes, ...]  # in lower case; empty: the policy does not want to know
    tenant_headers: tuple[bytes, ...]  # likewise; empty: the key says whose a request is
    tracer: Tracer | None

    def __init__(
        self,
        router: Any,
        limits: LimitsConfig,
        clock: Clock,
        *,
        policy_name: str,
        explain: bool = False,
        api_keys: frozenset[bytes] | None = None,
        engine_key: bytes = b"",
        forward_client_key: bool = False,
    ) -> None: ...
    def reconfigure(
        self,
        limits: LimitsConfig,
        explain: bool,
        api_keys: frozenset[bytes] | None,
        engine_key: bytes,
        forward_client_key: bool,
    ) -> None:
        """Other settings from now on; the sizes in a head's and a body's limit, for new clients."""
    @property
    def queued(self) -> int:
        """Requests waiting for a place, in all or on the engines that serve their model."""
    def start(self) -> None:
        """Begin the periodic sweep on the running loop; the first connection does it as well."""
    def stop(self) -> None:
        """End the sweep. Idempotent."""
    def sweep(self, now: float) -> None:
        """Act on every deadline before now (time.monotonic() axis). Runs by itself every 0.25 s."""
    def models_changed(self) -> None:
        """Instances or their models changed: what is known of models is looked up anew."""
    def stop_all(self) -> None:
        """End what runs, each client told why: the end of the drain grace."""
    def abort_all(self) -> None:
        """Cut every client connection now."""
    def give_up(self, instance: Instance, silent_since: float) -> int:
        """End the requests on an instance that is gone though their connections are open: those
        for which nothing came since that time. Returns how many."""
