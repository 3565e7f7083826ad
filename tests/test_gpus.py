"""The GPU table and the fleet notation."""

from __future__ import annotations

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.sim.gpus import GPUS, EngineSpec, parse_fleet, spec


def test_table_has_every_gpu_of_the_command_line() -> None:
    assert list(GPUS) == "a10 a30 a40 a100 h20 h100 h200 l20 l40s v100".split()
    assert all(GPUS[name].gpu == name for name in GPUS)


def test_spec_takes_overrides_and_ignores_case() -> None:
    assert spec("A30", kv_tokens=4096).kv_tokens == 4096
    assert spec("a30").blocks == 36_000 // 16


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: spec("b300"), "b300"),
        (lambda: spec("a30", colour=1), "colour"),
        (lambda: spec("a30", kv_tokens=3), "kv_tokens"),
        (lambda: spec("a30", w=-1.0), "w must"),
        (lambda: spec("a30", c=float("nan")), "c must"),
        (lambda: spec("a30", q=0.5), "q must"),
        (lambda: spec("a30", w=0.0, h=0.0), "w \\+ h"),
        (lambda: spec("a30", max_seqs=0), "max_seqs"),
        (lambda: spec("a30").scaled(z=2.0), "'z'"),
    ],
)
def test_impossible_specs_name_what_is_wrong(build: object, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        build()  # type: ignore[operator]


def test_scaled_multiplies_only_what_is_named() -> None:
    base = spec("h100")
    scaled = base.scaled(c=1.25, k=0.8)
    assert (scaled.c, scaled.k, scaled.w) == (base.c * 1.25, base.k * 0.8, base.w)


def test_published_idle_figures_of_the_model() -> None:
    """8k tokens of prefill in 2k chunks and decode at 1k context, as the model's notes state."""
    assert 8192 / spec("a100", h=0.3).idle_ttft(8192) == pytest.approx(14_700, rel=0.03)
    assert 8192 / spec("h100", h=0.3).idle_ttft(8192) == pytest.approx(42_500, rel=0.04)
    decode_32 = spec("a100", h=0).iteration_seconds(32, 0, 32_000, 32)
    assert decode_32 == pytest.approx(14.9e-3, rel=0.04)


def test_idle_ttft_recomputes_at_least_one_token() -> None:
    a30 = spec("a30")
    assert a30.idle_ttft(1000, 1000) == a30.idle_ttft(1000, 999) > 0
    chunked = spec("v100", chunked=True, max_batched_tokens=512)
    assert spec("v100").idle_ttft(8000) < chunked.idle_ttft(8000)


def test_fleet_keeps_the_written_order() -> None:
    fleet = parse_fleet("2xa30+1xl20+h100")
    assert [engine.gpu for engine in fleet] == ["a30", "a30", "l20", "h100"]
    assert all(isinstance(engine, EngineSpec) for engine in fleet)


def test_fleet_overrides_reach_every_engine() -> None:
    assert {engine.kv_tokens for engine in parse_fleet("a30+h100", kv_tokens=999)} == {999}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2xa30+", "''"),
        ("", "''"),
        ("2xa30+3xq9", "'3xq9'.*unknown GPU 'q9'"),
        ("0xa30", "'0xa30' has a count of 0"),
        ("a30*2", "'a30\\*2'"),
        ("-1xa30", "'-1xa30'"),
        ("999999xa30", "more than 4096"),
    ],
)
def test_a_bad_fleet_names_the_bad_part(text: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse_fleet(text)
