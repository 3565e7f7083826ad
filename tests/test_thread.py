"""The learner's thread: whatever happens in it, the router's side goes on.

No sleeping: the hook that runs before each round hands control to the test. Waiting has a limit
only so that a failure does not hang.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lodestar_fast.config import LearnerConfig
from lodestar_fast.learner import checkpoint, export
from lodestar_fast.learner import thread as thread_module
from lodestar_fast.learner.quiet import preload_torch, quiet
from lodestar_fast.learner.thread import QUEUED_BATCHES, ThreadLearner
from lodestar_fast.learner.train import Trainer
from lodestar_fast.learner.turns import turn
from tests.batches import pack, physical, rows

LIMIT = 60.0
JUDGES = 20  # first tokens
CONFIG = LearnerConfig(model="linear", min_samples=32, round_seconds=0.005, niceness=0)


class Rounds:
    """A before_round hook: counts, runs the faults it was given, and lets the test wait."""

    def __init__(self, faults: dict[int, Callable[[Trainer], None]] | None = None) -> None:
        self.faults = faults or {}
        self.injected: deque[Callable[[Trainer], None]] = deque()  # for the rounds to come
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self, trainer: Trainer) -> None:
        with self._changed:
            self.count += 1
            count = self.count
            self._changed.notify_all()
        fault = self.injected.popleft() if self.injected else self.faults.get(count)
        if fault:
            fault(trainer)

    def wait(self, more: int = 1) -> None:
        """Until that many more rounds have begun."""
        self.reach(self.count + more)

    def reach(self, goal: int) -> None:
        """Until round number `goal` has begun, the first being 1."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= goal, LIMIT), "learner stands still"


@pytest.fixture
def make() -> Iterator[Callable[..., ThreadLearner]]:
    made: list[ThreadLearner] = []

    def build(config: LearnerConfig = CONFIG, *args: Any, **options: Any) -> ThreadLearner:
        made.append(ThreadLearner(config, *args, **{"backoff": 0.001, **options}))
        return made[-1]

    yield build
    for learner in made:
        learner.close()


def feed(learner: ThreadLearner, rounds: Rounds, start: float = 0.0) -> bytes | None:
    """A batch to learn from, one that what was learned is judged by, and the blob that passes.

    The next round may have looked for batches just before, so the second has it, and is over when
    the third begins.
    """
    rng = np.random.default_rng(int(start))
    for count in (60, JUDGES):
        learner.submit(pack(physical(rng, count, start=start)))
        rounds.wait(3)
    return learner.poll()


def raises(_: Trainer) -> None:
    raise RuntimeError("injected")


def test_learns_and_publishes(make: Callable[..., ThreadLearner]) -> None:
    rounds = Rounds()
    learner = make(before_round=rounds)
    rounds.wait()
    assert learner.status()["state"] == "gathering"
    blob = feed(learner, rounds)
    assert blob is not None
    assert export.parse(blob).version == 1
    assert learner.poll() is None
    status = learner.status()
    assert status["state"] == "training"
    assert status["samples"]["first_token"] == 60 + JUDGES
    assert status["version"] == 1
    learner.close()
    assert learner.status()["state"] == "closed"


def test_exception_is_counted_and_the_thread_begins_anew(
    make: Callable[..., ThreadLearner],
) -> None:
    rounds = Rounds({3: raises, 4: raises})
    learner = make(before_round=rounds)
    rounds.reach(5)
    status = learner.status()
    assert status["restarts"] == 2
    assert "injected" in status["last_error"]
    blob = feed(learner, rounds)
    assert blob is not None


def test_restart_goes_on_from_the_last_good_round(make: Callable[..., ThreadLearner]) -> None:
    rounds = Rounds()
    learner = make(before_round=rounds)
    first = feed(learner, rounds)
    assert first is not None
    rounds.injected.append(raises)
    rounds.wait(3)
    assert learner.status()["restarts"] == 1
    assert learner.poll() == first  # published again: the router may have missed it
    second = feed(learner, rounds, start=5.0)
    assert second is not None
    assert export.parse(second).version == export.parse(first).version + 1


