"""2,000 hostile requests and answers; `make soak` runs 100,000."""

from __future__ import annotations

import uvloop

from tests.hostile import fuzz_answers, fuzz_requests


def test_hostile_requests() -> None:
    faults, seen = uvloop.run(fuzz_requests(seed=1, count=1500))
    assert not faults, "\n".join(faults)
    assert seen[200] > 100 and seen[400] > 100, "it tries what passes and what does not"


def test_hostile_answers() -> None:
    faults, seen = uvloop.run(fuzz_answers(seed=1, count=500))
    assert not faults, "\n".join(faults)
    assert seen[200] > 50 and seen[502] > 50
