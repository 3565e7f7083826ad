"""`lodestar simulate` as a program: its options, its document, its errors, and the same bytes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lodestar_fast
from lodestar_fast.cli import main
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.sim.gpus import spec
from lodestar_fast.simulate.plan import Plan, fleet, jobs_of, run_one, workload
from lodestar_fast.simulate.saturation import PRECISION, keeps_up, saturation
from lodestar_fast.simulate.show import result_table

PACKAGED = Path(lodestar_fast.__file__).parent / "data" / "mooncake_conversation.jsonl.gz"
SMALL = ["--fleet", "2xa30+1xh100", "--rate", "9", "--seconds", "40", "--learner", "linear"]


def simulate(folder: Path, *arguments: str) -> dict[str, Any]:
    path = folder / "out.json"
    assert main(["simulate", *SMALL, *arguments, "--json", str(path)]) == 0
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def by_policy(document: dict[str, Any], seed: int = 1) -> dict[str, dict[str, Any]]:
    return {run["policy"]: run for run in document["runs"] if run["seed"] == seed}


# -- the document ----------------------------------------------------------------------------------


def test_document_has_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = simulate(tmp_path, "--policy", "lodestar,least_request,oracle", "--regret")
    assert (document["schema"], document["command"]) == (1, "simulate")
    runs = by_policy(document)
    assert list(runs) == ["lodestar", "least_request", "oracle"]
    for run in runs.values():
        assert (run["seed"], run["rate"], run["fleet"]) == (1, 9.0, "2xa30+1xh100")
        assert run["trace"] == "mooncake_conversation"
        assert 250 < run["requests"] < 450 and run["failed"] == 0
        for key in ("ttft_ms", "tpot_ms", "e2e_ms"):
            assert 0 < run[key]["p50"] <= run[key]["p90"] <= run[key]["p99"]
            assert run[key]["mean"] > 0
        assert 0 < run["hit_ratio"] < 1 and 0 < run["slo_attainment"] <= 1
        assert run["preemptions"] >= 0
        assert 0 < run["decision_us"]["p50"] <= run["decision_us"]["p99"]
        assert run["convergence_s"] is None  # too short to say
        assert run["worst_window_ratio"] > 0
        assert 0 <= run["regret_ms"]["mean"] <= run["regret_ms"]["p99"]
        assert 3 < run["warm_up_s"] <= 4
    assert runs["lodestar"]["learned_share"] > 0.3
    assert runs["lodestar"]["fallbacks"]["cold"] >= 8
    assert runs["least_request"]["learned_share"] == 0 and runs["least_request"]["fallbacks"] == {}
    assert runs["least_request"]["worst_window_ratio"] == 1.0
    assert runs["oracle"]["regret_ms"]["mean"] == 0.0
    assert runs["oracle"]["ttft_ms"]["mean"] < runs["least_request"]["ttft_ms"]["mean"]
    printed = capsys.readouterr().out
    for name in (*runs, "TTFT ms", "regret ms", "learned"):
        assert name in printed


def test_without_the_baseline_there_is_no_worst_window(tmp_path: Path) -> None:
    (run,) = simulate(tmp_path, "--policy", "lmetric")["runs"]
    assert run["worst_window_ratio"] is None
    assert run["regret_ms"] == {"mean": None, "p99": None}


def test_policies_take_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "lodestar:margin=1e9,lodestar,prefix_threshold:threshold=0.9,prefix_threshold"
    runs = by_policy(simulate(tmp_path, "--policy", names))
    assert list(runs) == names.split(",")
    # No gain is a thousand million times the fallback's: its choice always stands.
    assert runs["lodestar:margin=1e9"]["learned_share"] < runs["lodestar"]["learned_share"]
    means = [run["ttft_ms"]["mean"] for run in runs.values()]
    assert len(set(means)) == 4


@pytest.mark.parametrize(
    "name, text",
    [
        ("lodestar:margins=2", "margins"),
        ("lodestar:margin=0.5", "margin: 0.5 is below 1"),
        ("lodestar:round_seconds=-1", "round_seconds"),
        ("random:threshold=0.5", "random:threshold=0.5"),
        ("nobody:threshold=0.5", "no policy `nobody:threshold=0.5`"),
    ],
)
def test_wrong_settings_of_a_policy(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *SMALL, "--policy", name]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and "--policy" in error


def test_the_fleet_can_have_other_caches_and_flags() -> None:
    plain = fleet(Plan("a30+v100"))
    other = fleet(Plan("a30+v100", kv_scale=0.5, engine=(("prefix_caching", True),)))
    assert [s.kv_tokens for s in other] == [s.kv_tokens // 2 for s in plain]
    assert [s.prefix_caching for s in plain] == [True, False]
    assert [s.prefix_caching for s in other] == [True, True]


def test_warm_up_is_in_no_latency() -> None:
    plan = Plan("1xa30", rate=1.0, seconds=100.0, block_tokens=50, max_input=3000)
    done = run_one(plan, 1, "random")
    assert done.warm_up == pytest.approx(done.records[-1].arrival / 10)


def test_all_means_all_and_once(tmp_path: Path) -> None:
    document = simulate(tmp_path, "--policy", "lmetric,all", "--seconds", "15")
    names = [run["policy"] for run in document["runs"]]
    assert names[0] == "lmetric" and sorted(names) == sorted(POLICIES)


def test_seeds_are_paired(tmp_path: Path) -> None:
    document = simulate(
        tmp_path, "--policy", "lmetric,random", "--seed", "5", "--seeds", "2", "--seconds", "15"
    )
    assert [(run["seed"], run["policy"]) for run in document["runs"]] == [
        (5, "lmetric"),
        (5, "random"),
        (6, "lmetric"),
        (6, "random"),
    ]
    for seed in (5, 6):
        assert len({run["requests"] for run in by_policy(document, seed).values()}) == 1


# -- the same bytes --------------------------------------------------------------------------------

BUSY = ("--policy", "lodestar,oracle,random", "--seeds", "2", "--jitter", "0.05", "--regret")


def test_same_arguments_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one process or two, but for the one field that is measured."""
    out, printed = [], []
    events = tmp_path / "events.jsonl"
    events.write_text('{"t": 10, "crash": 0}\n{"t": 20, "up": 0}\n{"t": 5, "scrape_loss": 0.5}\n')
    for jobs in ("1", "1", "2"):
        options = (*BUSY, "--events", str(events), "--no-wall-time", "--jobs", jobs)
        simulate(tmp_path, *options, "--seconds", "30")
        out.append((tmp_path / "out.json").read_bytes())
        printed.append(capsys.readouterr().out)
    assert out[0] == out[1] == out[2]
    assert printed[0] == printed[1] == printed[2]
    assert b'"decision_us": {\n        "p50": null' in out[0]


