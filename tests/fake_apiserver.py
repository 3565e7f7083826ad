"""An API server of Kubernetes as far as EndpointSlices go: list in pages, watch, 410, bookmarks.

What is sent has the form that a real one sends: a chunked body of one JSON object a line; an object
that no longer matches a watch's selector is DELETED there; a version that has been compacted gets
an ERROR event with a Status of code 410; what is refused gets a Status too.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.tiny_engine import chunk

NAMESPACE = "default"
PATH = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


def endpoint(address: str, ready: bool | None = True, uid: str = "") -> dict[str, Any]:
    one: dict[str, Any] = {"addresses": [address], "conditions": {"ready": ready}}
    if ready is None:
        one["conditions"] = {}
    if uid:
        one["targetRef"] = {"kind": "Pod", "name": "pod-" + uid, "uid": uid}
    return one


def ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"name": f"p{i}", "port": n, "protocol": "TCP"} for i, n in enumerate(numbers)]


class FakeApiServer:
    """`async with FakeApiServer(folder) as api`: listens on api.url; folder: the credentials."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.asked: list[dict[str, str]] = []  # the query of each request
        self.tokens: set[str] = set()
        self.rotate("first-token")
        (folder / "namespace").write_text(NAMESPACE + "\n")
        self.silent = False  # watches get nothing any more, nor do they end
        self.expire_watches = 0  # so many watches get 410
        self.page = 500
        self.garbage = b""  # sent in place of a list
        self.status = 0  # answered to everything
        self.watches = 0  # under way
        self.watching = asyncio.Event()  # set while there is one
        self._tls = tls
        self._version = 100
        self._objects: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[int, str, dict[str, Any], dict[str, str]]] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what a test does to the cluster --

    def rotate(self, token: str) -> None:
        """From now on only this token is taken, and it is in the folder."""
        self.tokens = {token}
        (self.folder / "token").write_text(token)

    async def put(
        self, name: str, endpoints: Iterable[dict[str, Any]], port: int = 8000, **more: Any
    ) -> None:
        """Create or replace a slice. more: addressType, ports, labels."""
        labels = more.pop("labels", {"app": "vllm"})
        before = self._objects.get(name)
        self._version += 1
        self._objects[name] = {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": labels,
                "resourceVersion": str(self._version),
            },
            "addressType": more.get("addressType", "IPv4"),
            "endpoints": list(endpoints),
            "ports": more.get("ports", ports(port)),
        }
        old = before["metadata"]["labels"] if before else {}
        await self._record("MODIFIED" if before else "ADDED", self._objects[name], old)

    async def delete(self, name: str) -> None:
        self._version += 1
        gone = self._objects.pop(name)
        await self._record("DELETED", gone, gone["metadata"]["labels"])

    async def _record(self, kind: str, item: dict[str, Any], old: dict[str, str]) -> None:
        async with self._changed:
            self._history.append((self._version, kind, json.loads(json.dumps(item)), old))
            self._changed.notify_all()

    async def bookmark(self) -> None:
        """Tell the watches which version it is, and no more."""
        self._version += 1
        item = {"kind": "EndpointSlice", "metadata": {"resourceVersion": str(self._version)}}
        await self._record("BOOKMARK", item, {})

    async def cut(self) -> None:
        """Close every connection, as a server that restarts does."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the server --

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    async def __aenter__(self) -> FakeApiServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = line.split(" ")
            parts = urlsplit(target)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            self.asked.append(query)
            said = dict(field.split(": ", 1) for field in fields if field)
            scheme, _, token = said.get("Authorization", "").partition(" ")
            if scheme != "Bearer" or token not in self.tokens:
                self._refuse(writer, 401, "Unauthorized")
            elif self.status:
                self._refuse(writer, self.status, "on purpose")
            elif method != "GET" or parts.path != PATH:
                self._refuse(writer, 403, f"cannot list {parts.path}")
            elif query.get("watch") == "true":
                await self._watch(query, writer)
            else:
                self._list(query, writer)
            await writer.drain()
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    def _refuse(self, writer: asyncio.StreamWriter, code: int, message: str) -> None:
        self._whole(writer, json.dumps(_status(code, message)).encode(), code)

    def _whole(self, writer: asyncio.StreamWriter, body: bytes, code: int = 200) -> None:
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b" % (code, len(body), body)
        )

    def _list(self, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if self.garbage:
            self._whole(writer, self.garbage)
            return
        wanted = _selector(query)
        items = [o for o in self._objects.values() if wanted.items() <= _labels(o).items()]
        start = int(query.get("continue", "0"))
        most = min(int(query["limit"]), self.page)
        meta = {"resourceVersion": str(self._version)}
        if start + most < len(items):
            meta["continue"] = str(start + most)
        page = {"kind": "EndpointSliceList", "metadata": meta, "items": items[start : start + most]}
        self._whole(writer, json.dumps(page).encode())

    async def _watch(self, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        if self.expire_watches:
            self.expire_watches -= 1
            gone = {"type": "ERROR", "object": _status(410, "too old resource version")}
            writer.write(chunk(json.dumps(gone).encode() + b"\n") + b"0\r\n\r\n")
            return
        wanted, version = _selector(query), int(query["resourceVersion"])
        self.watches += 1
        self.watching.set()
        try:
            async with asyncio.timeout(float(query["timeoutSeconds"])):
                while True:
                    version = self._send(writer, wanted, version)
                    async with self._changed:
                        await self._changed.wait_for(lambda at=version: self._version > at)
        except TimeoutError:
            if self.silent:
                await asyncio.Event().wait()
            writer.write(b"0\r\n\r\n")
        finally:
            self.watches -= 1
            if not self.watches:
                self.watching.clear()

    def _send(self, writer: asyncio.StreamWriter, wanted: dict[str, str], since: int) -> int:
        """Write what happened after a version; the version now."""
        for version, kind, item, old in self._history:
            if version <= since or self.silent:
                continue
            if kind != "BOOKMARK":
                was, matches = (wanted.items() <= x.items() for x in (old, _labels(item)))
                if not was and not matches:
                    continue
                if kind != "DELETED":
                    kind = "DELETED" if not matches else "MODIFIED" if was else "ADDED"
            line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
            # A line may come in pieces.
            writer.write(chunk(line[:40]) + chunk(line[40:]))
        return self._version


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _labels(item: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = item["metadata"]["labels"]
    return labels


def _selector(query: dict[str, str]) -> dict[str, str]:
    return dict(part.split("=", 1) for part in query["labelSelector"].split(","))
