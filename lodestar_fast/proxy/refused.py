"""How the admin port says no."""

from __future__ import annotations


class Refused(Exception):
    """A request that gets an error. status: HTTP; text: for the operator."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def allow(method: bytes, *methods: bytes) -> None:
    """Raise Refused unless the method is one of these."""
    if method not in methods:
        raise Refused(405, "allowed: " + ", ".join(m.decode() for m in methods))
