"""Traces: what is read, what is refused, and that prefixes are shared exactly where ids agree."""

from __future__ import annotations

import gzip
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.workload import (
    BYTES_PER_TOKEN,
    WORDS,
    Request,
    Trace,
    prompt_bytes,
    prompt_text,
    read_trace,
)

SLICE = Path(__file__).parent.parent / "lodestar_fast/data/mooncake_conversation.jsonl.gz"
META = {"meta": {"block_size": 512}}
ROW = {"t": 0.0, "in": 600, "out": 10, "h": [0, 2]}


def trace_file(folder: Path, *rows: Any) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def expand(runs: tuple[int, ...]) -> list[int]:
    return [
        block
        for start, length in zip(runs[::2], runs[1::2], strict=True)
        for block in range(start, start + length)
    ]


def shared(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


# -- reading


def test_slice_in_the_package_is_whole() -> None:
    trace = read_trace(SLICE)
    assert len(trace.requests) == 6000 and trace.block_tokens == 512
    assert trace.seconds == 1872.0
    for request in trace.requests:
        assert len(expand(request.runs)) == -(-request.prompt_tokens // 512)


def test_plain_and_compressed_are_the_same(tmp_path: Path) -> None:
    plain = trace_file(tmp_path, META, ROW)
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_trace(plain) == read_trace(packed)
    assert read_trace(plain).requests == (Request(0, 0.0, 600, 10, 512, (0, 2)),)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([META, {**ROW, "t": "now"}], "line 2: field `t`: not a number of seconds"),
        ([META, {**ROW, "t": -1}], "line 2: field `t`"),
        ([META, {**ROW, "t": 5}, ROW], "line 3: field `t`: earlier than the line before"),
        ([META, ROW, {**ROW, "in": 0}], "line 3: field `in`: not a whole number from 1 to"),
        ([META, {**ROW, "in": 10**20}], "line 2: field `in`: not a whole number from 1 to"),
        ([META, {**ROW, "cid": 10**20}], "line 2: field `cid`: not a whole number from -1 to"),
        ([META, {**ROW, "h": [10**20, 1]}], "line 2: field `h`: not pairs"),
        ([META, {**ROW, "h": [-1, 1]}], "line 2: field `h`: not pairs"),
        ([{"meta": {"block_size": 10**20}}, ROW], "line 1: field `meta.block_size`"),
        ([META, {**ROW, "out": 1.5}], "line 2: field `out`"),
        ([META, {"t": 0, "in": 1}], "line 2: field `out`"),
        ([META, {**ROW, "h": [1]}], "line 2: field `h`: not pairs"),
        ([META, {**ROW, "h": [1, 0]}], "line 2: field `h`: not pairs"),
        ([META, {**ROW, "h": "1"}], "line 2: field `h`: not pairs"),
        ([{"meta": {"block_size": None}}, ROW], "line 2: field `h`: block ids in a trace without"),
        ([{"meta": {"block_size": 0}}, ROW], "line 1: field `meta.block_size`"),
        ([{"meta": {"block_size": 64, "kind": "sessions"}}, ROW], "line 1: field `meta.kind`"),
        ([ROW], "line 1: field `meta`: missing; this is not a trace file"),
        ([META], "no requests"),
        ([META, 7], "line 2: not a JSON object"),
    ],
)
def test_bad_trace_is_refused_in_one_line(tmp_path: Path, rows: list[Any], says: str) -> None:
    path = trace_file(tmp_path, *rows)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"\x1f\x8bnot gzip", gzip.compress(b"{}" * 99)[:-9], b"{nope\n"])
