"""The log of decisions: what is written, how files turn, and what a bad disk or a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.core.decisions import Batch
from lodestar_fast.core.enums import Event
from lodestar_fast.core.router import Router
from lodestar_fast.decisions.log import MOST_BATCHES, Log, Prefixes, Writer, numbered
from lodestar_fast.decisions.reading import read_log
from lodestar_fast.errors import ConfigError
from tests.oracle import make_router

BLOCK = 64


def router_with(decisions: int = 64) -> Router:
    return make_router(decisions=decisions, prefix_marks=True)


def writer_to(folder: Path, **options: Any) -> Writer:
    return Writer(folder, since=1000.0, block_bytes=BLOCK, fallback="lmetric", **options)


def decide(router: Router, n: int, prompt: bytes = b"x" * 2048, end: bool = True) -> Batch:
    """n requests, of which each ends at once if it is to."""
    assert router.decisions is not None
    for _ in range(n):
        now = float(router.decisions.made)
        ticket = router.route(prompt, now, 512).ticket
        router.decisions.label(b"id-%d" % router.decisions.made, b"/v1/completions", "m")
        if end:
            router.observe(ticket, Event.FIRST_TOKEN, now + 0.25)
            router.observe(ticket, Event.USAGE, now + 0.5, 500, 100)
            router.observe(ticket, Event.DONE, now + 0.5, 9)
    return router.decisions.take()


def test_a_line_holds_a_decision_and_its_end(tmp_path: Path) -> None:
    router, writer = router_with(), writer_to(tmp_path)
    writer.take(decide(router, 2))
    writer.close()
    rows = list(read_log([str(tmp_path)]))
    assert [row["id"] for row in rows] == ["id-1", "id-2"]
    assert rows[1]["t"] == 1001.0 and rows[1]["in"] == 512 and rows[1]["bytes"] == 2048
    assert rows[1]["outcome"] == {
        "event": "done",
        "status": None,
        "ttft": 0.25,
        "e2e": 0.5,
        "prompt_tokens": 500,
        "cached_tokens": 100,
        "output_tokens": 9,
    }
    assert writer.written == 2 and writer.dropped == 0
    assert (tmp_path / "decisions-000001.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_decision_waits_for_its_end_and_the_end_of_the_log(tmp_path: Path) -> None:
    router, writer = router_with(), writer_to(tmp_path)
    writer.take(decide(router, 1, end=False))
    assert writer.written == 0
    writer.close()
    (row,) = read_log([str(tmp_path)])
    assert row["outcome"] is None


def test_ends_find_decisions_that_the_ring_has_forgotten(tmp_path: Path) -> None:
    router, writer = router_with(4), writer_to(tmp_path)
    ticket = router.route(b"x" * 64, 0.0).ticket
    assert router.decisions is not None
    writer.take(router.decisions.take())
    for _ in range(3):
        writer.take(decide(router, 4))
    router.observe(ticket, Event.FIRST_TOKEN, 20.0)
    router.observe(ticket, Event.DONE, 30.0, 5)
    writer.take(router.decisions.take())
    late = list(read_log([str(tmp_path)]))[-1]
    assert late["at"] == 0 and late["outcome"]["ttft"] == 20.0
    assert router.decisions.lost == 0


def test_what_comes_faster_than_it_is_taken_is_lost_and_counted() -> None:
    router = router_with(4)
    assert router.decisions is not None
    assert len(decide(router, 10)) == 4
    assert router.decisions.lost == 6


def test_files_turn_and_the_oldest_goes(tmp_path: Path) -> None:
    router, writer = router_with(), writer_to(tmp_path, file_bytes=20_000, files=3)
    for _ in range(10):
        writer.take(decide(router, 6))
    writer.close()
    numbers = sorted(numbered(tmp_path))
    assert len(numbers) == 3 and numbers[0] > 1
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data.startswith(b'{"meta"') and data.endswith(b"\n") and len(data) <= 20_000
    ids = [row["id"] for row in read_log([str(tmp_path)])]
    assert ids == [f"id-{60 - len(ids) + 1 + i}" for i in range(len(ids))]


def test_each_process_begins_a_file(tmp_path: Path) -> None:
    for _ in range(2):
        writer = writer_to(tmp_path)
        writer.take(decide(router_with(), 1))
        writer.close()
    assert sorted(numbered(tmp_path)) == [1, 2]


def test_a_full_disk_drops_and_counts_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, writer = router_with(), writer_to(tmp_path)
    writer.take(decide(router, 2))
    write = os.write

    def full(fd: int, data: Any) -> int:
        if len(data) > 100:  # some of it goes in, the rest does not
            return write(fd, bytes(data[:100]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: full(fd, data[: len(data) // 2]))
        writer.take(decide(router, 3))
    assert writer.dropped == 3 and "No space left" in writer.error
    writer.take(decide(router, 1))
    writer.close()
    assert [row["id"] for row in read_log([str(tmp_path)])] == ["id-1", "id-2", "id-6"]


def test_a_folder_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    writer = writer_to(folder)
    folder.rmdir()
    writer.take(decide(router_with(), 2))
    assert writer.dropped == 2 and writer.written == 0 and writer.error


def test_a_slow_disk_is_not_waited_for(tmp_path: Path) -> None:
    class Stuck(Writer):
        def take(self, batch: Batch) -> None:
            waiting.set()
            assert go_on.wait(30)
            super().take(batch)

    waiting, go_on = threading.Event(), threading.Event()
    router = router_with()
    log = Log(Stuck(tmp_path, since=0.0, block_bytes=BLOCK))
    log.offer(decide(router, 1))
    assert waiting.wait(30)
    for _ in range(MOST_BATCHES + 5):
        log.offer(decide(router, 2))
    assert log.counts() == {"written": 0, "dropped": 10}
    go_on.set()
    log.close()
    assert log.counts() == {"written": 1 + 2 * MOST_BATCHES, "dropped": 10}


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    writer = writer_to(tmp_path)
    writer.take(decide(router_with(), 3))
    writer.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    assert [row["id"] for row in read_log([str(path)])] == ["id-1", "id-2"]
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(ConfigError, match="line 2: not JSON"):
        list(read_log([str(path)]))


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"meta": {"kind": "sessions"}}\n')
    with pytest.raises(ConfigError, match="not a log of decisions"):
        list(read_log([str(path)]))
    path.write_text(json.dumps({"meta": {"kind": "decisions", "schema": 2}}) + "\n")
    with pytest.raises(ConfigError, match="schema 2"):
        list(read_log([str(path)]))
    with pytest.raises(ConfigError, match="no log of decisions in this folder"):
        list(read_log([str(tmp_path)]))
    with pytest.raises(ConfigError, match="No such file"):
        list(read_log([str(tmp_path / "none")]))


def test_shared_prefixes_have_equal_numbers_and_no_prompt_is_written(tmp_path: Path) -> None:
    router, writer = router_with(), writer_to(tmp_path)
    shared, block = b"the secret plan " * 32, 4 * BLOCK  # two prefix blocks
    for tail in (b"first  ", b"second "):
        writer.take(decide(router, 1, shared + tail * 160))
    writer.close()
    first, second = (row["h"] for row in read_log([str(tmp_path)]))
    assert first == [0, len(shared + b"first  " * 160) // block]
    assert second == [0, 2, first[1], first[1] - 2]
    text = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in text and b"first" not in text


def test_prefix_numbers_are_bounded_and_never_given_twice() -> None:
    prefixes = Prefixes(most=4)
    assert prefixes.runs([10, 11, 12]) == [0, 3]
    assert prefixes.runs([20, 21]) == [3, 2]  # full: what is known becomes the old half
    assert prefixes.runs([10, 11, 30]) == [0, 2, 5, 1]
    assert prefixes.runs([31, 32]) == [6, 2]  # full again: 12, 20, 21 are forgotten
    assert prefixes.runs([12]) == [8, 1]
    assert prefixes.runs([10]) == [0, 1]
