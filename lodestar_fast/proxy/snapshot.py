"""Keeps the prefix index on disk, so that a restart does not forget what the engines hold.

One file in the state folder, replaced as a whole: a crash while it is written leaves the old one.

    MAGIC    records (csrc/index.h)    about: JSON    u64 bytes of records, u32 of about, u32 CRC-32

`about` says whose slots the records speak of: each engine by its URL, with the start of its process
and its count of prompt tokens, by which it is known whether it restarted meanwhile. Hashes mean
nothing without the router's key, which lies beside it (index.key).

Writing and reading are done in a thread, the index is read and entered in slices of less than a
millisecond between requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from lodestar_fast.core.snapshot import Restore, Snapshot
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance

log = logging.getLogger(__name__)

FILE: Final = "index.snapshot"
MAGIC: Final = b"lodestar index 1"
TAIL: Final = struct.Struct("<QII")
MOST_AGE: Final = 3600.0  # seconds; engines serve others too, and none of that was seen
EVERY: Final = 60.0  # seconds between saves, if anything was decided
LATE: Final = 600.0  # seconds after the start in which engines that join are still looked up
_LOOK: Final = 1.0  # seconds between looks whether one has joined


class Engine(msgspec.Struct, frozen=True):
    """What is kept of an engine. started: seconds since 1970, 0 if it does not tell."""

    url: str
    slot: int
    started: float
    prompted: float


class About(msgspec.Struct, frozen=True):
    """saved: seconds since 1970. fingerprint: the router's; it must be the same."""

    saved: float
    fingerprint: str
    engines: tuple[Engine, ...]


class SnapshotError(Exception):
    """A file that cannot be used; the text says why."""


# ---- To the disk ---------------------------------------------------------------------------------


class _Writer:
    """The file that will replace the old one. Its methods run in a thread. They raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path, self._aside = (
            path,
            path.with_suffix(".tmp"),
        )  # what a crash leaves is overwritten
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._file: BinaryIO = open(os.open(self._aside, flags, 0o600), "wb")  # noqa: SIM115
        self._crc = self.bytes = 0
        self.write(MAGIC)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self.bytes += len(data)

    def finish(self, about: About) -> None:
        records = self.bytes - len(MAGIC)
        self.write(text := msgspec.json.encode(about))
        self._file.write(TAIL.pack(records, len(text), self._crc))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._aside, self._path)

    def give_up(self) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)


async def save(folder: str, fleet: Fleet, wall: float) -> None:
    """Write the index. wall: seconds since 1970. Raises OSError; the file there was stays then."""
    before = {instance: instance.losses for instance in fleet.all}
    snapshot = Snapshot(fleet.router)
    writer = await asyncio.to_thread(_Writer, Path(folder) / FILE)
    try:
        while not snapshot.done:
            await asyncio.to_thread(writer.write, snapshot.slice())
        # Who joined or lost its cache meanwhile is left out: part of its records are of before.
        engines = tuple(
            Engine(i.url, i.slot, i.started, i.prompted)
            for i in fleet.all
            if before.get(i) == i.losses
        )
        about = About(wall, fleet.router.fingerprint(), engines)
        await asyncio.to_thread(writer.finish, about)
    except BaseException:
        writer.give_up()
        raise


# ---- From the disk -------------------------------------------------------------------------------


def load(folder: str, fingerprint: str, wall: float) -> tuple[About, Restore] | None:
    """What save() left, checked; None if there is none. In a thread. Raises SnapshotError."""
    path = Path(folder) / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise SnapshotError(f"{path}: {e.strerror}") from None
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + TAIL.size:
        raise SnapshotError(f"{path}: no snapshot, or of another version")
    records, text, crc = TAIL.unpack_from(data, len(data) - TAIL.size)
    whole = memoryview(data)[: -TAIL.size]
    if len(MAGIC) + records + text != len(whole) or zlib.crc32(whole) != crc:
        raise SnapshotError(f"{path}: damaged")
    try:
        about = msgspec.json.decode(whole[len(MAGIC) + records :], type=About)
        if about.fingerprint != fingerprint:
            raise SnapshotError(f"{path}: of another key or block size")
        if not 0 <= wall - about.saved <= MOST_AGE:
            raise SnapshotError(f"{path}: {wall - about.saved:.0f} s old")
        return about, Restore(whole[len(MAGIC) : len(MAGIC) + records])
    except (ValueError, MemoryError) as e:  # msgspec's are ValueErrors
        raise SnapshotError(f"{path}: {e}") from None


class Recall:
    """Gives the engines of a snapshot back what they hold, as they join."""

    def __init__(self, about: About, restore: Restore) -> None:
        self._restore = restore
        self.waiting = {engine.url: engine for engine in about.engines}

    async def give(self, fleet: Fleet) -> None:
        """Enter what is kept of those that are there, unless they restarted meanwhile."""
        chosen: dict[int, tuple[Instance, int]] = {}
        for instance in fleet.all:
            engine = self.waiting.pop(instance.url, None)
            if engine is None:
                continue
            if instance.same_process(engine.started, engine.prompted):
                chosen[engine.slot] = instance, instance.losses
            else:
                log.info("engine %s: restarted since; nothing recalled", instance.id)
        while chosen:
            # One that loses its cache, or is removed, while it is given back, gets no more.
            chosen = {
                slot: (i, losses)
                for slot, (i, losses) in chosen.items()
                if i.losses == losses and fleet.by_id(i.id) is i
            }
            if not self._restore.step(fleet.router, {s: i.slot for s, (i, _) in chosen.items()}):
                break
            await asyncio.sleep(0)
        for instance, _ in chosen.values():
            blocks = fleet.router.instance(instance.slot)["prefix_blocks"]
            log.info("engine %s: %d prefix blocks recalled", instance.id, blocks)


async def recall(folder: str, fleet: Fleet, wall: float) -> Recall | None:
    """Take up what the process before left, for the engines that are there.

    A file that cannot be used is named in the log, and changes nothing. The Recall, if there are
    engines in it that have not joined.
    """
    try:
        kept = await asyncio.to_thread(load, folder, fleet.router.fingerprint(), wall)
    except SnapshotError as e:
        log.warning("prefix index not recalled: %s", e)
        return None
    if kept is None:
        return None
    memory = Recall(*kept)
    await memory.give(fleet)
    return memory if memory.waiting else None


async def keep(
    folder: str, fleet: Fleet, stop: asyncio.Event, complain: Callable[[str, Exception], None]
) -> None:
    """Take the index up, then save it now and then, and at last when `stop` is set."""
    memory = await recall(folder, fleet, time.time())
    started = saved_at = fleet.now()
    saved, ending = 0, False
    while not ending:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK if memory else EVERY)
        if memory:
            await memory.give(fleet)
            if not memory.waiting or fleet.now() > started + LATE:
                memory = None
        decided, ending = _decisions(fleet), stop.is_set()
        if decided != saved and (ending or fleet.now() >= saved_at + EVERY):
            try:
                await save(folder, fleet, time.time())
            except Exception as e:
                complain("index_not_saved", e)
            saved, saved_at = decided, fleet.now()


def _decisions(fleet: Fleet) -> int:
    return sum(fleet.router.stats()["decisions"].values())