def test_bad_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="broken"):
        read_trace(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none")


# -- rescaling


def test_rescaling_keeps_the_blocks() -> None:
    trace = read_trace(SLICE)
    small = trace.rescaled(block_tokens=50, max_input=10_000, output_scale=0.5)
    assert len(small.requests) < len(trace.requests)
    for request in small.requests:
        source = trace.requests[request.index]
        assert request.runs == source.runs and request.block_tokens == 50
        assert request.prompt_tokens <= 10_000
        assert len(expand(request.runs)) == -(-request.prompt_tokens // 50)
        assert request.output_tokens == max(1, round(source.output_tokens / 2))


def test_rescaling_nothing_changes_nothing() -> None:
    trace = read_trace(SLICE)
    same = trace.rescaled()
    assert [r.prompt_tokens for r in same.requests] == [r.prompt_tokens for r in trace.requests]


def test_no_blocks_no_block_tokens(tmp_path: Path) -> None:
    path = trace_file(tmp_path, {"meta": {"block_size": None}}, {"t": 0, "in": 5, "out": 5})
    with pytest.raises(ConfigError, match="--block-tokens"):
        read_trace(path).rescaled(block_tokens=50)


# -- arrivals


def test_poisson_arrivals_have_the_rate_and_the_seed_decides() -> None:
    trace = read_trace(SLICE)
    timed = trace.timed(seed=1, rate=20.0, seconds=200.0)
    assert timed.requests[0].arrival == 0.0 and timed.seconds < 200.0
    assert 3800 < len(timed.requests) < 4200
    gaps = [b.arrival - a.arrival for a, b in zip(timed.requests, timed.requests[1:], strict=False)]
    assert 0.9 < statistics.stdev(gaps) / statistics.mean(gaps) < 1.1  # exponential: 1
    assert timed == trace.timed(seed=1, rate=20.0, seconds=200.0)
    assert timed != trace.timed(seed=2, rate=20.0, seconds=200.0)


def test_steps_of_arrivals_are_spread() -> None:
    trace = read_trace(SLICE)
    timed = trace.timed(seed=1)
    assert len(timed.requests) == 6000
    times = [request.arrival for request in timed.requests]
    assert times == sorted(times) and len(set(times)) == 6000
    first = times[0] - trace.requests[0].arrival
    for request, t in zip(trace.requests, times, strict=True):
        assert abs(t - first - request.arrival) < 30.0
    within = [t % 3.0 for t in times]
    assert 1.3 < statistics.mean(within) < 1.7


def test_fine_arrivals_are_left_alone(tmp_path: Path) -> None:
    rows = [{"t": t, "in": 5, "out": 5} for t in (0.5, 1.0, 1.0, 1.25)]
    trace = read_trace(trace_file(tmp_path, {"meta": {"block_size": None}}, *rows))
    assert [r.arrival for r in trace.timed(seed=1).requests] == [0.0, 0.5, 0.5, 0.75]
    assert len(trace.timed(seed=1, seconds=0.5).requests) == 1


# -- prompts


def test_words_look_like_words() -> None:
    assert len(set(WORDS)) == 256
    assert {len(word) for word in WORDS} == {3, 4, 5, 6}
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


def test_prompts_are_as_long_as_the_trace_says() -> None:
    trace = read_trace(SLICE).rescaled(block_tokens=50)
    for request in trace.requests[:300]:
        text = prompt_text(request)
        assert len(text) == request.prompt_tokens * BYTES_PER_TOKEN
        assert text == prompt_text(request)
        assert json.dumps(text) == f'"{text}"'  # the bytes of the body are the bytes of the prompt


def test_prompts_share_what_their_blocks_share() -> None:
    """Oracle: the expanded lists of ids, compared one by one."""
    rng = random.Random(7)
    requests = read_trace(SLICE).rescaled(block_tokens=50).requests[:2000]
    pairs = [(rng.choice(requests), rng.choice(requests)) for _ in range(400)]
    sessions: dict[tuple[int, ...], Request] = {}
    for request in requests:  # the last one before that began alike, most often a turn earlier
        start = tuple(expand(request.runs)[:2])
        if start in sessions:
            pairs.append((sessions[start], request))
        sessions[start] = request
    long = 0
    for a, b in pairs:
        blocks = shared(expand(a.runs), expand(b.runs))
        least = min(a.prompt_tokens, b.prompt_tokens)
        expected = min(blocks * 50, least) * BYTES_PER_TOKEN
        found = shared(prompt_text(a), prompt_text(b))
        # Different blocks may begin with the same letters by chance, never with a dozen words.
        assert expected <= found < expected + 64 or a.index == b.index
        long += blocks > 5
    assert long > 100


def test_more_blocks_than_tokens_and_fewer() -> None:
    assert len(prompt_text(Request(0, 0.0, 10, 1, 8, (3, 9)))) == 40
    a, b = Request(1, 0.0, 100, 1, 8, (3, 2)), Request(2, 0.0, 100, 1, 8, (3, 2))
    assert len(prompt_text(a)) == 400
    assert 64 <= shared(prompt_text(a), prompt_text(b)) < 128  # the rest is each one's own


def test_tenants_share_their_prefix() -> None:
    a = Request(0, 0.0, 100, 1, tenant=7, tenant_tokens=60)
    b = Request(1, 0.0, 80, 1, tenant=7, tenant_tokens=60)
    c = Request(2, 0.0, 80, 1, tenant=8, tenant_tokens=60)
    assert 240 <= shared(prompt_text(a), prompt_text(b)) < 280
    assert shared(prompt_text(b), prompt_text(c)) < 32
    assert len(prompt_text(a)) == 400


# -- for the simulator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Request(0, 0.0, 12, 1, 3, (5, 2, 9, 2)), Request(1, 0.0, 11, 1, 3, (5, 2, 7, 2))),
        (Request(0, 0.0, 9, 1, 0, (), 3, 4), Request(1, 0.0, 9, 1, 0, (), 3, 4)),
        (Request(0, 0.0, 9, 1), Request(1, 0.0, 9, 1)),
        (Request(0, 0.0, 4, 1, 1, (1, 4)), Request(1, 0.0, 4, 1, 1, (1, 2, 7, 2))),
    ],
)
def test_bytes_share_what_texts_share(a: Request, b: Request) -> None:
    """In whole tokens: inside one, two texts may begin alike by chance."""
    texts = prompt_text(a).encode(), prompt_text(b).encode()
    fillers = prompt_bytes(a), prompt_bytes(b)
    assert [len(t) for t in texts] == [len(f) for f in fillers]
    assert shared(*texts) // 4 == shared(*fillers) // 4


def test_a_block_id_that_no_number_holds_is_refused() -> None:
    """Not wrapped: it would be another block's text."""
    with pytest.raises(OverflowError):
        prompt_bytes(Request(0, 0.0, 8, 1, 4, (1 << 61, 2)))


def test_an_extended_trace_repeats_itself_with_other_blocks() -> None:
    requests = tuple(
        Request(k, 2.0 * k, 8, 1, 4, (0, 1, 5 + k, 1), tenant) for k, tenant in enumerate((7, 7, 8))
    )
    trace = Trace("t", requests, 4).extended(7)
    assert len(trace.requests) == 9
    assert [r.index for r in trace.requests] == list(range(9))
    arrivals = [r.arrival for r in trace.requests]
    assert arrivals == sorted(arrivals) and arrivals[3] > arrivals[2]
    first, again = ({b for r in trace.requests[i : i + 3] for b in r.runs[::2]} for i in (0, 3))
    assert not first & again
    assert [r.runs[1::2] for r in trace.requests[3:6]] == [r.runs[1::2] for r in requests]
    assert trace.requests[3].tenant == 7
    assert Trace("t", requests, 4).extended(3).requests == requests
