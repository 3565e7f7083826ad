"""Key files: one key a line, read once at the start. A key is never logged or shown."""

from __future__ import annotations

from lodestar_fast.errors import ConfigError


def read_keys(path: str, option: str) -> frozenset[bytes] | None:
    """The keys of a file, one a line; None if no file is configured. Raises ConfigError."""
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            keys = frozenset(line.strip() for line in file if line.strip())
    except OSError as e:
        raise ConfigError(f"{option}: {path}: {e.strerror}") from None
    if not keys:
        raise ConfigError(f"{option}: {path} holds no key")
    return keys
