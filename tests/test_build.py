"""From configuration to objects."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lodestar_fast import build
from lodestar_fast.config import Config, LearnerConfig, LimitsConfig, RoutingConfig
from lodestar_fast.core import POLICIES, Reason
from lodestar_fast.core.modes import Guarded
from lodestar_fast.errors import ConfigError
from lodestar_fast.learner import Learner
from lodestar_fast.learner.thread import InlineLearner


def config(**routing: Any) -> Config:
    return Config(routing=RoutingConfig(**routing))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_each_policy_makes_a_router(name: str) -> None:
    router = build.make_router(config(policy=name))
    assert router.policy.name == name
    assert router.slots() == []


@pytest.mark.parametrize("mode", ["off", "shadow", "canary:12.5", "on"])
def test_the_learned_policy_is_guarded_in_every_mode(mode: str) -> None:
    wanted = config(policy="lodestar", mode=mode)
    router = build.make_router(wanted)
    assert isinstance(router.policy, Guarded) and router.policy.fallback.name == build.FALLBACK
    governor = build.make_governor(wanted, router)
    assert governor is not None and governor.mode == mode and governor.learner is None
    shares = {"off": 0.0, "shadow": 0.0, "canary:12.5": 0.125, "on": 1.0}
    assert router.policy.share == shares[mode]
    for _ in range(2):
        router.add_instance("e")
    reasons = {"off": Reason.HEURISTIC}
    assert router.route(b"", 0.0).reason == reasons.get(mode, Reason.COLD)


def test_switched_off_no_learner_is_started_until_it_is_needed() -> None:
    wanted = config(policy="lodestar", mode="off")
    governor = build.make_governor(wanted, build.make_router(wanted))
    assert governor is not None and governor.start_learner is not None
    made: list[Learner] = []

    def start() -> Learner:
        made.append(InlineLearner(LearnerConfig(model="linear")))
        return made[-1]

    governor.start_learner = start
    governor.ensure_learner()
    assert governor.learner is None
    governor.set_mode("shadow")
    governor.set_mode("on")
    assert [governor.learner] == made


def test_only_the_learned_policy_has_a_governor() -> None:
    wanted = config(policy="lmetric")
    assert build.make_governor(wanted, build.make_router(wanted)) is None


def test_without_numpy_one_warning_and_the_router_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numpy" else found(name, *a)
    )
    wanted = config(policy="lodestar")
    with caplog.at_level(logging.WARNING):
        governor = build.make_governor(wanted, build.make_router(wanted))
    assert [r.message.split(" (")[0] for r in caplog.records] == ["numpy is not installed"]
    assert governor is not None
    governor.ensure_learner()
    assert governor.learner is None


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        (
            {"policy": "best"},
            "routing.policy (--policy): no policy `best`; there are: cache_aware,",
        ),
        ({"mode": "On"}, "routing.mode (--mode): no mode `On`; there are: off, shadow, canary:P"),
        ({"mode": "canary"}, "routing.mode (--mode): no mode `canary`"),
        ({"mode": "canary:0"}, "routing.mode (--mode): no mode `canary:0`"),
        ({"mode": "canary:100"}, "routing.mode (--mode): no mode `canary:100`"),
        ({"mode": "canary:nan"}, "routing.mode (--mode): no mode `canary:nan`"),
        ({"mode": "shadow:5"}, "routing.mode (--mode): no mode `shadow:5`"),
        ({"index_bytes": 1 << 50}, "routing.index_bytes"),
    ],
)
def test_what_cannot_be_is_named(routing: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        build.make_router(config(**routing))
    assert said in str(e.value)


def test_the_key_of_the_index_is_secret_and_kept_in_the_state_folder(tmp_path: Path) -> None:
    assert build.index_key("") != build.index_key("")
    folder = tmp_path / "state"
    key = build.index_key(str(folder))
    assert len(key) == 64 and build.index_key(str(folder)) == key
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"cut")
    with pytest.raises(ConfigError, match="has not 64 bytes"):
        build.index_key(str(folder))


def test_every_request_in_flight_gets_a_ticket() -> None:
    wanted = msgspec.structs.replace(
        config(policy="random"), limits=LimitsConfig(max_concurrent_requests=build.TICKETS + 1)
    )
    router = build.make_router(wanted)
    router.add_instance("e")
    tickets = {router.route(b"", 0.0).ticket for _ in range(build.TICKETS + 1)}
    assert 0 not in tickets and len(tickets) == build.TICKETS + 1
