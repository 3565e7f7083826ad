"""EndpointSlices, against a server that behaves as the real one."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery import kubernetes, source
from lodestar_fast.proxy.discovery.api_server import ApiServer
from lodestar_fast.proxy.discovery.kubernetes import KubernetesSource
from tests.fake_apiserver import NAMESPACE, FakeApiServer, endpoint, ports
from tests.test_discovery import A, B, Heard

Body = Callable[[FakeApiServer, Heard], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are seconds in production."""
    monkeypatch.setattr(source, "_BACKOFF", 0.01)
    monkeypatch.setattr(kubernetes, "_GRACE", 0.1)


def watched(
    folder: Path,
    body: Body,
    selector: str = "app=vllm",
    namespace: str = "",
    port: str = "",
    resync: float = 60.0,
    tls: ssl.SSLContext | None = None,
) -> FakeApiServer:
    """Run a test body while a source reports to it; the server, for what it was asked."""

    async def main() -> FakeApiServer:
        async with FakeApiServer(folder, tls) as api:
            heard = Heard()
            client = ApiServer(api.url, str(folder))
            task = asyncio.ensure_future(
                KubernetesSource(client, selector, namespace, port, resync).watch(heard)
            )
            try:
                async with asyncio.timeout(20):
                    await body(api, heard)
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            return api

    return asyncio.run(main())


