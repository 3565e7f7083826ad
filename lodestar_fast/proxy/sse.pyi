"""Types of proxy/sse.pyx."""

from __future__ import annotations

class Scanner:
    """Reads a body as it passes, in any pieces, without decoding it.

    feed() is for text/event-stream and counts its events; keep() is for other bodies and only keeps
    the tail.
    """

    @property
    def events(self) -> int:
        """Events with data, save errors and [DONE]: about one a token."""
    @property
    def opening(self) -> int:
        """Events before the first that carries a token: the role, the request repeated."""
    @property
    def errors(self) -> int:
        """Events whose data is {"error"... or whose name is `error`."""
    @property
    def other(self) -> bool:
        """Whether a line came that is neither data nor an event's name."""
    def tail(self) -> bytes:
        """The last 4 KB or so of what was fed."""

def scan(pieces: list[bytes]) -> Scanner:
    """A scanner that was fed these pieces of an event stream."""

def usage(tail: bytes) -> tuple[int, int, int]:
    """Of an answer's last usage object: tokens of the prompt, put out, cached; -1: not given."""

def aborted(tail: bytes) -> bool:
    """Whether the last finish_reason of an answer's tail is "abort": the engine gave up."""
