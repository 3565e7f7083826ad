"""Types of core/snapshot.pyx."""

from __future__ import annotations

from lodestar_fast.core.router import Router

class Snapshot:
    """The prefix index of a router as bytes, a slice at a time; csrc/index.h draws a record.

    The router may go on between slices: each part is written as it is at its turn. Instances are
    named by their slots. Slots that change hands meanwhile are the caller's to leave out.
    """

    def __init__(self, router: Router) -> None: ...
    @property
    def done(self) -> bool: ...
    def slice(self, room: int = 1 << 18) -> bytes:
        """The next records, at most `room` bytes; possibly none. ValueError: room under 16 KB."""

class Restore:
    """The records of a snapshot, checked and put in order, to be entered into a router.

    Making it takes up to tenths of a second, without the GIL. Raises ValueError if records are
    malformed, MemoryError.
    """

    def __init__(self, records: bytes | memoryview) -> None: ...
    def step(self, router: Router, slots: dict[int, int], blocks: int = 4096) -> int:
        """Enter prompts until so many blocks are in. slots: those of the snapshot -> those of now.

        What is not in slots is passed over. Returns what is left; after 0 it can begin anew.
        Raises ValueError if a slot is no instance, RuntimeError inside pick().
        """
