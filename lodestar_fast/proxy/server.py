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
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from lodestar_fast import __version__
from lodestar_fast.clock import Clock
from lodestar_fast.config import Config
from lodestar_fast.core.router import Router
from lodestar_fast.errors import BlobError, ConfigError
from lodestar_fast.learner import Learner, tick
from lodestar_fast.metrics import Collector
from lodestar_fast.proxy import admin, health, scrape
from lodestar_fast.proxy.context import Context
from lodestar_fast.proxy.downstream import Downstream
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.keys import read_keys
from lodestar_fast.proxy.upstream import Pool

log = logging.getLogger(__name__)

_BACKLOG = 4096  # the kernel takes the least of this and net.core.somaxconn
_TICK = 1.0  # seconds between exchanges with the learner
_DRAIN_LOOK = 0.02  # seconds between looks at what still runs
_COMPLAINT = 60.0  # seconds between log lines about one trouble that goes on
_JSON = b"application/json"


class Proxy:
    """All parts of one running proxy."""

    def __init__(self, config: Config, router: Router, clock: Clock) -> None:
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
        self.learner: Learner | None = None
        self.incidents: Counter[str] = Counter()
        self.context = Context(
            router,
            config.limits,
            clock,
            policy_name=router.policy.name,
            explain=serve.explain_headers,
            api_keys=read_keys(serve.api_key_file, "serve.api_key_file (--api-key-file)"),
        )
        self.context.local = self.answer
        self.fleet = Fleet(self.context, config.fleet, router, clock, Pool, self.incidents)
        for url in config.fleet.worker_urls:
            try:
                self.fleet.add(url)
            except ConfigError as e:
                raise ConfigError(f"fleet.worker_urls (--worker-urls): {e}") from None
        self.admin = admin.Admin(
            self.fleet,
            Collector(__version__, self),
            self.learner_status,
            read_keys(serve.admin_key_file, "serve.admin_key_file (--admin-key-file)"),
        )
        self._complained: dict[str, float] = {}

    def learner_status(self) -> dict[str, Any]:
        """GET /admin/model."""
        policy = self.router.policy
        about = {"policy": policy.name, "version": policy.version}
        return about | {"learner": self.learner.status() if self.learner else None}

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
        assert self.learner is not None
        while True:
            await asyncio.sleep(_TICK)
            try:
                version = tick(self.router, self.learner)
            except BlobError as e:
                self.complain("weights_refused", e)
            except Exception as e:
                self.complain("learner", e)
            else:
                if version is not None:
                    log.debug("weights of version %d in use", version)

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
        self.context.abort_all()

    async def close(self) -> None:
        """Stop the periodic work; write the checkpoint."""
        for task in self.admin.connections:
            task.cancel()
        await self.fleet.close()
        self.context.stop()
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


def _raise_descriptor_limit() -> None:
    """A request in flight takes two descriptors, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(
    config: Config,
    router: Router,
    start_learner: Callable[[], Learner] | None,
    clock: Clock,
    announce: Callable[[str, str], None] | None = None,
) -> None:
    """Run until a signal says to stop. Raises ConfigError if it cannot start.

    announce(data address, admin address): called once both ports listen.
    """
    _raise_descriptor_limit()
    proxy = Proxy(config, router, clock)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("%s again: ending at once", number.name)
            os._exit(128 + number)
        log.info("%s: draining for %g s at most", number.name, config.serve.drain_grace)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

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
    if not len(proxy.fleet):
        log.warning("no engines: give --worker-urls, or POST /workers to the admin port")

    proxy.context.start()
    proxy.fleet.watch(
        functools.partial(health.watch, proxy.fleet),
        functools.partial(scrape.watch, proxy.fleet),
    )
    # What lives by now lives to the end: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    learning = None
    if start_learner is not None:
        try:
            proxy.learner = start_learner()
        except Exception as e:
            proxy.complain("learner", e)
        else:
            learning = asyncio.ensure_future(proxy.keep_learning())

    await stop.wait()
    data_server.close()
    await proxy.drain()
    admin_server.close()
    if learning is not None:
        learning.cancel()
    await proxy.close()
    log.info("ended")
