"""Types of proxy/reply.pyx."""

from __future__ import annotations

class Client:
    """The downstream side of an exchange: the base of Downstream."""

class Reply:
    """The answer to one request, as the client gets it."""
