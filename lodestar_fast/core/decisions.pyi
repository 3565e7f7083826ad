"""Types of core/decisions.pyx."""

from __future__ import annotations

from typing import Any, final

@final
class Decisions:
    """The last decisions of a router (Router.decisions), with what became of them."""

    @property
    def capacity(self) -> int: ...
    @property
    def made(self) -> int: ...  # since the start; the serial of the newest
    @property
    def lost(self) -> int: ...  # decisions and outcomes that were overwritten before take()
    def label(self, id: bytes, path: bytes, model: str | None = None, attempt: int = 1) -> int:
        """Say who asked for the newest decision. Its serial; 0 if there is none."""
    def status(self, serial: int, status: int) -> None:
        """The HTTP status that the client of a decision got, after its final event."""
    def last(self, limit: int) -> Batch: ...
    def find(self, id: str) -> Batch:
        """The newest decision for a request id; an empty batch if it is not kept any more."""
    def take(self) -> Batch:
        """All decisions since the last call, and all that ended since, for the log."""

@final
class Batch:
    """A copy of some decisions, oldest first; any thread may read it."""

    def __len__(self) -> int: ...
    def rows(self, since: float = 0.0) -> list[bytes]:
        """Each as a JSON object (decisions/schema.py), but for its closing brace.

        since: when the router's clock stood at 0, in seconds since 1970.
        """
    def serials(self) -> list[int]: ...
    def marks(self, i: int) -> list[int]:
        """Hashes of a prompt's prefixes, 4 blocks apart; empty if the router keeps none."""
    def outcome(self, i: int) -> dict[str, Any] | None:
        """What had become of it when it was copied: event (lower-case name), status, ttft, e2e
        (seconds), prompt_tokens, cached_tokens, output_tokens; None where not known."""
    def outcomes(self) -> list[tuple[int, dict[str, Any]]]:
        """Of take(): the ends since the last call, with the serials of their decisions."""
