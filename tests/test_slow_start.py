"""Engines that come back get few requests at first: one after an ejection, two after a restart, and
twice as many in the time of each first token."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from lodestar_fast.clock import MonotonicClock
from lodestar_fast.config import FleetConfig
from lodestar_fast.core.policies import LeastRequest
from lodestar_fast.proxy.fleet import Fleet
from lodestar_fast.proxy.instance import RESTARTED, SLOW_START
from lodestar_fast.proxy.upstream import Pool
from tests.fake_engine import Call, FakeEngine, stream, token
from tests.fake_fleet import FleetFixture as Fixture
from tests.proxy_rig import Rig, chat, with_rig
from tests.test_fleet import do_well, eject


@pytest.fixture
def at() -> Fixture:
    return Fixture()


def test_half_open_takes_one_request_at_a_time(at: Fixture) -> None:
    first, _ = at.add(2)
    eject(first)
    first.note_check("")
    assert at.context.on_trial == {first.slot: first} and at.routable == [0, 1]
    first.note_trial(True)
    assert at.routable == [1], "its one request is under way"
    first.note_trial(False)
    assert at.routable == [0, 1], "that told nothing: the client left"
    do_well(first)
    assert at.routable == [0, 1]
    first.note_failure("reset")
    assert first.healthy, "half-open no more"


def test_half_open_one_failure_is_enough(at: Fixture) -> None:
    first, _ = at.add(2)
    eject(first)
    first.note_check("")
    first.note_trial(True)
    first.note_trial(False)
    first.note_failure("reset")
    assert not first.healthy and not at.context.on_trial and at.routable == [1]


def test_half_open_alone_takes_all(at: Fixture) -> None:
    (only,) = at.add(1)
    eject(only)
    only.note_check("")
    only.note_trial(True)
    assert at.routable == [0]


def test_what_began_before_the_ejection_says_nothing_of_it(at: Fixture) -> None:
    first, _ = at.add(2)
    eject(first)
    first.note_check("")
    first.note_success()
    assert first.half_open


def restart(at: Fixture, checks: int) -> None:
    """The first instance's process is started again; so many checks see that it is gone."""
    first = next(iter(at.fleet.all))
    for _ in range(checks):
        first.note_check("check_refused")
    first.note_check("")


@pytest.mark.parametrize("checks", [1, 3], ids=["unnoticed", "noticed"])
def test_after_a_restart_each_that_does_well_allows_one_more(at: Fixture, checks: int) -> None:
    first, _ = at.add(2)
    restart(at, checks)
    for allowed in range(RESTARTED, SLOW_START + 1):
        assert first.allowance == allowed
        for _ in range(allowed):
            assert at.routable == [0, 1]
            first.note_trial(True)
        assert at.routable == [1], f"{allowed} wait for their first token"
        first.note_trial(False, well=True)
        for _ in range(allowed - 1):
            first.note_trial(False)
    assert not first.allowance and not at.context.on_trial
    for _ in range(100):
        first.note_trial(True)
    assert at.routable == [0, 1], "it is like the others again"


def test_one_failure_after_a_restart_is_no_more_than_one(at: Fixture) -> None:
    first, _ = at.add(2)
    restart(at, 3)
    first.note_failure("reset")
    assert first.healthy


def test_the_first_start_is_not_slow(at: Fixture) -> None:
    first, _ = at.add(2, healthy=False)
    restart(at, 1)
    assert first.healthy and not first.allowance


def test_when_none_has_room_all_are_chosen(at: Fixture) -> None:
    first, second = at.add(2)
    restart(at, 3)
    at.fleet.drain(second.id)
    for _ in range(RESTARTED):
        first.note_trial(True)
    assert at.routable == [0], "no request is refused for it"


@with_rig(engines=0, policy=LeastRequest())
async def test_a_restarted_engine_is_not_flooded(rig: Rig) -> None:
    """Of requests that come at once the least loaded engine would get half."""
    gates: list[asyncio.Event] = []

    async def answer(call: Call) -> None:
        gates.append(asyncio.Event())
        await gates[-1].wait()
        await stream(token(0))(call)

    async def wave(n: int) -> int:
        """n requests, then all are answered; how many the first engine got."""
        before = len(engines[0].calls), sum(len(engine.calls) for engine in engines)
        clients = [await rig.client() for _ in range(n)]
        for client in clients:
            client.post(chat(stream=True))
        await rig.until(lambda: sum(len(engine.calls) for engine in engines) == before[1] + n)
        await rig.until(lambda: len(gates) == n)
        for gate in gates:
            gate.set()
        gates.clear()
        for client in clients:
            assert (await client.reply()).status == 200
        return len(engines[0].calls) - before[0]

    engines = [await FakeEngine(answer).start() for _ in range(2)]
    rig.engines += engines
    clock = MonotonicClock()
    fleet = Fleet(rig.context, FleetConfig(), rig.router.inner, clock, Pool, Counter())
    first, second = [fleet.add(f"http://127.0.0.1:{engine.port}") for engine in engines]
    first.note_check("")
    second.note_check("")
    assert await wave(12) == 6
    for _ in range(3):
        first.note_check("check_refused")
    first.note_check("")
    assert [await wave(12) for _ in range(3)] == [2, 4, 6]
    await fleet.close()
