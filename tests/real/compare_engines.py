"""Two real vLLM and two simulated engines, given the same 300 requests: do they agree?

    python -m tests.real.compare_engines VENV MODEL [--waves N]

Compared are what does not hang on how fast the machine is: the prompt tokens that each request
found in the cache (blocks, sharing, eviction: the caches are small), and the order in which the
first tokens of a wave come (admission, chunks, the limit of sequences). A wave is some requests
sent to one engine within some milliseconds; the next one follows when all have ended. Prompts are
lists of token ids, so that lengths and blocks are exactly known; the simulated engines get each
request at the moment at which the real one was sent it. Prints the figures; exit 1 below AGREED.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import aiohttp

from lodestar_fast.sim.engine import Engine as Simulated
from lodestar_fast.sim.gpus import EngineSpec
from tests.real.engines import Engine

BLOCK, BLOCKS, SEQUENCES = 32, 384, 8  # as engines.py starts the real ones
FAMILIES, WAVE = 6, 10
AGREED = 0.9  # share of equal cached tokens, and of pairs in the same order

# Of the tiny model on one core: 500 tokens take 85 ms, 2,000 280, 4,000 780; a token 4.5 ms alone.
TINY = EngineSpec(
    "tiny", w=4.0, c=0.11, a=25.0, k=0.5, s=0.8, h=0.5, kv_tokens=BLOCK * BLOCKS, block=BLOCK,
    max_seqs=SEQUENCES, max_batched_tokens=2048,
)  # fmt: skip


@dataclass
class Asked:
    """One request, and what became of it. Times in seconds from its wave's start."""

    wave: int
    tokens: list[int]
    output: int
    sent: float = 0.0
    first: float = 0.0
    cached: int = -1


@dataclass
class Result:
    cached: list[tuple[int, int]] = field(default_factory=list)  # real, simulated
    tokens: int = 0  # of all prompts
    pairs: int = 0
    agreed: int = 0


def requests(seed: int, waves: int) -> list[Asked]:
    """Conversations that grow and come back, among prompts of their own; for one engine."""
    rng = random.Random(seed)
    talks = [[rng.randrange(8000) for _ in range(1600)] for _ in range(FAMILIES)]
    out = []
    for wave in range(waves):
        for _ in range(WAVE):
            if rng.random() < 0.7:
                tokens = rng.choice(talks)[: rng.randrange(200, 1600)]
            else:
                tokens = []
            tokens = tokens + [rng.randrange(8000) for _ in range(rng.randrange(20, 400))]
            out.append(Asked(wave, tokens, rng.randrange(2, 12)))
    return out


async def ask(http: aiohttp.ClientSession, url: str, it: Asked, start: float) -> None:
    body = {
        "model": "tiny",
        "prompt": it.tokens,
        "max_tokens": it.output,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    it.sent = time.monotonic() - start
    async with http.post(url + "/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and not it.first:
                it.first = time.monotonic() - start
            if usage := event.get("usage"):
                assert usage["prompt_tokens"] == len(it.tokens)
                it.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    assert it.first and it.cached >= 0


async def drive(url: str, asked: list[Asked]) -> None:
    """All waves, one after another."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as http:
        for wave in range(1 + asked[-1].wave):
            start = time.monotonic()
            tasks = []
            for it in (it for it in asked if it.wave == wave):
                tasks.append(asyncio.create_task(ask(http, url, it, start)))
                await asyncio.sleep(0.004)  # so that they arrive in this order
            await asyncio.gather(*tasks)


def simulate(asked: list[Asked]) -> list[tuple[float, int]]:
    """(first token, cached tokens) of the same requests in a simulated engine."""
    engine = Simulated(TINY)
    first, cached = [0.0] * len(asked), [0] * len(asked)
    now, start, wave = 0.0, 0.0, -1

    def advance(until: float) -> None:
        while (end := engine.next_time()) <= until:
            for rid, generated, finished in engine.step(end):
                if generated == 1:
                    first[rid] = end
                if finished:
                    cached[rid] = engine.cached_tokens(rid)

    for rid, it in enumerate(asked):
        if it.wave != wave:
            wave = it.wave
            while (end := engine.next_time()) < float("inf"):
                now = end
                advance(end)
            start = now + 1.0
        now = start + it.sent
        advance(now)
        blocks = [
            hash(tuple(it.tokens[: end + BLOCK])) & (1 << 63) - 1 | 1
            for end in range(0, len(it.tokens) - BLOCK + 1, BLOCK)
        ]
        engine.submit(rid, blocks, len(it.tokens), it.output, now)
    advance(1e18)
    return list(zip(first, cached, strict=True))


def compare(asked: list[Asked], result: Result) -> None:
    simulated = simulate(asked)
    result.cached += [(it.cached, cached) for it, (_, cached) in zip(asked, simulated, strict=True)]
    result.tokens += sum(len(it.tokens) for it in asked)
    for a, b in combinations(range(len(asked)), 2):
        if asked[a].wave != asked[b].wave or simulated[a][0] == simulated[b][0]:
            continue  # of one iteration: the order in which they are written says nothing
        result.pairs += 1
        real = asked[a].first < asked[b].first
        result.agreed += real == (simulated[a][0] < simulated[b][0])


async def both(engines: list[Engine], asked: list[list[Asked]]) -> None:
    await asyncio.gather(*(drive(e.url, its) for e, its in zip(engines, asked, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("venv", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--waves", type=int, default=15, help="of 10 requests, for each engine [15]"
    )
    args = parser.parse_args()
    asked = [requests(seed, args.waves) for seed in (1, 2)]
    with tempfile.TemporaryDirectory() as logs:
        engines = [Engine(args.venv, args.model, k, Path(logs) / f"engine{k}.log") for k in (0, 1)]
        try:
            for engine in engines:
                engine.wait()
            asyncio.run(both(engines, asked))
        finally:
            for engine in engines:
                engine.kill()
    result = Result()
    for its in asked:
        compare(its, result)
    n = len(result.cached)
    equal = sum(real == simulated for real, simulated in result.cached)
    real, simulated = (sum(each[k] for each in result.cached) for k in (0, 1))
    apart = sum(abs(a - b) for a, b in result.cached)
    print(f"{n} requests, {result.tokens} prompt tokens")
    print(
        f"cached tokens: real {real}, simulated {simulated}; equal for {equal} ({equal / n:.1%}),"
    )
    print(f"  {apart / result.tokens:.2%} of the prompt tokens apart in the mean")
    print(
        f"order of first tokens: {result.agreed} of {result.pairs} pairs within a wave "
        f"({result.agreed / result.pairs:.1%})"
    )
    return int(min(equal / n, result.agreed / result.pairs) < AGREED)


if __name__ == "__main__":
    sys.exit(main())
