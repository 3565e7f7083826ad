"""Types of proxy/wire.pyx, which offers nothing to Python but its buffer."""

from __future__ import annotations

class Buffer:
    """Bytes that grow at their end."""
