"""The C library by itself: it builds alone without a warning, survives csrc_fuzz.c and csrc_soak.c.

With its own ten seeds that is a minute. LODESTAR_FUZZ_SECONDS=600 goes on with fresh seeds for so
long; a seed that fails is in the output: run csrc_fuzz with it to see it again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SEEDS = range(1, 11)
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csrc_fuzz, built under address and undefined-behaviour sanitizers, allocation wrapped."""
    program = tmp_path_factory.mktemp("csrc") / "csrc_fuzz"
    assert CC is not None
    run(
        *(CC, "-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        *("-Wl,--wrap=malloc", "-Wl,--wrap=calloc", "-Wl,--wrap=realloc"),
        *(
            "-iquote",
            CSRC,
            *sorted(CSRC.glob("*.c")),
            *sorted((ROOT / "tests").glob("csrc_fuzz*.c")),
        ),
        *("-o", program, "-lm"),
    )
    return program


@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations_agree_with_slow_models(fuzz: Path, seed: int) -> None:
    assert run(fuzz, str(seed)) == ""


def test_fresh_seeds_for_as_long_as_asked(fuzz: Path) -> None:
    end = time.monotonic() + float(os.environ.get("LODESTAR_FUZZ_SECONDS", "50"))
    while time.monotonic() < end:
        assert run(fuzz, str(time.time_ns())) == ""


@pytest.mark.parametrize("arguments", [("100000",), ("20000", "new")], ids=" ".join)
def test_a_long_life_leaves_memory_flat_and_counters_at_zero(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Shorter than what csrc/README.md asks for before a release."""
    program = tmp_path / "csrc_soak"
    assert CC is not None
    run(
        *(CC, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
        *("-Wl,--wrap=malloc", "-Wl,--wrap=calloc", "-iquote", CSRC),
        *(*sorted(CSRC.glob("*.c")), ROOT / "tests/csrc_soak.c", "-o", program, "-lm"),
    )
    assert "slow both times" in run(program, *arguments)


def test_library_builds_alone_without_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "csrc"
    shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns("build"))
    run("make", "-C", folder, "CFLAGS=-O0", f"CC={CC}")
    assert (folder / "build/liblodestar.a").exists()


def test_nothing_but_creation_allocates() -> None:
    """Allocation stands in the functions that make and free; csrc_fuzz.c checks it at run time."""
    for path in CSRC.glob("*.c"):
        if path.name not in ("router.c", "radix.c", "record.c", "snapshot.c"):
            text = path.read_text()
            assert "alloc(" not in text and "stdlib.h" not in text, path.name
