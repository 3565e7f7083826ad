"""Types of proxy/tries.pyx."""

from __future__ import annotations

class Tries:
    """One request's tries on engines; the only caller of Router.route() and Router.observe()."""
