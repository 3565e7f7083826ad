"""The feature table and its consumers; and that each column says what features.h claims."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from lodestar_fast import features
from lodestar_fast.core import Event, Router
from tests.oracle import Spy, make_router, work

HEADER = Path(__file__).parent.parent / "csrc/features.h"
PRIOR = 0.00012  # seconds per token before any label
PROMPT = b"0123456789abcdef" * 64  # 1024 bytes: 16 blocks, 256 tokens


def header_rows() -> list[tuple[str, str, str]]:
    """name, unit and scale as they stand in the header."""
    pattern = r'\bF\((\w+),\s*"(\w+)",\s*([^,]+?)\s*,'
    return re.findall(pattern, HEADER.read_text())


def scaled(**plain: float) -> dict[str, Any]:
    """Columns from plain units, as rows hold them."""
    scale = {name: scale for name, _, scale, _ in features.FEATURES}
    return {name: pytest.approx(value * scale[name], rel=1e-6) for name, value in plain.items()}


def spied(**options: Any) -> tuple[Router, Spy]:
    spy = Spy()
    return make_router(spy, instances=options.pop("instances", 1), **options), spy


# -- the table --


def test_python_sees_the_rows_of_the_header() -> None:
    rows = header_rows()
    assert len(rows) == features.WIDTH == len(features.INDEX)
    for (name, unit, scale), row in zip(rows, features.FEATURES, strict=True):
        assert row[:3] == (name, unit, eval(scale))
        assert row[3]
    assert list(features.INDEX) == [name for name, *_ in rows]


def test_the_schema_hash_is_fnv_1a_of_the_rows() -> None:
    value = 0xCBF29CE484222325
    revision = re.search(r'LS_FEATURES_REVISION "(\w+)"', HEADER.read_text())
    assert revision is not None
    rows = "".join(f"{name}|{unit}|{scale};" for name, unit, scale in header_rows())
    for byte in (rows + revision[1]).encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    assert value == features.SCHEMA_HASH


def test_a_sample_row_is_packed_as_documented() -> None:
    dtype = features.sample_dtype()
    assert dtype.itemsize % 8 == 0 and dtype.itemsize - 8 - 4 * features.WIDTH - 52 in (0, 4)
    assert dtype["x"].shape == (features.WIDTH,)
    assert [dtype.fields[name][1] for name in ("dispatched", "x", "ttft")] == [
        0,
        8,
        8 + 4 * features.WIDTH,
    ]


def test_the_markdown_table_has_every_row() -> None:
    lines = features.as_markdown().splitlines()
    assert len(lines) == features.WIDTH + 2
    assert all(f"`{name}`" in line for name, line in zip(features.INDEX, lines[2:], strict=True))


# -- the columns --


def test_an_idle_instance_without_reports() -> None:
    router, spy = spied()
    router.route(PROMPT, 1.0)
    idle = dict.fromkeys(features.INDEX, 0.0)
    idle |= {"base": 1, "prompt_tokens": 256, "own_tokens": 256, "own_seconds": 257.0922667 * PRIOR}
    idle |= {"report_age": 1, "speed": PRIOR}
    assert spy.seen[0] == scaled(**idle)


def test_hits_shorten_the_own_tokens() -> None:
    router, spy = spied()
    router.route(PROMPT, 1.0)
    decision = router.route(PROMPT[:512] + b"?" * 512, 1.0)
    assert (decision.hit_blocks, decision.hit_tokens) == (8, 128)
    assert spy.seen[0] | scaled(own_tokens=128, hit_ratio=0.5) == spy.seen[0]
    assert spy.own[0] == 128


def test_a_prompt_held_in_full_still_computes_a_token() -> None:
    router, spy = spied()
    router.route(PROMPT, 1.0)
    assert router.route(PROMPT, 1.0).hit_tokens == 255
    assert spy.own[0] == 1


def test_an_empty_prompt_is_a_token_long() -> None:
    router, spy = spied()
    assert router.route(b"", 1.0).prompt_tokens == 1
    assert all(map(math.isfinite, spy.seen[0].values()))


def test_given_prompt_tokens_are_used() -> None:
    router, spy = spied()
    assert router.route(PROMPT, 1.0, prompt_tokens=100).prompt_tokens == 100
    assert router.route(PROMPT, 1.0, prompt_tokens=100).hit_tokens == 99


def test_requests_in_prefill_queue_until_their_first_token() -> None:
    router, spy = spied(kv_tokens=10_000)
    first = router.route(PROMPT, 1.0).ticket
    router.route(b"?" * 400, 1.0)
    assert spy.queued[0] == 256
    router.route(b"!" * 4, 1.0)
    queued = spy.seen[0]
    assert queued == queued | scaled(
        prefill_requests=2,
        prefill_seconds=2 * PRIOR,
        queue_seconds=(work(256) + work(100)) * PRIOR,
        kv_occupancy=357 / 10_000,
    )
    router.observe(first, Event.FIRST_TOKEN, 1.0)
    router.observe(first, Event.TOKENS, 1.0, tokens=44)
    router.route(b".", 1.0)
    row, speed = spy.seen[0], router.instance(0)["speed"]
    assert row == row | scaled(
        prefill_requests=2,
        decode_requests=1,
        decode_context=300,
        decode_seconds=speed,
        queue_seconds=(work(100) + 1) * speed,
        work_context=speed * (work(100) + 2) * 300,
        kv_occupancy=402 / 10_000,
    )


def test_progress_counts_for_the_oldest_request_up_to_nine_tenths() -> None:
    router, spy = spied()
    router.route(PROMPT, 1.0)
    router.route(b"", 1.0 + 100 * PRIOR)
    assert spy.queued[0] == pytest.approx(256 * (1 - 100 / work(256)))
    router.route(b"", 50.0)
    assert spy.queued[0] == pytest.approx(25.6 + 1)
    router.route(b"", 0.0)  # a clock that steps back makes no work
    assert spy.queued[0] == pytest.approx(256 + 2)


def test_overdue_grows_once_the_longest_waiting_request_should_have_answered() -> None:
    router, spy = spied()
    ticket = router.route(PROMPT, 1.0).ticket
    expected = 0.02 + work(256) * PRIOR
    router.route(b"", 1.04)
    assert spy.seen[0]["overdue_seconds"] == 0
    router.route(b"", 3.0)
    assert spy.seen[0]["overdue_seconds"] == pytest.approx(2 - expected, rel=1e-5)
    router.observe(ticket, Event.FIRST_TOKEN, 3.0)
    router.route(b"", 3.0)
    assert spy.seen[0]["overdue_seconds"] == pytest.approx(1.94 - expected, rel=0.1)


def test_a_request_that_is_not_streamed_is_never_overdue() -> None:
    router, spy = spied()
    router.route(PROMPT, 1.0, streaming=False)
    router.route(b"", 100.0)
    assert spy.seen[0]["overdue_seconds"] == 0
    assert spy.queued[0] == 0  # long believed computed


def test_kv_overflow_is_what_exceeds_nine_tenths() -> None:
    router, spy = spied(kv_tokens=256)
    router.route(PROMPT, 1.0)
    assert spy.seen[0]["kv_occupancy"] == 1
    assert spy.seen[0]["kv_overflow"] == pytest.approx(0.1)


def test_reports_age_and_are_checked() -> None:
    router, spy = spied()
    router.report(0, 5.0, 8, 4, 0.5)
    router.route(b"", 5.25)
    row = spy.seen[0]
    assert row == row | scaled(
        reported_running=8, reported_waiting=4, reported_kv_usage=0.5, report_age=0.25
    )
    for slot, running, waiting, usage in [
        (0, math.nan, 0, 0),
        (0, -1, 0, 0),
        (0, 0, math.inf, 0),
        (0, 0, 0, -0.1),
        (0, 0, 0, math.nan),
        (1, 0, 0, 0),
        (-1, 0, 0, 0),
    ]:
        router.report(slot, 6.0, running, waiting, usage)
    assert router.stats()["reports_ignored"] == 7
    router.route(b"", 9.0)
    assert spy.seen[0] == spy.seen[0] | scaled(reported_running=8, report_age=1)
    router.report(0, 9.0, 0, 0, 1.7)
    assert router.instance(0)["reported_kv_usage"] == 1


def test_bytes_per_token_is_learned_from_usage() -> None:
    router, spy = spied()
    assert router.stats()["bytes_per_token"] == 4
    for _ in range(300):
        ticket = router.route(PROMPT, 1.0).ticket
        router.observe(ticket, Event.USAGE, 1.0, tokens=512, cached=100)
        router.observe(ticket, Event.DONE, 1.0)
    assert router.stats()["bytes_per_token"] == pytest.approx(2, rel=0.01)
    assert router.route(PROMPT, 1.0).prompt_tokens == pytest.approx(512, rel=0.01)
    assert router.stats()["delivered_hit_tokens"] == 30_000


def test_usage_counts_once_a_request() -> None:
    router, _ = spied()
    ticket = router.route(PROMPT, 1.0).ticket
    for _ in range(2):
        router.observe(ticket, Event.USAGE, 1.0, tokens=512, cached=100)
    wanted = (0.99 * 8000 + 1024) / (0.99 * 2000 + 512)
    assert router.stats()["bytes_per_token"] == pytest.approx(wanted)
    assert router.stats()["delivered_hit_tokens"] == 100


def test_engines_cannot_claim_more_cached_tokens_than_the_prompt_has() -> None:
    router, _ = spied()
    ticket = router.route(PROMPT, 1.0).ticket
    router.observe(ticket, Event.USAGE, 1.0, tokens=256, cached=10**9)
    assert router.stats()["delivered_hit_tokens"] == 256


# -- speeds --


def serve(
    router: Router, spy: Spy, slot: int, at: float, speed: float, tokens: int = 1000
) -> float:
    """One cold request from dispatch to first token on an idle engine of that speed."""
    spy.want = slot
    seconds = speed * (work(tokens) + 150)
    ticket = router.route(b"", at, prompt_tokens=tokens).ticket
    router.observe(ticket, Event.FIRST_TOKEN, at + seconds)
    router.observe(ticket, Event.DONE, at + seconds)
    return at + seconds


def test_speeds_are_learned_and_differences_kept() -> None:
    router, spy = spied(instances=3)
    now, truth = 0.0, (0.00003, 0.0001, 0.0003)
    for _ in range(200):
        for slot, speed in enumerate(truth):
            now = serve(router, spy, slot, now, speed)
    router.route(b"", now + 1)
    for slot, speed in enumerate(truth):
        assert router.instance(slot)["speed"] == pytest.approx(speed, rel=0.05)
        assert spy.seen[slot]["speed"] == pytest.approx(speed * 1e4, rel=0.05)


def test_a_speed_is_the_same_whatever_lengths_it_was_measured_at() -> None:
    router, spy = spied(instances=2)
    now = 0.0
    for _ in range(200):
        for slot, tokens in enumerate((500, 60_000)):
            now = serve(router, spy, slot, now, 0.00002, tokens)
    router.route(b"", now + 1)
    speeds = [router.instance(slot)["speed"] for slot in (0, 1)]
    assert speeds == pytest.approx([0.00002, 0.00002], rel=0.05)


def test_what_follows_a_long_hit_attends_to_it() -> None:
    router, spy = spied(kv_tokens=1_000_000)
    head = b"x" * 4 * 30_000
    router.route(head, 1.0, prompt_tokens=30_000)
    router.route(head + b"y" * 4 * 3_000, 1.0, prompt_tokens=33_000)
    own = spy.own[0]
    assert 3_000 <= own < 3_100
    row = spy.seen[0]
    assert row["own_seconds"] == pytest.approx(own * (1 + (33_000 - own / 2) / 30_000) * PRIOR)
    assert row["queue_seconds"] == pytest.approx(45_000 * PRIOR)
    assert spy.queued[0] == 30_000


def test_noise_between_equal_instances_is_shrunk_away() -> None:
    router, spy = spied(instances=4)
    now = 0.0
    for i in range(25):
        for slot in range(4):  # slot by slot shifted, the same ups and downs
            now = serve(router, spy, slot, now, 0.0001 * 3 ** ((i * 7 + slot * 3) % 11 / 5 - 1))
    router.route(b"", now + 1)
    speeds = [router.instance(slot)["speed"] for slot in range(4)]
    assert max(speeds) / min(speeds) < 1.05


def test_a_joiner_is_believed_typical_until_it_has_shown_itself() -> None:
    router, spy = spied(instances=2)
    now = 0.0
    for _ in range(50):
        for slot in (0, 1):
            now = serve(router, spy, slot, now, 0.00003)
    router.route(b"", now + 1)
    joiner = router.add_instance("joiner")
    assert router.instance(joiner)["speed"] == pytest.approx(0.00003, rel=0.1)


def test_first_tokens_of_one_instant_are_one_label() -> None:
    router, spy = spied()
    tickets = [router.route(b"", 0.0, prompt_tokens=1000).ticket for _ in range(4)]
    for ticket in tickets:
        router.observe(ticket, Event.FIRST_TOKEN, 0.5)
    assert router.instance(0)["speed_labels"] == 1
    router.route(b"", 1.0)
    decay = math.exp(-1 / 200)
    wanted = (decay * 2000 * PRIOR + 0.5) / (decay * 2000 + 4 * work(1000) + 150)
    assert router.instance(0)["speed"] == pytest.approx(wanted, rel=1e-6)


def test_speeds_are_renewed_at_most_every_20_ms() -> None:
    router, spy = spied()
    serve(router, spy, 0, 0.0, 0.001)
    router.route(b"", 10.0)
    before = router.instance(0)["speed"]
    serve(router, spy, 0, 10.001, 0.000001)
    router.route(b"", 10.015)
    assert router.instance(0)["speed"] == before
    router.route(b"", 10.03)
    assert router.instance(0)["speed"] < before
