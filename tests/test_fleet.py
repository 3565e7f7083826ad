"""Which instances may be chosen: checks, ejection, drain, panic, models. No sockets."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.fleet import parse_url
from lodestar_fast.proxy.instance import EJECT_AFTER, Instance
from tests.fake_fleet import FleetFixture as Fixture


def eject(instance: Instance, kind: str = "connect") -> None:
    for _ in range(EJECT_AFTER):
        instance.note_failure(kind)


def do_well(instance: Instance) -> None:
    """A request on trial came to its first token."""
    instance.note_trial(True)
    instance.note_trial(False, well=True)


@pytest.fixture
def at() -> Fixture:
    return Fixture()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://10.0.0.1:8000", ("http://10.0.0.1:8000", "10.0.0.1", 8000)),
        ("http://engine", ("http://engine:80", "engine", 80)),
        ("http://ENGINE:8000/", ("http://engine:8000", "engine", 8000)),
        ("http://[::1]:8000", ("http://[::1]:8000", "::1", 8000)),
    ],
)
def test_urls_are_normalised(url: str, wanted: tuple[str, str, int]) -> None:
    assert parse_url(url) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "",
        "engine:8000",
        "10.0.0.1",
        "https://engine:8000",
        "http://",
        "http://:8000",
        "http://engine:0",
        "http://engine:99999",
        "http://engine:x",
        "http://engine/v1",
        "http://engine?x=1",
        "http://me@engine:8000",
        "http://a b:8000",
        "http://[::1",
    ],
)
def test_other_urls_are_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_url(url)
    assert f"`{url}`" in str(e.value)


def test_ids_are_stable_and_hide_the_address(at: Fixture) -> None:
    instance = at.fleet.add("http://10.1.2.3:8000")
    assert instance.id == Fixture().fleet.add("http://10.1.2.3:8000/").id
    assert "10.1" not in instance.id and len(instance.id) == 12
    assert at.fleet.by_id(instance.id) is instance
    assert at.context.instances == {instance.slot: instance}


def test_an_instance_serves_from_its_first_good_check(at: Fixture) -> None:
    first, second = at.add(2, healthy=False)
    assert not first.healthy and not at.fleet.ready
    first.note_check("")
    assert first.healthy and at.fleet.ready
    assert at.routable == [first.slot] and not second.healthy


def test_with_none_healthy_every_one_is_tried(at: Fixture) -> None:
    first, second = at.add(2, healthy=False)
    assert at.routable == [0, 1] and not at.fleet.ready
    at.fleet.drain(second.id)
    assert at.routable == [first.slot], "but none that drains"


def test_checks_take_out_after_so_many_and_one_brings_back() -> None:
    at = Fixture(health_failures=2)
    first, _ = at.add(2)
    first.note_check("check_timeout")
    assert first.healthy
    first.note_check("check_timeout")
    assert not first.healthy and at.routable == [1]
    first.note_check("")
    assert first.healthy and at.routable == [0, 1]
    assert first.failures == {"check_timeout": 2}


def test_a_good_check_between_two_bad_ones_starts_the_count_anew() -> None:
    at = Fixture(health_failures=2)
    (first,) = at.add(1)
    for fault in ("check_timeout", "", "check_timeout", ""):
        first.note_check(fault)
        assert first.healthy


def test_prefixes_are_forgotten_when_the_process_had_gone() -> None:
    at = Fixture(health_failures=2)
    first, second = at.add(2)
    for _ in range(2):  # whether it was out or not
        first.note_check("check_refused")
        second.note_check("check_timeout")
        first.note_check("")
        second.note_check("")
        first.note_check("")
        first.note_check("check_refused")
    assert at.router.forgotten == [first.slot] * 2


def test_failures_in_a_row_eject_until_a_check_after_the_hold(at: Fixture) -> None:
    first, _ = at.add(2)
    eject(first, "reset")
    assert not first.healthy and first.ejections == 1 and at.routable == [1]
    at.clock.advance_to(29.9)
    first.note_check("")
    assert not first.healthy, "the hold of 30 s is not over"
    at.clock.advance_to(30.0)
    first.note_check("")
    assert first.healthy and at.routable == [0, 1]


def test_refused_connections_are_over_with_a_good_check_the_first_time(at: Fixture) -> None:
    first, _ = at.add(2)
    eject(first)
    first.note_check("check_refused")
    assert not first.healthy and at.routable == [1]
    first.note_check("")
    assert first.healthy, "an engine that was started again is back with its first check"
    do_well(first)
    eject(first)
    first.note_check("")
    assert not first.healthy, "one that flaps is not"
    at.clock.advance_to(60.0)
    first.note_check("")
    assert first.healthy


def test_a_success_breaks_the_row(at: Fixture) -> None:
    first, _ = at.add(2)
    for _ in range(10):
        first.note_failure("reset")
        first.note_failure("reset")
        first.note_success()
    assert first.healthy and first.failures == {"reset": 20}


def test_shedding_is_no_failure(at: Fixture) -> None:
    first, _ = at.add(2)
    for _ in range(10):
        first.note_failure("busy")
    assert first.healthy and first.failures == {"busy": 10}


def test_holds_double_to_ten_times_and_start_anew_after_a_calm_time() -> None:
    at = Fixture(eject_seconds=1.0)
    first, _ = at.add(2)
    now, holds = 0.0, []
    for _ in range(6):
        eject(first, "reset")
        start = now
        while not first.healthy:
            now += 0.5
            at.clock.advance_to(now)
            first.note_check("")
        holds.append(now - start)
        do_well(first)
    assert holds == [1, 2, 4, 8, 10, 10]
    at.clock.advance_to(now + 10)
    first.note_check("")
    eject(first, "reset")
    at.clock.advance_to(now + 11)
    first.note_check("")
    assert first.healthy


def test_slow_checks_and_first_bytes_do_not_kill_a_busy_engine(at: Fixture) -> None:
    first, _ = at.add(2)
    at.clock.advance_to(100.0)
    first.pool.heard_at = 97.0
    for _ in range(10):
        first.note_check("check_timeout")
        first.note_failure("first_byte_timeout")
    assert first.healthy and first.failures["check_timeout"] == 10
    first.pool.heard_at = 94.0
    for _ in range(3):
        first.note_check("check_timeout")
    assert not first.healthy, "nothing came for the time a check may take"


def test_an_engine_that_refuses_checks_loses_its_silent_requests(at: Fixture) -> None:
    first, _ = at.add(2)
    for now in (10.0, 12.0, 14.9):
        at.clock.advance_to(now)
        first.note_check("check_refused")
    assert at.context.given_up == []
    at.clock.advance_to(15.0)
    first.note_check("check_refused")
    assert at.context.given_up == [(first.id, 10.0)]
    at.clock.advance_to(16.0)
    first.note_check("check_timeout")
    first.note_check("check_refused")
    assert len(at.context.given_up) == 1, "the time starts anew when it is not refused"


def test_panic_prefers_those_that_answer(at: Fixture) -> None:
    first, second = at.add(2)
    for _ in range(3):
        second.note_check("check_timeout")
    eject(first)
    assert at.routable == [first.slot]


def test_when_all_are_ejected_all_are_tried(at: Fixture) -> None:
    for instance in at.add(3):
        eject(instance)
    assert at.routable == [0, 1, 2] and at.fleet.ready


def test_draining_ends_new_requests_and_adding_again_ends_draining(at: Fixture) -> None:
    first, _ = at.add(2)
    assert at.fleet.drain(first.id) and not at.fleet.drain("nobody")
    assert at.routable == [1] and first.healthy
    assert at.fleet.add(first.url) is first
    assert at.routable == [0, 1]


def test_ready_needs_an_answering_instance_that_takes_requests(at: Fixture) -> None:
    first, second = at.add(2)
    at.fleet.drain(first.id)
    assert at.fleet.ready
    at.fleet.drain(second.id)
    assert not at.fleet.ready and at.routable == []


def test_removing_forgets_everywhere(at: Fixture) -> None:
    first, _ = at.add(2)
    assert at.fleet.remove(first.id) and not at.fleet.remove(first.id)
    assert first.pool.closed and list(at.context.instances) == [1] and at.routable == [1]
    assert len(at.fleet) == 1


def test_a_full_router_is_the_operators_mistake() -> None:
    at = Fixture(places=1)
    at.add(1)
    with pytest.raises(ConfigError, match="http://more:1.*max_instances"):
        at.fleet.add("http://more:1")
    assert len(at.fleet) == 1


def cards(**entries: str) -> dict[str, msgspec.Raw]:
    return {id: msgspec.Raw(text.encode()) for id, text in entries.items()}


def test_models_are_the_union_over_healthy_instances(at: Fixture) -> None:
    first, second, third = at.add(3)
    at.fleet.set_models(first, cards(a='{"id":"a","n":1}', b='{"id":"b"}'))
    at.fleet.set_models(second, cards(a='{"id":"a","n":2}', c='{"id":"c"}'))
    at.fleet.set_models(third, cards(d='{"id":"d"}'))
    eject(third)
    body = msgspec.json.decode(at.fleet.models())
    assert body["object"] == "list"
    assert sorted(m["id"] for m in body["data"]) == ["a", "b", "c"]
    assert {"id": "a", "n": 1} in body["data"], "the first entry of an id stands"
    assert first.models == ("a", "b")


def test_the_data_path_hears_of_changes_of_models_only(at: Fixture) -> None:
    first, _ = at.add(2)
    at.fleet.set_models(first, cards(a='{"id":"a"}'))
    before = at.context.model_changes
    at.fleet.set_models(first, cards(a='{"id":"a"}'))
    first.note_check("")
    assert at.context.model_changes == before
    eject(first)
    assert at.context.model_changes == before + 1
    assert msgspec.json.decode(at.fleet.models())["data"] == []


def test_watchers_run_for_each_instance_while_it_is_there() -> None:
    async def run() -> None:
        at = Fixture()
        running: set[str] = set()
        changed = asyncio.Event()

        async def watch(instance: Instance) -> None:
            running.add(instance.url)
            changed.set()
            try:
                await asyncio.Event().wait()
            finally:
                running.discard(instance.url)
                changed.set()

        async def until(*urls: str) -> None:
            while running != set(urls):
                changed.clear()
                await changed.wait()

        early = at.fleet.add("http://early:1")
        at.fleet.watch(watch)
        at.fleet.add("http://late:1")
        await until("http://early:1", "http://late:1")
        at.fleet.remove(early.id)
        await until("http://late:1")
        await at.fleet.close()
        assert not running

    asyncio.run(run())


def test_a_watcher_that_raises_is_counted_and_runs_again() -> None:
    async def run() -> None:
        at = Fixture(health_check_interval=0.001)
        again = asyncio.Event()
        calls = 0

        async def watch(instance: Instance) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("a bug")
            again.set()
            await asyncio.Event().wait()

        at.fleet.add("http://e:1")
        at.fleet.watch(watch)
        await again.wait()
        assert at.incidents == {"watcher": 1}
        await at.fleet.close()

    asyncio.run(run())
