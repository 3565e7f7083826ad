"""Other routers' flags: the same setting, or a word on what to do instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lodestar_fast import cli
from lodestar_fast.aliases import ALIASES, HINTS, hints_as_markdown, names_as_markdown
from lodestar_fast.config import Config, options
from lodestar_fast.core.policies import POLICIES

MIGRATION = (Path(__file__).parent.parent / "deploy" / "migration.md").read_text()
OURS = {option.name: option for option in options()}


def resolved(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, dict[str, object]]:
    assert cli.main(["check-config", "--json", *flags]) == 0
    tree: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return tree


@pytest.mark.parametrize("flag", ALIASES)
def test_each_alias_sets_what_it_stands_for(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    alias = ALIASES[flag]
    option = OURS[alias.name]
    assert flag != option.flag and flag not in {o.flag for o in options()}
    text = {"worker_urls": "http://a:1", "policy": "random"}.get(alias.name, "7")
    ours = resolved(capsys, option.flag, alias.value or alias.convert(text))
    theirs = resolved(capsys, flag, *(() if alias.value else (text,)))
    assert ours == theirs
    assert theirs[option.section][alias.name] != getattr(
        getattr(Config(), option.section), alias.name
    )


def test_command_lines_of_others_work(capsys: pytest.CaptureFixture[str]) -> None:
    stack = resolved(
        capsys,
        *("--port", "8001", "--static-backends", "http://a:1,http://b:2"),
        *("--engine-stats-interval", "10", "--routing-logic", "roundrobin"),
        *("--max-instance-failover-reroute-attempts", "3"),
    )
    assert stack["fleet"]["worker_urls"] == ["http://a:1", "http://b:2"]
    assert stack["routing"]["policy"] == "round_robin" and stack["limits"]["max_retries"] == 3
    smg = resolved(
        capsys,
        *("--worker-urls", "http://a:1", "http://b:2", "--policy", "cache_aware"),
        *("--retry-max-retries", "5", "--prometheus-port", "29001", "--log-level", "warn"),
        *("--max-payload-size", "1048576", "--request-timeout-secs", "600"),
    )
    assert smg["limits"]["max_retries"] == 4 and smg["serve"]["log_level"] == "warning"
    assert smg["serve"]["admin_port"] == 29001
    assert resolved(capsys, "--disable-retries")["limits"]["max_retries"] == 0
    assert resolved(capsys, "--retry-max-retries", "1")["limits"]["max_retries"] == 0


@pytest.mark.parametrize("flag", HINTS)
def test_what_differs_is_refused_with_a_word(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", flag, "x"]) == 2
    assert HINTS[flag] in capsys.readouterr().err
    assert cli.main(["check-config", flag]) == 2


def test_a_wrong_value_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", "--prometheus-port", "x"]) == 2
    assert "--admin-port" in capsys.readouterr().err
    assert cli.main(["check-config", "--retry-max-retries", "some"]) == 2


def test_the_guide_has_both_tables() -> None:
    assert names_as_markdown() in MIGRATION
    assert hints_as_markdown() in MIGRATION


def test_hints_name_what_exists() -> None:
    for text in HINTS.values():
        for word in text.replace(",", " ").replace(";", " ").replace(":", " ").split():
            assert not word.startswith("--") or word in {o.flag for o in options()} | {"--config"}
    assert "cache_aware" in POLICIES
