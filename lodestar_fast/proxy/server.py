"""Wires the proxy, listens, keeps the periodic work going, and ends in good order.

Start: both ports listen before anything slow begins; the learner, whose thread imports torch, comes
last. End, on SIGTERM or SIGINT: not ready, listeners closed, idle clients closed, running requests
finish within drain_grace, the learner writes its checkpoint. A second signal ends at once.

Nothing here is in the path of a request but the answers to LOCAL paths.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from lodestar_fast import __version__, history
from lodestar_fast.clock import Clock
from lodestar_fast.config import Config
from lodestar_fast.core.affinity import SessionAffinity
from lodestar_fast.core.router import Router
from lodestar_fast.errors import BlobError, ConfigError
from lodestar_fast.governor import Governor
from lodestar_fast.learner import Learner
from lodestar_fast.metrics import Collector
from lodestar_fast.proxy import (
    admin,
    decisions,
    health,
    kv_events,
    prices,
    reload,
    scrape,
    snapshot,
)
from lodestar_fast.proxy.context import Context
from lodestar_fast.proxy.discovery import watching
from lodestar_fast.proxy.discovery.membership import STATIC, Membership
from lodestar_fast.proxy.downstream import Downstream
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.overview import Overview
from lodestar_fast.proxy.reload import Keys, parse_urls, read_all_keys
from lodestar_fast.proxy.telemetry import Telemetry
from lodestar_fast.proxy.tracing import Tracer
from lodestar_fast.proxy.upstream import Pool

log = logging.getLogger(__name__)

_BACKLOG = 4096  # the kernel takes the least of this and net.core.somaxconn
# Files, the loop, listeners, the admin port's clients, two probes an engine and kept connections.
_OTHER_DESCRIPTORS = 192
_TICK = 1.0  # seconds between exchanges with the learner
_SAVE = 30.0  # seconds between looks whether the kept versions must be written
_DRAIN_LOOK = 0.02  # seconds between looks at what still runs
_LAST_WORDS = 0.1  # seconds for clients to take what they are told at the end of the drain grace
_COMPLAINT = 60.0  # seconds between log lines about one trouble that goes on
_JSON = b"application/json"


class Proxy:
    """All parts of one running proxy."""

    def __init__(
        self, config: Config, router: Router, governor: Governor | None, clock: Clock
    ) -> None:
        """Raises ConfigError on a key file, an engine URL or a state folder."""
        serve = config.serve
        if serve.state_dir:
            try:
                os.makedirs(serve.state_dir, mode=0o700, exist_ok=True)
            except OSError as e:
                raise ConfigError(
                    f"serve.state_dir (--state-dir): {serve.state_dir}: {e.strerror}"
                ) from None
        self.config = config
        self.router = router
        self.clock = clock
        self.governor = governor
        self.incidents: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter()
        keys = read_all_keys(config)
        urls = parse_urls(config.fleet.worker_urls)
        watching.sources(config.discovery)
        prices.check(config)
        kv_events.check(config.fleet.kv_events)
        self.kv_events = kv_events.Listener()
        self.context = Context(router, config.limits, clock, policy_name=router.policy.name)
        if router.policy.name == SessionAffinity.name:
            names = config.routing.session_headers
            self.context.session_headers = tuple(name.lower().encode() for name in names)
        if name := config.routing.tenant_header:
            self.context.tenant_headers = (name.lower().encode(),)
        self.context.local = self.answer
        self.fleet = Fleet(self.context, config.fleet, router, clock, Pool, self.incidents)
        self.members = Membership(self.fleet, config.discovery.discovery_linger)
        for complaint in self.members.claim(STATIC, urls):
            raise ConfigError(f"fleet.worker_urls (--worker-urls): {complaint}")
        self.discovery = watching.Discovery(self.members, clock.now, self.incidents)
        since = time.time() - clock.now()
        fallback = governor.policy.fallback.name if governor else router.policy.name
        self.decision_log = decisions.begin_log(config, since, fallback)
        self.telemetry: Telemetry | None = None
        if serve.otlp_endpoint:
            self.context.tracer = Tracer(serve.trace_sample)
            self.telemetry = Telemetry(serve.otlp_endpoint, self.context.tracer, __version__)
        self.admin = admin.Admin(
            self.fleet,
            Collector(__version__, self),
            self,
            decisions.Decisions(router, since, fallback),
            keys.admins,
            self.members,
        )
        self.overview = self.admin.overview = Overview(self)
        self._complained: dict[str, float] = {}
        self.stopping = asyncio.Event()
        self.use(keys)

    def use(self, keys: Keys) -> None:
        """Put these keys and the settings in self.config to use."""
        serve, limits = self.config.serve, self.config.limits
        self.context.reconfigure(
            limits, serve.explain_headers, keys.clients, keys.engine, serve.forward_client_key
        )
        if not limits.max_connections:
            self.context.max_connections = _connections()
        self.admin.keys = keys.admins
        self.fleet.use(self.config.fleet, keys.engine)
        self.router.trust(keys.verified)

    def read_again(self, read: Callable[[], Config]) -> None:
        """On SIGHUP. A configuration with a mistake is reported, and changes nothing."""
        try:
            reload.apply(self, read())
        except ConfigError as e:
            self.reloads["refused"] += 1
            log.error("configuration refused, nothing changed: %s", e)
        else:
            self.reloads["applied"] += 1

    @property
    def learner(self) -> Learner | None:
        return self.governor.learner if self.governor else None

    def log_counts(self) -> dict[str, int]:
        return decisions.log_counts(self)

    def model_status(self) -> dict[str, Any]:
        """GET /admin/model."""
        if self.governor is None:
            return {"policy": self.router.policy.name, "version": 0, "learner": None}
        return self.governor.status(self.clock.now())

    def answer(self, method: bytes, path: bytes) -> tuple[int, bytes, bytes] | None:
        """The GET paths that the router answers itself: status, content type, body."""
        if path in (b"/health", b"/liveness"):
            return 200, _JSON, b'{"status":"ok"}'
        if path == b"/readiness":
            if self.context.draining:
                return 503, _JSON, b'{"status":"draining"}'
            if not self.fleet.ready:
                return 503, _JSON, b'{"status":"no healthy engine"}'
            return 200, _JSON, b'{"status":"ready"}'
        if path == b"/version":
            return 200, _JSON, msgspec.json.encode({"version": __version__})
        if path == b"/v1/models":
            return 200, _JSON, self.fleet.models()
        return None

    async def keep_learning(self) -> None:
        """Move samples and weights once a second. Whatever fails there, requests go on."""
        assert self.governor is not None
        save_at = self.clock.now() + _SAVE
        while True:
            await asyncio.sleep(_TICK)
            now = self.clock.now()
            if now >= save_at:
                save_at = now + _SAVE
                await self.save_versions()
            try:
                version = self.governor.tick(self.router, now)
            except BlobError as e:
                self.complain("weights_refused", e)
            except Exception as e:
                self.complain("learner", e)
            else:
                if version is not None:
                    log.debug("weights of version %d in use", version)

    async def save_versions(self) -> None:
        """Write the kept versions of the weights, in a thread, if there is a folder for them."""
        assert self.governor is not None
        if unsaved := self.governor.unsaved():
            try:
                await asyncio.to_thread(history.save, *unsaved)
            except OSError as e:
                self.complain("versions_not_saved", e)

    def complain(self, kind: str, error: Exception) -> None:
        """Count a failure in the background; log it, but not again and again."""
        self.incidents[kind] += 1
        now = self.clock.now()
        if now >= self._complained.get(kind, float("-inf")) + _COMPLAINT:
            self._complained[kind] = now
            log.error("%s: %s: %s", kind, type(error).__name__, error)

    async def drain(self) -> None:
        """Let what runs finish within drain_grace; cut the rest."""
        self.context.draining = True  # its sweep closes the idle clients
        until = self.clock.now() + self.config.serve.drain_grace
        while self.context.connections and self.clock.now() < until:
            await asyncio.sleep(_DRAIN_LOOK)
        if left := len(self.context.connections):
            log.warning("drain grace is over: %d connections cut", left)
            self.context.stop_all()
            await asyncio.sleep(_LAST_WORDS)
        self.context.abort_all()

    async def close(self) -> None:
        """Stop the periodic work; write the checkpoint."""
        for task in self.admin.connections:
            task.cancel()
        await self.discovery.close()
        await self.fleet.close()
        self.kv_events.close()
        self.context.stop()
        await decisions.end_log(self)
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)
        if self.governor is not None:
            await self.save_versions()
        if self.learner is not None:
            try:
                if samples := self.router.drain():
                    self.learner.submit(samples)
                await asyncio.to_thread(self.learner.close)
            except Exception as e:
                self.complain("learner", e)


async def _listen(
    create: Callable[..., Any], host: str, port: int, host_option: str, port_option: str
) -> asyncio.Server:
    """create(host=, port=, ...) as a server. Raises ConfigError naming the option at fault."""
    try:
        server: asyncio.Server = await create(host=host, port=port, backlog=_BACKLOG)
    except socket.gaierror as e:
        raise ConfigError(f"{host_option}: `{host}`: {e.strerror}") from None
    except OSError as e:
        if e.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host_option}: `{host}` is no address of this machine") from None
        # asyncio puts a sentence of its own into strerror.
        text = "is in use" if e.errno == errno.EADDRINUSE else os.strerror(e.errno or 0)
        raise ConfigError(f"{port_option}: {host}:{port} {text}") from None
    return server


def _address(server: asyncio.Server) -> str:
    """Where a server really listens; the port may have been 0."""
    host, port = server.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connections() -> int:
    """Clients that the descriptors suffice for, if each has a request on an engine, and a third
    are second ones of the same connections (proxy/reader.pyx)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max((soft * 2 // 3 - _OTHER_DESCRIPTORS) // 2, 1)


def _raise_descriptor_limit() -> None:
    """A request in flight takes two descriptors, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(
    config: Config,
    router: Router,
    governor: Governor | None,
    clock: Clock,
    announce: Callable[[str, str], None] | None = None,
    read_again: Callable[[], Config] | None = None,
) -> None:
    """Run until a signal says to stop. Raises ConfigError if it cannot start.

    announce(data address, admin address): called once both ports listen. read_again(): the
    configuration as it is now, on SIGHUP; may raise ConfigError.
    """
    _raise_descriptor_limit()
    proxy = Proxy(config, router, governor, clock)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("%s again: ending at once", number.name)
            os._exit(128 + number)
        log.info("%s: draining for %g s at most", number.name, proxy.config.serve.drain_grace)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if read_again is not None:
        loop.add_signal_handler(signal.SIGHUP, proxy.read_again, read_again)

    at = config.serve
    data_server = await _listen(
        functools.partial(loop.create_server, lambda: Downstream(proxy.context)),
        at.host,
        at.port,
        "serve.host (--host)",
        "serve.port (--port)",
    )
    admin_server = await _listen(
        functools.partial(
            asyncio.start_server,
            functools.partial(admin.serve, proxy.admin),
            limit=admin.HEAD_BYTES,
        ),
        at.admin_host,
        at.admin_port,
        "serve.admin_host (--admin-host)",
        "serve.admin_port (--admin-port)",
    )
    addresses = _address(data_server), _address(admin_server)
    log.info(
        "lodestar %s: data port http://%s, admin port http://%s, policy %s, %d engines",
        __version__,
        *addresses,
        router.policy.name,
        len(proxy.fleet),
    )
    if announce:
        announce(*addresses)
    proxy.discovery.use(config.discovery)
    if not len(proxy.fleet) and not proxy.discovery.health():
        log.warning("no engines: give --worker-urls, or POST /workers to the admin port")

    proxy.context.start()
    proxy.fleet.watch(
        functools.partial(health.watch, proxy.fleet),
        functools.partial(scrape.watch, proxy.fleet),
        functools.partial(kv_events.watch, proxy.kv_events, proxy.fleet),
    )
    # What lives by now lives to the end: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    logging_decisions = asyncio.ensure_future(decisions.keep_logging(proxy))
    keeping = None
    if at.state_dir:
        keeping = asyncio.ensure_future(
            snapshot.keep(at.state_dir, proxy.fleet, proxy.stopping, proxy.complain)
        )
    learning = None
    if governor is not None:
        try:
            governor.ensure_learner()
        except Exception as e:
            proxy.complain("learner", e)
        learning = asyncio.ensure_future(proxy.keep_learning())
    watching = asyncio.ensure_future(proxy.overview.keep())

    await stop.wait()
    data_server.close()
    await proxy.drain()
    admin_server.close()
    logging_decisions.cancel()
    watching.cancel()
    if learning is not None:
        learning.cancel()
    proxy.stopping.set()
    if keeping is not None:
        await keeping
    await proxy.close()
    log.info("ended")
