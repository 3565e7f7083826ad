"""What operators copy must load, and must name only what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest
import yaml

from lodestar_fast.config import Config, options, resolve

DEPLOY = Path(__file__).parent.parent / "deploy"
TOML = DEPLOY / "lodestar.toml"


def test_toml_loads_and_is_the_defaults() -> None:
    config = resolve({}, {}, TOML.read_text(), str(TOML))
    assert config == Config()


def test_toml_names_every_setting_with_its_help() -> None:
    tree = tomllib.loads(TOML.read_text())
    assert tree == msgspec.to_builtins(Config())
    for option in options():
        assert f"# {option.help}\n{option.name} = " in TOML.read_text()


def test_compose_uses_options_that_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    verb, *command = compose["services"]["router"]["command"]
    assert verb == "serve"
    known = {option.flag for option in options()}
    used = {word for word in command if word.startswith("--")}
    assert used and used <= known


def test_compose_files_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for secret in compose["secrets"].values():
        assert (DEPLOY / secret["file"]).exists()
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M):
        for name in line.split():
            assert (DEPLOY.parent / name).exists(), f"Dockerfile copies {name}"


def test_prometheus_config_is_valid() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
