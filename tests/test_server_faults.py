"""The whole program with a learner that is broken on purpose: no request may fail for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import uvloop

from tests.test_server import CHAT, FAST, Lodestar, request
from tests.tiny_engine import TinyEngine


async def serve_one(lodestar: Lodestar, engines: list[TinyEngine]) -> None:
    """A request through whichever engine is chosen."""
    for engine in engines:
        while not engine.events.empty():
            engine.events.get_nowait()
        for event in (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', None):
            engine.events.put_nowait(event)
    assert (await request(lodestar.data, "POST /v1/chat/completions", CHAT))[0] == 200


@pytest.mark.parametrize(
    "kind", ["raise", "nan", "hang", "stuck", "absurd", "die", "flood", "tick"]
)
def test_no_request_fails_for_a_broken_learner(kind: str) -> None:
    """Requests go on until the fault shows on the admin port, and twenty more after that."""

    def shows(about: dict[str, Any], metrics: bytes) -> bool:
        learner = about["learner"]
        if kind == "raise":
            return learner["restarts"] > 1 and "on purpose" in learner["last_error"]
        if kind in ("nan", "stuck"):
            return bool(learner["validation_errors"])
        if kind == "absurd":
            return about["watchdog"]["state"] == "demoted" and about["watchdog"]["cause"] == kind
        if kind in ("flood", "tick"):
            incident = b"weights_refused" if kind == "flood" else b"learner"
            return b'lodestar_background_incidents_total{kind="%b"} 3.0' % incident in metrics
        if kind == "die":
            return learner["state"] == "failed" and "ended" in learner["last_error"]
        return learner["state"] != "importing"

    async def main() -> None:
        async with TinyEngine() as first, TinyEngine() as second:
            engines = [first, second]
            lodestar = await Lodestar.start(
                *("--worker-urls", first.url, second.url, *FAST, "--model", "linear"),
                *("--round-seconds", "0.05", "--min-samples", "8"),
                program=("tests.faulty_serve", kind),
            )
            try:
                await lodestar.until(
                    "/workers", lambda _, b: b.count(b'"healthy":true') == 2, lodestar.admin
                )
                about: dict[str, Any] = {}
                text = b""
                while not about or not shows(about, text):
                    await serve_one(lodestar, engines)
                    about = json.loads((await lodestar.get("/admin/model", lodestar.admin))[1])
                    _, text = await lodestar.get("/metrics", lodestar.admin)
                for _ in range(20):
                    await serve_one(lodestar, engines)
                _, text = await lodestar.get("/metrics", lodestar.admin)
                assert b'outcome="completed"' in text and b'outcome="router_error"' not in text
                if kind == "absurd":
                    assert b'lodestar_watchdog_demotions_total{cause="absurd"} 1.0' in text
                log = await lodestar.stop()
                assert kind != "absurd" or "demoted (watchdog_absurd)" in log
            finally:
                if lodestar.process.returncode is None:
                    lodestar.process.kill()
                    await lodestar.end()

    uvloop.run(main())
