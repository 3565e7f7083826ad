"""GET /admin/decisions: what the admin port says of single decisions."""

from __future__ import annotations

from lodestar_fast.core.enums import Event
from lodestar_fast.proxy.decisions import Decisions
from tests.oracle import make_router
from tests.test_admin import KEYS, Port, run


def decide(port: Port, *ids: str) -> None:
    """Requests of those ids, one each second, that are answered at once."""
    assert port.router.decisions is not None
    for i, request_id in enumerate(ids):
        ticket = port.router.route(b"x" * 256, float(i), 64).ticket
        serial = port.router.decisions.label(request_id.encode(), b"/v1/completions", "m", i + 1)
        port.router.observe(ticket, Event.FIRST_TOKEN, i + 0.25)
        port.router.observe(ticket, Event.DONE, i + 0.5, 7)
        port.router.decisions.status(serial, 200)


def test_a_decision_is_found_by_its_request_id() -> None:
    async def body(port: Port) -> None:
        decide(port, "a", "b", "a")
        status, found = await port.ask("GET /admin/decisions/a")
        assert status == 200 and found["request_id"] == "a" and found["tries"] == 3
        assert found["time"] == 1002.0 and found["model"] == "m" and found["prompt_tokens"] == 64
        assert found["url"] == "i0" and found["candidates_total"] == 3
        assert [c["chosen"] for c in found["candidates"]] == [True, False, False]
        assert found["outcome"] == {
            "event": "done",
            "status": 200,
            "ttft_ms": 250.0,
            "e2e_ms": 500.0,
            "cached_tokens": None,
            "output_tokens": 7,
            "slo_kept": None,
            "prompt_tokens": None,
        }
        status, missing = await port.ask("GET /admin/decisions/c")
        assert status == 404 and "among the last 3" in missing["error"]["message"]

    run(body)


def test_the_last_decisions_come_newest_first() -> None:
    async def body(port: Port) -> None:
        decide(port, *"abcdefghijk")
        status, listed = await port.ask("GET /admin/decisions?limit=2")
        assert status == 200 and listed["schema"] == 1
        assert [d["request_id"] for d in listed["decisions"]] == ["k", "j"]
        status, listed = await port.ask("GET /admin/decisions")
        assert [d["request_id"] for d in listed["decisions"]] == list("kjihgfed")
        assert (await port.ask("GET /admin/decisions?limit=x"))[0] == 400
        assert (await port.ask("POST /admin/decisions"))[0] == 405

    run(body)


def test_decisions_want_the_key_too() -> None:
    async def body(port: Port) -> None:
        assert (await port.ask("GET /admin/decisions"))[0] == 401
        assert (await port.ask("GET /admin/decisions/a"))[0] == 401
        status, _ = await port.ask("GET /admin/decisions", Authorization="Bearer first-key")
        assert status == 200

    run(body, KEYS)


def test_a_router_that_keeps_no_decisions_says_so() -> None:
    async def body(port: Port) -> None:
        port.admin.decisions = Decisions(make_router(), 0.0, "")
        status, answer = await port.ask("GET /admin/decisions")
        assert status == 404 and "--decisions" in answer["error"]["message"]

    run(body)
