"""Clocks that jump under the whole program: the wall clock, and time in which nothing ran."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from tests.test_server import CHAT, FAST, ROOT, Lodestar, chat, request
from tests.tiny_engine import TinyEngine

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
YEAR = 365 * 86400.0

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


class Clocks:
    """Those of a process that has the shim."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offsets"
        self.set(0.0, 0.0)
        shim = folder / "clock_shim.so"
        assert CC is not None
        source = ROOT / "tests" / "clock_shim.c"
        subprocess.run([CC, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        self.variables = {"LD_PRELOAD": str(shim), "CLOCK_SHIM": str(self._file)}

    def set(self, wall: float, monotonic: float) -> None:
        """Let them differ from the machine's by so many seconds from now on."""
        data = struct.pack("dd", wall, monotonic)
        with open(self._file, "r+b" if self._file.exists() else "wb") as file:
            file.write(data)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path)


def run(
    clocks: Clocks, body: Callable[[Lodestar, TinyEngine], Awaitable[None]], *options: str
) -> None:
    async def main() -> None:
        async with TinyEngine() as engine:
            options_ = ("--worker-urls", engine.url, "--policy", "lmetric", *FAST, *options)
            lodestar = await Lodestar.start(*options_, variables=clocks.variables)
            try:
                await lodestar.ready()
                await body(lodestar, engine)
                await lodestar.stop()
            finally:
                if lodestar.process.returncode is None:
                    lodestar.process.kill()
                    await lodestar.end()

    uvloop.run(main())


def test_nothing_follows_the_wall_clock(clocks: Clocks) -> None:
    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        reader, writer = await lodestar.open()
        writer.write(chat())
        await engine.got_post.wait()
        for i, jump in enumerate((YEAR, -YEAR, 0.0)):
            clocks.set(jump, 0.0)
            asked = len(engine.asked)
            while len(engine.asked) < asked + 20:  # its checks and scrapes go on
                await lodestar.get("/version")
            event = b"data: %d\n\n" % i
            engine.events.put_nowait(event)
            await reader.readuntil(event)
        engine.events.put_nowait(None)
        await reader.readuntil(b"0\r\n\r\n")
        _, text = await lodestar.get("/workers", lodestar.admin)
        assert json.loads(text)["workers"][0]["healthy"]
        engine.events.put_nowait(None)
        assert (await request(lodestar.data, "POST /v1/chat/completions", CHAT))[0] == 200
        writer.close()

    run(clocks, body)


def test_after_time_in_which_nothing_ran_all_may_show_that_they_live(clocks: Clocks) -> None:
    """As after a machine's sleep, or SIGSTOP: every deadline has passed at once."""

    async def body(lodestar: Lodestar, engine: TinyEngine) -> None:
        reader, writer = await lodestar.stream(engine)
        slow_reader, slow_writer = await lodestar.open()
        slow_writer.write(b"GET /version HTTP/1.1\r\n")
        silent_reader, silent_writer = await lodestar.open()

        clocks.set(0.0, 1000.0)
        assert lodestar.process.stderr is not None
        async with asyncio.timeout(10.0):  # what comes only after the jump was seen comes in time
            while b"nothing ran for" not in await lodestar.process.stderr.readline():
                pass
        engine.events.put_nowait(b"data: two\n\n")
        slow_writer.write(b"Host: a\r\n\r\n")
        assert (await slow_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await silent_reader.read() == b"", "its deadline has passed, and was looked at"
        engine.events.put_nowait(None)
        assert b"data: two\n\n" in await reader.readuntil(b"0\r\n\r\n")
        for each in (writer, slow_writer, silent_writer):
            each.close()

    run(clocks, body, "--stream-idle-timeout", "30")
