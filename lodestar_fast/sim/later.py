"""A learner whose rounds take time: what an InlineLearner answers at once comes out later.

As in the proxy, where a thread trains: samples that come during a round wait for its end, and new
weights are found by the next tick after it, never by the one that brought the samples.
"""

from __future__ import annotations

from typing import Any

from lodestar_fast.clock import VirtualClock
from lodestar_fast.learner import Learner

# Measured: samples handed to ThreadLearner until its weights are there, 25 rounds of 20 samples at
# low priority on a busy machine of two cores; median 0.35 s, of which 0.014 s is work.
ROUND_SECONDS = 0.35


class Later:
    """Learner that takes `seconds` of the clock for each round of another."""

    def __init__(self, learner: Learner, clock: VirtualClock, seconds: float) -> None:
        self._learner, self._clock, self._seconds = learner, clock, seconds
        self._waiting: list[bytes] = []
        self._blob: bytes | None = None  # of the round that is under way, or over
        self._over = 0.0  # when

    def submit(self, samples: bytes) -> None:
        self._waiting.append(samples)

    def poll(self) -> bytes | None:
        """Weights whose round is over; begins the next one."""
        now = self._clock.now()
        if now < self._over:
            return None
        blob, self._blob = self._blob, None
        if self._waiting:
            for samples in self._waiting:
                self._learner.submit(samples)
            self._waiting.clear()
            self._blob = self._learner.poll()
            self._over = now + self._seconds
        return blob

    def status(self) -> dict[str, Any]:
        return self._learner.status()

    def close(self) -> None:
        self._learner.close()
