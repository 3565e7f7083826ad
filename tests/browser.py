"""A real browser, driven by the DevTools protocol: just enough to look at a page and press buttons.

Chromium is started headless with a profile of its own; each Tab is a page. Whatever the page's
console says is kept in Tab.complaints.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: tests run in containers, and it shows nothing but our own page.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find() -> str:
    """The browser's path; without one the test is skipped."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")


class Tab:
    """A page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            await self._take()
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the browser has gone"))

    async def _take(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                future = self._waiting.pop(content["id"], None)
                if future is not None and not future.done():
                    future.set_result(content)
            elif content["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(content["params"])[:500])
            elif content["method"] == "Runtime.consoleAPICalled":
                if content["params"]["type"] in ("error", "warning", "assert"):
                    self.complaints.append(json.dumps(content["params"]["args"])[:500])
            elif content["method"] == "Log.entryAdded":
                if content["params"]["entry"]["level"] == "error":
                    self.complaints.append(json.dumps(content["params"]["entry"])[:500])

    async def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, and its result."""
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        content = await future
        assert "error" not in content, content
        return content["result"]

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        while not await self.js(f"Boolean({expression})"):
            await asyncio.sleep(0.05)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(
            f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        )

    async def size(self, width: int, height: int = 900, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    async def scheme(self, name: str) -> None:
        """light or dark."""
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": name}],
        )

    async def screenshot(self, file: Path, whole: bool = True) -> None:
        result = await self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole,
        )  # fmt: skip
        file.write_bytes(base64.b64decode(result["data"]))

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()


@asynccontextmanager
async def browser(path: str) -> AsyncIterator[Tab]:
    """A tab of a new browser."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path, *FLAGS, f"--user-data-dir={profile}", "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            said = b""
            while b"DevTools listening on ws://" not in (line := await process.stderr.readline()):
                said += line
                assert line, f"the browser did not start: {said.decode()[-2000:]}"
            port = line.decode().partition("ws://")[2].partition("/")[0].rpartition(":")[2]
            drain = asyncio.ensure_future(process.stderr.read())  # it says much, and would block
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [t for t in await answer.json() if t["type"] == "page"]
                url = pages[0]["webSocketDebuggerUrl"]
                async with client.ws_connect(url, max_msg_size=64 << 20) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await tab.call(f"{domain}.enable")
                    try:
                        yield tab
                    finally:
                        await tab.close()
                        drain.cancel()
                        await asyncio.wait([drain])
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            # Its helpers have this pipe too, and end a little later than it: a loop that is closed
            # before them is closed with a transport that still reads.
            await process.stderr.read()
