"""Types of proxy/head.pyx: its functions are for the compiled modules beside it."""

from __future__ import annotations

def host_is_valid(value: bytes) -> bool:
    """Whether a Host field names one host and perhaps a port, and nothing else."""

def id_is_valid(value: bytes) -> bool:
    """Whether a client's x-request-id may be used: 1 to 128 letters, digits and ._:-"""
