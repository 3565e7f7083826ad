"""Draws at random: what they are, and what becomes of a collapse."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lodestar_fast.cli import main
from lodestar_fast.matrix import robust
from lodestar_fast.matrix.measure import plan_of
from lodestar_fast.matrix.robust import Draw, drawn, run_draw
from lodestar_fast.matrix.store import Store
from lodestar_fast.sim.faults import read_events
from lodestar_fast.simulate.plan import fleet

TRACES = Path(__file__).parent.parent / "bench/paper/traces"


def draw(seed: int, ours: float, code: str | None = None) -> Draw:
    means = {"lodestar": ours, "lmetric": 100.0, "expected_completion": 90.0}
    return Draw(seed, robust.code() if code is None else code, "2xa30", 300, means)


def test_what_is_drawn_can_be_and_is_drawn_again(tmp_path: Path) -> None:
    faults = set()
    for seed in range(1, 41):
        cell, rate = drawn(seed, TRACES)
        assert (cell, rate) == drawn(seed, TRACES)
        events = tmp_path / "events.jsonl"
        events.write_text("\n".join(cell.events))
        assert all(t < cell.seconds for t, _ in read_events(str(events), fleet(plan_of(cell))))
        assert 100 < rate * cell.seconds <= robust.MOST_REQUESTS + 9
        assert cell.work.then != cell.work.source
        faults.add(cell.note)
    assert faults == set(robust.FAULTS)


def test_a_draw_is_run_with_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "SECONDS", (8.0, 8.0))
    monkeypatch.setattr(robust, "LEAST_REQUESTS", 20)
    monkeypatch.setattr(robust, "OURS", "lodestar:model=linear")
    done = run_draw(3, TRACES)
    assert set(done.ttft) == {"lodestar:model=linear", *robust.RIVALS}
    assert done == msgspec.structs.replace(run_draw(3, TRACES), cpu=done.cpu)
    assert done.requests >= 20 and 0.2 < done.ratio < 5 and done.what.startswith("4xa30")


@pytest.mark.parametrize(("ours", "status"), [(179.0, 0), (181.0, 1)])
def test_a_collapse_is_told_by_seed_and_status(
    ours: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.gz"
    store = Store(path)
    for some in (draw(1, 50.0), draw(2, ours), draw(3, 500.0, "other"), draw(4, 500.0)):
        store.add(some)
    store.fold()
    assert Store(path).draws == store.draws
    command = ["matrix", "--store", str(path), "--no-run", "--robust", "3"]
    assert main(command) == status  # seeds 1 to 3, and the third of them is of other code
    out = " ".join(capsys.readouterr().out.split())
    assert f"2 runs, in {status} of them a collapse" in out
    assert out.index("2: 2xa30") < out.index("1: 2xa30")
