"""Count the instructions of the C library's hot functions and compare them with the counts stored.

    python bench/instructions.py [NAME ...]     a table; exit 1 past the ratio
    python bench/instructions.py --accept       store these counts

Instructions per round of each case of driver.c, under valgrind's callgrind. They do not depend on
what else the machine does: two runs of one build differ by nothing. They are not time: a miss in a
cache counts nothing, and a division as much as an addition. Needs only the standard library, a
C compiler and valgrind; without valgrind nothing is measured, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STORED = Path(__file__).with_name("instructions.json")
ROUNDS = 50
RATIO = 1.05  # of the same compiler's code; other versions of it shift counts by some percent


def run(*command: str | Path) -> str:
    """stdout and stderr together. Raises SystemExit if the command fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def build() -> Path:
    run("make", "-s", "-C", ROOT / "csrc", "build/driver")
    return ROOT / "csrc/build/driver"


def count(driver: Path, name: str, rounds: int = ROUNDS) -> float:
    """Instructions of one round."""
    text = run(
        *("valgrind", "--tool=callgrind", "--toggle-collect=measured"),
        *("--callgrind-out-file=/dev/null", driver, name, str(rounds)),
    )
    found = re.search(r"Collected : (\d+)", text)
    if found is None:
        raise SystemExit(f"callgrind says nothing of {name}:\n{text}")
    return int(found[1]) / rounds


def where() -> dict[str, str]:
    """What the counts depend on, but for the source."""
    compiler = run("cc", "--version").splitlines()[0]
    flags = Path("/proc/cpuinfo")
    avx2 = flags.exists() and "avx2" in flags.read_text()
    return {"compiler": compiler, "machine": platform.machine() + (" avx2" if avx2 else "")}


def compare(old: dict[str, float], new: dict[str, float]) -> tuple[list[str], bool]:
    """The lines of the table, and whether no case is past the ratio."""
    lines = [f"{'case':<28} {'stored':>12} {'now':>12} {'ratio':>7}"]
    well = True
    for name, now in new.items():
        before = old.get(name)
        verdict = "new" if before is None else f"{now / before:.3f}"
        if before is not None and now > before * RATIO:
            verdict, well = verdict + "  MORE", False
        shown = "-" if before is None else f"{before:.0f}"
        lines.append(f"{name:<28} {shown:>12} {now:>12.0f} {verdict:>7}")
    return lines, well


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="cases; all if none is given")
    parser.add_argument("--accept", action="store_true", help="store these counts")
    args = parser.parse_args(argv)
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: nothing is counted")
        return 0
    driver = build()
    names = run(driver).split()
    if unknown := set(args.names) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    new = {name: count(driver, name) for name in args.names or names}
    if args.accept:
        STORED.write_text(json.dumps({**where(), "instructions": new}, indent=1) + "\n")
        return 0
    stored = json.loads(STORED.read_text())
    lines, well = compare(stored["instructions"], new)
    print("\n".join(lines))
    for key, value in where().items():
        if value != stored[key]:
            print(f"other {key}: {stored[key]} and {value}; the ratios do not compare code alone")
            well = True
    print("ok" if well else f"more than {RATIO} x the instructions stored")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
