"""The operator's port: the page, metrics, the engines, the learner's state.

A listener of its own, loopback by default, so that nothing a client of the data port sends can
reach it. With keys every request must carry one (Authorization: Bearer KEY). Without, only a
loopback peer is answered, and only if it calls us by a loopback name: a web page whose own name
resolves to 127.0.0.1, or that asks us from a browser, is refused: only our own page may.

Head, body, time and the number of connections are bounded; answers are JSON, except /metrics,
the page and exported weights.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from typing import Any
from urllib.parse import parse_qs

import httptools
import msgspec

from lodestar_fast.errors import ConfigError
from lodestar_fast.metrics import CONTENT_TYPE, Collector, exposition
from lodestar_fast.proxy import model_routes
from lodestar_fast.proxy.decisions import Decisions, Unknown
from lodestar_fast.proxy.discovery.membership import Membership
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import Instance
from lodestar_fast.proxy.model_routes import Model
from lodestar_fast.proxy.overview import Overview
from lodestar_fast.proxy.page import HEADERS, PAGE
from lodestar_fast.proxy.refused import Refused, allow

log = logging.getLogger(__name__)

DECISIONS = "/admin/decisions"
STATE = "/admin/state"
HEAD_BYTES = 16 << 10
_BODY_BYTES = 64 << 10
_IMPORT_BYTES = 1 << 20  # the largest weights are a third of it
_IDLE = 75.0  # Prometheus scrapes every 15 to 60 s on one connection
_CONNECTIONS = 64

_REASONS = {
    200: b"OK",
    201: b"Created",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}
# What a kubelet asks, from no loopback and with no key; the data port tells anyone the same.
PROBES = frozenset({"/liveness", "/readiness"})
# Headers that decide something: a second one makes the request ambiguous.
_ONCE = (b"host", b"authorization", b"content-length")


class _NewWorker(msgspec.Struct, forbid_unknown_fields=True):
    url: str


class Admin:
    """The routes. One for all connections."""

    def __init__(
        self,
        fleet: Fleet,
        collector: Collector,
        model: Model,
        decisions: Decisions,
        keys: frozenset[bytes] | None,
        members: Membership | None = None,
    ) -> None:
        """keys: None if none is set. members: who lists the engines; None: nobody but us.

        overview, which the proxy puts in: of GET /admin/state.
        """
        self.decisions = decisions
        self.overview: Overview | None = None
        self.connections: set[asyncio.Task[None]] = set()
        self.collector = collector
        self._fleet = fleet
        self._members = members or Membership(fleet)
        self._model = model
        self.keys = keys

    def check(self, headers: dict[bytes, bytes], peer: str, public: bool = False) -> None:
        """Raise Refused unless this peer may ask. public: what needs no key though others do."""
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            raise Refused(403, "requests from other web pages are not answered")
        if self.keys is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Each key is compared, so that the time does not tell which was near.
            matches = [hmac.compare_digest(key, given.strip()) for key in self.keys]
            if public:
                return
            if scheme.lower() != b"bearer" or not any(matches):
                raise Refused(401, "a key of --admin-key-file is needed: Authorization: Bearer KEY")
        elif not _is_loopback(peer):
            raise Refused(403, "without --admin-key-file only loopback is answered")
        elif not _is_loopback(_host_name(headers.get(b"host", b""))):
            raise Refused(403, "without --admin-key-file Host must be a loopback name")

    def probe(self, path: str) -> tuple[int, bytes]:
        """Status and body of a path of PROBES."""
        found = self._model.answer(b"GET", path.encode())
        assert found is not None
        return found[0], found[2] + b"\n"

    def answer(self, method: bytes, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON-ready body of anything but /metrics. Raises Refused."""
        parts = path.strip("/").split("/")
        if parts == ["workers"]:
            allow(method, b"GET", b"POST")
            if method == b"POST":
                return self._add(body)
            return 200, {"workers": [self._describe(i) for i in self._fleet.all]}
        if parts[0] == "workers" and len(parts) in (2, 3):
            instance = self._fleet.by_id(parts[1])
            if instance is None:
                raise Refused(404, "no such worker")
            if len(parts) == 2:
                allow(method, b"GET", b"DELETE")
                if method == b"DELETE":
                    self._remove(instance)
                return 200, self._describe(instance, removed=method == b"DELETE")
            if parts[2] in ("drain", "forget-prefixes"):
                allow(method, b"POST")
                if parts[2] == "drain":
                    self._fleet.drain(instance.id)
                else:
                    instance.forget()
                return 200, self._describe(instance)
        found = model_routes.answer(self._model, method, parts, body)
        if found is not None:
            return 200, found
        raise Refused(404, "no such path")

    def _add(self, body: bytes) -> tuple[int, Any]:
        try:
            url = msgspec.json.decode(body, type=_NewWorker).url
            before = len(self._fleet)
            instance = self._members.add(url)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Refused(400, f'the body must be {{"url": "http://host:port"}}: {e}') from None
        except ConfigError as e:
            raise Refused(400, str(e)) from None
        return 201 if len(self._fleet) > before else 200, self._describe(instance)

    def _remove(self, instance: Instance) -> None:
        if others := self._members.remove(instance):
            names = ", ".join(others)
            raise Refused(409, f"{names} lists it and would bring it back; drain it, or go there")

    def _describe(self, instance: Instance, removed: bool = False) -> dict[str, Any]:
        about = {
            "id": instance.id,
            "url": instance.url,
            "sources": self._members.owners(instance.url),
            "healthy": instance.healthy,
            "draining": instance.draining,
            "routable": instance.routable,
            "models": instance.models,
            "failures": instance.failures,
            "ejections": instance.ejections,
        }
        if not removed:
            live = self._fleet.router.instance(instance.slot)
            about |= {key: live[key] for key in ("inflight", "prefix_blocks", "price")}
        return about


