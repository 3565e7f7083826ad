"""The learner as everyone else sees it: sample batches in, weight blobs out.

Importing this imports neither torch nor numpy. ThreadLearner (a background thread) serves the
proxy, InlineLearner (the same code, called synchronously, deterministic) the simulator and tests.
"""

from __future__ import annotations

from typing import Any, Protocol


class Learner(Protocol):
    def submit(self, samples: bytes) -> None:
        """What Router.drain() gave. Never blocks; never raises for what the learner is at fault."""
        ...

    def poll(self) -> bytes | None:
        """A weight blob newer than the last one polled, if there is one."""
        ...

    def status(self) -> dict[str, Any]:
        """For metrics and admin: state, rounds, seconds trained, samples by kind, last error."""
        ...

    def close(self) -> None:
        """Stop, write a checkpoint if a state directory was given. Idempotent."""
        ...


class Samples(Protocol):
    """The part of core.Router that tick() needs."""

    policy: Any

    def drain(self) -> bytes: ...


def tick(router: Samples, learner: Learner) -> int | None:
    """Move samples out and weights in: the only glue; both drivers call it.

    Returns the version now in use if it is a new one. Raises BlobError if the blob was refused
    (the weights in use stay).
    """
    samples = router.drain()
    if samples:
        learner.submit(samples)
    blob = learner.poll()
    if blob is None:
        return None
    version: int = router.policy.load(blob)
    return version
