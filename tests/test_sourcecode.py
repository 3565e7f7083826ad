"""Rules about the source itself, so that nobody has to remember them.

The table of imports below is the authority on who may use whom.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lodestar_fast"
MAX_LINES = 400

LEAVES = {"aliases", "config", "clock", "errors", "metrics", "log"}  # nothing of ours but errors
# Module or folder of the package: what it may import of ours. `learner` is the whole folder;
# `learner:protocol` is lodestar_fast/learner/__init__.py, which imports neither torch nor numpy.
MAY_IMPORT: dict[str, set[str]] = {
    **{leaf: {"errors"} for leaf in LEAVES},
    "families": set(),
    "metrics": {"families", "metrics_discovery", "metrics_events", "metrics_model"},
    "metrics_discovery": {"families"},
    "metrics_events": {"families"},
    "metrics_model": {"families"},
    "core": {"errors", "shares"},
    "shares": set(),
    "features": {"core"},
    "learner": {"features", "config", "errors", "shares"},
    "sim": {"core", "features", "learner", "config", "clock", "errors", "decisions"},
    "decisions": {"core", "features", "errors"},
    "proxy": {"core", "learner:protocol", "governor", "history", "decisions"} | LEAVES,
    "watchdog": {"core"},
    "history": {"errors"},
    "governor": {"core", "features", "learner:protocol", "errors", "history", "watchdog"},
    "model": {"errors", "features", "history"},
    "build": {"core", "features", "learner", "config", "clock", "errors", "governor"},
    "summary": {"errors"},
    "slo": {"sim", "summary"},
    "terminal": {"clock", "summary"},
    "plots": {"errors", "summary"},
    "report": {"config", "errors", "summary", "sim", "plots"},
    "loadgen": {"sim", "errors", "clock", "summary"},
    "replay": {"sim", "config", "errors", "clock", "summary", "terminal", "loadgen"},
    "simulate": {"sim", "core", "learner", "config", "errors", "clock", "governor"}
    | {"summary", "slo", "terminal", "plots", "report"},
    "matrix": {"sim", "core", "config", "errors", "clock"}
    | {"summary", "slo", "plots", "report", "simulate", "watchdog"},
    "watch": {"sim", "errors", "summary", "terminal", "loadgen", "replay", "report", "demo"},
    "demo": {"sim", "errors", "clock", "summary", "slo", "terminal", "loadgen", "replay", "report"},
}
FREE = {"cli", "__init__", "__main__"}


def unit(parts: list[str]) -> str:
    """The name by which the table knows a module of ours."""
    if not parts:
        return "__init__"
    return "learner:protocol" if parts == ["learner"] else parts[0]


def imports(path: Path) -> Iterator[str]:
    """Dotted names imported by a Python or Cython file."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        return
    pattern = r"^\s*(?:from\s+([\w.]+)\s+c?import\s+\(?([\w, ]+)|c?import\s+([\w.]+))"
    for match in re.finditer(pattern, path.read_text(), re.M):
        module, names, plain = match.groups()
        if plain:
            yield plain
        else:
            yield from (f"{module}.{name.split()[0]}" for name in names.split(",") if name.strip())


def ours(dotted: str) -> str | None:
    """The table's name for what a dotted name of ours lies in; None if it is not ours."""
    head, *rest = dotted.split(".")
    if head != "lodestar_fast":
        return None
    path, parts = PACKAGE, []
    for name in rest:
        path = path / name
        if not (path.is_dir() or list(path.parent.glob(f"{name}.py*"))):
            break
        parts.append(name)
    return unit(parts)


def sources(*suffixes: str) -> list[Path]:
    return sorted(
        p for s in suffixes for p in PACKAGE.rglob(f"*{s}") if "__pycache__" not in p.parts
    )


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(".py", ".pyx", ".pxd"), ids=relative)
def test_imports_follow_the_table(path: Path) -> None:
    owner = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if owner in FREE:
        return
    assert owner in MAY_IMPORT, f"{relative(path)}: give {owner} a row in MAY_IMPORT"
    allowed = MAY_IMPORT[owner] | {owner, "__init__"}
    if "learner" in allowed:
        allowed.add("learner:protocol")
    for dotted in imports(path):
        used = ours(dotted)
        assert used is None or used in allowed, f"{relative(path)} imports {dotted}"


@pytest.mark.parametrize("path", sources(".py", ".pyx"), ids=relative)
def test_torch_stays_with_the_learner(path: Path) -> None:
    """And with the model of the published learner, which only a simulation makes."""
    if path.relative_to(PACKAGE).parts[0] == "learner" and path.name != "__init__.py":
        return
    if relative(path) == "lodestar_fast/sim/paper/model.py":
        return
    heads = {dotted.split(".")[0] for dotted in imports(path)}
    assert "torch" not in heads, f"{relative(path)} imports torch"


def test_only_cli_reads_the_environment() -> None:
    for path in sources(".py", ".pyx"):
        if path.name != "cli.py":
            assert not re.search(r"os\.environ|getenv", path.read_text()), relative(path)


def test_core_and_simulator_read_no_clock() -> None:
    """Time is an argument there; only the HTTP face of the engine runs in real time."""
    for path in sources(".pyx", ".py"):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] == "core" or (parts[0] == "sim" and path.stem != "engine_http"):
            clock = re.search(
                r"\btime\.(time|monotonic|perf_counter)|clock_gettime", path.read_text()
            )
            assert not clock, relative(path)


def test_c_library_stands_alone() -> None:
    for path in sorted((ROOT / "csrc").glob("*.[ch]")):
        text = path.read_text()
        assert "Python.h" not in text, path.name
        assert not re.search(r"\b(printf|time|clock_gettime|rand)\s*\(", text), path.name


def test_only_core_knows_the_c_library() -> None:
    for path in sources(".pyx", ".pxd"):
        if path.relative_to(PACKAGE).parts[0] != "core":
            assert "lodestar.h" not in path.read_text(), relative(path)


def test_files_are_short() -> None:
    files = [*sources(".py", ".pyx", ".pxd", ".pyi"), *(ROOT / "csrc").glob("*.[ch]")]
    files += [*(ROOT / "tests").glob("*.py"), *(ROOT / "bench").glob("*.py")]
    long = {relative(p): n for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"split or cut: {long}"


def test_each_extension_has_its_types() -> None:
    for path in sources(".pyx"):
        assert path.with_suffix(".pyi").exists(), f"{relative(path)} has no .pyi"


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["cython-lint", "lodestar_fast"],
        ["mypy"],
    ],
    ids=" ".join,
)
def test_linters_agree(command: list[str]) -> None:
    run(*command)


def test_c_is_formatted() -> None:
    run(
        "clang-format",
        "--dry-run",
        "--Werror",
        *map(str, [*(ROOT / "csrc").glob("*.[ch]"), *(ROOT / "tests").glob("*.c")]),
    )


def run(program: str, *arguments: str) -> None:
    """Run a tool of the environment that runs the tests; it must find nothing."""
    bin = Path(sys.executable).parent
    done = subprocess.run(
        [bin / program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"},  # cython-lint calls pycodestyle
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