def test_state_that_makes_it_fail_is_not_taken_up_for_ever(
    make: Callable[..., ThreadLearner],
) -> None:
    def choke(trainer: Trainer) -> None:
        if trainer.version:
            raise RuntimeError("injected")

    rounds = Rounds()
    learner = make(before_round=rounds)
    assert feed(learner, rounds) is not None
    rounds.injected.extend([choke] * 3)
    rounds.wait(6)
    assert learner.status()["restarts"] == 3
    assert learner.status()["state"] == "gathering"


def test_backoff_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout != CONFIG.round_seconds:
                waits.append(timeout or 0.0)
            if len(waits) == 8:
                self.set()
            return self.is_set()

    # Only for the learner: threading.Thread waits for an Event of its own.
    threads = SimpleNamespace(Event=Stop, Thread=threading.Thread, get_native_id=lambda: 0)
    monkeypatch.setattr(thread_module, "threading", threads)
    monkeypatch.setattr(thread_module.os, "setpriority", lambda *_: None)
    learner = ThreadLearner(CONFIG, before_round=raises, backoff=1.0)
    learner._thread.join(LIMIT)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_exit_in_the_thread_does_not_end_it(make: Callable[..., ThreadLearner]) -> None:
    def leave(_: Trainer) -> None:
        sys.exit(1)

    rounds = Rounds({2: leave})
    learner = make(before_round=rounds)
    rounds.wait(3)
    assert feed(learner, rounds) is not None


