"""Weights that were in use: some of them kept, to go back to.

A new version comes about once a second, so the last sixteen would all be of the same quarter
minute. Kept instead are sixteen whose ages grow by a steady factor: seconds, minutes, hours. With a
folder they survive the process, one file each:

    VERSION-UNIXTIME.weights      the blob (csrc/model.h draws it), then 16 bytes of its BLAKE2b
    frozen                        the version that is held, if one is
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from lodestar_fast.errors import BlobError

log = logging.getLogger(__name__)

KEPT: Final = 16
FOLDER: Final = "models"
FROZEN: Final = "frozen"
SUFFIX: Final = ".weights"
DIGEST: Final = 16
MOST_BYTES: Final = 4 << 20  # 128 x 128 x 4 layers are 0.3 MB


class Version(NamedTuple):
    """One set of weights. time: seconds since 1970, when they came into use."""

    version: int
    time: float
    blob: bytes


class History:
    """Oldest first. pinned: a version that is never dropped."""

    def __init__(self) -> None:
        self.kept: list[Version] = []
        self.pinned = 0

    def add(self, version: int, time: float, blob: bytes) -> None:
        """Enter new weights; of the same version, the earlier ones go (a learner began anew)."""
        self.kept = [v for v in self.kept if v.version != version]
        self.kept.append(Version(version, time, blob))
        if len(self.kept) > KEPT:
            del self.kept[self._dispensable()]

    def _dispensable(self) -> int:
        """The one in the middle whose neighbours' ages differ least, in relation to age."""
        times = [v.time for v in self.kept]
        inner = [i for i in range(1, len(times) - 1) if self.kept[i].version != self.pinned]

        def gap(i: int) -> float:
            return (times[i + 1] - times[i - 1]) / max(times[-1] - times[i - 1], 1e-9)

        return min(inner, key=gap)

    def find(self, version: int) -> Version | None:
        return next((v for v in self.kept if v.version == version), None)

    def before(self, version: int) -> Version | None:
        """The newest one that came into use before that one did."""
        place = next((i for i, v in enumerate(self.kept) if v.version == version), len(self.kept))
        return self.kept[place - 1] if place else None


def save(folder: str, kept: list[Version], frozen: int) -> None:
    """Make the folder hold these and no others; frozen: the version that is held, 0 if none.

    Raises OSError.
    """
    path = Path(folder) / FOLDER
    path.mkdir(mode=0o700, exist_ok=True)
    wanted = {f"{v.version:08d}-{v.time:.0f}{SUFFIX}": v.blob for v in kept}
    for name, blob in wanted.items():
        if not (path / name).exists():
            _write(path / name, sealed(blob))
    if frozen:
        _write(path / FROZEN, b"%d\n" % frozen)
    else:
        (path / FROZEN).unlink(missing_ok=True)
    for file in path.iterdir():
        if file.suffix in (SUFFIX, ".tmp") and file.name not in wanted:
            file.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Aside, to the disk, then in place."""
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)


def load(folder: str) -> tuple[list[Version], int]:
    """What save() left, oldest first, and the frozen version. Damaged files are left out, logged.

    Raises OSError.
    """
    path, kept, frozen = Path(folder) / FOLDER, [], 0
    if not path.is_dir():
        return [], 0
    for file in path.glob(f"*{SUFFIX}"):
        version, _, time = file.stem.partition("-")
        with open(file, "rb") as f:
            data = f.read(MOST_BYTES + 1)
        try:
            blob = unsealed(data)
        except BlobError:
            blob = b""
        if not (version.isdigit() and time.isdigit()) or blob_version(blob) != int(version):
            log.warning("%s: damaged weights, left out", file)
            continue
        kept.append(Version(int(version), float(time), blob))
    with contextlib.suppress(FileNotFoundError, ValueError):
        frozen = int((path / FROZEN).read_text())
    return sorted(kept, key=lambda v: (v.time, v.version))[-KEPT:], frozen


def sealed(blob: bytes) -> bytes:
    """Weights as they stand in a file: with their digest."""
    return blob + blake2b(blob, digest_size=DIGEST).digest()


def unsealed(data: bytes) -> bytes:
    """The weights of such a file. Raises BlobError if it is damaged."""
    blob = data[:-DIGEST]
    if blake2b(blob, digest_size=DIGEST).digest() != data[-DIGEST:]:
        raise BlobError("damaged, or no exported weights: the digest at the end is not theirs")
    return blob


def renumbered(blob: bytes, version: int) -> bytes:
    """The same weights under another version number."""
    return blob[:16] + struct.pack("<I", version) + blob[20:]


def blob_version(blob: bytes) -> int:
    """The version written in a weight blob; -1 if it is too short for one."""
    return int(struct.unpack_from("<I", blob, 16)[0]) if len(blob) >= 20 else -1
