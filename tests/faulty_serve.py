"""`lodestar serve` with a learner that is broken on purpose: python -m tests.faulty_serve KIND ...

raise: every round raises. hang: the first round never ends. stuck: nor does it, inside torch,
which comes back for the GIL when there is no interpreter any more.
nan: the model's numbers are none.
absurd: weights that predict eleven days are published, past every check of the learner.
die: its thread ends. tick: what moves samples and weights raises.
flood: 64 MB that are no weights are published whenever the router asks.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from lodestar_fast import cli, features, governor
from lodestar_fast.learner import export, thread


def fail(*whatever: Any) -> None:
    raise RuntimeError("on purpose")


def hang(trainer: Any) -> None:
    threading.Event().wait()


def stick(trainer: Any) -> None:
    from lodestar_fast.learner.model import Correction

    network, rows = Correction(features.WIDTH), 20_000
    x, wanted = np.zeros((rows, features.WIDTH), np.float32), np.zeros(rows, np.float32)
    trainer.refusals["network"] += 1  # the sign to look for
    while True:
        network.learn(x, wanted, 1)


def spoil(trainer: Any) -> None:
    trainer.linear.a[:] = np.nan


class Dying(thread.ThreadLearner):
    """Its thread ends as it begins."""

    def _run(self) -> None:
        pass


class Flooding(thread.ThreadLearner):
    """Publishes as much as it can, and nothing that is of use."""

    def poll(self) -> bytes | None:
        return bytes(64 << 20)


class Absurd(thread.ThreadLearner):
    """Publishes once a second what no check let through."""

    def poll(self) -> bytes | None:
        linear = np.zeros(features.WIDTH, "<f4")
        linear[features.INDEX["base"]] = 1e6
        return export.pack(export.Blob(1, linear, 0.0, None))


def main(kind: str, argv: list[str]) -> int:
    if kind == "tick":
        governor.Governor.tick = fail  # type: ignore[assignment, method-assign]
        return cli.main(argv)
    learners = {"absurd": Absurd, "flood": Flooding, "die": Dying}
    if kind in learners:
        thread.ThreadLearner = learners[kind]  # type: ignore[misc]
        return cli.main(argv)
    hook = {"raise": fail, "hang": hang, "stuck": stick, "nan": spoil}[kind]
    begin = thread.ThreadLearner.__init__

    def broken(self: thread.ThreadLearner, *args: Any, **options: Any) -> None:
        begin(self, *args, before_round=hook, backoff=0.05, **options)

    thread.ThreadLearner.__init__ = broken  # type: ignore[method-assign]
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