def test_only_decision_us_varies(tmp_path: Path) -> None:
    first, second = (simulate(tmp_path, "--policy", "lodestar,lmetric") for _ in range(2))
    for document in (first, second):
        for run in document["runs"]:
            assert run.pop("decision_us")["p50"] > 0
    assert first == second


# -- workload --------------------------------------------------------------------------------------


def test_time_scale_stretches_the_traces_own_times() -> None:
    plan = Plan("1xa30", seconds=200.0)
    stretched = workload(replace(plan, time_scale=2.0), 1).requests
    own = workload(replace(plan, seconds=100.0), 1).requests
    assert [2 * r.arrival for r in own] == [r.arrival for r in stretched]


def test_a_short_trace_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    rows = [{"meta": {"block_size": 16}}]
    rows += [{"t": k, "in": 100, "out": 2, "h": [7 * k, 7]} for k in range(10)]
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = workload(Plan("1xa30", str(path), rate=5.0, seconds=60.0), 1)
    assert 240 < len(trace.requests) < 360
    assert len({r.runs for r in trace.requests}) == len(trace.requests)
    assert trace.seconds > 58


def test_a_trace_of_one_request(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"meta": {}}\n{"t": 3, "in": 100, "out": 1}\n')
    out = tmp_path / "out.json"
    options = ["--trace", str(path), "--policy", "all", "--learner", "linear"]
    assert main(["simulate", *options, "--json", str(out)]) == 0
    for run in json.loads(out.read_text())["runs"]:
        assert (run["requests"], run["failed"], run["rate"]) == (1, 0, None)
        assert run["ttft_ms"]["mean"] > 0 and run["tpot_ms"]["mean"] is None


