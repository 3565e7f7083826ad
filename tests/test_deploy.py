"""What operators copy must load, and must name only what exists."""

from __future__ import annotations

import json
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


PARTS = ("total", "bucket", "sum", "count")  # what the format adds to a declared name


def exported() -> set[str]:
    """Names of the series that metrics*.py can produce, from their declarations."""
    files = (DEPLOY.parent / "lodestar_fast").glob("metrics*.py")
    source = "".join(file.read_text() for file in files)
    names = set(re.findall(r'"(lodestar_\w+)"', source))
    return names | {f"{name}_{part}" for name in names for part in PARTS}


def used(text: str) -> set[str]:
    return set(re.findall(r"\blodestar_\w+", text))


def test_alerts_and_dashboard_name_only_metrics_that_exist() -> None:
    for file in ("alerts.yml", "grafana.json"):
        names = used((DEPLOY / file).read_text())
        assert len(names) > 5
        assert not names - exported(), f"{file} names {names - exported()}"


def test_dashboard_panels_explain_themselves() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(p["description"] and p["targets"] for p in panels)


def test_dashboard_panels_stand_side_by_side() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_dashboard_expressions_are_promql(tmp_path: Path) -> None:
    """promtool reads them as rules, once Grafana's own variables have values."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    expressions = [t["expr"] for panel in panels for t in panel.get("targets", ())]
    assert len(expressions) > 20
    rules = [
        {"record": f"panel:{i}", "expr": expr.replace("$__rate_interval", "1m")}
        for i, expr in enumerate(expressions)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
