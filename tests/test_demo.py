"""The demo: its processes end with it on every way out, its board counts right, and a short run."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lodestar_fast.clock import VirtualClock
from lodestar_fast.demo.children import ChildError, Children
from lodestar_fast.demo.live import Board, result_table
from lodestar_fast.report import Row
from lodestar_fast.summary import Record

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, "-m", "lodestar_fast", "demo"]
SMALL = ["--fleet", "a30+h100", "--rate", "6", "--policies", "least_request,lodestar"]
LABELS = {
    "lmetric": {"a": "0 a30", "b": "1 h100"},
    "lodestar": {"c": "0 a30", "d": "1 h100"},
}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.02)


# -- processes


def test_children_end_with_the_context(tmp_path: Path) -> None:
    async def main() -> None:
        async with Children(tmp_path) as children:
            child = await children.start("engines", "engine", "--port", "0")
            found = await children.announced(child, r"http://\S+?:(\d+)")
            assert int(found[1]) > 0
            assert alive(child.process.pid)
        assert child.process.returncode is not None

    asyncio.run(main())


def test_child_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with Children(tmp_path) as children:
            await children.start("engines of x", "engine", "--gpu", "abacus")
            async with asyncio.timeout(30):
                await children.failure()

    with pytest.raises(ChildError) as caught:
        asyncio.run(main())
    assert "engines of x ended with status 2" in str(caught.value)
    assert "abacus" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's end")
def test_children_end_if_the_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from lodestar_fast.demo.children import Children

async def main():
    async with Children(Path({str(tmp_path)!r})) as children:
        child = await children.start("engines", "engine", "--port", "0")
        await children.announced(child, "http")
        print(child.process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        asyncio.run(gone(pid))


# -- the board


def board() -> tuple[Board, VirtualClock]:
    clock = VirtualClock()
    return Board(LABELS, 10, 60.0, clock), clock


def record(arrival: float, ttft: float | None, instance: str, reason: str = "") -> Record:
    made = Record(0, arrival, 100, ttft=ttft, instance=instance, reason=reason)
    if ttft is None:
        made.error = "503: none"
    return made


def text_of(board: Board) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(board.render("the title"))
    return out.getvalue()


def test_board_counts() -> None:
    b, clock = board()
    b.note("lmetric", record(1.0, 0.2, "a"))
    b.note("lodestar", record(1.0, 0.1, "c", "cold"))
    b.learner = "importing"
    assert b.phase() == "a heuristic (lmetric) decides while PyTorch loads"
    clock.advance_to(15.0)
    b.note("lodestar", record(14.0, 0.05, "d", "learned"))
    b.note("lodestar", record(13.0, 0.05, "d", "guard"))
    b.note("lmetric", record(14.0, None, "b"))
    b.version = 3
    assert b.phase() == "model v3 decides, since t = 13 s"
    assert b.ttft["lodestar"].mean == pytest.approx(0.2 / 3)
    assert b.recent("lodestar") == pytest.approx(0.05)  # that of 1 s is over ten seconds old
    assert b.recent("lmetric") is None
    assert b.decided().startswith("cold 1 (33%)")
    text = text_of(b)
    assert re.search(r"lodestar +67 ms +50 ms +33% +67%", text), text
    assert re.search(r"lmetric +200 ms +- +50% +50% +1", text), text
    assert "15 of 60 s" in text and "5 of 20 answers" in text
    assert "lodestar 50 ms; model v3 decides" in b.line()


def test_board_without_lodestar() -> None:
    b = Board({"lmetric": LABELS["lmetric"]}, 10, 60.0, VirtualClock())
    assert b.phase() == "" and "Lodestar:" not in text_of(b)


def test_result_fits_80_columns() -> None:
    final = {"mean": 12345.6, "p50": 1234.0, "p90": 0.0, "p99": 99999.0}
    row = Row("least_request", 9999, 1234, 12345.0, final, 123.45, 123.4, 0.123)
    empty = Row("lodestar", 0, 0, None, dict.fromkeys(final), None, None, None)
    out = io.StringIO()
    Console(file=out, width=80).print(result_table([row, empty], "final minute"))
    text = out.getvalue()
    assert re.search(r"least_request +12,346 +1,234 +99,999 +123.45 +12,345", text), text
    assert re.search(r"lodestar +- +- +-", text), text


# -- whole runs


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long one, past its start."""
    words = [*DEMO, *SMALL, "--seconds", "120", "--report", str(tmp_path / "report")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Lodestar demo:"):
                break
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_no_process(demo: subprocess.Popen[str], number: signal.Signals) -> None:
    pids = children_of(demo.pid)
    assert len(pids) == 4
    demo.send_signal(number)
    demo.send_signal(number)  # an impatient one changes nothing
    assert demo.wait(timeout=60) == 128 + number
    assert not any(alive(pid) for pid in pids)


def test_watch_ends_well_on_ctrl_c() -> None:
    words = [*DEMO[:-1], "watch", "--fleet", "1xa30", "--admin-port", "0", "--rate", "4"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        assert any("Ctrl-C ends all" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert re.search(r"\d+ requests answered, 0 of them failed", told), told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_death_of_a_router_ends_the_demo(demo: subprocess.Popen[str]) -> None:
    pids = children_of(demo.pid)
    os.kill(pids[-1], signal.SIGKILL)
    assert demo.stderr is not None
    told = demo.stderr.read()
    assert demo.wait(timeout=60) == 1
    assert re.search(
        r"lodestar demo: router of \w+ was ended by signal 9; the end of its log", told
    )
    assert not any(alive(pid) for pid in pids)


def test_short_demo(tmp_path: Path) -> None:
    out, report = tmp_path / "out.json", tmp_path / "report"
    words = [*DEMO, *SMALL, "--seconds", "8", "--json", str(out), "--report", str(report)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "TTFT in the final 3.2 s, heuristics against Lodestar" in done.stdout
    assert f"report: {report}/index.html" in done.stdout.replace("\n", "")
    content = json.loads(out.read_text())
    assert content["command"] == "demo" and content["final_from_s"] == pytest.approx(4.8)
    assert [run["policy"] for run in content["runs"]] == ["least_request", "lodestar"]
    for run in content["runs"]:
        assert run["failed"] == 0 and run["requests"] > 20, done.stdout
        assert run["fleet"] == "a30+h100" and run["rate"] == 6.0
        assert run["ttft_ms"]["mean"] > 1 and run["tpot_ms"]["mean"] > 1
        assert run["preemptions"] == 0 and run["decision_us"]["p50"] > 0
    page = (report / "index.html").read_text()
    assert "0 a30" in page and "1 h100" in page and "lodestar demo --fleet a30+h100" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fleet", "2xabacus"], "abacus"),
        (["--policies", ","], "--policies"),
        (["--trace", "/none/such"], "/none/such"),
        (["--json", "/none/such/out.json"], "--json: no folder /none/such"),
        (["--report", "/dev/null/x"], "--report: cannot make /dev/null/x"),
    ],
)
def test_bad_options_are_one_line(words: list[str], says: str) -> None:
    done = subprocess.run([*DEMO, *words], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_unknown_policy_is_shown_by_the_router_s_own_words() -> None:
    words = [*DEMO, "--policies", "tarot", "--fleet", "a30", "--seconds", "5"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=90)
    assert done.returncode == 1
    assert "router of tarot ended with status 2" in done.stderr
