"""The file of the prefix index, and restarts of the real program."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from lodestar_fast.core import Router
from lodestar_fast.core.snapshot import Snapshot
from lodestar_fast.proxy import snapshot
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.snapshot import FILE, SnapshotError, load, save
from tests.fake_fleet import FleetFixture
from tests.oracle import Fixed, make_router
from tests.test_radix import dispatch
from tests.test_server import FAST, Lodestar, request
from tests.tiny_engine import TinyEngine, page

BLOCK = 16
KEY = bytes(range(64))


class Kept:
    """A fleet on a real router whose index holds a prompt on each of its engines."""

    def __init__(
        self, urls: tuple[str, ...] = ("http://a:1", "http://b:1"), **options: Any
    ) -> None:
        fixture: Any = FleetFixture()
        options = {"block_bytes": BLOCK, "key": KEY} | options
        self.router = fixture.fleet.router = make_router(Fixed(), 0, **options)
        self.fleet: Fleet = fixture.fleet
        for url in urls:
            self.fleet.add(url)

    def fill(self) -> Kept:
        for instance in self.fleet.all:
            self.router.set_routable(instance.slot, True)
            dispatch(self.router, instance.slot, b"p" * 320)
        return self

    @property
    def held(self) -> dict[str, int]:
        hits = self.router._match(b"p" * 320)
        return {i.url: hits[i.slot] for i in self.fleet.all if i.slot in hits}


async def recalled(folder: Path, wall: float = 1000.0, **options: Any) -> dict[str, int]:
    kept = Kept(**options)
    await snapshot.recall(str(folder), kept.fleet, wall)
    return kept.held


def test_a_file_is_private_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        await save(str(tmp_path), Kept().fill().fleet, 1000.0)
        assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
        assert [p.name for p in tmp_path.iterdir()] == [FILE]
        assert await recalled(tmp_path) == {"http://a:1": 20, "http://b:1": 20}
        assert await recalled(tmp_path, urls=("http://new:1", "http://b:1")) == {"http://b:1": 20}

    uvloop.run(main())


@pytest.mark.parametrize(
    ("said", "spoil", "options"),
    [
        ("damaged", lambda data: data[:40] + b"?" + data[41:], {}),
        ("damaged", lambda data: data[:-100] + data[-99:], {}),
        ("damaged", lambda data: data + b"x", {}),
        ("no snapshot", lambda data: data[:20], {}),
        ("no snapshot", lambda data: b"", {}),
        ("no snapshot", lambda data: b"lodestar index 9" + data[16:], {}),
        ("another key", lambda data: data, {"key": KEY[::-1]}),
        ("another key", lambda data: data, {"block_bytes": 32}),
        ("s old", lambda data: data, {"wall": 1000.0 + snapshot.MOST_AGE + 1}),
        ("s old", lambda data: data, {"wall": 10.0}),
    ],
)
def test_a_file_of_no_use_is_named_once_and_changes_nothing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    said: str,
    spoil: Callable[[bytes], bytes],
    options: dict[str, Any],
) -> None:
    async def main() -> None:
        await save(str(tmp_path), Kept().fill().fleet, 1000.0)
        data = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(spoil(data))
        assert await recalled(tmp_path, **options) == {}

    uvloop.run(main())
    assert len(caplog.records) == 1 and said in caplog.text and FILE in caplog.text


def test_a_consistent_file_of_nonsense_is_refused(tmp_path: Path) -> None:
    kept = Kept()
    writer = snapshot._Writer(tmp_path / FILE)
    writer.write(b"x" * 64)
    writer.finish(snapshot.About(1000.0, kept.router.fingerprint(), ()))
    with pytest.raises(SnapshotError, match="records"):
        load(str(tmp_path), kept.router.fingerprint(), 1000.0)
    assert load(str(tmp_path / "none"), "", 0.0) is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FILE).mkdir()
    with pytest.raises(SnapshotError, match="directory"):
        load(str(tmp_path / "a"), "", 0.0)


def test_what_restarted_since_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        old = Kept().fill()
        for instance in old.fleet.all:
            instance.note_process(5000.0, 100.0)
        await save(str(tmp_path), old.fleet, 1000.0)

        # Told before the file is read, or by the first page after.
        new = Kept()
        a, b = new.fleet.all
        a.note_process(6000.0, 500.0)
        a.reports += 1
        await snapshot.recall(str(tmp_path), new.fleet, 1000.0)
        assert new.held == {b.url: 20}
        assert not b.note_process(5000.0, 100.0) and new.held == {b.url: 20}
        assert b.note_process(6000.0, 500.0) and new.held == {}

        # An engine that does not tell its start: by the count that can only grow.
        new = Kept()
        a, b = new.fleet.all
        assert not a.note_process(0.0, None)
        await snapshot.recall(str(tmp_path), new.fleet, 1000.0)
        assert not a.note_process(0.0, 100.0) and b.note_process(0.0, 99.0)
        assert new.held == {a.url: 20}

    uvloop.run(main())


class Interrupted:
    """A Snapshot or Restore with something that happens before its first step."""

    def __init__(self, inner: Any, happens: Callable[[], object]) -> None:
        self.inner, self.happens = inner, happens

    @property
    def done(self) -> bool:
        return bool(self.inner.done)

    def slice(self) -> bytes:
        self.happens()
        return bytes(self.inner.slice())

    def step(self, router: Router, slots: dict[int, int]) -> int:
        left = int(self.inner.step(router, slots, 1))
        self.happens()
        return left


def test_what_joins_or_forgets_while_it_is_written_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        kept = Kept().fill()
        a, _ = kept.fleet.all

        def change() -> None:
            a.forget()
            kept.fleet.add("http://c:1")

        monkeypatch.setattr(snapshot, "Snapshot", lambda r: Interrupted(Snapshot(r), change))
        await save(str(tmp_path), kept.fleet, 1000.0)
        urls = ("http://a:1", "http://b:1", "http://c:1")
        assert await recalled(tmp_path, urls=urls) == {"http://b:1": 20}

    uvloop.run(main())


@pytest.mark.parametrize("event", ["forget", "remove"])
def test_what_is_lost_while_it_is_given_back_stays_lost(tmp_path: Path, event: str) -> None:
    async def main() -> None:
        old = Kept().fill()
        for instance in old.fleet.all:  # more than one step gives back
            for prompt in (b"q" * 320, b"r" * 320):
                dispatch(old.router, instance.slot, prompt)
        await save(str(tmp_path), old.fleet, 1000.0)
        new = Kept()
        a, b = new.fleet.all
        about, restore = load(str(tmp_path), new.router.fingerprint(), 1000.0) or pytest.fail()
        lose = a.forget if event == "forget" else lambda: new.fleet.remove(a.id)
        memory = snapshot.Recall(about, Interrupted(restore, lose))  # type: ignore[arg-type]
        await memory.give(new.fleet)
        for prompt in (b"p" * 320, b"q" * 320, b"r" * 320):
            assert new.router._match(prompt) == {b.slot: 20}
        assert not memory.waiting

    uvloop.run(main())


def test_a_failed_write_leaves_the_file_before(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Kept().fill()
        await save(str(tmp_path), kept.fleet, 1000.0)
        before = (tmp_path / FILE).read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(OSError, match="disk"):
                await save(str(tmp_path), kept.fleet, 1000.0)
        assert [p.name for p in tmp_path.iterdir()] == [FILE]
        assert (tmp_path / FILE).read_bytes() == before

    uvloop.run(main())


CHILD = """
import pathlib, sys, time
from lodestar_fast.proxy.snapshot import _Writer
writer = _Writer(pathlib.Path(sys.argv[1]))
writer.write(bytes(1 << 20))
print("writing", flush=True)
time.sleep(600)
"""


def test_a_kill_during_a_write_leaves_the_file_before(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Kept().fill()
        await save(str(tmp_path), kept.fleet, 1000.0)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, str(tmp_path / FILE)), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout and await child.stdout.readline() == b"writing\n"
        child.kill()
        await child.wait()
        assert len(list(tmp_path.iterdir())) == 2
        assert await recalled(tmp_path) == kept.held != {}
        await save(str(tmp_path), kept.fleet, 1000.0)
        assert [p.name for p in tmp_path.iterdir()] == [FILE]

    uvloop.run(main())


def refuse(descriptor: int) -> None:
    raise OSError(28, "the disk is full")


def test_it_is_kept_from_start_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []

    async def live(kept: Kept, during: Callable[[], object] = lambda: None) -> None:
        stop = asyncio.Event()
        task = asyncio.ensure_future(
            snapshot.keep(
                str(tmp_path), kept.fleet, stop, lambda kind, error: complaints.append(kind)
            )
        )
        during()
        stop.set()
        await task

    async def main() -> None:
        await live(Kept())
        assert not list(tmp_path.iterdir()), "nothing was decided"
        first = Kept()
        await live(first, first.fill)
        assert (tmp_path / FILE).exists() and not complaints
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            again = Kept(("http://a:1",))
            await live(again, again.fill)
        assert complaints == ["index_not_saved"]

        # An engine that joins later.
        monkeypatch.setattr(snapshot, "_LOOK", 0.0)
        late, stop = Kept(("http://a:1",)), asyncio.Event()
        task = asyncio.ensure_future(
            snapshot.keep(str(tmp_path), late.fleet, stop, lambda kind, error: None)
        )
        while not late.held:
            await asyncio.sleep(0)
        late.fleet.add("http://b:1")
        while len(late.held) < 2:
            await asyncio.sleep(0)
        assert late.held == {"http://a:1": 20, "http://b:1": 20}
        stop.set()
        await task

    uvloop.run(main())


# ---- The program ---------------------------------------------------------------------------------

LONG = "words that many requests begin with " * 40


async def blocks(lodestar: Lodestar) -> list[int]:
    _, answer = await request(lodestar.admin, "GET /workers")
    return [worker["prefix_blocks"] for worker in json.loads(answer)["workers"]]


async def until_blocks(lodestar: Lodestar, n: int) -> None:
    while await blocks(lodestar) != [n]:
        await asyncio.sleep(0.01)


async def ask(lodestar: Lodestar, engine: TinyEngine, words: str) -> None:
    for event in (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', None):
        engine.events.put_nowait(event)
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": words}]}
    status, _ = await request(lodestar.data, "POST /v1/chat/completions", msgspec.json.encode(body))
    assert status == 200


def test_a_restart_does_not_forget_and_an_engines_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with TinyEngine() as engine:
            told = engine.pages["/metrics"]
            assert told
            body = told.partition(b"\r\n\r\n")[2]
            engine.pages["/metrics"] = page(body + b"process_start_time_seconds 1.7e+09\n")
            options = ("--worker-urls", engine.url, "--state-dir", str(tmp_path), *FAST)
            options += ("--policy", "lmetric")
            lodestar = await Lodestar.start(*options)
            await lodestar.ready()
            await ask(lodestar, engine, LONG)
            (held,) = await blocks(lodestar)
            assert held > 20
            await lodestar.stop()

            lodestar = await Lodestar.start(*options)
            await until_blocks(lodestar, held)
            await lodestar.ready()
            while not re.search(rb"instance_reports_total{[^}]*} [1-9]", await metrics(lodestar)):
                await asyncio.sleep(0.01)
            assert await blocks(lodestar) == [held], "its first pages show the same process"
            _, answer = await request(lodestar.admin, "GET /workers")
            worker = json.loads(answer)["workers"][0]["id"]
            status, answer = await request(
                lodestar.admin, f"POST /workers/{worker}/forget-prefixes"
            )
            assert status == 200 and json.loads(answer)["prefix_blocks"] == 0
            lodestar.process.kill()  # nothing is saved
            await lodestar.end()

            engine.pages["/metrics"] = page(body + b"process_start_time_seconds 1.8e+09\n")
            lodestar = await Lodestar.start(*options)
            await lodestar.ready()
            # The file or the page may be read first.
            assert lodestar.process.stderr
            while b"restarted" not in await lodestar.process.stderr.readline():
                pass
            assert await blocks(lodestar) == [0]
            await lodestar.stop()

    uvloop.run(main())


async def metrics(lodestar: Lodestar) -> bytes:
    return (await request(lodestar.admin, "GET /metrics"))[1]
