"""Types of learner/preload.pyx."""

from __future__ import annotations

def preload(path: bytes) -> bool:
    """Open a shared library for good; whether it could be. The GIL is released meanwhile."""
