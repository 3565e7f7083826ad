"""The page on the admin port, in a real browser before a real router: what somebody sees and does.

Prompts, names and answers go through the whole program; engines are simulated, and quick.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from lodestar_fast import history
from lodestar_fast.sim.engine_http import start
from lodestar_fast.sim.gpus import spec
from tests.browser import Tab, browser, find
from tests.oracle import Model
from tests.test_server import Lodestar

KEY = "open sesame"
HOSTILE = '<img src="x" onerror="document.title=1">'  # as a model's name
LIMIT = 120.0  # seconds; what waits for the page says then where it waited
ROWS = "[...document.querySelectorAll('#fleet tbody tr')]"


class Site:
    """A router, its page in a tab, and a client of its data port."""

    def __init__(self, lodestar: Lodestar, tab: Tab, client: aiohttp.ClientSession) -> None:
        self.lodestar = lodestar
        self.tab = tab
        self.client = client
        self.url = f"http://127.0.0.1:{lodestar.admin}/"

    async def ask(self, number: int) -> None:
        """One request; its prompt has nothing in common with those of other numbers."""
        url = f"http://127.0.0.1:{self.lodestar.data}/v1/completions"
        body = {"model": HOSTILE, "prompt": f"{number:08d}" * 300, "max_tokens": 2, "stream": True}
        async with self.client.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    async def admin(self, path: str, body: Any = None, data: bytes | None = None) -> Any:
        text = data if data is not None else json.dumps(body).encode() if body else None
        headers = {"authorization": f"Bearer {KEY}"}
        verb = "POST" if text is not None else "GET"
        async with self.client.request(verb, self.url + path, data=text, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def log_in(self) -> None:
        await self.tab.open(self.url)
        await self.tab.until("!document.getElementById('login').hidden")
        assert await self.tab.js("document.getElementById('main').hidden")
        await self.tab.js(
            f"document.getElementById('key').value = {json.dumps(KEY)};"
            "document.querySelector('#login button').click()"
        )
        await self.tab.until("!document.getElementById('main').hidden")

    async def press(self, selector: str) -> None:
        await self.tab.js(f"document.querySelector({json.dumps(selector)}).click()")


@asynccontextmanager
async def site(folder: Path, *options: str) -> AsyncIterator[Site]:
    keys = folder / "keys"
    keys.write_text(KEY + "\n")
    async with browser(find()) as tab, aiohttp.ClientSession() as client:
        lodestar = await Lodestar.start(
            "--admin-key-file", str(keys), "--drain-grace", "1", *options
        )
        try:
            yield Site(lodestar, tab, client)
            # The first question goes without a key.
            complaints = [text for text in tab.complaints if "401 (Unauthorized)" not in text]
            assert not complaints
        finally:
            lodestar.process.terminate()
            _, log = await lodestar.end()
            assert "Traceback" not in log, log


async def keep_asking(at: Site, done: asyncio.Event) -> None:
    number = 0
    while not done.is_set():
        await asyncio.gather(*(at.ask(number + i) for i in range(6)))
        number += 6


def test_a_stranger_finds_the_slow_engine_asks_why_and_switches(tmp_path: Path) -> None:
    async def main() -> None:
        engines = await start([spec("a30")] * 3, model=HOSTILE, speedup=10.0)
        slow = engines.replicas[1].engine
        slow.slow = 6.0
        urls = engines.urls
        async with site(tmp_path, "--worker-urls", *urls, "--scrape-interval", "0.05") as at:
            await at.lodestar.ready()
            await at.log_in()
            assert await at.tab.js(f"{ROWS}.length") == 3
            blob = Model([16], seed=1, version=7).blob()
            imported = await at.admin("admin/model/import", data=history.sealed(blob))
            assert imported == {"version": 7, "frozen": True}
            # Shadow, so that the slow one gets its share and can be measured.
            await at.press('[data-mode="shadow"]')
            await at.tab.until(
                "document.getElementById('said').textContent === 'The mode is shadow now.'"
            )
            assert (await at.admin("admin/mode"))["mode"] == "shadow"
            await at.tab.until(
                "document.querySelector('[aria-pressed=true]').textContent=='shadow'"
            )
            done = asyncio.Event()
            asking = asyncio.ensure_future(keep_asking(at, done))

            # Which is slow.
            await at.tab.until(f"{ROWS}.filter(row => row.classList.contains('slow')).length")
            found = await at.tab.js("document.querySelector('tr.slow th').textContent")
            assert f"http://{found}" == urls[1]
            first = await at.tab.js(f"{ROWS}[0].cells[0].textContent")
            assert first == found, "trouble comes first"
            assert "slow " in await at.tab.js(
                "document.querySelector('tr.slow .speed').textContent"
            )
            await at.tab.until("document.querySelector('#t-slow-engines button')")
            await at.press("#t-slow-engines button")
            assert await at.tab.js(f"{ROWS}.length") == 1
            assert await at.tab.js("document.getElementById('count').textContent") == "1 of 3"

            # Why the last request went where it went.
            await at.tab.until("document.querySelector('#decisions button.id')")
            await at.tab.until(
                "[...document.querySelectorAll('.tag')].some(c => c.textContent == 'shadow')"
            )
            await at.press("#decisions button.id")
            await at.tab.until("document.querySelectorAll('#detail tbody tr').length == 3")
            text = await at.tab.js("document.getElementById('detail').textContent")
            assert HOSTILE in text and "(chosen)" in text and "mode shadow" in text
            shown = await at.tab.js("document.querySelector('#detail h3').textContent")
            kept = await at.admin("admin/decisions/" + shown.split()[1])
            assert kept["why"] in text

            # Five seconds make a point; then the charts have lines.
            await at.tab.until("document.querySelector('#c-ttft path.line.blue')")
            await at.tab.until("document.querySelector('#c-pairs path.dots')")
            await at.tab.until("document.querySelectorAll('#c-who path.area').length")

            # And back.
            await at.press('[data-mode="on"]')
            await at.tab.until(
                "document.getElementById('said').textContent === 'The mode is on now.'"
            )
            assert (await at.admin("admin/mode"))["mode"] == "on"
            await at.press("#freeze")
            await at.tab.until("document.getElementById('freeze').textContent === 'freeze'")
            assert not (await at.admin("admin/model"))["frozen"]
            done.set()
            await asyncio.gather(asking, return_exceptions=True)

            assert await at.tab.js("document.querySelectorAll('img').length") == 0
            assert await at.tab.js("document.title") == "Lodestar"
            await looks(at)
            await at.press("#forget")
            await at.tab.until("document.getElementById('main').hidden")
        await engines.close()

    uvloop.run(asyncio.wait_for(main(), LIMIT))


async def looks(at: Site) -> None:
    """Narrow, nothing sticks out; in the dark it is dark; words are there for who cannot see."""
    for width in (1280, 760, 400):
        await at.tab.size(width)
        assert await at.tab.js("document.documentElement.scrollWidth") <= width
    shades = {}
    for scheme in ("light", "dark"):
        await at.tab.scheme(scheme)
        colour = await at.tab.js("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in colour[4:-1].split(","))
    assert shades["dark"] < 150 < 600 < shades["light"]
    unnamed = await at.tab.js(
        "[...document.querySelectorAll('button, input, select')].filter(e => !e.textContent.trim()"
        " && !e.ariaLabel && !e.labels?.length).map(e => e.outerHTML)"
    )
    assert unnamed == []
    said = await at.tab.js("document.querySelector('#c-ttft svg').getAttribute('aria-label')")
    assert "measured, mean" in said


# Labels of a chart of that width that stick out of it. The last tick stands at the very end.
CUT = """(async () => {
    const { Scatter } = await import("/page/charts.js");
    const { ms } = await import("/page/dom.js");
    const box = document.createElement("div");
    box.className = "chart";
    box.style.width = "%dpx";
    document.getElementById("main").append(box);
    const scatter = new Scatter(box, ms, [{ name: "all", colour: "blue", has: () => true }]);
    scatter.show([[%g * 1.3, %g / 1.3, 0]]);
    const [svg] = box.getElementsByTagName("svg");
    const { left, right, top, bottom } = svg.getBoundingClientRect();
    const labels = [...svg.getElementsByTagName("text")];
    const cut = labels.filter((label) => {
        const at = label.getBoundingClientRect();
        return at.left < left || at.right > right || at.top < top || at.bottom > bottom;
    });
    box.remove();
    return labels.length < 4 ? ["too few"] : cut.map((label) => label.textContent);
})()"""


def test_no_label_of_predicted_against_real_is_cut(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as at:
            await at.log_in()
            for width in (320, 420, 900):
                for low, high in ((0.1, 20), (10, 1000), (20, 500_000)):
                    assert await at.tab.js(CUT % (width, low, high)) == [], (width, low, high)

    uvloop.run(asyncio.wait_for(main(), LIMIT))


def test_three_hundred_engines_can_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        urls = [f"http://10.255.{i // 100}.{i % 100}:8000" for i in range(300)]
        options = ("--policy", "lmetric", "--max-instances", "512", "--connect-timeout", "60")
        slowly = ("--health-check-interval", "60", "--scrape-interval", "60")
        async with site(tmp_path, "--worker-urls", *urls, *options, *slowly) as at:
            await at.log_in()
            await at.tab.until(f"{ROWS}.length == 300")
            words = "document.getElementById('meaning').textContent"
            assert "fixed rule" in await at.tab.js(words)
            assert await at.tab.js("document.querySelector('[data-mode=on]').disabled")
            for click, first in (("10.255.0.0:8000", False), ("10.255.2.99:8000", True)):
                await at.press("#fleet th:first-child button")
                assert await at.tab.js(f"{ROWS}[0].cells[0].textContent") == click, first
            await at.tab.js(
                "const s = document.getElementById('search'); s.value = '255.1.7';"
                "s.dispatchEvent(new Event('input'))"
            )
            assert await at.tab.js(f"{ROWS}.length") == 11  # .7 and .70 to .79
            assert await at.tab.js("document.getElementById('count').textContent") == "11 of 300"
            await at.tab.js("s.value = ''; s.dispatchEvent(new Event('input'))")
            assert await at.tab.js(f"{ROWS}.length") == 300
            for width in (1280, 400):
                await at.tab.size(width)
                assert await at.tab.js("document.documentElement.scrollWidth") <= width
            # The table scrolls in its own box, and the page stays short.
            assert await at.tab.js("document.querySelector('.scroll').clientHeight < innerHeight")

    uvloop.run(asyncio.wait_for(main(), LIMIT))
