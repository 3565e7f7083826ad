"""The whole program while engines come and go under traffic: not one request may fail."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from tests.fake_apiserver import FakeApiServer, endpoint
from tests.test_discovery import replace
from tests.test_server import CHAT, FAST, Lodestar, request
from tests.tiny_engine import STREAM_HEAD, TinyEngine, chunk

QUICK = (*FAST, "--policy", "least_request", "--discovery-interval", "0.02")
CLIENTS = 6


class Talker(TinyEngine):
    """Answers each request with some events, spread over a few milliseconds."""

    posts = 0
    held: asyncio.Event | None = None  # streams wait for it before their end
    mute = False  # it takes requests, and answers none
    talking = 0

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        self.posts += 1
        if self.mute:
            await asyncio.Event().wait()
        self.talking += 1
        writer.write(STREAM_HEAD)
        for i in range(4):
            writer.write(chunk(b"data: %d\n\n" % i))
            await asyncio.sleep(0.002)
        if self.held:
            await self.held.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.talking -= 1

    async def served(self, more: int = 5) -> None:
        """Wait until it was given so many more requests."""
        wanted = self.posts + more
        while self.posts < wanted:
            await asyncio.sleep(0.005)


class Traffic:
    """Clients that ask one thing after another."""

    def __init__(self, lodestar: Lodestar) -> None:
        self._lodestar = lodestar
        self._tasks = [asyncio.ensure_future(self._ask()) for _ in range(CLIENTS)]
        self._over = False
        self.answered = 0
        self.failed: list[tuple[int, bytes]] = []

    async def _ask(self) -> None:
        while not self._over:
            status, body = await request(self._lodestar.data, "POST /v1/chat/completions", CHAT)
            self.answered += 1
            if status != 200 or b"[DONE]" not in body or b"error" in body:
                self.failed.append((status, body))

    async def end(self) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)
        assert self.failed == [] and self.answered > 0


async def workers_json(lodestar: Lodestar) -> list[dict[str, Any]]:
    _, text = await lodestar.get("/workers", lodestar.admin)
    found: list[dict[str, Any]] = json.loads(text)["workers"]
    return found


def lodestar_busy(found: list[dict[str, Any]], url: str) -> bool:
    return any(w["url"] == url and w["inflight"] for w in found)


async def workers(lodestar: Lodestar, wanted: dict[str, bool]) -> None:
    """Wait until the engines of these URLs are there and healthy, or draining if False."""

    def good(_: int, text: bytes) -> bool:
        found = {w["url"]: w for w in json.loads(text)["workers"]}
        return found.keys() == wanted.keys() and all(
            found[url]["routable"] if taking else found[url]["draining"]
            for url, taking in wanted.items()
        )

    await lodestar.until("/workers", good, lodestar.admin)


@asynccontextmanager
async def under_traffic(*options: str) -> AsyncIterator[Lodestar]:
    """A router, and clients once an engine is there. None of their requests may fail."""
    lodestar = await Lodestar.start(*QUICK, *options)
    try:
        await lodestar.ready()
        traffic = Traffic(lodestar)
        async with asyncio.timeout(60):
            yield lodestar
            await traffic.end()
        log = await lodestar.stop()
        assert "Traceback" not in log, log
    finally:
        if lodestar.process.returncode is None:
            lodestar.process.kill()
            await lodestar.end()


async def metric(lodestar: Lodestar, sample: bytes) -> None:
    await lodestar.until("/metrics", lambda _, text: sample in text, lodestar.admin)


def test_a_file_is_replaced_garbled_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "engines"

    async def main() -> None:
        async with Talker() as a, Talker() as b, Talker() as c:
            path.write_text(a.url)
            async with under_traffic("--discovery-file", str(path)) as lodestar:
                await workers(lodestar, {a.url: True})
                replace(path, f"{a.url}\n{b.url}\n")
                await workers(lodestar, {a.url: True, b.url: True})
                await b.served()
                for bad in ("", "garbage\n", "{" * 1000):
                    replace(path, bad)
                    await a.served()
                await workers(lodestar, {a.url: True, b.url: True})
                await metric(lodestar, b'kind="invalid",source="file"')
                replace(path, f'worker_urls = ["{c.url}"]')
                await workers(lodestar, {a.url: False, b.url: False, c.url: True})
                await c.served(2 * CLIENTS)
                before = a.posts
                await c.served()
                assert a.posts == before, "what has gone gets nothing new"
                replace(path, a.url)
                await workers(lodestar, {a.url: True, b.url: False, c.url: False})
                await a.served()
                await metric(lodestar, b'lodestar_discovery_instances{source="file"} 1.0')

    uvloop.run(main())


def kubernetes(api: FakeApiServer, resync: float = 60.0) -> tuple[str, ...]:
    return (
        *("--kubernetes-selector", "app=vllm", "--kubernetes-api", api.url),
        *("--kubernetes-credentials", str(api.folder), "--kubernetes-resync", str(resync)),
    )


def at(engine: Talker, ready: bool = True) -> dict[str, Any]:
    return endpoint("127.0.0.1", ready, uid=str(engine.port))


def test_kubernetes_adds_removes_renames_and_crashes(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeApiServer(tmp_path) as api, Talker() as a, Talker() as b, Talker() as c:
            await api.put("a", [at(a)], a.port)
            async with under_traffic(*kubernetes(api)) as lodestar:
                await workers(lodestar, {a.url: True})
                # One more engine.
                await api.put("b", [at(b)], b.port)
                await workers(lodestar, {a.url: True, b.url: True})
                await b.served()
                # Another name for the same engine.
                await api.put("b2", [at(b)], b.port)
                await api.delete("b")
                await b.served()
                await workers(lodestar, {a.url: True, b.url: True})
                # One goes while it has a stream: that stream comes to its end.
                a.held = asyncio.Event()
                while not lodestar_busy(await workers_json(lodestar), a.url):
                    await asyncio.sleep(0.01)
                await api.put("a", [at(a, ready=False)], a.port)
                await workers(lodestar, {a.url: False, b.url: True})
                await b.served()
                a.held.set()
                a.held = None
                await api.put("a", [at(a)], a.port)
                await workers(lodestar, {a.url: True, b.url: True})
                await a.served()
                # One crashes on requests that it has not begun to answer (what is cut within an
                # answer cannot be mended); the cluster sees it later, and replaces it.
                b.mute = True
                while b.talking:
                    await asyncio.sleep(0.005)
                await b.stop()
                await a.served()
                await api.put("b2", [at(b, ready=False)], b.port)
                await api.put("c", [at(c)], c.port)
                await workers(lodestar, {a.url: True, b.url: False, c.url: True})
                await c.served()
                # The API server restarts, then refuses: nothing changes.
                api.status = 503
                await api.cut()
                await metric(lodestar, b'lodestar_discovery_errors_total{kind="status"')
                await c.served()
                await workers(lodestar, {a.url: True, b.url: False, c.url: True})

    uvloop.run(main())


def test_a_watch_that_stalls_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeApiServer(tmp_path) as api, Talker() as a, Talker() as b:
            await api.put("a", [at(a)], a.port)
            async with under_traffic(*kubernetes(api, 1.0)) as lodestar:
                await workers(lodestar, {a.url: True})
                await api.watching.wait()
                api.silent = True
                await api.delete("a")
                await api.put("b", [at(b)], b.port)
                await workers(lodestar, {a.url: False, b.url: True})
                await b.served()
                await metric(lodestar, b'lodestar_discovery_errors_total{kind="stalled"')

    uvloop.run(main())


def test_several_sources_a_name_and_a_new_configuration(tmp_path: Path) -> None:
    """Static, file, DNS and the admin port at once; then SIGHUP takes two of them away."""

    async def main() -> None:
        async with Talker() as a, Talker() as b, Talker() as c, Talker() as d:
            path, toml = tmp_path / "engines", tmp_path / "lodestar.toml"
            path.write_text(f"{a.url}\n{b.url}\n")
            toml.write_text(
                f'[fleet]\nworker_urls = ["{a.url}"]\n[discovery]\n'
                f'discovery_file = "{path}"\ndiscovery_dns = ["localhost:{c.port}"]\n'
            )
            async with under_traffic("--config", str(toml)) as lodestar:
                body = json.dumps({"url": d.url}).encode()
                assert (await request(lodestar.admin, "POST /workers", body))[0] == 201
                await workers(lodestar, {e.url: True for e in (a, b, c, d)})
                found = {w["url"]: w for w in await workers_json(lodestar)}
                assert found[a.url]["sources"] == ["static", "file"]
                assert found[c.url]["sources"] == [f"dns:localhost:{c.port}"]
                line = f"DELETE /workers/{found[b.url]['id']}"
                status, text = await request(lodestar.admin, line)
                assert status == 409 and b"file lists it" in text
                toml.write_text(f'[discovery]\ndiscovery_file = "{path}"\n')
                lodestar.process.send_signal(signal.SIGHUP)
                await workers(lodestar, {a.url: True, b.url: True, c.url: False, d.url: True})
                toml.write_text('[discovery]\ndiscovery_dns = ["no port"]\n')
                lodestar.process.send_signal(signal.SIGHUP)
                await metric(lodestar, b'lodestar_reloads_total{outcome="refused"} 1.0')
                toml.write_text("")
                lodestar.process.send_signal(signal.SIGHUP)
                await workers(lodestar, {a.url: False, b.url: False, c.url: False, d.url: True})
                await d.served()

    uvloop.run(main())