def test_add_change_rename_remove(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await heard.until_urls()
        await api.watching.wait()
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.put("other", [endpoint("10.9.9.9")], labels={"app": "web"})
        await api.put("a", [endpoint("10.0.0.1"), endpoint("10.0.0.2", ready=None)])
        await heard.until_urls(A, B)
        await api.put("a", [endpoint("10.0.0.1", ready=False), endpoint("10.0.0.2")])
        await heard.until_urls(B)
        # Renamed: the new slice lists the same engine before the old one goes.
        await api.put("b", [endpoint("10.0.0.2")])
        await api.delete("a")
        await api.put("b", [endpoint("10.0.0.2"), endpoint("10.0.0.1")])
        await heard.until_urls(A, B)
        await api.put("b", [endpoint("10.0.0.1")], labels={"app": "web"})
        await heard.until_urls()
        assert heard.kinds == []

    api = watched(tmp_path, body)
    first, second = api.asked
    assert first == {"labelSelector": "app=vllm", "limit": "500"}
    assert second["resourceVersion"] == "100" and second["allowWatchBookmarks"] == "true"


def test_a_list_comes_in_pages(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        api.page = 2
        for i in range(5):
            await api.put(f"s{i}", [endpoint(f"10.0.1.{i}")])
        await heard.until(lambda: len(heard.urls or ()) == 5)
        assert [q.get("continue") for q in api.asked[:3]] == [None, "2", "4"]

    watched(tmp_path, body)


def test_a_watch_that_dies_silently_is_found_out(tmp_path: Path) -> None:
    """The known failure of a peer: a removal missed, and 22 hours of requests to a dead address."""

    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.watching.wait()
        api.silent = True
        await api.put("a", [endpoint("10.0.0.2")])
        await heard.until_failed("stalled")
        await heard.until_urls(B)

    watched(tmp_path, body, resync=1.0)


def test_a_watch_that_ends_in_order_is_no_failure(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.watching.wait()
        while sum("watch" in query for query in api.asked) < 2:
            await asyncio.sleep(0.01)
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        assert heard.kinds == []

    watched(tmp_path, body, resync=1.0)


def test_an_expired_version_is_listed_again(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        api.expire_watches = 3
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.watching.wait()
        assert heard.kinds == ["expired"] * 3
        await api.put("a", [endpoint("10.0.0.2")])
        await heard.until_urls(B)
        assert sum("limit" in query for query in api.asked) == 4

    watched(tmp_path, body)


def test_410_to_the_request_itself_and_other_refusals(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        for status, kind in (
            (410, "expired"),
            (500, "status"),
            (429, "status"),
            (403, "forbidden"),
        ):
            api.status = status
            await api.cut()
            await heard.until_failed(kind)
        assert heard.urls == {A}, "no answer removes none"
        api.status = 0
        await api.put("a", [endpoint("10.0.0.2")])
        await heard.until_urls(B)

    watched(tmp_path, body)


def test_bookmarks_are_signs_of_life(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.watching.wait()
        before = heard.signs
        await api.bookmark()
        await heard.until(lambda: heard.signs > before)
        assert heard.urls == set() and heard.kinds == []

    watched(tmp_path, body)


def test_a_server_that_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.watching.wait()
        api._server.close()
        await api.cut()
        await heard.until_failed("unreachable")
        assert heard.urls == {A}
        await api.put("a", [endpoint("10.0.0.2")])
        api._server = await asyncio.start_server(api._serve, "127.0.0.1", api.port)
        await heard.until_urls(B)

    watched(tmp_path, body)


def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.watching.wait()
        api.tokens = {"second-token"}
        await api.cut()
        await heard.until_failed("unauthorized")
        api.rotate("second-token")
        await api.put("a", [endpoint("10.0.0.2")])
        await heard.until_urls(B)
        await api.watching.wait()
        (tmp_path / "token").unlink()
        await api.cut()
        await heard.until_failed("credentials")
        assert heard.urls == {B}

    watched(tmp_path, body)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"<html>", b"[]", b'{"items":[]}', b'{"metadata":{},"items":[{"endpoints":7}]}'],
)
def test_garbage_changes_nothing(tmp_path: Path, garbage: bytes) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)
        await api.watching.wait()
        api.garbage = garbage or b" "
        await api.cut()
        await heard.until_failed("malformed")
        assert heard.urls == {A}

    watched(tmp_path, body)


def test_the_port_is_the_only_one_or_named(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")], ports=ports(9, 8000))
        await heard.until_failed("port")
        await api.put("a", [endpoint("10.0.0.1")], ports=ports(8000))
        await heard.until_urls(A)
        await api.put("b", [endpoint("10.0.0.9", ready=False)], ports=[])
        await api.put("a", [], ports=[])
        await heard.until_urls()

    async def named(api: FakeApiServer, heard: Heard) -> None:
        await api.put("a", [endpoint("10.0.0.1")], ports=ports(9, 8000))
        await heard.until_urls(A)

    watched(tmp_path, body)
    watched(tmp_path, named, port="p1")
    watched(tmp_path, named, port="8000")


def test_a_dual_stack_engine_is_one_engine(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await api.put("six", [endpoint("fd00::1", uid="1")], addressType="IPv6")
        await heard.until_urls("http://[fd00::1]:8000")
        await api.put("four", [endpoint("10.0.0.1", uid="1"), endpoint("10.0.0.2", uid="2")])
        await heard.until_urls(A, B)
        await api.delete("four")
        await heard.until_urls("http://[fd00::1]:8000")

    watched(tmp_path, body)


def test_another_namespace_needs_its_own_leave(tmp_path: Path) -> None:
    async def body(api: FakeApiServer, heard: Heard) -> None:
        await heard.until_failed("forbidden")
        assert heard.urls is None

    watched(tmp_path, body, namespace="elsewhere")
    assert NAMESPACE != "elsewhere"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_servers_certificate_is_checked(tmp_path: Path) -> None:
    def certificate(name: str) -> tuple[Path, Path]:
        files = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=api", "-addext", "subjectAltName=DNS:localhost"),
                *("-out", files[0], "-keyout", files[1]),
            ],
            check=True,
            capture_output=True,
        )
        return files

    good, other = certificate("good"), certificate("other")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*good)
    ca = tmp_path / "ca.crt"

    async def body(api: FakeApiServer, heard: Heard) -> None:
        await heard.until_failed("credentials")  # no certificate at all
        ca.write_text("not a certificate")
        await heard.until_failed("credentials")
        shutil.copy(other[0], ca)
        await heard.until_failed("unreachable")
        assert api.asked == [], "the token was shown to nobody else"
        shutil.copy(good[0], ca)
        await api.put("a", [endpoint("10.0.0.1")])
        await heard.until_urls(A)

    watched(tmp_path, body, tls=tls)


@pytest.mark.parametrize("url", ["kubernetes", "ftp://k", "https://", "https://k/path"])
def test_the_servers_url_is_checked(url: str) -> None:
    with pytest.raises(ConfigError):
        ApiServer(url, "/nowhere")
