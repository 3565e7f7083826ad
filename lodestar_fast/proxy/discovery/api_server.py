"""A small client of the Kubernetes API: GET over TLS, whole or line by line.

The service account's folder holds the token, the cluster's certificates and the namespace. Token
and certificates are read for each connection: the kubelet rotates them. One connection a request;
there is one a minute.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import httptools

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.source import DiscoveryError

_CONNECT = 10.0  # seconds until the head of an answer
_BODY_BYTES = 64 << 20
_LINE_BYTES = 8 << 20
_READ = 64 << 10

_HINTS = {
    401: "the token is not accepted",
    403: "the service account may not list and watch endpointslices there; see deploy/",
    410: "the version is too old",
}


class Expired(DiscoveryError):
    """The version that a watch was to start from is no longer known (410 Gone)."""

    def __init__(self) -> None:
        super().__init__("expired", "the watch's version has expired")


class _Files(NamedTuple):
    token: str
    context: ssl.SSLContext | None


class ApiServer:
    """One cluster's API."""

    def __init__(self, url: str, credentials: str) -> None:
        """credentials: the service account's folder. Raises ConfigError on the URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(f"`{url}` is not of the form https://host:port")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._folder = Path(credentials)

    async def namespace(self) -> str:
        """The service account's own. Raises DiscoveryError."""
        try:
            return (await asyncio.to_thread((self._folder / "namespace").read_text)).strip()
        except OSError as e:
            raise DiscoveryError("credentials", f"{e.filename}: {e.strerror}") from None

    def _read_files(self) -> _Files:
        token = (self._folder / "token").read_text().strip()
        if not self._tls:
            return _Files(token, None)
        return _Files(token, ssl.create_default_context(cafile=str(self._folder / "ca.crt")))

    async def get(self, path: str, query: dict[str, str], timeout: float) -> bytes:
        """The body of an answer within timeout seconds. Raises DiscoveryError."""
        pieces, size = [], 0
        try:
            async with asyncio.timeout(timeout), self._open(path, query) as answer:
                async for piece in answer:
                    pieces.append(piece)
                    if (size := size + len(piece)) > _BODY_BYTES:
                        raise DiscoveryError("malformed", f"over {_BODY_BYTES} bytes")
        except TimeoutError:
            raise DiscoveryError("timeout", f"no answer in {timeout:g} s") from None
        return b"".join(pieces)

    async def lines(self, path: str, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """The lines of an answer as they come, until it ends. Raises DiscoveryError."""
        async with self._open(path, query) as answer:
            held = b""
            async for piece in answer:
                *whole, held = (held + piece).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield line
                if len(held) > _LINE_BYTES:
                    raise DiscoveryError("malformed", f"a line over {_LINE_BYTES} bytes")

    @asynccontextmanager
    async def _open(self, path: str, query: dict[str, str]) -> AsyncIterator[_Answer]:
        """An answer whose head has come and says 200."""
        try:
            files = await asyncio.to_thread(self._read_files)
        except ssl.SSLError as e:
            raise DiscoveryError("credentials", f"{self._folder / 'ca.crt'}: {e.reason}") from None
        except OSError as e:
            raise DiscoveryError("credentials", f"{e.filename}: {e.strerror}") from None
        name = f"[{self._host}]" if ":" in self._host else self._host
        writer = None
        try:
            async with asyncio.timeout(_CONNECT):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=files.context
                )
                writer.write(
                    f"GET {path}?{urlencode(query)} HTTP/1.1\r\nHost: {name}:{self._port}\r\n"
                    f"Authorization: Bearer {files.token}\r\nAccept: application/json\r\n"
                    "User-Agent: lodestar\r\nConnection: close\r\n\r\n".encode("latin-1")
                )
                answer = _Answer(reader)
                await answer.head()
            if answer.status == 410:
                raise Expired()
            if answer.status != 200:
                hint = _HINTS.get(answer.status, "")
                raise DiscoveryError(
                    _kind(answer.status), f"{path}: {answer.status} {hint}".strip()
                )
            yield answer
        except TimeoutError:
            raise DiscoveryError("timeout", f"{self._host}: no answer") from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeError) as e:
            raise DiscoveryError("malformed", f"{self._host}: {e}") from None
        except OSError as e:
            raise DiscoveryError("unreachable", f"{self._host}:{self._port}: {e}") from None
        finally:
            if writer is not None:
                writer.transport.abort()  # a peer that hangs must not delay us


def _kind(status: int) -> str:
    return {401: "unauthorized", 403: "forbidden"}.get(status, "status")


class _Answer:
    """One answer on one connection; iterates over the pieces of its body."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.status = 0
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._headed = False
        self._ended = False

    async def head(self) -> None:
        """Read up to the end of the head."""
        while not self._headed:
            await self._more()
        self.status = self._parser.get_status_code()

    async def _more(self) -> None:
        data = await self._reader.read(_READ)
        if not data:
            raise DiscoveryError("closed", "the connection closed within an answer")
        self._parser.feed_data(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._ended:
                return
            await self._more()

    # -- httptools --

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._ended = True
