"""Types of proxy/body.pyx."""

from __future__ import annotations

class Routing:
    """What routing needs of a request's body; see openai.Routing."""

    @property
    def model(self) -> str: ...
    @property
    def prompt(self) -> bytes: ...
    @property
    def seed(self) -> bytes: ...
    @property
    def stream(self) -> bool: ...
    @property
    def max_tokens(self) -> int: ...

def read(path: bytes, body: bytes) -> Routing:
    """The routed fields of a body posted to one of openai.ROUTES; raises ClientError (400)."""

def scan(path: bytes, body: bytes) -> Routing | None:
    """The same; None where openai.routing_fields() has to look."""
