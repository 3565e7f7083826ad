"""SLOs named by fields of a request: read, forwarded, and what is no time is left."""

from __future__ import annotations

import pytest

from lodestar_fast.proxy.parse_request import RequestParser
from tests.proxy_rig import Rig, chat, with_rig


def parsed(*fields: str) -> RequestParser:
    parser = RequestParser(65536, 65536)
    lines = "".join(f"{field}\r\n" for field in fields)
    data = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n{lines}\r\n"
    parser.parse(data.encode())
    assert parser.complete and parser.status == 0
    return parser


@pytest.mark.parametrize(
    ("fields", "ttft", "tpot"),
    [
        ((), -1, -1),
        (("x-slo-ttft-ms: 0", "x-slo-tpot-ms: 0.0"), 0, 0),
        (("x-slo-ttft-ms: 250",), 0.25, -1),
        (("X-SLO-TTFT-MS: 250", "X-Slo-Tpot-Ms: 30.5"), 0.25, 0.0305),
        (("x-llm-d-slo-ttft-ms: 250", "x-llm-d-slo-tpot-ms: 30"), 0.25, 0.03),
        (("x-slo-ttft-ms: 300", "x-llm-d-slo-ttft-ms: 200"), 0.2, -1),
        (("x-slo-ttft-ms: 200", "x-slo-ttft-ms: 300"), 0.2, -1),
        (("x-slo-ttft-ms: 0", "x-llm-d-slo-ttft-ms: 200"), 0.2, -1),
        (("x-slo-ttft-ms:   7  ",), 0.007, -1),
    ],
)
def test_the_least_of_what_is_asked_holds_and_nothing_is_minus_one(
    fields: tuple[str, ...], ttft: float, tpot: float
) -> None:
    parser = parsed(*fields)
    assert (parser.slo_ttft, parser.slo_tpot) == pytest.approx((ttft, tpot))
    assert not parser.slo_refused
    names = [line.split(b":")[0].decode() for line in parser.fields.split(b"\r\n") if line]
    assert names == [field.split(":")[0] for field in fields]  # they go on to the engine


@pytest.mark.parametrize(
    "value", ["", "-1", "1e3", "nan", "inf", "250ms", "1.2.3", ".", "1 2", "0x10", "1234567890"]
)
def test_what_is_no_number_of_milliseconds_is_left_and_noted(value: str) -> None:
    parser = parsed(f"x-slo-ttft-ms: {value}", "x-slo-tpot-ms: 20")
    assert (parser.slo_ttft, parser.slo_tpot) == pytest.approx((-1, 0.02))
    assert parser.slo_refused


@with_rig(engines=1)
async def test_the_router_is_told_and_the_engine_sees_it(rig: Rig) -> None:
    client = await rig.client()
    for extra, slo in (
        ("x-slo-ttft-ms: 150\r\nx-slo-tpot-ms: 25\r\n", (0.15, 0.025)),
        ("", (-1.0, -1.0)),
        ("x-slo-ttft-ms: soon\r\n", (-1.0, -1.0)),
    ):
        client.post(chat("hello"), extra=extra)
        assert (await client.reply()).status == 200
        assert rig.router.routes[-1]["slo"] == pytest.approx(slo)
        assert bool(rig.engines[0].calls[-1].field(b"x-slo-ttft-ms")) == bool(extra)
    assert rig.context.counters.snapshot()["slo_ignored"] == 1
