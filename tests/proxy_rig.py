"""The data path between real sockets: fake engines, the proxy's protocols, raw clients.

    with_rig(test)          decorates a coroutine function taking a Rig; runs it on a uvloop
    rig.client()            a raw-socket client
    rig.router.events       what the router was told: (ticket, event, tokens, cached)

When the test is over the rig checks that every ticket got exactly one final event, that no place
and no engine connection is left in use, and that every request was counted once.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import uvloop

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.config import LimitsConfig
from lodestar_fast.core.policies import Policy, RoundRobin
from lodestar_fast.core.router import Event, Router
from lodestar_fast.proxy.context import Context
from lodestar_fast.proxy.downstream import Downstream
from lodestar_fast.proxy.upstream import Pool
from tests.fake_engine import FakeEngine, free_port

FINAL = {Event.DONE, Event.FAILED, Event.ABANDONED, Event.TIMEOUT}
CHAT = "/v1/chat/completions"
# Seconds after which a test is taken to hang; sanitizers, and a machine that is shared, take more.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "20"))


class Instance:
    """What the data path needs of an engine."""

    def __init__(self, context: Context, slot: int, port: int, host: str = "127.0.0.1") -> None:
        self.slot = slot
        self.id = f"i{slot}"
        self.host = host
        self.port = port
        self.models: tuple[str, ...] = ()
        self.routable = True
        self.trials: list[bool] = []
        self.trials_well = 0
        self.failures: list[str] = []
        self.successes = 0
        self.pool = Pool(context, self)

    def note_failure(self, kind: str) -> None:
        self.failures.append(kind)

    def note_success(self) -> None:
        self.successes += 1

    def note_trial(self, under_way: bool, well: bool = False) -> None:
        self.trials.append(under_way)
        self.trials_well += well


class RecordingRouter:
    """The real router; notes what it decided and was told. error: raised instead. full: no
    ticket is left."""

    def __init__(self, policy: Policy) -> None:
        self.inner = Router(policy)
        self.routes: list[dict[str, Any]] = []
        self.events: list[tuple[int, Event, int, int]] = []
        self.error: Exception | None = None
        self.full = False
        self.observing: Callable[..., None] = self.inner.observe

    def route(
        self,
        prompt: Any,
        now: float,
        prompt_tokens: int,
        seed: bytes,
        avoid: Any,
        streaming: bool,
        session: bytes | None,
        slo_ttft: float,
        slo_tpot: float,
        tenant: bytes | None,
        max_tokens: int,
    ) -> Any:
        if self.error is not None:
            raise self.error
        if self.full:
            return SimpleNamespace(ticket=0, slot=0)
        decision = self.inner.route(
            prompt,
            now,
            prompt_tokens,
            seed,
            avoid,
            streaming,
            session,
            slo_ttft,
            slo_tpot,
            tenant,
            max_tokens,
        )
        self.routes.append(
            {
                "prompt": bytes(prompt),
                "seed": seed,
                "avoid": set(avoid),
                "streaming": streaming,
                "session": session,
                "tenant": tenant,
                "slo": (slo_ttft, slo_tpot),
                "max_tokens": max_tokens,
            }
        )
        return decision

    def observe(
        self, ticket: int, event: Event, now: float, tokens: int = 0, cached: int = -1
    ) -> None:
        self.events.append((ticket, Event(event), tokens, cached))
        self.observing(ticket, event, now, tokens, cached)

    def names(self) -> list[str]:
        return [event.name for _, event, _, _ in self.events]


class Reply:
    def __init__(self, status: int, fields: list[tuple[str, str]], body: bytes, whole: bool):
        self.status = status
        self.fields = fields
        self.body = body
        self.whole = whole  # its framing was complete
        self.chunks: list[bytes] = []

    def field(self, name: str) -> str | None:
        """The value of the only field of that name."""
        values = [v for k, v in self.fields if k.lower() == name]
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.field("x-request-id")
        return error


class Client:
    """A raw socket that reads answers by their framing, strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, body: Any = None, path: str = CHAT, extra: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or chat()).encode()
        self.send(
            f"POST {path} HTTP/1.1\r\nHost: router\r\n{extra}"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def get(self, path: str, method: str = "GET") -> None:
        self.send(f"{method} {path} HTTP/1.1\r\nHost: router\r\n\r\n".encode())

    async def head(self) -> Reply:
        """The head of the next answer; its body is read by rest()."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = text.split("\r\n")[:-2]
        version, status, _ = (line + " ").split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [(k, v) for k, v in (f.split(": ", 1) for f in fields)]
        return Reply(int(status), pairs, b"", False)

    async def chunk(self, reply: Reply) -> bytes:
        """The next chunk of the body; b"" is its end."""
        size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
        data = (await self.reader.readexactly(size + 2))[:-2]
        reply.body += data
        reply.chunks.append(data)
        return data

    async def rest(self, reply: Reply, method: str = "POST") -> Reply:
        """Read the body to its end or to the end of the connection."""
        length = reply.field("content-length")
        try:
            if method == "HEAD" or reply.status in (204, 304):
                reply.whole = True
            elif reply.field("transfer-encoding") == "chunked":
                assert length is None
                while await self.chunk(reply):
                    pass
                reply.whole = True
            elif length is not None:
                reply.body = await self.reader.readexactly(int(length))
                reply.whole = True
            else:
                reply.body = await self.reader.read()
                reply.whole = True
        except asyncio.IncompleteReadError as e:
            reply.body += e.partial if length is not None else b""
        except ConnectionResetError:
            reply.whole = False
        return reply

    async def reply(self, method: str = "POST") -> Reply:
        return await self.rest(await self.head(), method)

    async def ended(self) -> bool:
        """Wait for the end of the connection; whether nothing came before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


class Rig:
    def __init__(
        self, engines: int, limits: dict[str, Any], policy: Policy, context: dict[str, Any]
    ) -> None:
        self.router = RecordingRouter(policy)
        self.context = Context(
            self.router, LimitsConfig(**limits), MonotonicClock(), policy_name="rr", **context
        )
        self.context.local = self.local
        self.engines = [FakeEngine() for _ in range(engines)]
        self.instances: list[Instance] = []
        self.clients: list[Client] = []
        self.port = 0

    def local(self, method: bytes, path: bytes) -> tuple[int, bytes, bytes] | None:
        if path == b"/health":
            return 200, b"application/json", b'{"status":"ok"}'
        if path == b"/version":
            raise RuntimeError("on purpose")
        return None

    async def start(self) -> None:
        for engine in self.engines:
            await engine.start()
            self.add(engine.port)
        loop = asyncio.get_running_loop()
        protocol: Any = Downstream  # duck-typed, as asyncio allows
        self.server = await loop.create_server(lambda: protocol(self.context), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def add(self, port: int) -> Instance:
        slot = self.router.inner.add_instance(f"i{len(self.instances)}")
        instance = Instance(self.context, slot, port)
        self.instances.append(instance)
        self.context.instances[slot] = instance
        return instance

    async def grow(self) -> Instance:
        """One more engine."""
        engine = await FakeEngine().start()
        self.engines.append(engine)
        return self.add(engine.port)

    def add_dead(self) -> Instance:
        """An instance that refuses connections."""
        return self.add(free_port())

    async def client(self, **socket_options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **socket_options))
        self.clients.append(client)
        return client

    def outcomes(self) -> dict[tuple[str, str, str], int]:
        counts: dict[tuple[str, str, str], int] = self.context.counters.snapshot()["requests"]
        return counts

    def outcome(self) -> tuple[str, str, str]:
        """Of the only request so far."""
        ((key, n),) = self.outcomes().items()
        assert n == 1
        return key

    def expire(self, after: float = 1e6) -> None:
        """Let that many seconds pass, as far as deadlines are concerned."""
        self.context.sweep(MonotonicClock().now() + after)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the loop turn until the condition holds."""
        while not condition():
            await asyncio.sleep(0)

    async def wreck(self) -> None:
        """Close what is open after a failed test: uvloop waits for ever for what is not."""
        self.server.close()
        self.context.stop()
        for client in self.clients:
            client.abort()
        self.context.abort_all()
        for engine in self.engines:
            engine.abort()
        for instance in self.instances:
            instance.pool.close()
        await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for client in self.clients:
            client.abort()
        self.server.close()
        await self.until(lambda: not self.context.connections)
        self.context.stop()
        for instance in self.instances:
            assert instance.pool.busy == 0, "an engine connection is still in use"
            instance.pool.close()
            assert instance.pool.open == 0
        for engine in self.engines:
            await engine.stop()
        context = self.context
        assert context.inflight == context.queued == context.retrying == context.body_bytes == 0
        tickets = [ticket for ticket, event, _, _ in self.router.events if event in FINAL]
        assert len(tickets) == len(set(tickets)) == len(self.router.routes)
        _, counts, _ = self.context.counters.snapshot()["request_seconds"]
        assert sum(self.outcomes().values()) == sum(counts)


def with_rig(
    engines: int = 1,
    limits: dict[str, Any] | None = None,
    policy: Policy | None = None,
    **context: Any,
) -> Callable[[Callable[[Rig], Awaitable[None]]], Callable[[], None]]:
    def decorate(test: Callable[[Rig], Awaitable[None]]) -> Callable[[], None]:
        async def main() -> None:
            rig = Rig(engines, limits or {}, policy or RoundRobin(), context)
            await rig.start()
            try:
                async with asyncio.timeout(PATIENCE):
                    await test(rig)
                    await rig.stop()
            except BaseException:
                await rig.wreck()
                raise

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())

        return _named(run, test)

    return decorate


def _named(run: Callable[[], None], test: Callable[..., Any]) -> Callable[[], None]:
    """Not functools.wraps: pytest would take the rig for a fixture."""
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
