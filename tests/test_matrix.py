"""`lodestar matrix`: its cells, workloads, results file, runner and report."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest

from lodestar_fast.cli import main
from lodestar_fast.clock import VirtualClock
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.errors import ConfigError
from lodestar_fast.matrix import cells as table
from lodestar_fast.matrix.cells import Cell, matrix, quick
from lodestar_fast.matrix.code import _content
from lodestar_fast.matrix.measure import Capacity, Row, capacity_of, plan_of
from lodestar_fast.matrix.readme import BEGIN, END, block
from lodestar_fast.matrix.runner import Runner, code_of, policies_of, tasks
from lodestar_fast.matrix.store import Store
from lodestar_fast.matrix.workloads import (
    SOURCES,
    Workload,
    draw,
    export,
    missing,
    source,
)
from lodestar_fast.sim.faults import read_events
from lodestar_fast.sim.shapes import sharing_ratio, with_sharing
from lodestar_fast.sim.workload import read_trace
from lodestar_fast.simulate.plan import fleet, make_policy
from tests.matrix_rows import row

ROOT = Path(__file__).parent.parent
TRACES = ROOT / "bench/paper/traces"
RESULTS = ROOT / "bench/paper/results.jsonl.gz"
TINY = Cell("tiny", "paper", "2xa30", Workload("conversation"), 0.8, seeds=2, seconds=20.0)
TINY = replace(TINY, policies=("lodestar:model=linear", "lmetric", "oracle"))


# -- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", matrix().values(), ids=lambda cell: cell.name)
def test_cells_can_be(cell: Cell, tmp_path: Path) -> None:
    specs = fleet(plan_of(cell))
    assert specs and cell.load > 0 and cell.seeds >= 1
    assert missing(cell.work, TRACES) == ""
    events = tmp_path / "events.jsonl"
    events.write_text("\n".join(cell.events))
    for time, _ in read_events(events, specs):
        assert time < cell.seconds
    assert all(mark < cell.seconds for mark in cell.marks)
    assert cell.base in ("", *matrix())
    for policy, _ in policies_of(cell):
        make_policy(policy)


def test_the_quick_ones_are_a_part() -> None:
    every, some = matrix(), quick(matrix())
    assert set(some) == table.QUICK < set(every)
    for name, cell in some.items():
        whole = every[name]
        assert (cell.fleet, cell.work, cell.load) == (whole.fleet, whole.work, whole.load)
        assert set(cell.policies) <= set(whole.policies)


def test_the_matrix_has_every_policy_and_the_papers_cells() -> None:
    names = {name for cell in matrix().values() for name, _ in policies_of(cell)}
    assert set(POLICIES) - {"prefix_threshold"} <= names
    paper = [cell for cell in matrix().values() if cell.block == "paper"]
    assert {cell.fleet for cell in paper} == {"8xa30", "7xa30+8xv100"}
    assert all(cell.claim and cell.note and cell.seeds == 20 for cell in paper)


# -- workloads -------------------------------------------------------------------------------------


def arrivals(
    work: Workload, seed: int = 1, rate: float = 20.0, seconds: float = 200.0
) -> list[float]:
    return [job.arrival for job in draw(work, seed, rate, seconds, TRACES)]


def test_arrivals_are_poisson_or_bunched_at_the_rate() -> None:
    for cv in (1.0, 4.0):
        times = arrivals(Workload("sharegpt", cv=cv), seconds=400.0)
        gaps = [b - a for a, b in pairwise(times)]
        assert len(times) == pytest.approx(8000, abs=4 * cv * 8000**0.5)
        assert stdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.15)


def test_a_surge_is_a_rate_for_a_while() -> None:
    times = arrivals(Workload("sharegpt", surge=(50.0, 100.0, 3.0)))
    counts = Counter(int(t // 50) for t in times)
    assert counts[1] == pytest.approx(3000, rel=0.1)
    assert all(counts[k] == pytest.approx(1000, rel=0.15) for k in (0, 2, 3))
    assert times == sorted(times)


def test_a_switch_is_at_its_time_and_shares_nothing() -> None:
    jobs = draw(Workload("sharing0", "sharing50", 100.0), 1, 20.0, 200.0, TRACES)
    shared = [job.arrival for job in jobs if job.request.runs]
    assert min(shared) >= 100.0 and len(shared) == sum(job.arrival >= 100 for job in jobs)
    both = draw(Workload("conversation", "toolagent", 100.0), 1, 20.0, 200.0, TRACES)
    before = {h for job in both if job.arrival < 100 for h in job.hashes}
    after = {h for job in both if job.arrival >= 100 for h in job.hashes}
    assert before and after and not before & after


def test_a_hot_prefix_is_what_many_begin_with() -> None:
    work = Workload("mixed", hot=(50.0, 100.0, 0.4, 8192))
    jobs = draw(work, 1, 20.0, 200.0, TRACES)
    first = Counter(job.prompt[: 8192 * 4] for job in jobs)
    ((_, count),) = first.most_common(1)
    during = [job for job in jobs if 50 <= job.arrival < 100]
    assert count == pytest.approx(0.4 * len(during), rel=0.2)


def test_own_times_keep_their_bursts() -> None:
    times = arrivals(Workload("azure_code", own_times=True), seconds=500.0)
    gaps = [b - a for a, b in pairwise(times)]
    assert stdev(gaps) / fmean(gaps) > 5
    assert arrivals(Workload("azure_code", own_times=True), 2) != times


def test_seeds_begin_at_different_places_and_repeat() -> None:
    one, two = (draw(Workload("conversation"), seed, 20.0, 50.0, TRACES) for seed in (1, 2))
    assert {j.request.index for j in one}.isdisjoint({j.request.index for j in two})
    assert draw(Workload("conversation"), 1, 20.0, 50.0, TRACES) == one


def test_sharing_ratio_shares_that_much() -> None:
    for share in (0.1, 0.5):
        requests = sharing_ratio([share]).requests
        shared = sum(r.runs[1] * 16 for r in requests if r.runs)
        assert shared / sum(r.prompt_tokens for r in requests) == pytest.approx(share, abs=0.02)
        users = Counter(r.runs[0] for r in requests)
        assert set(users.values()) == {5, 10}
        assert Counter(round(r.prompt_tokens, -3) for r in requests)[1000] == 2500
        assert fmean(r.output_tokens for r in requests) == pytest.approx(100, abs=1)


def test_azure_prompts_share_with_ten() -> None:
    trace = source("azure_conv", TRACES)
    plain = read_trace(TRACES / "azure2023_conv.jsonl.gz")
    assert [r.prompt_tokens for r in trace.requests] == [r.prompt_tokens for r in plain.requests]
    some = with_sharing(replace(plain, requests=plain.requests[:200]), 0.5)
    users = Counter(r.runs[0] for r in some.requests if r.runs)
    assert max(users.values()) == 10 and len(users) == 20


def test_a_source_can_be_exported(tmp_path: Path) -> None:
    for name in ("mixed", "servegen_small", "sharegpt"):
        trace = source(name, TRACES)
        export(trace, tmp_path / "t.jsonl")
        again = read_trace(tmp_path / "t.jsonl")
        assert again.block_tokens == trace.block_tokens
        key = [(r.prompt_tokens, r.output_tokens, r.runs, r.tenant) for r in again.requests]
        assert key == [(r.prompt_tokens, r.output_tokens, r.runs, r.tenant) for r in trace.requests]


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    assert "toolagent_like.jsonl.gz" in missing(Workload("conversation", "toolagent"), tmp_path)
    assert missing(Workload("conversation", "mixed"), tmp_path) == ""
    assert set(SOURCES) >= {w for c in matrix().values() for w in c.work.sources}


# -- the results file ------------------------------------------------------------------------------


def test_rows_survive_and_the_file_is_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("lmetric", 2, 120.5), row("lmetric", 1, 100.0, windows=[1.0, None])]
    capacity = Capacity("2xa30", "conversation", "", 6.5, 1.0)
    written: list[bytes] = []
    for order in (rows, rows[::-1]):
        path = tmp_path / f"{len(written)}" / "results.jsonl.gz"
        store = Store(path)
        store.add(capacity)
        for each in order:
            store.add(each)
        assert sorted(Store(path).rows.values(), key=lambda r: r.seed) == rows[::-1]  # unfolded
        store.fold()
        assert list(path.parent.iterdir()) == [path]
        written.append(path.read_bytes())
        assert Store(path).rows == store.rows
        assert Store(path).capacities == {("2xa30", "conversation", ""): capacity}
    assert written[0] == written[1]


def test_a_kill_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl.gz"
    first = Store(path)
    first.add(row("lmetric", 1, 100))
    first.close()
    with (tmp_path / "results.jsonl.gz.new").open("ab") as file:
        file.write(b'{"run":{"cell":"a","sec')
    again = Store(path)
    assert [r.seed for r in again.rows.values()] == [1]
    again.add(row("lmetric", 2, 100))
    assert [r.seed for r in Store(path).rows.values()] == [1, 2]
    with pytest.raises(ConfigError, match="another run is writing it"):
        Store(path).add(row("lmetric", 3, 100))
    again.fold()
    last = Store(path)
    last.add(row("lmetric", 3, 100))
    last.fold()
    assert [r.seed for r in Store(path).rows.values()] == [1, 2, 3]


def test_a_broken_results_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"run":{}}\n{"run":{}}\n'))
    with pytest.raises(ConfigError, match=r"results.jsonl.gz: line 1: .*cell"):
        Store(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="--store"):
        Store(path)


# -- running ---------------------------------------------------------------------------------------


def charted(path: Path) -> Store:
    """A results file that knows how much the tiny fleet stands."""
    store = Store(path)
    fleet_name, name, changes = capacity_of(TINY, "conversation")
    store.add(Capacity(fleet_name, name, changes, 6.0, 1.0))
    return store


def run_all(store: Store, jobs: int = 1, stop_after: int = 0) -> list[str]:
    runner = Runner(store, TRACES, VirtualClock(), jobs=jobs)
    ended: list[str] = []

    def told(left: float, last: str) -> None:
        assert left >= 0
        ended.append(last)
        if len(ended) == stop_after:
            raise KeyboardInterrupt

    todo = runner.todo([TINY])
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            runner.run(todo, told)
    else:
        assert runner.run(todo, told) == len(todo)
    return ended


def numbers(store: Store) -> list[Row]:
    """All but what is measured by a clock."""
    return [replace_cpu(store.rows[key]) for key in sorted(store.rows)]


def replace_cpu(each: Row) -> Row:
    fields = {name: getattr(each, name) for name in each.__struct_fields__}
    return Row(**(fields | {"cpu": 0.0}))


def test_restarted_and_in_two_processes_it_is_the_same(tmp_path: Path) -> None:
    whole = charted(tmp_path / "a.gz")
    order = run_all(whole)
    assert len(order) == 6 and [text[-1] for text in order] == list("111222")
    assert [r.rate for r in whole.rows.values()] == [4.8] * 6
    ours = whole.rows["tiny", 20.0, "lodestar:model=linear", 1]
    assert ours.ttft and len(ours.windows) == 2 and ours.requests > 50

    stopped = charted(tmp_path / "b.gz")
    run_all(stopped, stop_after=2)
    stopped.close()
    again = Store(tmp_path / "b.gz")
    assert len(again.rows) == 2
    assert run_all(again) == order[2:]
    assert numbers(again) == numbers(whole)

    two = charted(tmp_path / "c.gz")
    run_all(two, jobs=2)
    assert numbers(two) == numbers(whole)


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    store = charted(tmp_path / "a.gz")
    code, other = "code {}".format, "other {}".format  # by policy
    todo = tasks([TINY], store, code)
    assert [(t.seed, t.policy) for t in todo][:3] == [(1, name) for name in TINY.policies]
    for task in todo[:4]:
        made = row(
            task.policy, task.seed, 9, name="tiny", seconds=20.0, what=task.what, code=task.code
        )
        store.add(made)
    assert tasks([TINY], store, code) == todo[4:]
    assert len(tasks([TINY], store, other)) == 6
    kept = tasks([TINY], store, other, any_code=True)
    assert [task.what for task in kept] == [task.what for task in todo[4:]]
    assert len(tasks([replace(TINY, load=0.7)], store, code, any_code=True)) == 6


def test_a_policys_code_is_what_decides_its_runs() -> None:
    names = ("lodestar:margin=1.2", "lodestar", "lodestar-paper", "lmetric", "dynamo", "oracle")
    learned, same, paper, lmetric, dynamo, oracle = map(code_of, names)
    assert learned == same and lmetric == dynamo
    assert len({learned, paper, lmetric, oracle}) == 4


def test_code_without_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("# why\nx = 1  # kept\n\n    # more\n")
    assert _content(path) == b"x = 1  # kept"
    path = tmp_path / "a.h"
    path.write_text("/* a\n b */\n#define X 1\n// c\n")
    assert _content(path) == b"#define X 1"


def test_the_budget_is_kept(tmp_path: Path) -> None:
    store = charted(tmp_path / "a.gz")
    clock = VirtualClock()
    runner = Runner(store, TRACES, clock, budget=100.0)
    done = runner.run(runner.todo([TINY]), lambda *_: clock.advance_to(clock.now() + 60.0))
    assert done == 2 and len(store.rows) == 2


# -- the verb --------------------------------------------------------------------------------------


def test_a_tiny_matrix_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl.gz"
    store = Store(path)
    store.add(Capacity(table.MIX, "conversation", "", 27.0, 1.0))
    store.fold()
    (tmp_path / "README.md").write_text(f"# A\n\n{BEGIN}\nearlier\n{END}\n\nmore\n")
    arguments = ["matrix", "--store", str(path), "--traces", str(TRACES)]
    arguments += ["--cells", "mix-conversation-90,mix-slow", "--seconds", "60", "--seeds", "2"]
    arguments += ["--policy", "lmetric,prefix_cache"]
    assert main([*arguments, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert re.search(r"mix-conversation-90 +24.3 +60 +4 ", planned) and "8 runs" in planned
    assert Store(path).rows == {}
    assert main([*arguments, "--minutes", "60"]) == 0
    assert len(Store(path).rows) == 8
    assert main([*arguments, "--no-run", "--report", str(tmp_path / "r")]) == 2
    assert "has no run of lodestar" in capsys.readouterr().err

    store = Store(path)
    for each in list(store.rows.values()):
        if each.policy == "lmetric":
            for policy, factor in (("lodestar", 0.5), ("oracle", 0.4), ("lodestar-paper", 0.8)):
                fields = {name: getattr(each, name) for name in each.__struct_fields__}
                ttft = tuple(t * factor for t in each.ttft or ())
                store.add(Row(**(fields | {"policy": policy, "ttft": ttft})))
    store.fold()
    report = ["--no-run", "--report", str(tmp_path / "r"), "--readme", str(tmp_path / "README.md")]
    assert main([*arguments, *report]) == 0
    page = (tmp_path / "r" / "index.html").read_text()
    assert page.count("<svg") == 3 and "http" not in page.replace("http://www.w3.org", "")
    for text in ("mix-conversation-90", "2.00 (2.00 to 2.00)", "Goals", "Adaptation"):
        assert text in page
    assert "| mix-conversation-90 |" in (tmp_path / "r" / "report.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# A\n\n<!-- results -->\n") and readme.endswith("\n\nmore\n")
    assert "earlier" not in readme and "**lodestar**" in readme


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--cells", "nothing"], "--cells: no cell is called nothing"),
        (["--jobs", "0"], "--jobs"),
        (["--cells", "a30-toolagent-90", "--traces", "nowhere"], "--cells: no cell is left"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "r.gz"), "--traces", str(TRACES)]
    assert main(["matrix", *store, *arguments]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_the_readme_is_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text()
    short = "make paper-quick" in text
    cells = quick(matrix()) if short else matrix()
    assert block(list(cells.values()), Store(RESULTS), short) in text
