"""The processes of a demo: started, watched, and stopped on every way out.

Each writes to a log of its own; one that ends before it was asked to is a ChildError with the tail
of that log. On Linux the kernel ends them too if this process is killed outright.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import re
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from lodestar_fast.errors import LodestarError
from lodestar_fast.loadgen import client_session

START_SECONDS = 30.0  # for a process to answer; it takes one, on a busy machine several
STOP_SECONDS = 3.0  # between SIGTERM and SIGKILL
POLL_SECONDS = 0.05
TAIL_LINES = 15

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildError(LodestarError):
    """A process of the demo failed. The text names it and ends with the tail of its log."""


class Interrupted(Exception):
    """A signal ended the work. signal: its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.signal = number


@dataclass(frozen=True)
class Child:
    """A running process. name: as people are told."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"

    def error(self, what: str) -> ChildError:
        return ChildError(f"{self.name} {what}; the end of its log:\n{self.tail()}")


def _die_with_parent() -> Callable[[], None] | None:
    """What a new process does before it becomes another program; None where that is unknown."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here, as little as may be is done after the fork

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


class Children:
    """All of them. Use as an async context manager: leaving it stops every one."""

    def __init__(self, folder: Path) -> None:
        """folder: for the logs; it must exist."""
        self._folder = folder
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Children:
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def start(self, name: str, *words: str) -> Child:
        """Run `lodestar` with these words."""
        log = self._folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "lodestar_fast",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                # Ctrl-C on the terminal goes to us alone; we stop them in order.
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        child = Child(name, process, log)
        self._children.append(child)
        self._watchers.append(asyncio.create_task(self._watch(child)))
        return child

    async def failure(self) -> None:
        """Wait for a child to end unasked, for ever if none does. Raises ChildError."""
        assert self._failed is not None
        await asyncio.shield(self._failed)

    async def announced(self, child: Child, pattern: str) -> re.Match[str]:
        """The first match in a child's log. Raises ChildError if it does not come in time."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while (found := re.search(pattern, child.log.read_text(errors="replace"))) is None:
                    await asyncio.sleep(POLL_SECONDS)
                return found
        except TimeoutError:
            raise child.error(f"did not start in {START_SECONDS:g} s") from None

    async def _watch(self, child: Child) -> None:
        status = await child.process.wait()
        assert self._failed is not None
        if not self._failed.done():
            ended = f"ended with status {status}"
            if status < 0:
                ended = f"was ended by signal {-status}"
            elif status == 0:
                ended += ", as when somebody else sends it SIGTERM"
            self._failed.set_exception(child.error(ended))
            self._failed.exception()  # nobody need be waiting for it

    async def _stop(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        for signal_number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
            for child in self._children:
                if child.process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.process.send_signal(signal_number)
            ends = asyncio.gather(*(child.process.wait() for child in self._children))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ends, patience)
                return


Work = Callable[[Children, aiohttp.ClientSession], Awaitable[None]]


async def with_children(work: Work) -> None:
    """Do work with processes that end with it, and on SIGINT, SIGTERM and SIGHUP.

    Raises ChildError, what work raises, and Interrupted on a signal, once all have ended.
    """
    this = asyncio.current_task()
    assert this is not None
    got: list[int] = []

    def on_signal(number: int) -> None:
        """The first one ends the work; another must not interrupt the ending of the processes."""
        if not got:
            got.append(number)
            this.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        with tempfile.TemporaryDirectory(prefix="lodestar-demo-") as folder:
            async with Children(Path(folder)) as children, client_session() as client:
                working = asyncio.ensure_future(work(children, client))
                failure = asyncio.create_task(children.failure())
                try:
                    await asyncio.wait({working, failure}, return_when=asyncio.FIRST_COMPLETED)
                    # A child's end makes requests fail too; that it ended is the better message.
                    await (failure if failure.done() else working)
                finally:
                    for task in (working, failure):
                        task.cancel()
                    await asyncio.gather(working, failure, return_exceptions=True)
    except asyncio.CancelledError:
        if not got:
            raise
        raise Interrupted(got[0]) from None
