"""`lodestar engine`: simulated vLLM engines over real HTTP, in real time.

One process, one event loop, any number of engines, each with a port of its own. Here are the
options, the listening and the ending; a Replica (sim/engine_replica) drives an engine model by the
clock, a Connection (sim/engine_connection) speaks HTTP with a client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

import uvloop

from lodestar_fast.clock import Clock, MonotonicClock
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.engine import Engine
from lodestar_fast.sim.engine_connection import Connection
from lodestar_fast.sim.engine_events import OPTION, Publisher
from lodestar_fast.sim.engine_replica import Replica
from lodestar_fast.sim.gpus import (
    BLOCK_TOKENS,
    MAX_BLOCKS,
    MAX_FLEET,
    EngineSpec,
    parse_fleet,
    spec,
)

MODEL = "llama-3-8b"
BACKLOG = 1024  # connections not yet accepted; a load test opens hundreds at once


class Engines:
    """Running engines. Made by start(); close() ends them and every connection."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.urls: list[str] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()

    async def listen(self, replica: Replica, host: str, port: int) -> None:
        server = await replica.loop.create_server(
            lambda: Connection(replica, self._connections), host, port, backlog=BACKLOG
        )
        self._servers.append(server)
        self.replicas.append(replica)
        bound = server.sockets[0].getsockname()[1]
        self.urls.append(f"http://{f'[{host}]' if ':' in host else host}:{bound}")

    async def close(self) -> None:
        """Stop listening and cut what is open, as a killed engine does."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        for server in self._servers:
            await server.wait_closed()
        for replica in self.replicas:
            replica.close()


async def start(
    fleet: Sequence[EngineSpec],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str = MODEL,
    seed: int = 0,
    jitter: float = 0.0,
    speedup: float = 1.0,
    clock: Clock | None = None,
    kv_events_port: int = 0,
) -> Engines:
    """Start an engine for each spec, on ports counting up from port (0: any free ones).

    seed, jitter: of the duration of iterations; engine i has seed + i. kv_events_port: their events
    are published on ports counting up from it; 0: not at all. ConfigError if a port or the host
    cannot be had, or pyzmq for the events; then nothing is left listening.
    """
    engines, clock = Engines(), clock or MonotonicClock()
    loop = asyncio.get_running_loop()
    for index, engine_spec in enumerate(fleet):
        engine = Engine(engine_spec, seed + index, jitter)
        publisher = None
        try:
            publisher = Publisher(host, kv_events_port + index) if kv_events_port else None
            replica = Replica(engine, model, clock, loop, speedup, publisher)
            await engines.listen(replica, host, port + index if port else 0)
        except ConfigError:
            await engines.close()
            raise
        except OSError as error:
            if publisher is not None:
                publisher.close()
            await engines.close()
            raise ConfigError(
                f"--host {host} --port {port + index if port else 0}: {error.strerror or error}"
            ) from None
    return engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lodestar engine`."""
    parser.add_argument("--gpu", help="GPU of all engines (default a30)")
    parser.add_argument("--count", type=int, help="number of engines (default 1)")
    parser.add_argument("--fleet", help="instead of the two: COUNTxGPU joined by +, as 2xa30+1xl20")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8101,
        help="port of the first engine, the others count up; 0: any free ones (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--model", default=MODEL, help="name of the model served (%(default)s)")
    parser.add_argument("--kv-tokens", type=int, help="KV cache of each engine, in tokens")
    parser.add_argument(
        "--speedup", type=float, default=1.0,
        help="engine seconds that pass in a second (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--jitter", type=float, default=0.0,
        help="spread of the duration of an iteration, 0 to below 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--slow", action="append", default=[], metavar="N=F@S",
        help="engine N (from 0) takes F times as long from S seconds after the start; repeatable",
    )  # fmt: skip
    parser.add_argument(
        OPTION, type=int, default=0,
        help="publish KV events over ZeroMQ, as vLLM does, on this port and those that follow it; "
        "0: do not (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the jitter (%(default)s)")