def test_the_packaged_trace_comes_in_a_size_for_small_gpus(tmp_path: Path) -> None:
    plan = Plan("1xa30", block_tokens=50, max_input=10_000, output_scale=0.5, rate=9.0, seconds=40)
    (run,) = simulate(tmp_path, "--policy", "random")["runs"]
    assert run["requests"] == len(jobs_of(plan, 1))


def test_coefficients_scale_every_engine() -> None:
    (engine,) = fleet(Plan("1xl20", coefficients=(("c", 0.5), ("h", 2.0))))
    assert engine == spec("l20").scaled(c=0.5, h=2.0)


def test_other_models_cost_otherwise(tmp_path: Path) -> None:
    small, big = (
        simulate(tmp_path, "--policy", "random", "--fleet", "2xh100", "--model", model)["runs"][0]
        for model in ("qwen2.5-7b", "llama-3-70b")
    )
    assert small["tpot_ms"]["mean"] < 10 < big["tpot_ms"]["mean"]


def test_the_delay_is_in_every_ttft(tmp_path: Path) -> None:
    near, far = (
        simulate(tmp_path, "--policy", "round_robin", "--delay", delay)["runs"][0]["ttft_ms"]["p50"]
        for delay in ("0", "400")
    )
    assert far == pytest.approx(near + 400, abs=1e-3)  # this policy cannot tell the difference


def test_requests_that_fit_no_cache_fail_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trace", str(PACKAGED), "--policy", "lmetric", "--fleet", "1xa30", "--rate", "1")
    (run,) = simulate(tmp_path, *options)["runs"]
    assert 0 < run["failed"] < run["requests"]
    assert "failed" in capsys.readouterr().out


# -- saturation ------------------------------------------------------------------------------------


def test_saturation_is_where_it_stops_keeping_up() -> None:
    plan = Plan("2xa30", block_tokens=50, max_input=10_000, output_scale=0.5, seconds=80.0)
    notes: list[str] = []
    rate = saturation(plan, 1, notes.append)
    assert keeps_up(plan, 1, rate)
    assert not all(keeps_up(plan, 1, rate * PRECISION**k) for k in range(1, 8))
    assert notes and all("req/s" in note for note in notes)


