"""deploy/rollout.md names only what exists: commands, options, routes, files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lodestar_fast.governor import share_of

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "deploy" / "rollout.md").read_text()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links
    for link in links:
        assert (ROOT / "deploy" / link).exists(), link
    for picture in (ROOT / "deploy").glob("*.png"):
        assert picture.stat().st_size < 150_000


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["watch"], {"--mode", "--slow-after"}),
        (["model", "show"], {"--admin"}),
        (["model", "export"], {"--version"}),
        (["model", "import"], {"--admin", "--as"}),
    ],
)
def test_commands_and_options_exist(words: list[str], options: set[str]) -> None:
    assert f"lodestar {words[0]}" in GUIDE
    done = subprocess.run(
        [sys.executable, "-m", "lodestar_fast", *words, "--help"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options)


def test_targets_modes_and_routes_exist() -> None:
    assert re.search(r"^watch: build$", (ROOT / "Makefile").read_text(), re.M)
    modes = re.findall(r'"mode":"([^"]+)"', GUIDE)
    assert {share_of(mode) for mode in modes} == {0.0, 0.1, 1.0}
    source = "".join(p.read_text() for p in (ROOT / "lodestar_fast" / "proxy").glob("*.py"))
    for route in set(re.findall(r"/admin/(\w+)", GUIDE)):
        assert f'"/admin/{route}"' in source or f'["admin", "{route}"]' in source, route
