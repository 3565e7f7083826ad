"""Numbers of the JSON document, against obvious computations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.slo import Asked, Goals
from lodestar_fast.summary import (
    Record,
    convergence,
    distribution_ms,
    document,
    mean_ttft,
    moving_mean_ttft,
    run_summary,
    worst_window_ratio,
    write_json,
)

SCHEMA_KEYS = {
    *("policy", "seed", "trace", "fleet", "rate", "requests", "failed"),
    *("ttft_ms", "tpot_ms", "e2e_ms", "hit_ratio", "preemptions", "slo_attainment"),
    *("decision_us", "learned_share", "fallbacks", "convergence_s"),
    *("worst_window_ratio", "regret_ms"),
}


def record(arrival: float, ttft: float | None = 0.1, **fields: object) -> Record:
    made = Record(int(arrival * 10), arrival, 100, ttft=ttft, e2e=ttft and ttft + 1)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_distribution() -> None:
    values = [n / 1000 for n in range(1, 101)]
    assert distribution_ms([*values, None]) == {
        "mean": 50.5,
        "p50": 50.5,
        "p90": 90.1,
        "p99": 99.01,
    }
    assert distribution_ms([None]) == {"mean": None, "p50": None, "p90": None, "p99": None}


def test_moving_mean_is_the_mean_of_the_window() -> None:
    records = [record(t / 10, ttft=0.1 + (t % 7) / 100) for t in range(200)]
    ends, means = moving_mean_ttft(records, window=5.0, step=0.5)
    assert ends[0] == 0.5
    for end, mean in zip(ends, means, strict=True):
        assert mean == pytest.approx(mean_ttft(records, end - 5.0, end))
    assert moving_mean_ttft([], 5.0, 0.5) == ([], [])


def test_convergence_is_the_moment_it_settles() -> None:
    calm = [record(t / 4, 0.1) for t in range(800)]
    assert convergence(calm) == 1.0
    learning = [record(t / 4, 0.5 if t < 400 else 0.1) for t in range(800)]
    # Its window must have left the first 100 s behind, but for the tenth that the band allows.
    settled = convergence(learning)
    assert settled is not None and 128.0 <= settled <= 130.0
    worse = [record(t / 4, 0.1 if t < 790 else 5.0) for t in range(800)]
    assert convergence(worse) is None
    assert convergence(calm[:200]) is None and convergence([]) is None


def test_worst_window_is_against_the_baseline() -> None:
    baseline = [record(t / 4, 0.2) for t in range(400)]
    ours = [record(t / 4, 0.5 if 40 <= t < 80 else 0.1) for t in range(400)]
    assert worst_window_ratio(ours, baseline) == pytest.approx(2.5)
    assert worst_window_ratio(ours, []) is None


def test_run_has_every_key_and_null_for_the_unknown() -> None:
    run = run_summary([record(0.0)], policy=None, seed=1, trace="t")
    assert set(run) == SCHEMA_KEYS
    for key in ("policy", "fleet", "rate", "hit_ratio", "preemptions", "learned_share"):
        assert run[key] is None
    assert run["decision_us"] == {"p50": None, "p99": None}
    assert set(run_summary([], policy=None, seed=1, trace="t")) == SCHEMA_KEYS


def test_run_counts() -> None:
    records = [
        record(0.0, cached_tokens=50, reason="cold", decision=4e-6),
        record(1.0, cached_tokens=0, reason="learned", decision=6e-6),
        record(2.0, reason="learned"),
        record(3.0, reason="guard"),
        record(4.0, ttft=9.0, error="broke off", cached_tokens=100),
    ]
    run = run_summary(records, policy="lodestar", seed=1, trace="t", fleet="2xa30", preemptions=3)
    assert (run["requests"], run["failed"]) == (5, 1)
    assert run["ttft_ms"]["mean"] == 100.0  # the failed one does not count
    assert run["hit_ratio"] == 0.25
    assert run["learned_share"] == 0.5
    assert run["fallbacks"] == {"cold": 1, "guard": 1}
    assert run["decision_us"]["p50"] == 5.0
    assert run["rate"] == 1.25 and run["preemptions"] == 3


def test_in_time_asks_of_all_what_most_engines_can_do() -> None:
    judge = Goals(parse_fleet("2xa30+1xh100")).met
    fine = record(0.0, 0.19, tpot=0.042)  # an idle A30: 21.5 ms
    assert judge(fine) and judge(record(0.0, 0.19))
    assert not judge(record(0.0, 0.21, tpot=0.01))  # 100 tokens: the floor of 200 ms holds
    assert judge(record(0.0, 5.9, prompt_tokens=8000, tpot=0.01))  # 5 x 1.2 s
    assert not judge(record(0.0, 6.8, prompt_tokens=8000, tpot=0.01))
    assert not judge(record(0.0, 0.19, tpot=0.045))
    assert not judge(record(0.0, 0.19, error="broke off")) and not judge(record(0.0, None))
    runs = [fine, record(1.0, 0.9)]
    run = run_summary(runs, policy=None, seed=1, trace="t", in_time=judge)
    assert run["slo_attainment"] == 0.5


def test_in_time_means_more_than_half_of_the_engines() -> None:
    slow, fast = record(0.0, 0.1, tpot=0.04), record(0.0, 0.1, tpot=0.01)
    assert Goals(parse_fleet("1xa30+1xh100")).met(slow)  # half is not enough
    assert not Goals(parse_fleet("1xa30+2xh100")).met(slow)
    assert Goals(parse_fleet("1xa30+2xh100")).met(fast)


def test_who_asks_is_judged_by_what_it_asked_for() -> None:
    asked = Asked((0.15, 2.0, 0.0), 0.05)
    limits = {asked.of(k)[0] for k in range(50)}
    assert limits == {0.15, 2.0, 0.0}
    for k in range(50):
        late = record(k / 10, 1.0, tpot=0.04)
        assert asked.in_time(late) is (asked.of(late.index)[0] != 0.15)
        assert asked.in_time(record(k / 10, 0.1, tpot=0.06)) is False
        assert asked.in_time(record(k / 10, 0.1, error="broke off", tpot=0.01)) is False
        free = asked._replace(tpot=0.0).in_time(late)
        assert free is {0.15: False, 2.0: True, 0.0: None}[asked.of(late.index)[0]]
    some = [record(k / 10, 0.1, tpot=0.04) for k in range(9)]
    judge = Asked((0.0, 0.15)).in_time
    run = run_summary(some, policy=None, seed=1, trace="t", in_time=judge)
    assert run["slo_attainment"] == 1.0


def test_document_is_written_or_refused(tmp_path: Path) -> None:
    content = document("demo", [run_summary([], policy="x", seed=1, trace="t")], final_s=60.0)
    path = tmp_path / "out.json"
    write_json(str(path), content)
    assert json.loads(path.read_text()) == content
    assert (content["schema"], content["command"], content["final_s"]) == (1, "demo", 60.0)
    with pytest.raises(ConfigError, match="--json"):
        write_json(str(tmp_path / "none" / "x.json"), content)
