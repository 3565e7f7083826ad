"""The log of decisions: a folder of numbered files of JSON lines, each decision with its outcome.

    STATE_DIR/decisions/decisions-000001.jsonl      first line {"meta": ...}, then rows (schema.py)

A decision is written when its request has ended, so that it stands on one line; those that are
under way when the process is killed are lost. A process begins a file of its own: a line that was
cut off stays the last one of its file.

The event loop only copies decisions out of the ring (offer()). A thread turns them into text, most
of it without the GIL, and writes. What it cannot write (a full disk) or take (a slow one) is
dropped and counted; nothing waits for it. Prompts are not in it: which prefix is shared with what
is said in small numbers, given in order of appearance, that mean nothing outside of the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from lodestar_fast.core.decisions import Batch
from lodestar_fast.decisions.schema import KIND, MARK_BLOCKS, SCHEMA
from lodestar_fast.features import FEATURES

log = logging.getLogger(__name__)

FOLDER: Final = "decisions"
NAME: Final = re.compile(r"decisions-(\d{6,})\.jsonl")
MOST_OPEN: Final = 16384  # decisions whose end is awaited; each some kilobytes
MOST_PREFIXES: Final = 1 << 17  # remembered, and as many of before; 30 MB in all
MOST_BATCHES: Final = 64  # that may wait for a slow disk
LAST_WORDS: Final = 3.0  # seconds that a slow disk has at the end


class Prefixes:
    """Small numbers for prefix hashes, so that equal prefixes have equal numbers."""

    def __init__(self, most: int = MOST_PREFIXES) -> None:
        self._most = most
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._next = 0

    def runs(self, hashes: list[int]) -> list[int]:
        """Numbers of these, run-length coded as in a trace: first, length, ..."""
        out: list[int] = []
        for each in hashes:
            number = self._new.get(each)
            if number is None:
                number = self._old.get(each)
                if number is None:
                    number = self._next
                    self._next += 1
                self._new[each] = number
            if out and number == out[-2] + out[-1]:
                out[-1] += 1
            else:
                out += [number, 1]
        if len(self._new) >= self._most:
            self._old, self._new = self._new, {}
        return out


class Writer:
    """Writes batches to files; not safe for threads, and slow if the disk is.

    folder: made if it is not there. since: when the router's clock stood at 0, seconds since 1970.
    Raises OSError only where it says so.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        since: float,
        block_bytes: int,
        fallback: str = "",
        version: str = "",
        file_bytes: int = 64 << 20,
        files: int = 8,
    ) -> None:
        """Raises OSError if the folder cannot be made."""
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.written = 0  # decisions
        self.dropped = 0
        self.error = ""  # the last one
        self._since = since
        self._file_bytes, self._files = file_bytes, files
        meta = {
            "kind": KIND,
            "schema": SCHEMA,
            "lodestar": version,
            "features": [[name, unit] for name, unit, _, _ in FEATURES],
            "since": since,
            "fallback": fallback,
            "prefix_bytes": MARK_BLOCKS * block_bytes,
        }
        self._head = msgspec.json.encode({"meta": meta}) + b"\n"
        self._prefixes = Prefixes()
        self._open: dict[int, bytes] = {}  # by serial: decisions whose requests have not ended
        self._file = -1
        self._size = 0

    def take(self, batch: Batch) -> None:
        """Decisions made, and ends of decisions; those that ended are written."""
        rows = batch.rows(self._since)
        for i, (serial, row) in enumerate(zip(batch.serials(), rows, strict=True)):
            runs = self._prefixes.runs(batch.marks(i))
            self._open[serial] = row + b',"h":' + msgspec.json.encode(runs)
        lines = []
        for serial, outcome in batch.outcomes():
            row = self._open.pop(serial, b"")
            if row:
                lines.append(row + b',"outcome":' + msgspec.json.encode(outcome) + b"}\n")
        while len(self._open) > MOST_OPEN:
            lines.append(self._without_end(next(iter(self._open))))
        self._write(lines)

    def _without_end(self, serial: int) -> bytes:
        return self._open.pop(serial) + b',"outcome":null}\n'

    def close(self) -> None:
        """Write those whose end is not known."""
        self._write([self._without_end(serial) for serial in list(self._open)])
        self._close_file()

    # -- files --

    def _write(self, lines: list[bytes]) -> None:
        """A file's share of lines at a time. What cannot be written is dropped."""
        at = 0
        while at < len(lines):
            end, size = at, self._size if self._file >= 0 else len(self._head)
            while end < len(lines) and (end == at or size + len(lines[end]) <= self._file_bytes):
                size += len(lines[end])
                end += 1
            try:
                self._append(b"".join(lines[at:end]))
                self.written += end - at
            except OSError as e:
                self.dropped += end - at
                self.error = f"{self.folder}: {e.strerror}"
            at = end

    def _append(self, data: bytes) -> None:
        if self._file >= 0 and self._size + len(data) > self._file_bytes:
            self._close_file()
        if self._file < 0:
            self._begin_file()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            try:
                os.ftruncate(self._file, self._size)  # no half line
                os.lseek(self._file, self._size, os.SEEK_SET)
            except OSError:
                self._close_file()
            raise
        self._size += len(data)

    def _begin_file(self) -> None:
        numbers = sorted(numbered(self.folder))
        path = self.folder / f"decisions-{(numbers[-1] if numbers else 0) + 1:06d}.jsonl"
        for number in numbers[: max(0, len(numbers) + 1 - self._files)]:
            (self.folder / f"decisions-{number:06d}.jsonl").unlink(missing_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0
        try:
            os.write(self._file, self._head)
        except OSError:
            self._close_file()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._size = len(self._head)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def numbered(folder: Path) -> list[int]:
    """The numbers of the log files in a folder. Raises OSError."""
    matches = [NAME.fullmatch(path.name) for path in folder.iterdir()]
    return [int(match[1]) for match in matches if match]


class Log:
    """A Writer on a thread of its own."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._batches: queue.Queue[Batch | None] = queue.Queue(MOST_BATCHES)
        self._refused = 0
        self._complained = ""
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def offer(self, batch: Batch) -> None:
        """Never waits: if the disk is too slow, the batch is dropped."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._refused += len(batch)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._writer.take(batch)
            except Exception:  # a bug of ours must not end the log, nor anything else
                self._writer.dropped += len(batch)
                log.exception("the log of decisions lost a batch")
            if self._writer.error != self._complained:
                self._complained = self._writer.error
                log.error("decisions are not logged: %s", self._complained)
        self._writer.close()

    def close(self) -> None:
        """Write what is there, for LAST_WORDS seconds at most."""
        with contextlib.suppress(queue.Full):
            self._batches.put(None, timeout=LAST_WORDS)
        self._thread.join(LAST_WORDS)

    def counts(self) -> dict[str, int]:
        """Decisions by what became of them."""
        return {
            "written": self._writer.written,
            "dropped": self._writer.dropped + self._refused,
        }

    def status(self) -> dict[str, Any]:
        return {"folder": str(self._writer.folder), "error": self._writer.error, **self.counts()}
