"""The operator's port: who is answered, the workers' routes, hostile requests."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from lodestar_fast.clock import VirtualClock
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import Lmetric, Lodestar
from lodestar_fast.governor import Governor
from lodestar_fast.metrics import Collector
from lodestar_fast.proxy import admin
from lodestar_fast.proxy.admin import Admin, Refused
from lodestar_fast.proxy.decisions import Decisions
from tests.fake_fleet import FleetFixture
from tests.oracle import Model, make_router
from tests.test_metrics import proxy

KEYS = frozenset({b"first-key", b"second-key"})


class ModelStub:
    """What of the proxy the model's routes need."""

    def __init__(self) -> None:
        self.governor: Governor | None = None
        self.clock = VirtualClock(10.0)

    def model_status(self) -> dict[str, Any]:
        return self.governor.status(10.0) if self.governor else {"policy": "lodestar"}

    def answer(self, method: bytes, path: bytes) -> tuple[int, bytes, bytes] | None:
        return (503, b"", b"not ready") if path == b"/readiness" else (200, b"", b"ok")


class Port:
    """An admin port on a socket, and the requests of a test to it."""

    def __init__(self, keys: frozenset[bytes] | None = None) -> None:
        self.at = FleetFixture(places=2)
        self.model = ModelStub()
        self.router = make_router(decisions=8)
        self.decisions = Decisions(self.router, 1000.0, "lmetric")
        self.admin = Admin(self.at.fleet, Collector("1", proxy()), self.model, self.decisions, keys)

    async def __aenter__(self) -> Port:
        serve = functools.partial(admin.serve, self.admin)
        self._server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=admin.HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in list(self.admin.connections):
            task.cancel()
        await asyncio.gather(*self.admin.connections, return_exceptions=True)

    async def raw(self, data: bytes) -> bytes:
        """All that is answered to these bytes, up to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer

    async def ask(self, line: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        text = b"" if body is None else json.dumps(body).encode()
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if text:
            head += f"Content-Length: {len(text)}\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        answer = await self.raw(head.encode() + b"\r\n" + text)
        head_bytes, _, answer_body = answer.partition(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % len(answer_body) in head_bytes + b"\r\n"
        status = int(head_bytes.split(b" ", 2)[1])
        if b"application/json" in head_bytes:
            return status, json.loads(answer_body)
        return status, answer_body


def run(body: Callable[[Port], Awaitable[None]], keys: frozenset[bytes] | None = None) -> None:
    async def main() -> None:
        async with Port(keys) as port:
            await body(port)

    uvloop.run(main())


def test_workers_come_drain_and_go() -> None:
    async def body(port: Port) -> None:
        status, added = await port.ask("POST /workers", {"url": "http://e:8000"})
        assert status == 201 and added["url"] == "http://e:8000" and not added["healthy"]
        assert (await port.ask("POST /workers", {"url": "http://e:8000/"}))[0] == 200
        status, listed = await port.ask("GET /workers")
        assert status == 200 and [w["id"] for w in listed["workers"]] == [added["id"]]
        status, one = await port.ask(f"GET /workers/{added['id']}")
        assert status == 200 and one == listed["workers"][0] and one["inflight"] == 0
        status, drained = await port.ask(f"POST /workers/{added['id']}/drain")
        assert status == 200 and drained["draining"] and not drained["routable"]
        status, known = await port.ask(f"POST /workers/{added['id']}/forget-prefixes")
        assert status == 200 and known["prefix_blocks"] == 0
        assert (await port.ask(f"GET /workers/{added['id']}/forget-prefixes"))[0] == 405
        status, removed = await port.ask(f"DELETE /workers/{added['id']}")
        assert status == 200 and removed["id"] == added["id"]
        assert (await port.ask("GET /workers"))[1] == {"workers": []}
        assert (await port.ask(f"DELETE /workers/{added['id']}"))[0] == 404

    run(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"url": "https://e:1"}, "`https://e:1` is not an engine URL"),
        ({"url": "http://e:1/x"}, "`http://e:1/x`"),
        ({"url": 5}, "the body must be"),
        ({"address": "http://e:1"}, "the body must be"),
        ([], "the body must be"),
        (None, "the body must be"),
    ],
)
def test_bad_workers_are_refused(body: Any, said: str) -> None:
    async def test(port: Port) -> None:
        status, answer = await port.ask("POST /workers", body)
        assert status == 400 and said in answer["error"]["message"]
        assert len(port.at.fleet) == 0

    run(test)


def test_more_workers_than_slots_are_refused() -> None:
    async def body(port: Port) -> None:
        for i in range(2):
            assert (await port.ask("POST /workers", {"url": f"http://e{i}:1"}))[0] == 201
        status, answer = await port.ask("POST /workers", {"url": "http://e2:1"})
        assert status == 400 and "max_instances" in answer["error"]["message"]

    run(body)


def test_metrics_and_model() -> None:
    async def body(port: Port) -> None:
        status, text = await port.ask("GET /metrics")
        assert status == 200 and b"lodestar_build_info" in text
        assert await port.ask("GET /admin/model") == (200, {"policy": "lodestar"})

    run(body)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /", 405),
        ("GET /index.html", 404),
        ("GET /page/", 404),
        ("GET /page/../admin.py", 404),
        ("GET /admin/state", 404),
        ("GET /worker", 404),
        ("GET /workers/x", 404),
        ("GET /workers/x/drain", 404),
        ("GET /v1/models", 404),
        ("PUT /workers", 405),
        ("POST /metrics", 405),
        ("DELETE /admin/model", 405),
        ("DELETE /admin/mode", 405),
        ("GET /admin/model/freeze", 405),
        ("POST /admin/model/thaw", 409),
        ("GET /admin/mode", 409),
        ("POST /admin/model/burn", 404),
        ("POST /admin/model/freeze/now", 404),
        ("GET http://elsewhere/metrics", 400),
        ("OPTIONS *", 400),
    ],
)
def test_other_requests(line: str, status: int) -> None:
    async def body(port: Port) -> None:
        found, answer = await port.ask(line)
        assert found == status and answer["error"]["message"]

    run(body)


def test_connections_are_kept() -> None:
    async def body(port: Port) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        for _ in range(3):
            writer.write(b"GET /admin/model HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            await reader.readuntil(b"\n")
        writer.close()

    run(body)


def test_a_key_is_needed_where_keys_are_set() -> None:
    async def body(port: Port) -> None:
        for given in ("", "Bearer", "Bearer ", "Bearer first-ke", "Basic first-key", "first-key"):
            headers = {"Authorization": given} if given else {}
            status, answer = await port.ask("GET /metrics", **headers)
            assert status == 401 and "first" not in json.dumps(answer)
        for key in ("first-key", "second-key"):
            assert (await port.ask("GET /metrics", Authorization=f"Bearer {key}"))[0] == 200

    run(body, KEYS)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", [b"localhost:29000", b"127.0.0.1", b"[::1]:29000"])
def test_loopback_needs_no_key(peer: str, host: bytes) -> None:
    Port().admin.check({b"host": host}, peer)


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("10.0.0.1", {b"host": b"localhost"}),
        ("::ffff:10.0.0.1", {b"host": b"localhost"}),
        ("", {b"host": b"localhost"}),
        ("127.0.0.1", {}),
        ("127.0.0.1", {b"host": b"rebound.example"}),
        ("127.0.0.1", {b"host": b"127.0.0.1.example"}),
        ("127.0.0.1", {b"host": b"localhost", b"origin": b"https://page.example"}),
    ],
)
def test_without_keys_only_loopback_is_answered(peer: str, headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Refused) as e:
        Port().admin.check(headers, peer)
    assert e.value.status == 403


def test_with_a_key_any_peer_is_answered() -> None:
    headers = {b"host": b"admin.example", b"authorization": b"bearer first-key"}
    Port(KEYS).admin.check(headers, "10.0.0.1")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /workers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /workers HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /workers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            400,
        ),
    ],
    ids=["tls", "two-hosts", "long-head", "long-body", "negative", "chunked", "connect", "upgrade"],
)
def test_hostile_requests_end_the_connection(data: bytes, status: int) -> None:
    async def body(port: Port) -> None:
        answer = await port.raw(data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close\r\n" in answer

    run(body)


def test_a_client_that_leaves_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    async def body(port: Port) -> None:
        head = b"POST /workers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        for data in (b"", b"GET /met", head + b"{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    run(body)
    assert not caplog.records


def test_too_many_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_CONNECTIONS", 1)

    async def body(port: Port) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"GET /admin/model HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await port.raw(b"") == b""
        writer.close()

    run(body)


def test_a_silent_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_IDLE", 0.01)

    async def body(port: Port) -> None:
        assert await port.raw(b"GET /met") == b""

    run(body)


def test_a_bug_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def body(port: Port) -> None:
        port.model.model_status = lambda: 1 // 0  # type: ignore[assignment, return-value, method-assign]
        status, answer = await port.ask("GET /admin/model")
        assert status == 500 and answer == {"error": {"message": "internal error; see the log"}}

    run(body)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("keys", [None, KEYS])
def test_modes_and_versions_over_http(keys: frozenset[bytes] | None) -> None:
    async def body(port: Port) -> None:
        headers = {"Authorization": "Bearer first-key"} if keys else {}
        if keys:
            for line in ("POST /admin/mode", "POST /admin/model/rollback", "GET /admin/model"):
                assert (await port.ask(line))[0] == 401
        governor = Governor(Guarded(Lodestar(), Lmetric()))
        port.model.governor = governor

        async def ask(line: str, body: Any = None) -> tuple[int, Any]:
            return await port.ask(line, body, **headers)

        assert (await ask("GET /admin/mode"))[1] == {
            "mode": "on",
            "share": 1.0,
            "watchdog": "trusted",
        }
        assert (await ask("POST /admin/mode", {"mode": "canary:10"}))[1]["share"] == 0.1
        for wrong in ({"mode": "canary"}, {"mode": 5}, {"Mode": "on"}, []):
            status, answer = await ask("POST /admin/mode", wrong)
            assert status == 400 and answer["error"]["message"]
        assert governor.mode == "canary:10"
        assert (await ask("POST /admin/model/rollback"))[0] == 404
        for version in (1, 2):
            weights = Model([8], seed=version, version=version).blob()
            governor.policy.load(weights)
            governor.history.add(version, float(version), weights)
        status, answer = await ask("POST /admin/model/rollback", {"version": 1})
        assert (status, answer) == (200, {"version": 1, "frozen": True})
        assert (await ask("POST /admin/model/rollback", {"version": 7}))[0] == 404
        assert (await ask("POST /admin/model/rollback", {"version": "x"}))[0] == 400
        status, about = await ask("GET /admin/model")
        assert (about["version"], about["frozen"], about["mode"]) == (1, True, "canary:10")
        assert [v["version"] for v in about["versions"]] == [2, 1] and about["network"]
        assert about["coefficients"]["base"] == pytest.approx(float(Model([8], 1).linear[0]))
        assert (await ask("POST /admin/model/thaw"))[1] == {"version": 1, "frozen": False}
        assert (await ask("POST /admin/model/freeze"))[1] == {"version": 1, "frozen": True}

    run(body, keys)


def test_a_kubelet_may_ask_whether_it_lives() -> None:
    """From anywhere, without a key, by any name; and that is all it may."""

    async def body(port: Port) -> None:
        for path, status in (("/liveness", 200), ("/readiness", 503)):
            line = f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:29000\r\nConnection: close\r\n\r\n"
            assert (await port.raw(line.encode())).startswith(b"HTTP/1.1 %d " % status)
        assert (await port.ask("POST /liveness"))[0] == 405
        assert (await port.ask("GET /liveness/x"))[0] == 401

    run(body, KEYS)
