"""A file of engine URLs, read again and again: one a line, or TOML, `worker_urls = [...]`.

Polled rather than watched by the kernel: that sees renames, symbolic links swapped by a ConfigMap
and network file systems alike. A file that is missing, blank or has one mistake is refused whole,
and what it said last stays. A blank file is most likely being written just now; to list no engine,
leave a comment in it, or say `worker_urls = []`.
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Collection

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.source import DiscoveryError, Report, poll
from lodestar_fast.proxy.fleet import parse_url

_BYTES = 1 << 20


class FileSource:
    """See the top of this module."""

    name = "file"

    def __init__(self, path: str, every: float) -> None:
        """every: seconds between two looks."""
        self._path = path
        self._every = every
        self._seen: tuple[int, int, int] | None = None  # inode, size, time of change
        self._urls: Collection[str] = ()

    async def watch(self, report: Report) -> None:
        await poll(self._look, self._every, report)

    async def _look(self) -> Collection[str]:
        try:
            # In a thread: a file system that hangs must not hold up requests.
            mark, text = await asyncio.to_thread(self._read)
        except UnicodeDecodeError:
            raise DiscoveryError("invalid", f"{self._path}: not UTF-8") from None
        except OSError as e:
            raise DiscoveryError("unreadable", f"{self._path}: {e.strerror}") from None
        if text is not None:
            self._urls = parse(text, self._path)
            self._seen = mark
        return self._urls

    def _read(self) -> tuple[tuple[int, int, int], str | None]:
        """What tells versions of the file apart; its text, None if it is the version seen last."""
        with open(self._path, "rb") as file:
            about = os.fstat(file.fileno())
            mark = (about.st_ino, about.st_size, about.st_mtime_ns)
            if mark == self._seen:
                return mark, None
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            raise DiscoveryError("invalid", f"{self._path}: over {_BYTES} bytes")
        return mark, data.decode()


def parse(text: str, path: str) -> Collection[str]:
    """The URLs of a file's text. Raises DiscoveryError."""
    if not text.strip():
        raise DiscoveryError("invalid", f"{path}: blank; a comment in it would mean no engines")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    words = [line for line in lines if line]
    if words and not all("://" in word and "=" not in word for word in words):
        words = _parse_toml(text, path)
    try:
        return {parse_url(word)[0] for word in words}
    except ConfigError as e:
        raise DiscoveryError("invalid", f"{path}: {e}") from None


def _parse_toml(text: str, path: str) -> list[str]:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise DiscoveryError("invalid", f"{path}: neither a URL a line nor TOML: {e}") from None
    urls = tree.pop("worker_urls", None)
    if tree or not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise DiscoveryError("invalid", f"{path}: TOML must be `worker_urls = [...]`, no more")
    return urls
