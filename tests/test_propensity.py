"""The probability that stands in a sample: that with which its instance was chosen."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lodestar_fast.core import POLICIES, Event, Policy, Reason, Router
from lodestar_fast.core.modes import Guarded
from lodestar_fast.learner.buffer import decode
from tests.oracle import make_router
from tests.test_decisions import learned


def served(policy: Policy, instances: int, n: int = 400) -> NDArray[Any]:
    """Samples of requests that come one after the other and leave nothing behind."""
    router = make_router(policy, instances, decisions=8)
    for k in range(n):
        now, prompt = float(k), b"%08d" % k * 8
        ticket = router.route(prompt, now, 64).ticket
        router.observe(ticket, Event.FIRST_TOKEN, now + 0.1)
    return decode(router.drain())


def offered(router: Router) -> list[list[float]]:
    """Odds of the candidates of each kept decision."""
    assert router.decisions is not None
    rows = [json.loads(text + b"}") for text in router.decisions.last(1 << 20).rows()]
    return [[c["odds"] for c in row["candidates"]] for row in rows]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_of_k_equal_instances_each_is_as_likely(k: int) -> None:
    router = make_router(POLICIES["least_request"](), k, decisions=8)
    tries = 600
    for i in range(tries):
        ticket = router.route(b"%08d" % i * 8, float(i), 64).ticket
        router.observe(ticket, Event.DONE, i + 0.5)
    rows = decode(router.drain())
    assert rows["propensity"] == pytest.approx(1 / k)
    counts = np.bincount(rows["slot"], minlength=k)
    assert np.abs(counts / tries - 1 / k).max() <= 4 * math.sqrt(1 / k * (1 - 1 / k) / tries)


def test_where_nothing_is_drawn_it_is_one() -> None:
    assert (served(POLICIES["round_robin"](), 3)["propensity"] == 1).all()


def test_all_samples_of_a_request_have_it_and_unknown_is_unknown() -> None:
    for policy, expected in (("random", 0.5), ("preble", math.nan)):
        router = make_router(POLICIES[policy](), 2, decisions=8)
        ticket = router.route(b"x" * 64, 0.0).ticket
        router.observe(ticket, Event.FIRST_TOKEN, 0.1)
        router.observe(ticket, Event.DONE, 0.2, tokens=3)
        rows = decode(router.drain())
        assert rows["event"].tolist() == [Event.FIRST_TOKEN, Event.DONE]
        assert rows["propensity"] == pytest.approx([expected] * 2, nan_ok=True)


def test_a_canary_mixes_both_sides() -> None:
    """Ten per cent: 1 where both choose the same, 0.1 and 0.9 where they do not, and so often."""
    policy = Guarded(learned()[0], POLICIES["lmetric"]())
    policy.steer(0.1, Reason.CONTROL)
    n = 3000
    waiting: list[int] = []
    answering: list[int] = []
    router = make_router(policy, 4, decisions=n, kv_tokens=100_000)
    rng = np.random.default_rng(1)
    for k in range(n):  # no two prompts share a block: a conversation would stay on its side
        now = 0.1 * k
        tokens = int(rng.integers(50, 2000))
        ticket = router.route(b"%016d" % k * (tokens // 4), now, tokens).ticket
        waiting.append(ticket)
        if len(waiting) > 6:
            answering.append(waiting.pop(int(rng.integers(6))))
            router.observe(answering[-1], Event.FIRST_TOKEN, now + 0.02)
        if len(answering) > 8:
            ended = answering.pop(int(rng.integers(8)))
            router.observe(ended, Event.DONE, now + 0.05, tokens=8)
    rows = decode(router.drain())
    p = rows[rows["event"] == Event.FIRST_TOKEN]["propensity"].astype(float)
    agreed, ours, theirs = (np.abs(p - value) < 1e-6 for value in (1.0, 0.1, 0.9))
    assert agreed.sum() > 2000 and theirs.sum() > 150
    differ = ours.sum() + theirs.sum()
    assert abs(ours.sum() / differ - 0.1) <= 4 * math.sqrt(0.09 / differ)
    # The mean of 1 / p is that of how many could have been chosen: what weighting by it rests on.
    support = [sum(odds > 0 for odds in row) for row in offered(router)]
    error = float((1 / p).std()) / math.sqrt(len(p))
    assert abs((1 / p).mean() - np.mean(support)) <= 4 * error
