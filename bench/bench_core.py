"""What a routing decision costs, and its parts. Names are read by others: see README.md.

    route[POLICY-INSTANCES-PROMPT_TOKENS]   Router.route(), prompts of a fleet at work
    route_full[INSTANCES-PROMPT_TOKENS]     the same, nothing known, and the index full
    route_kept[HOW-INSTANCES-PROMPT_TOKENS] route[lodestar] with the decision kept: in memory, or
                                            with the marks that its log wants
    hash[PROMPT_TOKENS]                     its hashing alone
    match[INSTANCES-PROMPT_TOKENS]          its look-up of the prefix alone
    score[MODEL-INSTANCES]                  the model's forward pass over one row an instance
    observe                                 one event of a streamed request
    drain                                   1,000 samples out

A round of route, observe and drain is one call with its Python overhead; what it needs is made
outside the timer. hash, match and score are repeated inside one call, and a round is a share of it.
A prompt token is 4 bytes. Everything is drawn from SEED.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lodestar_fast.core import POLICIES, Event, Router
from lodestar_fast.core.policies import Lodestar, Policy
from tests.oracle import Model, make_router, rows

SEED = 1
ROUNDS = 4000
REPEAT = 50  # of what is timed inside one call
BYTES_PER_TOKEN = 4
MODELS: dict[str, list[int] | None] = {
    "linear": None,
    "mlp-2x32": [32, 32],
    "mlp-3x128": [128, 128, 128],
}


def model(name: str) -> Lodestar:
    policy = Lodestar()
    policy.load(Model(MODELS[name], seed=SEED).blob())
    return policy


def policy_named(name: str) -> Policy:
    return model("mlp-2x32") if name == "lodestar" else POLICIES[name]()


def make_prompts(tokens: int, count: int = 256) -> list[bytes]:
    """Conversations at work: a quarter is a system prompt of one of 8 tenants, half is one of 64
    histories under it, the last quarter is new each time."""
    draw = random.Random(SEED)
    size = tokens * BYTES_PER_TOKEN

    def text(n: int) -> bytes:
        return bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz     ", k=n))

    tenants = [text(size // 4) for _ in range(8)]
    histories = [tenants[i % 8] + text(size // 2) for i in range(64)]
    prompts = (draw.choice(histories) for _ in range(count))
    return [prompt + text(size - len(prompt)) for prompt in prompts]


class Traffic:
    """Keeps a router at work: 4 requests in flight on each instance, half of them decoding."""

    def __init__(self, router: Router, instances: int, prompts: list[bytes]) -> None:
        self.router, self.prompts = router, prompts
        self.now, self.turn, self.most = 0.0, 0, 4 * instances
        self.open: list[int] = []
        for _ in range(max(self.most, len(prompts)) + self.most):
            (prompt, now), _ = self.next()
            self.dispatched(router.route(prompt, now))

    def next(self) -> tuple[tuple[bytes, float], dict[str, Any]]:
        """Time goes on; the oldest request ends, the one in the middle gets its first token."""
        self.now += 0.005
        self.turn += 1
        if len(self.open) >= self.most:
            self.router.observe(self.open.pop(0), Event.DONE, self.now, 100)
            self.router.observe(self.open[len(self.open) // 2], Event.FIRST_TOKEN, self.now)
        return (self.prompts[self.turn % len(self.prompts)], self.now), {}

    def dispatched(self, decision: Any) -> None:
        self.open.append(decision.ticket)


def tell_p99(benchmark: Any) -> None:
    data = sorted(benchmark.stats.stats.data)
    benchmark.extra_info["p99"] = data[len(data) * 99 // 100]


def timed(benchmark: Any, call: Callable[..., Any], setup: Callable[[], Any], rounds: int) -> None:
    benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=rounds // 20)
    if benchmark.stats:  # None where benchmarks are disabled
        tell_p99(benchmark)


def timed_inside(benchmark: Any, call: Callable[[], Any], rounds: int = ROUNDS // 8) -> Any:
    """call() does its work REPEAT times; a round is one of them."""
    result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=rounds // 20)
    if benchmark.stats:
        data = benchmark.stats.stats.data
        data[:] = [seconds / REPEAT for seconds in data]
        tell_p99(benchmark)
    return result


def cases() -> list[Any]:
    each_policy = [(name, 8, 4096) for name in POLICIES]
    sizes = [("lodestar", n, 4096) for n in (1, 16, 64, 256, 1024)]
    lengths = [("lodestar", 8, tokens) for tokens in (256, 1024, 16384, 32768, 65536)]
    every = each_policy + sizes + lengths
    return [pytest.param(*case, id="-".join(map(str, case))) for case in every]


def route_rounds(
    benchmark: Any, policy: str, instances: int, prompts: list[bytes], **options: Any
) -> Router:
    router = make_router(
        policy_named(policy),
        instances,
        max_instances=max(256, instances),
        kv_tokens=400_000,
        seed=SEED,
        **options,
    )
    traffic = Traffic(router, instances, prompts)
    decisions: list[Any] = []

    def setup() -> Any:
        if decisions:
            traffic.dispatched(decisions.pop())
        return traffic.next()

    def route(prompt: bytes, now: float) -> None:
        decisions.append(router.route(prompt, now))

    many = len(prompts[0]) < 80_000 and instances <= 256
    timed(benchmark, route, setup, ROUNDS if many else ROUNDS // 8)
    assert router.stats()["decisions"]["error"] == 0
    return router


@pytest.mark.parametrize(("policy", "instances", "tokens"), cases())
def test_route(benchmark: Any, policy: str, instances: int, tokens: int) -> None:
    prompts = make_prompts(tokens, 64 if tokens > 20_000 else 256)
    route_rounds(benchmark, policy, instances, prompts)


@pytest.mark.parametrize("kept", ["memory-8-4096", "marks-8-4096"])
def test_route_kept(benchmark: Any, kept: str) -> None:
    options = {"decisions": 512} if kept.startswith("memory") else {"decisions": 2048}
    prompts = make_prompts(4096)
    route_rounds(
        benchmark, "lodestar", 8, prompts, prefix_marks=kept.startswith("marks"), **options
    )


@pytest.mark.parametrize(("instances", "tokens"), [pytest.param(8, 8192, id="8-8192")])
def test_route_full(benchmark: Any, instances: int, tokens: int) -> None:
    """Each prompt is new, and as much is given up for it as it takes."""
    draw = random.Random(SEED)
    prompts = [draw.randbytes(tokens * BYTES_PER_TOKEN) for _ in range(256)]
    router = route_rounds(benchmark, "lodestar", instances, prompts, index_bytes=1 << 20)
    assert router.stats()["index_evictions"] > 0


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 16384, 65536])
def test_hash(benchmark: Any, tokens: int) -> None:
    router, (prompt, *_) = make_router(), make_prompts(tokens, 1)
    blocks = timed_inside(benchmark, lambda: router._hash_count(prompt, REPEAT))
    assert blocks == tokens // 16


@pytest.mark.parametrize(
    ("instances", "tokens"),
    [pytest.param(n, t, id=f"{n}-{t}") for n, t in ((8, 1024), (8, 4096), (64, 4096), (8, 16384))],
)
def test_match(benchmark: Any, instances: int, tokens: int) -> None:
    router = make_router(POLICIES["random"](), instances, max_instances=256, seed=SEED)
    prompts = make_prompts(tokens)
    Traffic(router, instances, prompts[:128])
    draw = random.Random(SEED)
    half = tokens * BYTES_PER_TOKEN // 2  # of each prompt looked up is known, by its history
    prompts[128:] = [prompt[:half] + draw.randbytes(half) for prompt in prompts[128:]]
    hits = timed_inside(
        benchmark, lambda: router._match(draw.choice(prompts[128:]), b"", REPEAT), ROUNDS
    )
    assert hits


@pytest.mark.parametrize("instances", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("name", MODELS)
def test_score(benchmark: Any, name: str, instances: int) -> None:
    policy, x, seconds = model(name), rows(instances, SEED), np.empty(instances, "<f4")
    outside = timed_inside(benchmark, lambda: policy.predict(x, seconds, repeat=REPEAT))
    assert outside == 0


def test_observe(benchmark: Any) -> None:
    router = make_router(instances=1)
    ticket = router.route(make_prompts(1024, 1)[0], 0.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 0.1)
    tokens = int(Event.TOKENS)
    benchmark(router.observe, ticket, tokens, 0.2, 1)
    if benchmark.stats:
        tell_p99(benchmark)


def test_drain(benchmark: Any) -> None:
    router = make_router(instances=1)

    def setup() -> None:
        for _ in range(1000):
            router.observe(router.route(b"", 0.0).ticket, Event.DONE, 1.0)

    batch = benchmark.pedantic(router.drain, setup=setup, rounds=50)
    assert len(batch) > 100_000
