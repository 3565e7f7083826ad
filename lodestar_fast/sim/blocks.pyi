from array import array
from collections.abc import Iterable
from typing import final

from _typeshed import ReadableBuffer

def hash_prompt(prompt: ReadableBuffer, block_bytes: int = 64) -> array[int]:
    """One 64-bit hash (array "Q") for each full block of the prompt, chained.

    Equal hashes at place i mean equal bytes up to the end of block i (up to collisions of 64 bits).
    Never 0. Stable between processes and runs on machines of one byte order; not cryptographic.
    """

def fill_prompt(
    runs: Iterable[int], block_bytes: int, total: int, shared_bytes: int, shared: int, own: int
) -> bytes:
    """A prompt of `total` bytes: blocks of block_bytes each, in runs of (first id, count); behind
    them shared_bytes that go by the id `shared`; the rest goes by the id `own`.

    Each piece is 8 bytes that say whose it is, over and over: equal ids, equal bytes. All is cut
    off at the total. Raises OverflowError for block ids beyond 2^60, SystemError for a negative
    total.
    """

@final
class BlockPool:
    """KV blocks of one engine. Requests take and share them through sim/engine only."""

    total: int
    """Blocks in all; total == used + cached + free, always."""
    free: int
    """Blocks that hold nothing worth keeping."""
    cached: int
    """Unreferenced blocks that a later prompt can still hit, and that eviction may take."""
    @property
    def used(self) -> int:
        """Blocks referenced by at least one request."""
    def __init__(self, total: int) -> None: ...
    journal: list[int | tuple[int, int]] | None
    """If a list, told of each block that becomes findable, (hash of the one before or 0, hash), and
    of each that is evicted, its hash."""
    def clear(self) -> bool:
        """Nothing can be hit any more; not told to the journal. False, and nothing done, while a
        block is used."""
    def copy(self) -> BlockPool: ...
    def contains(self, hash: int) -> bool:
        """Whether a block with this hash can be hit."""
    def reference_counts(self) -> list[int]:
        """By block; O(total), for tests."""
    def eviction_order(self) -> list[int]:
        """Hashes of unreferenced blocks, next to be taken first, 0 for free ones; for tests."""
