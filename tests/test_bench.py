"""The benchmarks run, under the names that others read; compare.py's verdict is its exit status."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.simulate.plan import TRACE

ROOT = Path(__file__).parent.parent
NAMES = (
    *("route[lodestar-8-4096]", "route[lmetric-8-4096]", "route[prefix_cache-8-4096]"),
    *("route[lodestar-64-4096]", "route[lodestar-1024-4096]", "route[lodestar-8-32768]"),
    "route_full[8-8192]",
    *("hash[4096]", "match[8-4096]", "observe"),
    *("score[linear-16]", "score[mlp-2x32-16]", "score[mlp-3x128-16]"),
)


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"bench/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, instructions = load("compare"), load("instructions")


def test_every_benchmark_runs_under_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/bench_core.py", "--benchmark-disable", "-v"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        assert f"::test_{name} PASSED" in done.stdout, name


def test_the_baseline_names_every_benchmark() -> None:
    baseline = compare.read(ROOT / "bench/baseline.json")["medians"]
    assert {f"test_{name}" for name in NAMES} <= set(baseline)


def run(path: Path, cpu: str = "cpu", **medians: float) -> str:
    """Write a run as pytest-benchmark does, medians in microseconds. Its path."""
    benchmarks = [
        {"name": f"test_{n}", "stats": {"median": m * 1e-6, "iqr": 0, "rounds": 1, "data": [m]}}
        for n, m in medians.items()
    ]
    path.write_text(
        json.dumps({"machine_info": {"cpu": {"brand_raw": cpu}}, "benchmarks": benchmarks})
    )
    return str(path)


@pytest.mark.parametrize(
    ("now", "status", "word"),
    [
        ({"route": 10.0, "hash": 1.0}, 0, "ok"),
        ({"route": 14.0, "hash": 1.0}, 0, "1.40"),
        ({"route": 16.0, "hash": 1.0}, 1, "SLOWER"),
        ({"route": 10.0}, 1, "MISSING"),
        ({"route": 10.0, "hash": 1.0, "more": 5.0}, 0, "new"),
    ],
)
def test_verdict(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    now: dict[str, float],
    status: int,
    word: str,
) -> None:
    old = run(tmp_path / "old.json", route=10.0, hash=1.0)
    assert compare.main([old, run(tmp_path / "new.json", **now)]) == status
    assert word in capsys.readouterr().out


def test_ratio_is_the_callers(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old.json", route=10), run(tmp_path / "new.json", route=12)
    assert compare.main([old, new, "--ratio", "1.1"]) == 1


def test_other_machines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = run(tmp_path / "old", "this", a=1), run(tmp_path / "new", "that", a=1)
    assert compare.main([old, new]) == 0
    assert "this and that" in capsys.readouterr().out


def test_an_accepted_run_is_a_baseline_without_its_rounds(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", run(tmp_path / "new.json", route=3)
    assert compare.main([str(old), new, "--accept"]) == 0
    assert "data" not in old.read_text()
    assert compare.main([str(old), new]) == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_every_case_of_the_driver_has_stored_counts_and_runs() -> None:
    driver = instructions.build()
    names = instructions.run(driver).split()
    stored = json.loads(instructions.STORED.read_text())["instructions"]
    assert set(names) == set(stored)
    for name in ("hash-4096", "match-8-4096", "route-8-4096", "score-mlp-2x32-16"):
        assert instructions.run(driver, name, "2") == ""
        for clock in ("time", "cpu"):
            assert len(instructions.run(driver, name, "100", clock).split()) == 4


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_counts_repeat_exactly() -> None:
    driver = instructions.build()
    once = instructions.count(driver, "score-linear-16", 3)
    assert once == instructions.count(driver, "score-linear-16", 3) > 100


def test_more_instructions_than_stored_are_found() -> None:
    lines, well = instructions.compare({"a": 100.0, "b": 100.0}, {"a": 104.0, "b": 110.0, "c": 1.0})
    assert not well
    assert [line.split()[-1] for line in lines[1:]] == ["1.040", "MORE", "new"]
    assert instructions.compare({"a": 100.0}, {"a": 50.0})[1]


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": []}', '{"benchmarks": [{}]}'])
def test_what_is_no_run_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"bad\.json"):
        compare.main([str(path), str(path)])


def test_a_router_that_is_told_nothing_believes_too_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = load("bench_prefix_truth")
    arguments = ["--fleet", "2xa30", "--rate", "4", "--block-tokens", "50", "--requests", "1500"]
    monkeypatch.setattr(sys, "argv", ["bench_prefix_truth", str(TRACE), *arguments])
    truth.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    errors = {line[:13].strip(): float(line[13:].split("%")[0]) for line in lines}
    assert list(errors) == list(truth.MODES)
    assert errors["full"] < 5 < errors["blind"]
