"""Two real vLLM for all tests of this folder, and a router before them.

REAL_VENV and REAL_MODEL name what install.py fills.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.engines import Engine, Router, started


@pytest.fixture(scope="session")
def venv() -> Path:
    return Path(os.environ.get("REAL_VENV", ".venv-real")).absolute()


@pytest.fixture(scope="session")
def model(venv: Path) -> Path:
    return Path(os.environ.get("REAL_MODEL", venv / "model")).absolute()


@pytest.fixture(scope="session")
def engines(
    venv: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Engine]]:
    logs = tmp_path_factory.mktemp("logs")
    both = [Engine(venv, model, core, logs / f"engine{core}.log") for core in range(2)]
    with started(both) as engines:
        yield engines


@pytest.fixture
def router(engines: list[Engine], tmp_path: Path) -> Iterator[Router]:
    with Router(engines, tmp_path / "router.log", "--gone-grace", "2") as it:
        it.until_healthy(2)
        yield it