def _host_name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1")
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class _Head:
    """A request's head, as the strict parser of the data port would take it. Raises Refused."""

    def __init__(self, data: bytes) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = False
        self._parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise Refused(400, "not a request that we understand") from None
        self.method: bytes = parser.get_method()
        if not self.target.startswith(b"/"):
            raise Refused(400, "the target must be a path")
        self.path, _, self.query = self.target.decode("latin-1").partition("?")
        if b"transfer-encoding" in self.headers:
            raise Refused(400, "the body needs a Content-Length")
        self.length = int(self.headers.get(b"content-length", b"0"))
        most = _IMPORT_BYTES if self.path == model_routes.IMPORT else _BODY_BYTES
        if self.length > most:
            raise Refused(413, f"the body has more than {most} bytes")

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.keep_alive = self._parser.should_keep_alive()  # is reset when the message is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self.headers and name in _ONCE:
            raise ValueError("repeated header")  # ends feed_data() with a HttpParserError
        self.headers[name] = value


async def serve(admin: Admin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, request after request; the callback of asyncio.start_server()."""
    task = asyncio.current_task()
    assert task is not None
    admin.connections.add(task)
    peer = (writer.get_extra_info("peername") or ("",))[0]
    try:
        keep = len(admin.connections) <= _CONNECTIONS
        while keep:
            async with asyncio.timeout(_IDLE):
                keep = await _serve_one(admin, reader, writer, peer)
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # gone, silent, or we end
    finally:
        admin.connections.discard(task)
        writer.close()


async def _serve_one(
    admin: Admin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
) -> bool:
    """Read a request and answer it. True if the connection can go on."""
    keep = False
    content, extra = b"application/json", b""
    try:
        head = await _read_head(reader)
        keep = head.keep_alive and not head.length
        if head.path not in PROBES:
            admin.check(head.headers, peer, head.path in PAGE)
        body = await reader.readexactly(head.length)
        keep = head.keep_alive
        if head.path in PAGE:
            allow(head.method, b"GET")
            status, extra, (content, text) = 200, HEADERS, PAGE[head.path]
        elif head.path in PROBES:
            allow(head.method, b"GET")
            status, text = admin.probe(head.path)
        elif head.path == "/metrics":
            allow(head.method, b"GET")
            status, content, text = 200, CONTENT_TYPE.encode(), await _page(admin.collector)
        elif head.path == DECISIONS or head.path.startswith(DECISIONS + "/"):
            allow(head.method, b"GET")
            text = await admin.decisions.answer(head.path.removeprefix(DECISIONS), head.query)
            status, text = 200, text + b"\n"
        elif head.path == STATE and admin.overview is not None:
            allow(head.method, b"GET")
            text = msgspec.json.encode(await admin.overview.state(_since(head.query)))
            status = 200
        else:
            status, answer = admin.answer(head.method, head.path, body)
            if isinstance(answer, bytes):
                content, text = b"application/octet-stream", answer
            else:
                text = msgspec.json.encode(answer) + b"\n"
    except (Refused, Unknown) as e:
        status, text = e.status, msgspec.json.encode({"error": {"message": str(e)}}) + b"\n"
    except asyncio.IncompleteReadError:
        raise
    except Exception:
        log.exception("the admin port could not answer")
        keep, status = False, 500
        text = b'{"error":{"message":"internal error; see the log"}}\n'
    writer.write(
        b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
        b"x-content-type-options: nosniff\r\ncache-control: no-store\r\n%s%s\r\n%s"
        % (
            status,
            _REASONS[status],
            content,
            len(text),
            extra,
            b"" if keep else b"connection: close\r\n",
            text,
        )
    )
    await writer.drain()
    return keep


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    """Raises Refused, IncompleteReadError."""
    try:
        return _Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        raise Refused(431, f"the head has more than {HEAD_BYTES} bytes") from None


def _since(query: str) -> int:
    """The number in `since=N`; 0 without one. Raises Refused."""
    given = parse_qs(query).get("since", ["0"])[-1]
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise Refused(400, "since: the number of a point of the series")
    return int(given)


async def _page(collector: Collector) -> bytes:
    """The metrics page, with room for others between its pieces."""
    pieces = []
    for piece in exposition(collector):
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)
