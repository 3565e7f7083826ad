"""Log files read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from lodestar_fast.decisions.log import NAME
from lodestar_fast.decisions.schema import KIND, SCHEMA, Row
from lodestar_fast.errors import ConfigError


def log_files(paths: Iterable[str]) -> list[Path]:
    """The files of a log: those given, and of folders all that are in them, oldest first.

    Raises ConfigError if there are none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [p for p in path.iterdir() if NAME.fullmatch(p.name)]
            if not found:
                raise ConfigError(f"{path}: no log of decisions in this folder")
            files += sorted(found, key=lambda p: int(NAME.fullmatch(p.name)[1]))  # type: ignore[index]
        else:
            files.append(path)
    return files


def is_log(first: Any) -> bool:
    """Whether a file's first line is that of a log."""
    meta = first.get("meta") if isinstance(first, dict) else None
    return isinstance(meta, dict) and meta.get("kind") == KIND


def read_meta(line: bytes, where: str) -> dict[str, Any]:
    """The first line of a log. Raises ConfigError."""
    try:
        first = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        first = None
    if not is_log(first):
        raise ConfigError(f"{where}: not a log of decisions")
    meta: dict[str, Any] = first["meta"]
    if meta.get("schema") != SCHEMA:
        raise ConfigError(f"{where}: schema {meta.get('schema')}; this version reads {SCHEMA}")
    return meta


def rows_of(data: bytes, where: str) -> Iterator[Row]:
    """The decisions of one file, whose first line is not looked at; a last line that was cut off is
    left out. Raises ConfigError."""
    lines = data.partition(b"\n")[2].split(b"\n")
    whole = lines.pop() == b""  # the file ends with a line's end
    for number, line in enumerate(lines, 2):
        try:
            row: Row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            if whole or number < len(lines) + 1:
                raise ConfigError(f"{where}: line {number}: not JSON: {e}") from None
            return
        yield row


def read_files(paths: Iterable[str]) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """The first line and the decisions of each file. Raises ConfigError."""
    for path in log_files(paths):
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from None
        if data:  # a process may have been killed before it wrote anything
            yield read_meta(data.partition(b"\n")[0], str(path)), list(rows_of(data, str(path)))


def read_log(paths: Iterable[str]) -> Iterator[Row]:
    """The decisions of all files, file by file. Raises ConfigError."""
    for _, rows in read_files(paths):
        yield from rows
