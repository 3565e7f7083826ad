"""From configuration to objects."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import msgspec
import pytest

from lodestar_fast import build
from lodestar_fast.config import Config, LimitsConfig, RoutingConfig
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.errors import ConfigError


def config(**routing: Any) -> Config:
    return Config(routing=RoutingConfig(**routing))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_each_policy_makes_a_router(name: str) -> None:
    router = build.make_router(config(policy=name))
    assert router.policy.name == name
    assert router.slots() == []


def test_switched_off_the_fallback_decides_and_nothing_learns() -> None:
    off = config(policy="lodestar", mode="off")
    assert build.make_router(off).policy.name == build.FALLBACK
    assert build.learner_starter(off) is None
    assert build.policy_name(RoutingConfig(policy="random", mode="off")) == "random"


def test_only_the_learned_policy_has_a_learner() -> None:
    assert build.learner_starter(config(policy="lmetric")) is None
    assert build.learner_starter(config(policy="lodestar")) is not None


def test_without_numpy_one_warning_and_the_router_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numpy" else found(name, *a)
    )
    with caplog.at_level(logging.WARNING):
        assert build.learner_starter(config(policy="lodestar")) is None
    assert [r.message.split(" (")[0] for r in caplog.records] == ["numpy is not installed"]


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        (
            {"policy": "best"},
            "routing.policy (--policy): no policy `best`; there are: cache_aware,",
        ),
        ({"mode": "shadow"}, "routing.mode (--mode): `shadow` is not supported yet"),
        ({"mode": "canary:5"}, "routing.mode (--mode): `canary:5` is not supported yet"),
        ({"mode": "On"}, "routing.mode (--mode): no mode `On`; there are: off, on"),
        ({"index_bytes": 1 << 50}, "routing.index_bytes"),
    ],
)
def test_what_cannot_be_is_named(routing: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        build.make_router(config(**routing))
    assert said in str(e.value)


def test_every_request_in_flight_gets_a_ticket() -> None:
    wanted = msgspec.structs.replace(
        config(policy="random"), limits=LimitsConfig(max_concurrent_requests=build.TICKETS + 1)
    )
    router = build.make_router(wanted)
    router.add_instance("e")
    tickets = {router.route(b"", 0.0).ticket for _ in range(build.TICKETS + 1)}
    assert 0 not in tickets and len(tickets) == build.TICKETS + 1
