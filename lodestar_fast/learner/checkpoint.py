"""What the learner knows, on disk: one file, written whole or not at all.

    "LSCK" | u32 format | u64 schema hash | u64 length | 16 bytes BLAKE2b | payload (MessagePack)

The payload is plain numbers, decoded into a typed record; nothing in it is executed. A file that is
cut, damaged, of another format or another feature table is refused with the reason, and the learner
starts cold: a checkpoint saves the first minute, it is never worth a doubtful weight.
"""

from __future__ import annotations

import contextlib
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from lodestar_fast import features
from lodestar_fast.errors import BlobError

NAME: Final = "learner.checkpoint"
MAGIC: Final = b"LSCK"
FORMAT: Final = 2  # 1 knew no heads
HEADER: Final = struct.Struct("<4sIQQ16s")
MAX_BYTES: Final = 16 << 20  # a thousand times what is written; the folder may hold anything


class State(msgspec.Struct, frozen=True):
    """A learner without its samples and without its optimiser.

    Arrays are little-endian float64 (`network`: float32) in the layout of their owners: normal_a
    (n, n), normal_b and theta (n,) of LinearModel; mean, std, low, high (W,) of the rows seen;
    network (weight, bias, weight, ...) of Correction, empty if there is none; losses: the two
    running validation losses and their weight; heads: of Heads, in its own layout.
    """

    version: int
    blob: bytes
    normal_a: bytes
    normal_b: bytes
    theta: bytes
    heads: bytes
    mean: bytes
    std: bytes
    low: bytes
    high: bytes
    network: tuple[bytes, ...]
    losses: tuple[float, float, float]


def encode(state: State) -> bytes:
    """The bytes of a checkpoint file."""
    payload = msgspec.msgpack.encode(state)
    digest = blake2b(payload, digest_size=16).digest()
    return HEADER.pack(MAGIC, FORMAT, features.SCHEMA_HASH, len(payload), digest) + payload


def decode(data: bytes) -> State:
    """The state in a checkpoint file. Raises BlobError naming what does not fit."""
    if len(data) < HEADER.size:
        raise BlobError(f"checkpoint of {len(data)} bytes has no header")
    magic, format_, schema, length, digest = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    if magic != MAGIC or format_ != FORMAT:
        raise BlobError(f"checkpoint starts with {magic!r}, format {format_}, not {FORMAT}")
    if schema != features.SCHEMA_HASH:
        raise BlobError(
            f"checkpoint has feature schema {schema:#x}, this build {features.SCHEMA_HASH:#x}"
        )
    if len(payload) != length or blake2b(payload, digest_size=16).digest() != digest:
        raise BlobError(f"checkpoint is damaged: {len(payload)} of {length} bytes, or bad checksum")
    try:
        return msgspec.msgpack.decode(payload, type=State)
    except msgspec.MsgspecError as e:
        raise BlobError(f"checkpoint does not decode: {e}") from None


def save(folder: str, state: State) -> None:
    """Write the checkpoint: aside, to the disk, then in place of the old one. Raises OSError."""
    path = Path(folder) / NAME
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            f.write(encode(state))
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    # The new name itself reaches the disk with its folder.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(folder: str) -> State | None:
    """The state in a folder; None if there is no checkpoint. Raises BlobError, OSError."""
    try:
        with open(Path(folder) / NAME, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise BlobError(f"checkpoint has more than {MAX_BYTES} bytes")
    return decode(data)
