"""The results file: rows of runs and saturation rates, compact, written as they come.

Two files. STORE is gzipped JSON lines, sorted, the same bytes for the same rows: what is committed.
STORE.new takes each row the moment it is there, so that a kill costs the running runs and no more;
it is folded into STORE at the end, and at the next start.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import msgspec

from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix.cells import Cell
from lodestar_fast.matrix.measure import Capacity, Row
from lodestar_fast.matrix.robust import Draw

Key = tuple[str, float, str, int]  # cell, seconds, policy, seed
Kept = Row | Capacity | Draw
KINDS: dict[str, type[Row] | type[Capacity] | type[Draw]] = {
    "run": Row,
    "capacity": Capacity,
    "draw": Draw,
}


def what_of(cell: Cell, rate: float, policy: str, seed: int) -> str:
    """A hash of what a run is: its fleet, requests, events and policy.

    A field of Workload that is new and at its default leaves it as it was.
    """
    work = [
        (f.name, v) for f in fields(cell.work) if (v := getattr(cell.work, f.name)) != f.default
    ]
    parts = (cell.fleet, work, cell.seconds, cell.events, cell.changes, rate, policy, seed)
    return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()


class Store:
    """All rows of a results file. Raises ConfigError where it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        self.capacities: dict[tuple[str, str, str], Capacity] = {}
        self.draws: dict[int, Draw] = {}  # by seed
        self._new = path.with_name(path.name + ".new")
        self._file: int | None = None
        try:
            if path.exists():
                self._read(gzip.decompress(path.read_bytes()), str(path), may_be_cut=False)
            if self._new.exists():
                self._read(self._new.read_bytes(), str(self._new), may_be_cut=True)
        except (OSError, EOFError, zlib.error) as e:
            raise ConfigError(f"--store: cannot read {path}: {e}") from None

    def _read(self, data: bytes, name: str, may_be_cut: bool) -> None:
        lines = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                (kind, content), *_ = msgspec.json.decode(line, type=dict[str, msgspec.Raw]).items()
                self._keep(msgspec.json.decode(content, type=KINDS[kind]))
            except (msgspec.DecodeError, ValueError, KeyError) as e:
                if may_be_cut and not isinstance(e, msgspec.ValidationError):
                    continue  # a kill in the middle of a line
                raise ConfigError(f"--store: {name}: line {number}: {e}") from None

    def _keep(self, row: Kept) -> None:
        if isinstance(row, Capacity):
            self.capacities[row.fleet, row.source, row.changes] = row
        elif isinstance(row, Draw):
            self.draws[row.seed] = row
        else:
            self.rows[row.cell, row.seconds, row.policy, row.seed] = row

    def add(self, row: Kept) -> None:
        """Keep a row, on disk too before this returns."""
        self._keep(row)
        try:
            if self._file is None:
                self._file = self._open()
            # What a kill has cut off before it stays a line of its own.
            os.write(self._file, b"\n" + _line(row))
        except OSError as e:
            raise ConfigError(f"--store: cannot write {self._new}: {e.strerror}") from None

    def _open(self) -> int:
        """The file of new rows, for this process alone: at the end it is taken away."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._new, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ConfigError(f"--store: {self.path}: another run is writing it") from None
        return file

    def fold(self) -> None:
        """All rows into the compact file. Not while another process writes: its rows would go."""
        rows: list[Kept] = [self.capacities[key] for key in sorted(self.capacities)]
        rows += [self.rows[key] for key in sorted(self.rows)]
        rows += [self.draws[seed] for seed in sorted(self.draws)]
        aside = self.path.with_name(self.path.name + ".tmp")
        try:
            if self._file is None:
                self._file = self._open()
            aside.write_bytes(gzip.compress(b"".join(map(_line, rows)), 9, mtime=0))
            os.replace(aside, self.path)
            self._new.unlink(missing_ok=True)
            self.close()
        except OSError as e:
            raise ConfigError(f"--store: cannot write {self.path}: {e.strerror}") from None

    def close(self) -> None:
        """Let another process write; add() opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def forget(self, cells: Iterable[Cell]) -> None:
        """Drop the rows of these cells, at their lengths."""
        for row in self.of(cells):
            del self.rows[row.cell, row.seconds, row.policy, row.seed]
        self.fold()

    def of(self, cells: Iterable[Cell]) -> list[Row]:
        """The rows of these cells, at their lengths."""
        wanted = {(cell.name, cell.seconds) for cell in cells}
        return [row for row in self.rows.values() if (row.cell, row.seconds) in wanted]


def _line(row: Kept) -> bytes:
    kind = next(name for name, type_ in KINDS.items() if isinstance(row, type_))
    return msgspec.json.encode({kind: row}) + b"\n"
