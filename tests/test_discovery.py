"""Sources one by one: files, names, and the words a DNS server speaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.dns import DnsSource, parse_target
from lodestar_fast.proxy.discovery.file import FileSource, parse
from lodestar_fast.proxy.discovery.source import DiscoveryError, Source, backoff, jitter

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"


class Heard:
    """A report that a test can wait on."""

    def __init__(self) -> None:
        self.urls: set[str] | None = None
        self.kinds: list[str] = []
        self.signs = 0  # found or alive
        self._news = asyncio.Event()

    def found(self, urls: Collection[str]) -> None:
        self.urls = set(urls)
        self.alive()

    def alive(self) -> None:
        self.signs += 1
        self._news.set()

    def failed(self, error: DiscoveryError) -> None:
        self.kinds.append(error.kind)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def until_urls(self, *urls: str) -> None:
        await self.until(lambda: self.urls == set(urls))

    async def until_failed(self, kind: str) -> None:
        """One more failure of that kind."""
        before = len(self.kinds)
        await self.until(lambda: kind in self.kinds[before:])


def watched(source: Source, body: Callable[[Heard], Awaitable[None]]) -> None:
    """Run a test body while a source reports to it."""

    async def main() -> None:
        heard = Heard()
        task = asyncio.ensure_future(source.watch(heard))
        try:
            async with asyncio.timeout(20):
                await body(heard)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


# -- files --


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f"{A}\n{B}\n", {A, B}),
        (f"# engines\n\n {A}/  # the old one\n{A}\n", {A}),
        (f'worker_urls = ["{A}", "{B}"]', {A, B}),
        (f'# engines\nworker_urls = [\n  "{A}",\n]\n', {A}),
        ("worker_urls = []", set()),
        ("# none for now\n", set()),
    ],
)
def test_a_file_is_urls_or_toml(text: str, urls: set[str]) -> None:
    assert set(parse(text, "f")) == urls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n\n",
        f"{A}\nnot a url\n",
        f"{A}\nhttps://e:1\n",
        f"{A} {B}",
        "worker_urls = 'http://e:1'",
        "worker_urls = [1]",
        f"worker_urls = ['{A}']\nmore = 1",
        f"urls = ['{A}']",
        "worker_urls = ['http://e:1",
        "\x00\x01",
        "{}",
    ],
)
def test_a_file_with_a_mistake_is_refused_whole(text: str) -> None:
    with pytest.raises(DiscoveryError) as e:
        parse(text, "engines.txt")
    assert e.value.kind == "invalid" and "engines.txt" in str(e.value)


def replace(path: Path, text: str | bytes) -> None:
    """As careful writers do: a new file takes the old one's name."""
    new = path.with_suffix(".new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.replace(new, path)


def test_a_file_is_followed_and_what_it_said_last_stays(tmp_path: Path) -> None:
    path = tmp_path / "engines"

    async def body(heard: Heard) -> None:
        await heard.until_failed("unreadable")
        assert heard.urls is None
        path.write_text(A)
        await heard.until_urls(A)
        replace(path, f"{B}\n")  # of the same length
        await heard.until_urls(B)
        replace(path, "")
        await heard.until_failed("invalid")
        replace(path, b"\xff\xfe")
        await heard.until_failed("invalid")
        replace(path, b"#" * (1 << 20) + b"#")
        await heard.until_failed("invalid")
        path.unlink()
        await heard.until_failed("unreadable")
        path.mkdir()
        await heard.until_failed("unreadable")
        path.rmdir()
        assert heard.urls == {B}
        replace(path, "# none\n")
        await heard.until_urls()

    watched(FileSource(str(path), 0.005), body)


def test_a_link_that_is_swapped_is_seen(tmp_path: Path) -> None:
    """As the kubelet updates a ConfigMap."""
    for name, url in (("1", A), ("2", B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "engines").write_text(url)
    (tmp_path / "data").symlink_to("1")

    async def body(heard: Heard) -> None:
        await heard.until_urls(A)
        (tmp_path / "new").symlink_to("2")
        os.replace(tmp_path / "new", tmp_path / "data")
        await heard.until_urls(B)

    watched(FileSource(str(tmp_path / "data" / "engines"), 0.005), body)


# -- names --


class FakeResolver:
    """Answers from tables; an error in them is raised."""

    def __init__(self) -> None:
        self.table: dict[str, list[str] | Exception] = {}
        self.records: dict[str, list[tuple[str, int]] | Exception] = {}
        self.asked = 0

    async def addresses(self, host: str) -> list[str]:
        self.asked += 1
        found = self.table[host]
        if isinstance(found, Exception):
            raise found
        return found

    async def services(self, name: str) -> list[tuple[str, int]]:
        found = self.records[name]
        if isinstance(found, Exception):
            raise found
        return found


def test_addresses_are_followed_and_failures_remove_none() -> None:
    resolver = FakeResolver()
    resolver.table["vllm.svc"] = OSError("nothing yet")

    async def body(heard: Heard) -> None:
        await heard.until_failed("no_answer")
        resolver.table["vllm.svc"] = ["10.0.0.1", "10.0.0.2", "fd00::1"]
        await heard.until_urls(A, B)
        for failure, kind in (
            (OSError("no such name"), "no_answer"),
            (TimeoutError(), "timeout"),
            ([], "empty"),
        ):
            resolver.table["vllm.svc"] = failure
            for _ in range(3):
                await heard.until_failed(kind)
        assert heard.urls == {A, B}
        resolver.table["vllm.svc"] = ["10.0.0.2"]
        await heard.until_urls(B)
        resolver.table["vllm.svc"] = ["fd00::1"]
        await heard.until_urls("http://[fd00::1]:8000")

    watched(DnsSource("vllm.svc:8000", 0.001, resolver), body)


def test_srv_records_bring_the_port() -> None:
    resolver = FakeResolver()
    name = "_http._tcp.vllm.svc"
    resolver.records[name] = [("p1.vllm.svc", 8000), ("p2.vllm.svc", 9000)]
    resolver.table = {"p1.vllm.svc": ["10.0.0.1"], "p2.vllm.svc": ["10.0.0.2"]}

    async def body(heard: Heard) -> None:
        await heard.until_urls(A, "http://10.0.0.2:9000")
        resolver.table["p2.vllm.svc"] = OSError("no such name")
        await heard.until_failed("no_answer")
        assert heard.urls == {A, "http://10.0.0.2:9000"}, "half an answer is none"
        resolver.records[name] = [("p1.vllm.svc", 8000)]
        await heard.until_urls(A)
        resolver.records[name] = []
        await heard.until_failed("empty")
        assert heard.urls == {A}

    watched(DnsSource(name, 0.001, resolver), body)


@pytest.mark.parametrize(
    "target",
    ["vllm", "vllm:", "vllm:x", "vllm:80/x", "_http.x", "_http._tcp.x:80", ":80", "a b:80"],
)
def test_a_target_must_tell_where_the_port_comes_from(target: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(target)


def test_targets() -> None:
    assert parse_target("vllm:80") == ("vllm", 80)
    assert parse_target("_http._tcp.vllm.svc") == ("_http._tcp.vllm.svc", None)


# -- waiting --


def test_waits_are_jittered_and_bounded() -> None:
    assert all(0.8 <= jitter(1.0) <= 1.2 for _ in range(100))
    assert len({jitter(1.0) for _ in range(10)}) > 1
    assert all(0.5 <= backoff(1) <= 1 for _ in range(100))
    assert all(15 <= backoff(n) <= 30 for n in (6, 100, 10**6))
