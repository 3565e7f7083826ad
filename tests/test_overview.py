"""GET /admin/state: what it says of a real core, and the series behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lodestar_fast.clock import VirtualClock
from lodestar_fast.core.enums import Event
from lodestar_fast.core.policies import Lmetric
from lodestar_fast.core.router import Router
from lodestar_fast.proxy.overview import FRESH, POINTS, STEP, Overview


class Stage:
    """A router with engines that are marked up, and the overview of it."""

    def __init__(self, engines: int) -> None:
        self.clock = VirtualClock(100.0)
        self.router = Router(Lmetric(), max_instances=512)
        self.fleet = SimpleNamespace(all=[])
        self.context = SimpleNamespace(
            instances={},
            draining=False,
            inflight=0,
            queued=0,
            connections=set(),
            counters=SimpleNamespace(snapshot=lambda: {"requests": self.outcomes}),
        )
        self.outcomes: dict[tuple[str, str, str], int] = {}
        self.governor = None
        for number in range(engines):
            self.add(number)
        self.overview = Overview(self)

    def add(self, number: int) -> None:
        url = f"http://e{number}:8000"
        slot = self.router.add_instance(url)
        instance = SimpleNamespace(
            id=f"i{number}", url=url, slot=slot, models=("m",), draining=False, answers=True,
            healthy=True, half_open=False, routable=True, ejections=0,
        )  # fmt: skip
        self.fleet.all.append(instance)
        self.context.instances[slot] = instance

    def model_status(self) -> dict[str, Any]:
        return {"policy": "lmetric"}

    def serve(self, slot: int, ttft: float, tokens: int = 1000) -> None:
        """One request to an engine, from dispatch to the end."""
        others = [s for s in self.router.slots() if s != slot]
        now = self.clock.now()
        prompt = b"%d" % self.router.stats()["decisions"]["heuristic"] * (tokens // 2)
        ticket = self.router.route(prompt, now, tokens, avoid=others).ticket
        self.clock.advance_to(now + ttft)
        self.router.observe(ticket, Event.FIRST_TOKEN, now + ttft)
        self.router.observe(ticket, Event.DONE, now + ttft, 1)
        key = ("/v1/completions", "2xx", "completed")
        self.outcomes[key] = self.outcomes.get(key, 0) + 1


def on(engines: int, body: Callable[[Stage], Awaitable[None]]) -> None:
    asyncio.run(body(Stage(engines)))


def test_a_slow_engine_is_marked_and_shares_add_up() -> None:
    async def body(at: Stage) -> None:
        await at.overview.record()
        for _ in range(30):
            for slot in range(4):
                at.serve(slot, 0.6 if slot == 2 else 0.12)
        at.serve(0, 0.12)
        state = await at.overview.state()
        rows = {row["id"]: row for row in state["instances"]}
        assert [id for id, row in rows.items() if row["slow"]] == ["i2"]
        assert rows["i2"]["times_median"] > 2 and rows["i0"]["times_median"] == 1.0
        assert rows["i2"]["ttft_ms"] == pytest.approx(600) == rows["i2"]["ttft_p99_ms"]
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=1e-3)
        assert rows["i0"]["share"] == pytest.approx(31 / 121, abs=1e-4)
        assert {row["health"] for row in rows.values()} == {"up"}
        assert state["model"] == {"policy": "lmetric"} and state["pairs"] == []
        msgspec.json.encode(state)

    on(4, body)


def test_a_point_is_what_came_in_between() -> None:
    async def body(at: Stage) -> None:
        at.serve(0, 0.5)
        await at.overview.record()
        for ttft in (0.1, 0.2, 0.3):
            at.serve(1, ttft)
        at.clock.advance_to(at.clock.now() + STEP)
        await at.overview.record()
        await at.overview.record()
        first, second, third = (await at.overview.state())["series"]["points"]
        assert first["ttft_ms"] == 500 and first["reasons"] == {"heuristic": 1}
        assert second["ttft_ms"] == pytest.approx(200) and second["ttft_p99_ms"] == 300
        assert second["reasons"] == {"heuristic": 3} and second["outcomes"] == {"completed": 3}
        assert second["seconds"] == pytest.approx(STEP + 0.6)
        assert third["ttft_ms"] is None and third["reasons"] == {} and third["error_ms"] is None

    on(2, body)


def test_the_series_is_bounded_and_given_from_where_one_left_off() -> None:
    async def body(at: Stage) -> None:
        for _ in range(POINTS + 20):
            await at.overview.record()
        series = (await at.overview.state())["series"]
        assert len(series["points"]) == POINTS and series["last"] == POINTS + 20
        assert [p["n"] for p in (await at.overview.state(POINTS + 18))["series"]["points"]] == [
            POINTS + 19,
            POINTS + 20,
        ]
        assert (await at.overview.state(POINTS + 20))["series"]["points"] == []
        # The asker has talked to the process before this one.
        assert len((await at.overview.state(10**9))["series"]["points"]) == POINTS

    on(1, body)


def test_many_who_ask_cost_what_one_does() -> None:
    async def body(at: Stage) -> None:
        states = await asyncio.gather(*(at.overview.state() for _ in range(20)))
        assert all(state["instances"] is states[0]["instances"] for state in states)
        at.clock.advance_to(at.clock.now() + FRESH)
        assert (await at.overview.state())["instances"] is not states[0]["instances"]

    on(3, body)


def test_engines_that_come_and_go_while_it_is_made() -> None:
    async def body(at: Stage) -> None:
        making = asyncio.ensure_future(at.overview.state())
        recording = asyncio.ensure_future(at.overview.record())
        await asyncio.sleep(0)
        gone = at.fleet.all.pop()
        del at.context.instances[gone.slot]
        at.router.remove_instance(gone.slot)
        state = await making
        await recording
        assert len(state["instances"]) == 99 and gone.id not in {
            row["id"] for row in state["instances"]
        }
        at.add(100)  # takes the slot, and counts from 0
        at.serve(gone.slot, 0.1)
        at.clock.advance_to(at.clock.now() + 1)
        await at.overview.record()
        (row,) = [r for r in (await at.overview.state())["instances"] if r["id"] == "i100"]
        assert row["decisions"] == 1 and row["share"] == 1.0

    on(100, body)
