"""An engine that joins: nobody has measured it, and it has its share of the work at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestar_fast.simulate.plan import Plan, run_one

JOINS = 60.0  # seconds
LATE = 20.0  # after it, by when it must have its share


def share_of_work(folder: Path, policy: str, fleet: str, joins: str, rate: float) -> float:
    """The new one's, of the tokens to compute of requests between 5 and 20 s after it came.

    In the first seconds it has more: the others still have what came before.
    """
    events = folder / "events.jsonl"
    events.write_text(f'{{"t":{JOINS},"join":"{joins}"}}')
    plan = Plan(
        fleet, rate=rate, seconds=JOINS + LATE, max_input=6000, block_tokens=50,
        events=str(events), learner="linear",
    )  # fmt: skip
    work: list[tuple[bool, int]] = []
    for seed in (1, 2, 3):
        records = run_one(plan, seed, policy).records
        old = {r.instance for r in records if r.arrival < JOINS}
        work += [
            (r.instance not in old, r.prompt_tokens - (r.cached_tokens or 0))
            for r in records
            if r.arrival >= JOINS + 5.0
        ]
    assert len(work) > 200
    return sum(tokens for new, tokens in work if new) / sum(tokens for _, tokens in work)


@pytest.mark.parametrize("rate", [7.0, 9.0])
def test_one_of_five_equal_engines_has_a_fifth_within_twenty_seconds(
    tmp_path: Path, rate: float
) -> None:
    share = share_of_work(tmp_path, "lodestar", "4xa30", "a30", rate)
    assert 0.13 < share < 0.3


@pytest.mark.parametrize("rate", [14.0, 20.0])
def test_a_quick_engine_has_what_the_clairvoyant_would_give_it(tmp_path: Path, rate: float) -> None:
    """Believed to be like the others until it is measured: 3 A30 and an H100, joined by an H100."""
    ours, best = (
        share_of_work(tmp_path, policy, "3xa30+1xh100", "h100", rate)
        for policy in ("lodestar", "oracle")
    )
    assert best > 0.3 and ours > 0.75 * best