def test_hang_does_not_touch_the_routers_side(
    make: Callable[..., ThreadLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    rounds = Rounds({2: lambda _: None if release.wait(LIMIT) else None})
    learner = make(before_round=rounds)
    rounds.reach(2)
    batch = pack(physical(np.random.default_rng(1), 10))
    for _ in range(QUEUED_BATCHES + 5):
        learner.submit(batch)
    assert learner.poll() is None
    assert learner.status()["batches_dropped"] == 5
    monkeypatch.setattr(thread_module, "STALLED_SECONDS", -1.0)
    assert learner.status()["state"] == "failed"
    assert "no sign of life" in learner.status()["last_error"]
    monkeypatch.undo()
    release.set()
    rounds.wait(2)
    assert learner.status()["samples"]["first_token"] == 10 * QUEUED_BATCHES
    learner.submit(batch)
    rounds.wait(3)
    assert learner.poll() is not None


def test_close_leaves_a_hanging_thread_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread_module, "JOIN_SECONDS", 0.0)
    release = threading.Event()
    rounds = Rounds({1: lambda _: None if release.wait(LIMIT) else None})
    learner = ThreadLearner(CONFIG, before_round=rounds)
    rounds.reach(1)
    learner.close()
    assert "left behind" in caplog.text
    release.set()
    learner._thread.join(LIMIT)
    assert not learner._thread.is_alive()


def test_garbage_is_refused_and_learning_goes_on(make: Callable[..., ThreadLearner]) -> None:
    rounds = Rounds()
    learner = make(before_round=rounds)
    learner.submit(b"garbage")
    learner.submit(pack(rows(3, ttft=[np.nan, -1, np.inf], event=0)))
    rounds.wait(2)
    status = learner.status()
    assert status["batches_refused"] == 1
    assert status["samples"]["refused"] == 3
    assert feed(learner, rounds) is not None


def test_weights_that_are_not_numbers_are_never_published(
    make: Callable[..., ThreadLearner],
) -> None:
    def spoil(trainer: Trainer) -> None:
        if not trainer.refusals["physics"]:
            trainer.linear.b[:] = np.nan

    rounds = Rounds(dict.fromkeys(range(1, 100), spoil))
    learner = make(before_round=rounds)
    assert feed(learner, rounds) is None
    status = learner.status()
    assert status["validation_errors"] == status["refusals"]["physics"] == 1
    assert "coefficients" in status["last_error"]
    assert feed(learner, rounds, start=9.0) is not None


def test_checkpoint_is_written_at_close_and_read_at_start(
    make: Callable[..., ThreadLearner], tmp_path: Path
) -> None:
    rounds = Rounds()
    learner = make(CONFIG, str(tmp_path), before_round=rounds)
    blob = feed(learner, rounds)
    learner.close()
    state = checkpoint.load(str(tmp_path))
    assert state is not None
    assert state.blob == blob
    again = Rounds()
    second = make(CONFIG, str(tmp_path), before_round=again)
    again.wait()
    assert second.poll() == blob
    assert second.status()["state"] == "training"


def test_damaged_checkpoint_means_a_cold_start_with_a_reason(
    make: Callable[..., ThreadLearner], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / checkpoint.NAME).write_bytes(b"not a checkpoint, though long enough for a header")
    rounds = Rounds()
    learner = make(CONFIG, str(tmp_path), before_round=rounds)
    rounds.wait()
    assert learner.poll() is None
    assert "cold start" in learner.status()["last_error"]
    assert "cold start" in caplog.text
    assert feed(learner, rounds) is not None


def test_unwritable_folder_is_logged_once_and_raises_nothing(
    make: Callable[..., ThreadLearner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(thread_module, "CHECKPOINT_SECONDS", 0.0)
    rounds = Rounds()
    learner = make(CONFIG, str(tmp_path / "missing"), before_round=rounds)
    assert feed(learner, rounds) is not None
    rounds.wait(5)
    assert "no checkpoint" in learner.status()["last_error"]
    learner.close()
    assert caplog.text.count("no checkpoint") == 1
    assert learner.status()["restarts"] == 0


def test_without_torch_it_learns_the_physical_model(
    make: Callable[..., ThreadLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(thread_module, "_network", missing)
    rounds = Rounds()
    learner = make(LearnerConfig(min_samples=32, round_seconds=0.005), before_round=rounds)
    blob = feed(learner, rounds)
    assert blob is not None
    assert export.parse(blob).network is None
    assert "without a network" in learner.status()["last_error"]


def test_thread_runs_at_the_configured_niceness_in_short_turns(
    make: Callable[..., ThreadLearner],
) -> None:
    seen: list[int] = []
    turns: list[float] = []

    def look(_: Trainer) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        turns.append(turn())

    rounds = Rounds({1: look})
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    nice = min(19, mine + 2)
    make(LearnerConfig(model="linear", round_seconds=0.005, niceness=nice), before_round=rounds)
    rounds.wait(2)
    assert seen == [nice]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
    # Without a kernel that has turns of a thread's own, there is nothing to see.
    assert turns == [pytest.approx(thread_module.TURN) if turn() else 0.0]
    assert turn() == pytest.approx(thread_module.LOOPS_TURN) or not turn()


def test_network_is_trained_in_the_thread(make: Callable[..., ThreadLearner]) -> None:
    pytest.importorskip("torch")
    rounds = Rounds()
    learner = make(
        LearnerConfig(min_samples=32, round_seconds=0.05, niceness=0), before_round=rounds
    )
    for k in range(8):
        blob = feed(learner, rounds, start=float(k))
    assert blob is not None
    assert learner.status()["log_error_linear"] > 0
    assert learner.status()["train_seconds"] > 0


def test_quiet_leaves_the_interpreter_as_it_was() -> None:
    before = sys.getswitchinterval(), gc.isenabled()
    with pytest.raises(ValueError, match="inside"), quiet():
        assert not gc.isenabled()
        assert sys.getswitchinterval() == pytest.approx(0.0005)
        raise ValueError("inside")
    assert (sys.getswitchinterval(), gc.isenabled()) == before
    gc.unfreeze()


def test_preloading_finds_torchs_libraries() -> None:
    pytest.importorskip("torch")
    assert preload_torch() >= 3
