"""`lodestar simulate` with bursts, SharingRatio, a switch of traces, a hot prefix."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest

from lodestar_fast.cli import main
from lodestar_fast.sim.shapes import HOT_BLOCK
from lodestar_fast.sim.workload import Request
from lodestar_fast.simulate.plan import TRACE, Plan, workload

PLAN = Plan("2xa30", rate=20.0, seconds=200.0, block_tokens=50, max_input=10_000)


def requests(**changes: object) -> tuple[Request, ...]:
    fields = {name: getattr(PLAN, name) for name in Plan.__dataclass_fields__} | changes
    return workload(Plan(**fields), 1).requests


@pytest.mark.parametrize("cv", [0.25, 4.0])
def test_gaps_spread_as_told_at_the_same_rate(cv: float) -> None:
    times = [r.arrival for r in requests(cv=cv, seconds=400.0)]
    gaps = [b - a for a, b in pairwise(times)]
    assert stdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.15)
    assert len(times) == pytest.approx(8000, abs=4 * cv * 8000**0.5)
    assert times[-1] > 390


def test_a_switch_changes_what_comes_and_not_when() -> None:
    plain, both = requests(), requests(switch=(100.0, TRACE))
    assert [r.arrival for r in both] == [r.arrival for r in plain]
    before = [r for r in both if r.arrival < 100]
    assert before == [r for r in plain if r.arrival < 100]
    blocks = [b for r in both for b in r.runs[::2]]
    many = sum(len(r.runs[::2]) for r in before)
    assert set(blocks[:many]).isdisjoint(blocks[many:])
    lengths = [(r.prompt_tokens, r.output_tokens) for r in both[len(before) :]]
    first = [(r.prompt_tokens, r.output_tokens) for r in plain[: len(lengths)]]
    assert lengths == first  # from the other's beginning, which is the same trace here
    assert len({r.index for r in both}) == len(both)


def test_a_hot_prefix_is_hot_for_a_while() -> None:
    hot = requests(hot=(50.0, 100.0, 0.4, 4096))
    when = [r.arrival for r in hot if r.runs[:1] == (HOT_BLOCK,)]
    assert len(when) == pytest.approx(400, rel=0.2)
    assert 50 <= min(when) and max(when) < 100


def simulate(*options: str) -> int:
    return main(["simulate", "--fleet", "2xa30", "--policy", "lmetric", *options])


def test_all_of_them_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    options = ["--rate", "4", "--seconds", "20", "--no-wall-time", "--json", str(out)]
    shaped = ["--cv", "3", "--sharing", "0.1,0.5", "--switch", f"10={TRACE}", "--max-input", "9000"]
    assert simulate(*options, *shaped, "--hot", "2,8,0.5,1024") == 0
    assert "sharing_ratio" in capsys.readouterr().out
    (run,) = json.loads(out.read_text())["runs"]
    assert run["trace"] == "sharing_ratio" and run["failed"] == 0 and run["requests"] > 30


def test_slos_are_told_or_only_judged(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    runs = {}
    for told in ([], ["--slo-untold"]):
        asked = ["--slo-ttft-ms", "150,2000,0", "--policy", "lmetric,lodestar", *told]
        load = ["--fleet", "1xa30+1xh100", "--rate", "9", "--seconds", "30", "--no-wall-time"]
        assert simulate("--learner", "linear", *load, *asked, "--json", str(out)) == 0
        for run in json.loads(out.read_text())["runs"]:
            runs[run["policy"], not told] = run
    assert runs["lmetric", True] == runs["lmetric", False]
    assert runs["lodestar", True]["ttft_ms"] != runs["lodestar", False]["ttft_ms"]
    assert 0.5 < runs["lmetric", True]["slo_attainment"] < 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--cv 2", "--cv: needs --rate or --load"),
        ("--cv x --rate 2", "--cv: `x` is not a number, 0.05 to 100"),
        ("--cv nan --rate 2", "--cv: `nan` is not a number"),
        ("--sharing 0.1 --rate 2", "--sharing: needs --seconds"),
        ("--sharing 1.5 --rate 2 --seconds 9", "--sharing: `1.5` is not a number, 0 to 0.99"),
        ("--sharing 0.1 --max-input 9 --rate 2", "--max-input: not together with --sharing"),
        ("--slo-ttft-ms 5,x", "--slo-ttft-ms: `x` is not a number, 0 to 1e+07"),
        ("--slo-tpot-ms 5,6", "--slo-tpot-ms: one time for all"),
        ("--slo-untold", "--slo-untold: needs --slo-ttft-ms or --slo-tpot-ms"),
        ("--switch 10", "--switch: `10` is not SECONDS=FILE"),
        ("--switch 10=x --seconds 5", "--switch: SECONDS: `10` is not a number, 0 to 5"),
        ("--switch 10=nothere", "nothere: cannot read the trace"),
        ("--hot 1,2,0.5", "--hot: `1,2,0.5` is not FROM,TO,SHARE,TOKENS"),
        ("--hot 5,2,0.5,9", "--hot: TO: `2` is not a number, at least 5"),
        ("--hot 1,2,3,9", "--hot: SHARE: `3` is not a number, 0 to 1"),
        ("--hot 1,2,0.5,0", "--hot: TOKENS: `0` is not a number"),
        ("--hot 1,2,0.5,9 --users 3 --seconds 9 --trace x", "--hot: not together with --users"),
    ],
)
def test_what_is_wrong_is_said(options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*options.split()) == 2
    assert said in capsys.readouterr().err
