"""Engines behind Services of a Kubernetes cluster, from their EndpointSlices: list, then watch.

A slice carries the labels of its Service and, as `kubernetes.io/service-name`, its name; the
selector chooses by these. An endpoint counts while it is ready, so that a pod that ends is drained
before it goes. The reaction to a change takes as long as the cluster takes to write it.

A watch may die without a word. So each lasts one resync at most, by the server's time-out and by
ours, and the list is read whole before every watch: what a watch missed is known then at the
latest. 410 (the version expired) means: list again. Failures back off; what was found last stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing
from typing import TypeVar

import msgspec

from lodestar_fast.proxy.discovery.api_server import ApiServer, Expired
from lodestar_fast.proxy.discovery.source import DiscoveryError, Report, backoff, jitter

T = TypeVar("T")

_PAGE = 500  # slices a list request
_LIST_TIMEOUT = 30.0
_GRACE = 5.0  # seconds that the server may be late in ending a watch
_STEADY = 1.0  # seconds after which a watch was no failure, however it ended


class _Meta(msgspec.Struct):
    name: str = ""
    resourceVersion: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _Conditions(msgspec.Struct):
    ready: bool | None = None  # not told means ready


class _Target(msgspec.Struct):
    uid: str = ""


class _Endpoint(msgspec.Struct):
    addresses: list[str] = []
    conditions: _Conditions | None = None
    targetRef: _Target | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Slice(msgspec.Struct):
    """What of discovery.k8s.io/v1 EndpointSlice matters here."""

    metadata: _Meta = msgspec.field(default_factory=_Meta)
    addressType: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _List(msgspec.Struct):
    metadata: _Meta
    items: list[Slice] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class KubernetesSource:
    """See the top of this module."""

    name = "kubernetes"

    def __init__(
        self, api: ApiServer, selector: str, namespace: str, port: str, resync: float
    ) -> None:
        """namespace: empty for the service account's. port: a name or a number of the slices;
        empty for the only one. resync: seconds between two lists."""
        self._api = api
        self._selector = selector
        self._namespace = namespace
        self._port = port
        self._resync = resync
        self._slices: dict[str, Slice] = {}

    async def watch(self, report: Report) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            watching_since = None
            try:
                path = await self._path()
                version = await self._list(path)
                report.found(self._urls())
                watching_since = loop.time()
                await self._follow(path, version, report)
                failures = 0
                continue
            except DiscoveryError as e:
                report.failed(e)
                if watching_since is not None and loop.time() - watching_since >= _STEADY:
                    failures = 0
                failures += 1
                if isinstance(e, Expired) and failures == 1:
                    continue
            await asyncio.sleep(backoff(failures))

    async def _path(self) -> str:
        namespace = self._namespace or await self._api.namespace()
        return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

    async def _list(self, path: str) -> str:
        """Read all slices; the version that they are of. Raises DiscoveryError."""
        slices: dict[str, Slice] = {}
        query = {"labelSelector": self._selector, "limit": str(_PAGE)}
        while True:
            page = _decode(await self._api.get(path, query, _LIST_TIMEOUT), _List)
            slices |= {item.metadata.name: item for item in page.items or ()}
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._slices = slices
        return page.metadata.resourceVersion

    async def _follow(self, path: str, version: str, report: Report) -> None:
        """Follow changes until the watch ends or a resync is due. Raises DiscoveryError."""
        lasts = max(round(jitter(self._resync)), 1)  # the API takes whole seconds
        query = {
            "labelSelector": self._selector,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(lasts),
        }
        try:
            async with (
                asyncio.timeout(lasts + _GRACE),
                aclosing(self._api.lines(path, query)) as lines,
            ):
                async for line in lines:
                    if self._take(_decode(line, _Event)):
                        report.found(self._urls())
                    else:
                        report.alive()
        except TimeoutError:
            # The server did not keep its own time-out: nobody is there any more.
            raise DiscoveryError("stalled", f"the watch has been silent for {lasts} s") from None

    def _take(self, event: _Event) -> bool:
        """Put an event into the slices; whether it may change anything. Raises DiscoveryError."""
        if event.type == "ERROR":
            status = _decode(event.object, _Status)
            if status.code == 410:
                raise Expired()
            raise DiscoveryError("status", f"the watch ended: {status.code} {status.message}")
        if event.type not in ("ADDED", "MODIFIED", "DELETED"):
            return False  # BOOKMARK, or what is not known yet
        item = _decode(event.object, Slice)
        if event.type == "DELETED":
            self._slices.pop(item.metadata.name, None)
        else:
            self._slices[item.metadata.name] = item
        return True

    def _urls(self) -> Collection[str]:
        """Each ready endpoint once, though a dual-stack Service lists it by both its addresses."""
        found: dict[str, str] = {}
        # IPv4 last, so that it wins.
        for item in sorted(self._slices.values(), key=lambda s: s.addressType == "IPv4"):
            ready = [e for e in item.endpoints or () if e.addresses and _ready(e)]
            if not ready:
                continue
            port = self._port_of(item)
            for endpoint in ready:
                # The addresses of one endpoint are interchangeable; consumers take the first.
                host = endpoint.addresses[0]
                name = f"[{host}]" if item.addressType == "IPv6" else host
                target = endpoint.targetRef.uid if endpoint.targetRef else ""
                found[target or f"{name}:{port}"] = f"http://{name}:{port}"
        return set(found.values())

    def _port_of(self, item: Slice) -> int:
        """The slice's port that engines listen on. Raises DiscoveryError if that is not clear."""
        ports = [p for p in item.ports or () if p.port and p.protocol in ("TCP", None, "")]
        if self._port.isdigit():
            return int(self._port)
        if self._port:
            ports = [p for p in ports if p.name == self._port]
        if len(ports) != 1 or not ports[0].port:
            has = ", ".join(f"{p.name or 'unnamed'} {p.port}" for p in ports) or "none that fits"
            raise DiscoveryError(
                "port", f"{item.metadata.name} must have one port (--kubernetes-port); it has {has}"
            )
        return ports[0].port


def _ready(endpoint: _Endpoint) -> bool:
    return endpoint.conditions is None or endpoint.conditions.ready is not False


def _decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise DiscoveryError("malformed", f"not what the API answers: {e}") from None
