"""Types of proxy/reader.pyx."""

from __future__ import annotations

WHY_NOT: str  # why transports read all; empty if they need not
USUAL: int  # what use() was called with

def use(read: int) -> None:
    """Choose from which read of a connection on it is read directly; 0: from none. For tests."""

class Reader:
    """A protocol of the loop's that may be fed without its transport."""
