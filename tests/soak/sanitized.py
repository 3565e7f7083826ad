"""The compiled parts, rebuilt under address and undefined-behaviour sanitizers (gcc's), tested.

    python -m tests.soak.sanitized [--count 10000] [arguments for pytest]

The tests that call them in their own process, then hostile requests and answers. What was built
before stays as it is: this build lies in build/sanitized. Status 0: nothing was found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "sanitized"
TESTS = """admission baselines body boxed counters decisions downstream engine engine_random
    exchange export failover features fleet fuzz llhttp mlp modes openai oracle policies
    proxy_data proxy_limits radix reader retry_after ring router sim slow_start speed truth
    upstream"""


def build() -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build"]
        + ["--build-lib", str(BUILT), "--build-temp", str(BUILT.with_suffix(".temp"))],
        cwd=ROOT,
        env={**os.environ, "LODESTAR_SANITIZE": "1", "CC": os.environ.get("CC", "gcc")},
        check=True,
    )


def environment() -> dict[str, str]:
    """Of a Python that imports what build() made."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(BUILT), str(ROOT))),
        "PYTHONMALLOC": "malloc",  # else objects lie within blocks that the sanitizer does not know
        "TEST_PATIENCE": "300",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself keeps much to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="hostile requests and answers")
    args, more = parser.parse_known_args()
    if not shutil.which("gcc"):
        print("gcc and its libasan are needed")
        return 2
    build()
    python = [sys.executable, "-P", "-m"]
    check = "import lodestar_fast.core.router as r; print(r.__file__)"
    paths = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS.split()]
    commands = [
        [sys.executable, "-P", "-c", check],
        # Reports of the sanitizers are written past Python, so that only sys is captured.
        python
        + ["pytest", "-q", "--capture=sys", "--timeout=1800", "-o", f"pythonpath={BUILT} {ROOT}"]
        + [*paths, *more],
        python + ["tests.soak.fuzz", "--seeds", "1", "--count", str(args.count)],
    ]
    env = environment()
    return max(subprocess.run(command, cwd=ROOT, env=env).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