def fleet_of(args: argparse.Namespace) -> list[EngineSpec]:
    """The engines that the options ask for. ConfigError names the option that is wrong."""
    overrides = {}
    if args.kv_tokens is not None:
        if not BLOCK_TOKENS <= args.kv_tokens <= MAX_BLOCKS * BLOCK_TOKENS:
            raise ConfigError(
                f"--kv-tokens must be from {BLOCK_TOKENS} to {MAX_BLOCKS * BLOCK_TOKENS}, "
                f"got {args.kv_tokens}"
            )
        overrides["kv_tokens"] = args.kv_tokens
    if args.fleet is not None:
        if args.gpu is not None or args.count is not None:
            raise ConfigError("--fleet takes the place of --gpu and --count: give one or the other")
        fleet = parse_fleet(args.fleet, **overrides)
    else:
        count = 1 if args.count is None else args.count
        if not 1 <= count <= MAX_FLEET:
            raise ConfigError(f"--count must be from 1 to {MAX_FLEET}, got {count}")
        try:
            fleet = [spec(args.gpu or "a30", **overrides)] * count
        except ConfigError as error:
            raise ConfigError(f"--gpu: {error}") from None
    if not 0 <= args.port <= 65_536 - (len(fleet) if args.port else 0):
        raise ConfigError(f"--port {args.port}: {len(fleet)} engines need ports up to 65535")
    if not 0 <= args.kv_events_port <= 65_536 - len(fleet):
        raise ConfigError(
            f"{OPTION} {args.kv_events_port}: {len(fleet)} engines need ports up to 65535"
        )
    if not 0 < args.speedup < math.inf:
        raise ConfigError(f"--speedup must be above 0, got {args.speedup}")
    if not 0 <= args.jitter < 1:
        raise ConfigError(f"--jitter must be at least 0 and below 1, got {args.jitter}")
    if not 0 <= args.seed < 1 << 63:
        raise ConfigError(f"--seed must be from 0 to 2^63, got {args.seed}")
    return fleet


class Slowing(NamedTuple):
    """An engine takes so many times as long from a time (seconds after the start) on."""

    engine: int
    factor: float
    at: float


def slowings(words: Sequence[str], engines: int) -> list[Slowing]:
    """What --slow says. Raises ConfigError."""
    found = []
    for word in words:
        number = r"([0-9]+(?:\.[0-9]+)?)"
        match = re.fullmatch(rf"([0-9]+)={number}(?:@{number})?", word)
        if match is None or not 0 < float(match[2]) <= 1000:
            raise ConfigError(f"--slow {word}: the form is N=F@S, F above 0 and up to 1000")
        if int(match[1]) >= engines:
            raise ConfigError(f"--slow {word}: the engines are 0 to {engines - 1}")
        found.append(Slowing(int(match[1]), float(match[2]), float(match[3] or 0)))
    return found


async def _serve(
    fleet: Sequence[EngineSpec], slow: Sequence[Slowing], args: argparse.Namespace
) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    engines = await start(
        fleet, host=args.host, port=args.port, model=args.model, seed=args.seed,
        jitter=args.jitter, speedup=args.speedup, kv_events_port=args.kv_events_port,
    )  # fmt: skip
    listing = [
        {"url": url, "gpu": engine.gpu, "model": args.model}
        for url, engine in zip(engines.urls, fleet, strict=True)
    ]
    for engine, factor, at in slow:
        loop.call_later(at, setattr, engines.replicas[engine].engine, "slow", factor)
    print(json.dumps({"engines": listing}), flush=True)
    await ended.wait()
    await engines.close()


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Prints one line of JSON with the URLs once all listen."""
    fleet = fleet_of(args)
    uvloop.run(_serve(fleet, slowings(args.slow, len(fleet)), args))
    return 0
