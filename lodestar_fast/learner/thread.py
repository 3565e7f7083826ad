"""The learner's two drivers: a background thread for the proxy, and inline for the simulator.

ThreadLearner shares nothing with the event loop but two bounded queues of bytes. Its thread imports
numpy and torch itself, then lowers its own priority, and pauses between the parts of a round: one
thread of Python in a hurry would make every request wait for the GIL's switch interval, twice. The
longest part, the steps of the network, does not hold the GIL (model.py). Whatever happens in
the thread (an exception, a hang, its death), submit() and poll() go on as before and never wait,
and the router keeps the weights it has.

No locks: deque.append and popleft are atomic, each side only ever does one of them, and a thread at
low priority that is preempted inside a lock would hold up the event loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from lodestar_fast.config import LearnerConfig
from lodestar_fast.errors import BlobError
from lodestar_fast.learner.timebox import TimeBox
from lodestar_fast.learner.turns import set_turn

if TYPE_CHECKING:
    from lodestar_fast.learner.ablation import Ablation
    from lodestar_fast.learner.checkpoint import State
    from lodestar_fast.learner.model import Correction
    from lodestar_fast.learner.train import Trainer

Hook = Callable[["Trainer"], None]

log = logging.getLogger("lodestar.learner")

QUEUED_BATCHES: Final = 32  # half a minute of ticks; a full drain is 1.1 MB
# Seconds between two parts of a round. Each part holds up one or two requests by up to 0.3 ms; of
# thousands a second fewer than one in a hundred may be among them.
PAUSE: Final = 0.03
# Seconds of a turn at a core they share: who has the shorter one takes it from the other at once.
TURN: Final = 0.0005
LOOPS_TURN: Final = 0.0001
CHECKPOINT_SECONDS: Final = 30.0
COMPLAINT_SECONDS: Final = 60.0  # between two log lines about a folder that cannot be written
STALLED_SECONDS: Final = 60.0  # without a sign of life in or between rounds: reported as failed
LONGEST_BACKOFF: Final = 60.0
COLD_AFTER: Final = 3  # failures in a row after which the last good state is not taken up again
JOIN_SECONDS: Final = 5.0


def _network(config: LearnerConfig, hidden: int) -> Correction | None:
    """The network the configuration asks for. Raises ImportError without torch."""
    if config.model == "linear":
        return None
    import torch

    from lodestar_fast import features
    from lodestar_fast.learner.model import Correction

    # One thread of its own is what the learner is given: the cores belong to the proxy.
    torch.set_num_threads(1)
    return Correction(features.WIDTH, (hidden, hidden), config.learner_seed)


def _describe(trainer: Trainer | None) -> dict[str, Any]:
    """The part of status() that both drivers share."""
    if trainer is None:
        return {
            "rounds": 0,
            "samples": {},
            "version": 0,
            "validation_errors": 0,
            "refusals": {},
            "corrects": False,
        }
    linear, corrected = trainer.errors
    return {
        "rounds": trainer.rounds,
        "samples": dict(trainer.buffer.counts),
        "version": trainer.version,
        "validation_errors": trainer.refusals.total(),
        "refusals": dict(trainer.refusals),
        "corrects": trainer.corrects,
        "log_error_linear": linear,
        "log_error_corrected": corrected,
        **trainer.heads.status(),
    }


class InlineLearner:
    """Learns inside submit(), once in every round_seconds of the samples' own time.

    Deterministic: the same batches give the same blobs. An exception in training propagates, for a
    simulation must not go on with a broken learner. ablation: what is taken out of it.
    """

    def __init__(
        self, config: LearnerConfig, state_dir: str = "", ablation: Ablation | None = None
    ) -> None:
        from lodestar_fast.learner import checkpoint
        from lodestar_fast.learner.ablation import NONE
        from lodestar_fast.learner.train import Trainer

        without = ablation or NONE
        archive = without.archive(config.learner_seed)
        self._trainer = Trainer(config, _network(config, without.hidden), without.terms, archive)
        self._round_seconds = config.round_seconds
        self._period = -1  # the newest one, of round_seconds each, that has had its round
        self._state_dir = state_dir
        self._blob: bytes | None = None
        self._refused = 0
        self._closed = False
        if state_dir and (state := checkpoint.load(state_dir)):
            self._trainer.restore(state)
            self._blob = state.blob

    def submit(self, samples: bytes) -> None:
        """Take a batch, and learn if it is time. A batch that does not fit is counted."""
        try:
            self._trainer.add(samples)
        except BlobError:
            self._refused += 1
            return
        newest = self._trainer.buffer.newest
        if newest >= self._round_seconds * (self._period + 1):
            self._period = int(newest / self._round_seconds)
            self._blob = self._trainer.round() or self._blob

    def poll(self) -> bytes | None:
        blob, self._blob = self._blob, None
        return blob

    def status(self) -> dict[str, Any]:
        ready = self._trainer.ready
        return {
            "state": "closed" if self._closed else "training" if ready else "gathering",
            "train_seconds": 0.0,
            "batches_refused": self._refused,
            "batches_dropped": 0,
            "overruns": 0,
            "last_error": self._trainer.refusal,
            **_describe(self._trainer),
        }

    def close(self) -> None:
        from lodestar_fast.learner import checkpoint

        if self._state_dir and self._trainer.blob and not self._closed:
            checkpoint.save(self._state_dir, self._trainer.state())
        self._closed = True


class ThreadLearner:
    """Learns in a thread of its own, every round_seconds, from the moment it is made.

    The thread that makes it is taken for the event loop's, and gets short turns at its core.

    before_round: for tests, called in the thread with the trainer before each round; may raise,
    block or spoil the trainer. backoff: seconds before the first restart after an exception,
    doubled up to a minute while exceptions go on. box: how long a round may take; None: timebox.py.
    """

    def __init__(
        self,
        config: LearnerConfig,
        state_dir: str = "",
        *,
        before_round: Hook | None = None,
        backoff: float = 1.0,
        box: TimeBox | None = None,
    ) -> None:
        self._config = config
        self._state_dir = state_dir
        self._before_round = before_round
        self._backoff = backoff
        self._box = box or TimeBox(time.thread_time)
        self._batches: deque[bytes] = deque(maxlen=QUEUED_BATCHES)
        self._blobs: deque[bytes] = deque(maxlen=1)
        self._stop = threading.Event()
        self._trainer: Trainer | None = None
        self._snapshot: State | None = None  # of the last round that went well
        self._state = "importing"
        self._last_error = ""
        self._dropped = self._refused = self._restarts = 0
        self._failures = 0  # in a row
        self._train_seconds = 0.0
        self._alive_at = time.monotonic()
        self._saved_at = time.monotonic()
        self._complained_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="lodestar-learner", daemon=True)
        self._thread.start()
        set_turn(LOOPS_TURN)

    # -- the event loop's side --

    def submit(self, samples: bytes) -> None:
        """Queue a batch. Of more than the queue holds, the oldest goes, counted."""
        if len(self._batches) == QUEUED_BATCHES:
            self._dropped += 1
        self._batches.append(samples)

    def poll(self) -> bytes | None:
        try:
            return self._blobs.popleft()
        except IndexError:
            return None

    def status(self) -> dict[str, Any]:
        state, error = self._state, self._last_error
        silent = time.monotonic() - self._alive_at - self._config.round_seconds
        if state in ("gathering", "training") and silent > STALLED_SECONDS:
            state, error = "failed", f"no sign of life for {silent:.0f} s"
        elif state != "closed" and not self._thread.is_alive():
            state, error = "failed", "its thread has ended"
        return {
            "state": state,
            "train_seconds": self._train_seconds,
            "batches_refused": self._refused,
            "batches_dropped": self._dropped,
            "overruns": self._box.overruns,
            "restarts": self._restarts,
            "last_error": error,
            **_describe(self._trainer),
        }

    def close(self) -> None:
        """Stop the thread; it writes a checkpoint on its way out. Waits a few seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
            if self._thread.is_alive():
                log.warning("learner did not stop within %.0f s; left behind", JOIN_SECONDS)
        self._state = "closed"

    # -- the thread's side --

    def _run(self) -> None:
        """Work; after an exception begin anew from the last good round, ever more patiently."""
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._work()
            except BaseException as e:  # SystemExit too: nothing may end this thread but close()
                self._state = "failed"
                self._last_error = f"{type(e).__name__}: {e}"
                if time.monotonic() - started > LONGEST_BACKOFF:
                    self._failures = 0  # it had been going well
                self._failures += 1
                delay = min(self._backoff * 2.0 ** min(self._failures - 1, 30), LONGEST_BACKOFF)
                log.exception("learner failed; next try in %.1f s", delay)
                self._stop.wait(delay)
                self._restarts += 1
        self._save()

    def _lower_priority(self) -> None:
        """Stand back for the event loop; only once all is imported.

        An import holds the GIL for 20 ms at a time. If other processes want the cores, a thread at
        niceness 15 gets none for so long that the event loop waited 2.4 s for the GIL; at normal
        priority 0.1 s. A round holds it for 0.3 ms at a time; there a low priority does no harm.
        """
        # On Linux a priority belongs to a thread. Lowering needs no right; elsewhere it may fail.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._config.niceness)
        set_turn(TURN)

    def _work(self) -> None:
        """Import, take up the last state, then a round every round_seconds until closed."""
        self._state = "importing"
        trainer = self._begin()
        self._lower_priority()
        self._trainer = trainer
        self._state = "training" if trainer.blob else "gathering"
        pause = self._config.round_seconds
        while not self._stop.wait(pause):
            self._alive_at = began = time.monotonic()
            self._box.open()
            self._take(trainer)
            if self._before_round:
                self._before_round(trainer)
            blob = trainer.round(self._breathe, self._box)
            self._train_seconds += self._box.used
            if trainer.refusal:
                self._last_error, trainer.refusal = trainer.refusal, ""
                log.warning("learner refused weights: %s", self._last_error)
            if blob is not None:
                self._blobs.append(blob)
                self._snapshot = trainer.state()
                self._state = "training"
            if time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
                self._save()
            pause = max(self._config.round_seconds - (time.monotonic() - began), PAUSE)

    def _begin(self) -> Trainer:
        """A trainer with the last good state, if there is one in memory or on disk."""
        from lodestar_fast.learner.quiet import preload_torch, quiet

        with quiet():
            # numpy and our modules first: small, and needed with either model.
            from lodestar_fast.learner.ablation import NONE
            from lodestar_fast.learner.train import Trainer

            network = None
            try:
                if self._config.model != "linear":
                    preload_torch()
                network = _network(self._config, NONE.hidden)
            except ImportError as e:
                self._last_error = f"learning without a network: {e}"
                log.warning("%s", self._last_error)
        trainer = Trainer(self._config, network)
        state = self._snapshot or self._load()
        if self._failures >= COLD_AFTER:
            state = None  # it may be what the failures come from
        if state is not None:
            try:
                trainer.restore(state)
            except BlobError as e:
                self._last_error = f"cold start: {e}"
                log.warning("%s", self._last_error)
            else:
                self._blobs.append(trainer.blob)
        return trainer

    def _take(self, trainer: Trainer) -> None:
        """Feed what was queued, as far as time allows; what does not fit is counted and left."""
        for i in range(len(self._batches)):
            if i and self._box.full():
                break
            try:
                trainer.add(self._batches.popleft())
            except BlobError as e:
                self._refused += 1
                self._last_error = str(e)

    def _breathe(self) -> bool:
        """What a round asks between its parts: pauses, and says whether to go on learning."""
        self._alive_at = time.monotonic()
        return not self._stop.wait(PAUSE)

    def _load(self) -> State | None:
        from lodestar_fast.learner import checkpoint

        if not self._state_dir:
            return None
        try:
            return checkpoint.load(self._state_dir)
        except (BlobError, OSError) as e:
            self._last_error = f"cold start: {e}"
            log.warning("%s", self._last_error)
            return None

    def _save(self) -> None:
        """Write a checkpoint of the last good round, if there is a folder and was such a round."""
        from lodestar_fast.learner import checkpoint

        if not self._state_dir or self._snapshot is None:
            return
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self._state_dir, self._snapshot)
        except OSError as e:
            self._last_error = f"no checkpoint: {e}"
            if self._saved_at - self._complained_at >= COMPLAINT_SECONDS:
                self._complained_at = self._saved_at
                log.warning("%s", self._last_error)
