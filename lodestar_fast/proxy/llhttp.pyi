"""Types of proxy/llhttp.pyx."""

from __future__ import annotations

WHY_NOT: str  # why llhttp is not called directly; empty if it is

def use(directly: bool) -> None:
    """Choose how parsers made from now on reach llhttp: directly, or by httptools' callbacks.

    For tests. Directly only if WHY_NOT is empty.
    """

class Parser:
    """Base of RequestParser and ResponseParser."""