def test_load_is_a_share_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    options = ["--fleet", "2xa30", "--load", "0.5", "--seconds", "80", "--policy", "lmetric"]
    assert main(["simulate", *options, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["runs"][0]["rate"] == pytest.approx(document["saturation_rate"] / 2, rel=1e-3)
    assert "saturation:" in capsys.readouterr().out


# -- the page --------------------------------------------------------------------------------------


def test_report_is_one_page_that_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    events = tmp_path / "events.jsonl"
    events.write_text('{"t": 5, "join": "l20"}\n')
    pages = []
    for _ in range(2):
        simulate(
            tmp_path,
            *("--policy", "lmetric,lodestar", "--seeds", "2", "--events", str(events)),
            *("--report", str(tmp_path / "page")),
        )
        pages.append((tmp_path / "page" / "index.html").read_text())
    page = pages[0]
    assert page == pages[1]
    assert page.count("<svg") == 4
    for text in ("2xa30+1xh100", "lmetric", "standard error", "3 joined", "2 h100"):
        assert text in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "report: " in capsys.readouterr().out


# -- mistakes --------------------------------------------------------------------------------------


def broken_trace(folder: Path) -> str:
    path = folder / "broken.jsonl.gz"
    lines = ['{"meta": {"block_size": 16}}', '{"t": 0, "in": 5, "out": 1}', '{"t": 1, "in": "x"}']
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(path)


def wrong_events(folder: Path) -> str:
    path = folder / "wrong.jsonl"
    path.write_text('{"t": 0, "scrape_s": 1}\n{"t": 5, "crash": 70}\n')
    return str(path)


MISTAKES: list[tuple[Sequence[str], Sequence[str]]] = [
    (["--trace", "BROKEN"], ["broken.jsonl.gz", "line 3", "`in`"]),
    (["--trace", "nowhere"], ["nowhere", "No such file"]),
    (["--fleet", "2xa31"], ["--fleet", "unknown GPU 'a31'"]),
    (["--fleet", "2000xa30"], ["--fleet", "1024"]),
    (["--model", "gpt-9"], ["--model", "gpt-9"]),
    (["--model", "qwen2.5-7b", "--fleet", "2xa30"], ["--fleet", "'a30'", "qwen2.5-7b"]),
    (["--rate", "0"], ["--rate", "0 is not a positive number"]),
    (["--rate", "many"], ["--rate", "many"]),
    (["--load", "-1"], ["--load"]),
    (["--load", "0.5", "--rate", "3"], ["--load", "--rate"]),
    (["--time-scale", "2", "--rate", "3"], ["--time-scale", "--rate"]),
    (["--events", "WRONG"], ["wrong.jsonl", "line 2", "`crash`", "no slot 70"]),
    (["--events", "nowhere"], ["--events", "nowhere"]),
    (["--policy", "best"], ["--policy", "best", "oracle"]),
    (["--policy", ","], ["--policy"]),
    (["--coefficients", "z=2"], ["--coefficients", "`z`"]),
    (["--coefficients", "w=0"], ["--coefficients", "w"]),
    (["--max-input", "1", "--block-tokens", "500"], ["--max-input"]),
    (["--seeds", "0"], ["--seeds"]),
    (["--jobs", "0"], ["--jobs"]),
    (["--learner", "magic"], ["--learner", "magic"]),
    (["--load", "0.5", "--seconds", "0.5"], ["--load", "too few"]),
    (["--json", "nowhere/at/all.json"], ["--json", "nowhere"]),
    (["--seconds", "0"], ["--seconds"]),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_mistakes_are_one_line_and_status_2(
    arguments: Sequence[str],
    named: Sequence[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"BROKEN": broken_trace, "WRONG": wrong_events}
    arguments = [known[a](tmp_path) if a in known else a for a in arguments]
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lodestar simulate: ") and captured.err.count("\n") == 1
    for text in named:
        assert text in captured.err


def test_an_event_after_the_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"t": 999, "crash": 0}\n')
    simulate(tmp_path, "--policy", "random", "--events", str(events))
    assert "t = 999 is after the last arrival" in capsys.readouterr().err


def test_table_means_over_seeds() -> None:
    def run(seed: int, mean: float) -> dict[str, Any]:
        latency = {"mean": mean, "p50": mean, "p90": mean, "p99": mean}
        return {
            "policy": "p",
            "seed": seed,
            "failed": 0,
            "ttft_ms": latency,
            "tpot_ms": latency,
            "hit_ratio": None,
            "slo_attainment": 0.5,
            "preemptions": seed,
            "learned_share": 0.0,
            "regret_ms": {"mean": None, "p99": None},
        }

    table = result_table([run(1, 100.0), run(2, 200.0)], ["p"], "title")
    cells = [list(column.cells)[0] for column in table.columns]
    assert cells == ["p", "150", "50.0", *["150"] * 4, "-", "50.0%", "2", "-"]
