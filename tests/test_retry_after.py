"""Engines' Retry-After: seconds or dates, whatever else it may be."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar_fast.proxy.retry_after import seconds_of
from tests.fake_engine import plain
from tests.proxy_rig import Rig, with_rig

NOW = 784111777.0  # the example of RFC 9110, 5.6.7


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"0", 0),
        (b"120", 120),
        (b"Sun, 06 Nov 1994 08:49:47 GMT", 10),
        (b"Sunday, 06-Nov-94 08:49:47 GMT", 10),
        (b"Sun Nov  6 08:49:47 1994", 10),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0),
        (b"Sun, 06 Nov 1994 08:00:00 GMT", 0),
        (b"Sun, 06 Nov 9999 08:49:47 GMT", None),
        (b"1234567890", None),
        (b"-1", None),
        (b"1.5", None),
        (b"soon", None),
        (b"", None),
        (b"Sun, 99 Nov 1994 08:49:47 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:47 +" + b"9" * 400, None),
    ],
)
def test_seconds(value: bytes, wanted: int | None) -> None:
    assert seconds_of(value, NOW) == wanted


def test_dates_are_not_of_the_zone_we_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    try:
        assert seconds_of(b"Sun Nov  6 08:49:47 1994", NOW) == 10
    finally:
        monkeypatch.undo()
        time.tzset()


def test_part_of_a_second_counts_as_one() -> None:
    assert seconds_of(b"Sun, 06 Nov 1994 08:49:47 GMT", NOW + 0.5) == 10


_DATE = "Sun, 06 Nov 1994 08:49:47 GMT"


@given(st.binary(max_size=40), st.integers(0, len(_DATE)), st.integers(0, len(_DATE)))
def test_any_bytes_are_survived(noise: bytes, at: int, end: int) -> None:
    for value in (noise, _DATE[:at].encode() + noise + _DATE[end:].encode()):
        seconds = seconds_of(value, NOW)
        assert seconds is None or 0 <= seconds <= 10**9


@with_rig(engines=2)
async def test_a_date_is_honoured_and_passed_on_in_seconds(rig: Rig) -> None:
    until = formatdate(time.time() + 300, usegmt=True).encode()
    rig.engines[0].default = plain(503, b"{}", b"retry-after: %b\r\n" % until)
    client = await rig.client()
    for _ in range(3):
        client.post()
        assert (await client.reply()).status == 200
    assert len(rig.engines[0].calls) == 1, "it is left alone"
    rig.engines[1].default = plain(503, b"{}", b"retry-after: soon\r\n")
    client.post()
    reply = await client.reply()
    assert reply.status == 503 and 290 <= int(reply.field("retry-after") or 0) <= 300
