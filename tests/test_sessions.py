"""Closed-loop sessions: who waits for what, which blocks are shared, and what is refused."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.cli import main
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.sessions import START_SECONDS, Sessions
from lodestar_fast.sim.workload import Trace, read_trace

META = {"meta": {"block_size": 64, "kind": "sessions"}}


def call(sid: int, turn: int, think: float | None, blocks: int, group: int = 7) -> dict[str, Any]:
    row = {"sid": sid, "turn": turn, "t": 0.0, "think": think, "in": 64 * blocks, "out": 10}
    return row | {"sys": [group, 130], "h": [1, blocks]}


ROWS = [
    *(call(0, turn, 2.0 * turn or None, 10 + turn) for turn in range(4)),
    *(call(1, turn, 5.0, 20 + turn) for turn in range(3)),
    call(2, 0, 1.0, 8, group=9),
]


def trace_file(folder: Path, *rows: Any) -> Path:
    path = folder / "sessions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return read_trace(trace_file(tmp_path, META, *ROWS), sessions=True)


def simulate(trace: Trace, users: int, seconds: float, seed: int = 1, **more: Any) -> Simulation:
    source = Sessions(trace, users, seed, seconds, 16)
    world = Simulation(
        [], parse_fleet("2xa30"), POLICIES["lmetric"](), seed=seed, source=source, **more
    )
    world.run()
    assert [o.index for o in world.outcomes] == list(range(len(world.jobs)))
    return world


def test_the_next_call_waits_for_the_answer_and_the_thought(trace: Trace) -> None:
    world = simulate(trace, 1, 500.0)
    assert len(world.jobs) > 3 * len(ROWS)  # the sessions came again
    requests = [job.request for job in world.jobs]
    assert 0 <= world.outcomes[0].arrival < START_SECONDS
    for k in range(1, len(requests)):
        before, now = world.outcomes[k - 1 : k + 1]
        goes_on = requests[k].index == requests[k - 1].index + 1 and (
            requests[k].session == requests[k - 1].session
        )
        think = requests[k].think if goes_on else 0.0
        assert now.arrival == pytest.approx(before.arrival + before.e2e + think)
    assert max(o.arrival for o in world.outcomes) < 500.0


def test_so_many_users_at_a_time(trace: Trace) -> None:
    world = simulate(trace, 3, 300.0)
    changes = sorted(
        change for o in world.outcomes for change in ((o.arrival, 1), (o.arrival + o.e2e, -1))
    )
    at_once = list(accumulate(change for _, change in changes))
    assert 1 < max(at_once) <= 3
    alone = simulate(trace, 1, 300.0)
    assert len(world.jobs) == pytest.approx(3 * len(alone.jobs), rel=0.25)


def test_blocks_are_of_the_session_but_for_the_groups(trace: Trace) -> None:
    """Two blocks of 130 tokens are shared in group 7; all of a session within itself."""
    world = simulate(trace, 2, 300.0)
    by_session = defaultdict(list)
    for job in world.jobs:
        by_session[job.request.session].append(job)
    shared = 2 * 64 // 16
    zero, one, two = (by_session[k] for k in range(3))
    assert zero[0].hashes[:shared] == one[0].hashes[:shared]
    assert zero[0].hashes[shared] != one[0].hashes[shared]
    assert two[0].hashes[0] != zero[0].hashes[0]
    turns = [job for job in zero if job.request.index < len(ROWS)]
    for a, b in zip(turns, turns[1:], strict=False):
        assert b.hashes[: len(a.hashes)] == a.hashes
    again = [job for job in zero if job.request.index >= len(ROWS)]
    assert again and again[0].hashes[shared] != zero[0].hashes[shared]
    assert len({job.request.index for job in world.jobs}) == len(world.jobs)


def test_a_failed_call_is_given_up_and_the_session_goes_on(trace: Trace) -> None:
    def crash(world: Simulation) -> None:
        for slot in (0, 1):
            world.crash(slot)
            world.up(slot)

    calls = [(t, crash) for t in (20.0, 20.2, 20.4, 40.0, 40.2)]
    world = simulate(trace, 4, 200.0, calls=calls)
    lost = [o for o in world.outcomes if o.error]
    assert lost and max(o.arrival for o in world.outcomes) > 150.0


def test_a_run_repeats_itself_and_seeds_differ(trace: Trace) -> None:
    first, second, other = (simulate(trace, 3, 200.0, seed) for seed in (1, 1, 2))
    assert repr(first.outcomes) == repr(second.outcomes) != repr(other.outcomes)


def test_rescaling_scales_what_a_group_shares(trace: Trace) -> None:
    smaller = trace.rescaled(block_tokens=32)
    assert smaller.sessions and smaller.requests[0].group_tokens == 65
    assert smaller.requests[0].prompt_tokens == trace.requests[0].prompt_tokens // 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (call(0, 0, 0.0, 4) | {"sid": "a"}, "line 3: field `sid`"),
        (call(0, 0, 0.0, 4) | {"think": -1}, "line 3: field `think`"),
        (call(0, 0, 0.0, 4) | {"think": "5"}, "line 3: field `think`"),
        (call(0, 0, 0.0, 4) | {"sys": [1]}, "line 3: field `sys`"),
        (call(0, 0, 0.0, 4) | {"sys": [1, -4]}, "line 3: field `sys`"),
        (call(0, 0, 0.0, 4) | {"out": -1}, "line 3: field `out`"),
    ],
    ids=lambda v: str(v)[-30:],
)
def test_broken_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = trace_file(tmp_path, META, call(0, 0, 0.0, 4), row)
    with pytest.raises(ConfigError, match=message):
        read_trace(path, sessions=True)
    path = trace_file(tmp_path, META, call(1, 0, 0.0, 4), call(0, 0, 0.0, 4))
    with pytest.raises(ConfigError, match="line 3: field `sid`: less than"):
        read_trace(path, sessions=True)


def test_sessions_and_open_traces_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(trace_file(tmp_path, META, *ROWS))
    plain = str(tmp_path / "plain.jsonl")
    Path(plain).write_text('{"meta": {}}\n{"t": 0, "in": 5, "out": 1}\n')
    for options, message in (
        (["--trace", path], "closed-loop sessions cannot be replayed"),
        (["--trace", plain, "--users", "2", "--seconds", "9"], "not closed-loop sessions"),
        (["--trace", path, "--users", "2"], "--users: needs --seconds"),
        (["--users", "2", "--seconds", "9"], "--users: needs --trace"),
        (["--trace", path, "--users", "2", "--rate", "1"], "--users: not together with --rate"),
    ):
        assert main(["simulate", *options]) == 2
        assert message in capsys.readouterr().err


def test_the_verb_runs_them(tmp_path: Path) -> None:
    path, out = str(trace_file(tmp_path, META, *ROWS)), tmp_path / "out.json"
    options = ["--trace", path, "--users", "3", "--seconds", "120", "--fleet", "2xa30"]
    options += ["--policy", "lmetric,oracle,lodestar-paper", "--json", str(out)]
    assert main(["simulate", *options]) == 0
    runs = json.loads(out.read_text())["runs"]
    assert [run["policy"] for run in runs] == ["lmetric", "oracle", "lodestar-paper"]
    assert all(run["requests"] > 20 and run["failed"] == 0 for run in runs)
    assert all(run["lower_bound_ms"] == {} for run in runs)
