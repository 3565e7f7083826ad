"""The README says only what is so."""

from __future__ import annotations

import re
from pathlib import Path

from lodestar_fast import features
from lodestar_fast.config import options
from lodestar_fast.core.enums import Reason

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_can_be_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 220


def test_the_feature_table_is_the_cores() -> None:
    match = re.search(r"<!-- features.*? -->\n(.*?)\n<!-- /features -->", README, re.S)
    assert match and match[1] == features.as_markdown().strip()


def test_files_it_names_exist() -> None:
    named = set(re.findall(r"`((?:csrc|core|proxy|learner|lodestar_fast|bench)/[\w./]+)`", README))
    named |= {path for path in re.findall(r"\]\(([^)]+)\)", README) if "://" not in path}
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "lodestar_fast" / path).exists(), path


def test_serve_options_it_names_exist() -> None:
    knobs = re.search(r"## Knobs that matter\n(.*?)\n## ", README, re.S)
    assert knobs
    named = set(re.findall(r"^\| `(--[\w-]+)`", knobs[1], re.M))
    assert len(named) > 5 and named <= {option.flag for option in options()}


def test_every_reason_is_explained() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", README, re.M))
    assert {reason.name.lower() for reason in Reason} <= table
