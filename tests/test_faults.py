"""The events file: what is refused and how it is named, and what each event does to a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.core.policies import POLICIES
from lodestar_fast.core.router import Decision
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.faults import read_events
from lodestar_fast.sim.gpus import parse_fleet, spec
from lodestar_fast.sim.jobs import Job, make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import Request


def events_file(folder: Path, *rows: Any) -> Path:
    path = folder / "events.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def steady(count: int = 200, gap: float = 0.1, tokens: int = 400, output: int = 20) -> list[Job]:
    return make_jobs([Request(k, gap * k, tokens, output) for k in range(count)])


def simulate(
    folder: Path, *rows: Any, fleet: str = "2xa30", jobs: list[Job] | None = None, **options: Any
) -> Simulation:
    specs = parse_fleet(fleet)
    world = Simulation(
        steady() if jobs is None else jobs,
        specs,
        POLICIES["least_request"](),
        seed=1,
        calls=read_events(events_file(folder, *rows), specs),
        **options,
    )
    world.run()
    world.router._check()
    assert world.router.stats()["tickets_open"] == 0
    return world


# -- reading ---------------------------------------------------------------------------------------

REFUSED = [
    ("not json", "line 1: not JSON"),
    ("[1]", "line 1: not a JSON object"),
    ({"t": 1}, "line 1: says not what happens"),
    ({"t": 1, "crash": 0, "drain": 1}, "line 1: has `crash` and `drain`"),
    ({"crash": 0}, "line 1: field `t`"),
    ({"t": -1, "crash": 0}, "line 1: field `t`: not a number of at least 0"),
    ({"t": "5", "crash": 0}, "line 1: field `t`"),
    ({"t": True, "crash": 0}, "line 1: field `t`"),
    ({"t": 1, "crash": 2}, r"line 1: field `crash`: no slot 2 at t = 1; there are 0 to 1"),
    ({"t": 1, "crash": -1}, "line 1: field `crash`: not a slot"),
    ({"t": 1, "crash": 0.0}, "line 1: field `crash`: not a slot"),
    ({"t": 1, "slow": 3.0}, "line 1: field `slot`: not a slot"),
    ({"t": 1, "slot": 9, "slow": 3.0}, "line 1: field `slot`: no slot 9"),
    ({"t": 1, "slot": 0, "slow": 0}, "line 1: field `slow`: not a number above 0"),
    ({"t": 1, "slot": 0, "crash": 0}, "line 1: field `slot`: unknown with `crash`"),
    ({"t": 1, "join": "z99"}, "line 1: field `join`: unknown GPU 'z99'"),
    ({"t": 1, "join": 3}, "line 1: field `join`"),
    ({"t": 1, "replace": 2, "gpu": "a30"}, "line 1: field `replace`: no slot 2 at t = 1"),
    ({"t": 1, "replace": 0}, "line 1: field `gpu`: not the name of a GPU"),
    ({"t": 1, "replace": 0, "gpu": "z9"}, "line 1: field `gpu`: unknown GPU 'z9'"),
    ({"t": 1, "crash": 0, "gpu": "a30"}, "line 1: field `gpu`: unknown with `crash`"),
    ({"t": 1, "scrape_s": 0}, "line 1: field `scrape_s`"),
    ({"t": 1, "scrape_loss": 1.5}, "line 1: field `scrape_loss`: a share is at most 1"),
    ({"t": 1, "up": 0}, "line 1: field `up`: slot 0 is up already"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = events_file(tmp_path, row)
    with pytest.raises(ConfigError, match=message) as caught:
        read_events(path, parse_fleet("2xa30"))
    assert str(path) in str(caught.value)


def test_order_is_of_time_and_slots_are_checked_in_it(tmp_path: Path) -> None:
    rows = [
        {"t": 9, "crash": 2},
        "",
        "# joins first, though it stands later",
        {"t": 5, "join": "h100"},
    ]
    calls = read_events(events_file(tmp_path, *rows), parse_fleet("2xa30"))
    assert [time for time, _ in calls] == [5.0, 9.0]
    rows[0] = {"t": 4, "crash": 2}
    with pytest.raises(ConfigError, match="line 1: field `crash`: no slot 2 at t = 4"):
        read_events(events_file(tmp_path, *rows), parse_fleet("2xa30"))


@pytest.mark.parametrize("action", ["crash", "drain", "freeze", "thaw"])
def test_nothing_happens_to_what_is_down(tmp_path: Path, action: str) -> None:
    path = events_file(tmp_path, {"t": 1, "crash": 0}, {"t": 2, action: 0})
    with pytest.raises(ConfigError, match=f"line 2: field `{action}`: slot 0 is down"):
        read_events(path, parse_fleet("2xa30"))


def test_a_fleet_grows_to_a_limit(tmp_path: Path) -> None:
    path = events_file(tmp_path, *[{"t": 1, "join": "a30"}] * 63)
    with pytest.raises(ConfigError, match="line 63: field `join`: .* may grow to 64 engines"):
        read_events(path, parse_fleet("2xa30"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="--events: nowhere.jsonl: No such file"):
        read_events("nowhere.jsonl", parse_fleet("a30"))


# -- what happens ----------------------------------------------------------------------------------


def test_a_crash_fails_its_requests_and_none_go_there(tmp_path: Path) -> None:
    world = simulate(tmp_path, {"t": 8.05, "crash": 0})
    lost = [o for o in world.outcomes if o.error]
    assert lost and {o.error for o in lost} == {"engine crashed"}
    assert all(o.slot == 0 and o.arrival < 8.05 and math.isnan(o.e2e) for o in lost)
    assert {o.slot for o in world.outcomes if o.arrival > 8.05} == {1}
    assert world.router.instance(0)["failed"] == len(lost)
    assert all(o.e2e > o.ttft for o in world.outcomes if not o.error)


def test_a_crashed_engine_comes_back_with_an_empty_cache(tmp_path: Path) -> None:
    jobs = make_jobs([Request(k, 2.0 * k, 1600, 3, 1600, (0, 1)) for k in range(6)])
    rows = {"t": 5, "crash": 0}, {"t": 5.5, "up": 0}
    world = simulate(tmp_path, *rows, fleet="a30", jobs=jobs)
    assert [o.cached_tokens for o in world.outcomes] == [0, 1584, 1584, 0, 1584, 1584]
    assert [o.hit_tokens > 0 for o in world.outcomes] == [False, True, True, False, True, True]
    assert world.engines[0].slow == 1.0


def test_without_any_instance_requests_fail(tmp_path: Path) -> None:
    world = simulate(tmp_path, {"t": 5, "crash": 0}, {"t": 9, "up": 0}, fleet="a30")
    lost = [o for o in world.outcomes if o.error == "no instance"]
    assert {o.slot for o in lost} == {-1}
    assert all(5 <= o.arrival < 9 for o in lost) and len(lost) == 40
    assert all(not o.error for o in world.outcomes if o.arrival >= 9)


def test_a_draining_engine_finishes_what_it_has(tmp_path: Path) -> None:
    world = simulate(tmp_path, {"t": 5.05, "drain": 0}, {"t": 12, "up": 0})
    assert not any(o.error for o in world.outcomes)
    assert {o.slot for o in world.outcomes if 5.05 < o.arrival < 12} == {1}
    assert {o.slot for o in world.outcomes if o.arrival > 12} == {0, 1}


def test_a_slow_engine_recovers(tmp_path: Path) -> None:
    rows = {"t": 5, "slot": 0, "slow": 4.0}, {"t": 10, "slot": 0, "slow": 1.0}
    world = simulate(tmp_path, *rows, fleet="a30", jobs=steady(40, gap=0.5, output=1))
    ttft = [o.ttft - 0.01 for o in world.outcomes]
    idle = spec("a30").idle_ttft(400)
    assert ttft[2] == pytest.approx(idle)
    assert ttft[12] == pytest.approx(4 * idle)
    assert ttft[30] == pytest.approx(idle)


def test_joins_take_the_next_slot_with_scaled_costs(tmp_path: Path) -> None:
    specs = [spec("a30").scaled(c=2.0)]
    calls = read_events(events_file(tmp_path, {"t": 5, "join": "h100"}), specs, {"c": 2.0})
    world = Simulation(steady(), specs, POLICIES["least_request"](), seed=1, calls=calls)
    world.run()
    assert world.engines[1].spec == spec("h100").scaled(c=2.0)
    assert {o.slot for o in world.outcomes if o.arrival < 5} == {0}
    assert 1 in {o.slot for o in world.outcomes if o.arrival > 5}


def reported(world: Simulation, slot: int = 0) -> tuple[float, float]:
    seen = world.router.instance(slot)
    return seen["reported_at"], seen["reported_running"]


def telemetry(folder: Path, *rows: Any) -> list[tuple[float, float, float]]:
    """(time, report's time, running as reported) at each decision."""
    seen = []

    def look(world: Simulation, _: int, __: Decision) -> None:
        seen.append((world.clock.now(), *reported(world)))

    uneven = [0.07 * k + 0.3 * math.sin(k / 10) + 0.4 for k in range(290)]
    requests = [Request(k, now, 400, 20) for k, now in enumerate(sorted(uneven))]
    simulate(folder, *rows, fleet="a30", jobs=make_jobs(requests), probe=look)
    return seen


def test_a_replaced_engine_is_another_one(tmp_path: Path) -> None:
    """Its requests are lost, its cache too; the slot stays, and the router learns the new one."""
    same = make_jobs([Request(k, 0.1 * k, 1600, 20, 64, (1, 25)) for k in range(200)])
    world = simulate(
        tmp_path, {"t": 8.05, "replace": 0, "gpu": "v100"}, fleet="1xh100+1xa30", jobs=same
    )
    lost = [o for o in world.outcomes if o.error]
    assert lost and all(o.slot == 0 and o.arrival < 8.05 for o in lost)
    assert world.engines[0].spec.gpu == "v100"
    its = [o for o in world.outcomes if o.slot == 0 and not o.error]
    before, after = ([o for o in its if (o.arrival > 8.05) is late] for late in (False, True))
    assert len(after) > 20 and before[-1].cached_tokens > 1500
    assert {o.cached_tokens for o in after} == {0}
    assert min(o.ttft for o in after) > 3 * max(o.ttft for o in before[1:])
    state = world.router.instance(0)
    assert state["kv_tokens"] == spec("v100").kv_tokens and not state["prefix_caching"]


def test_the_scrape_period_changes(tmp_path: Path) -> None:
    seen = telemetry(tmp_path, {"t": 10, "scrape_s": 2.0})
    ages = [(now, now - at) for now, at, _ in seen if now > 1]
    assert max(age for now, age in ages if now < 10) < 0.11
    assert max(age for now, age in ages if now > 12) > 1.5


def test_lost_scrapes_leave_the_router_with_old_ones(tmp_path: Path) -> None:
    seen = telemetry(tmp_path, {"t": 10, "scrape_loss": 1.0})
    assert {at for now, at, _ in seen if now > 10.2} == {max(at for _, at, _ in seen)}
    assert max(at for _, at, _ in seen) <= 10.1
    some = telemetry(tmp_path, {"t": 0, "scrape_loss": 0.5})
    assert 0.15 < max(now - at for now, at, _ in some if now > 5) < 2.0


def test_frozen_telemetry_repeats_itself(tmp_path: Path) -> None:
    seen = telemetry(tmp_path, {"t": 5, "freeze": 0}, {"t": 15, "thaw": 0})
    frozen = [(at, running) for now, at, running in seen if 5.2 < now < 15]
    assert len({running for _, running in frozen}) == 1
    assert len({at for at, _ in frozen}) > 50  # they come, and say the same
    assert len({running for now, _, running in seen if now > 15.2}) > 1


def test_the_same_events_give_the_same_outcomes(tmp_path: Path) -> None:
    rows = (
        {"t": 3, "slot": 1, "slow": 2.0},
        {"t": 4, "crash": 0},
        {"t": 6, "up": 0},
        {"t": 7, "join": "l20"},
        {"t": 0, "scrape_loss": 0.3},
    )
    first, second = (simulate(tmp_path, *rows, jitter=0.1) for _ in range(2))
    assert repr(first.outcomes) == repr(second.outcomes)
    assert first.preemptions == second.preemptions
