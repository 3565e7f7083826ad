"""Compare a benchmark run with the baseline: one table, and a verdict in the exit status.

    python bench/compare.py BASELINE RESULTS [--ratio 1.5]      exit 1 past the ratio
    python bench/compare.py BASELINE RESULTS --accept           write RESULTS as the new BASELINE

Medians are compared. A benchmark of the baseline that is missing from the results is a failure; a
new one is shown. Both runs should come from one machine on one day; if not, the table says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

# The median of a microsecond call moves by up to a third between runs on a shared two-core machine.
RATIO = 1.5


def read(path: Path) -> dict[str, Any]:
    """A run: pytest-benchmark's JSON or what --accept made of it. Raises SystemExit."""
    try:
        run = json.loads(path.read_text())
        medians = {bench["name"]: float(bench["stats"]["median"]) for bench in run["benchmarks"]}
        machine = run["machine_info"]
        return {"medians": medians, "cpu": machine["cpu"].get("brand_raw", "unknown"), "run": run}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise SystemExit(f"{path}: not a benchmark run: {e!r}") from None


def short(name: str) -> str:
    return re.sub(r"^test_", "", name)


def compare(old: dict[str, float], new: dict[str, float], ratio: float) -> tuple[list[str], bool]:
    """The lines of the table, and whether all is well. Seconds in, microseconds shown."""
    width = max(len(short(name)) for name in {**old, **new, "benchmark": 0})
    lines = [f"{'benchmark':<{width}}  {'baseline us':>12}  {'now us':>12}  {'ratio':>6}"]
    well = True
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        columns = [f"{v * 1e6:12.3f}" if v is not None else f"{'-':>12}" for v in (before, after)]
        verdict = ""
        if before is None:
            verdict = "new"
        elif after is None:
            verdict, well = "MISSING", False
        else:
            verdict = f"{after / before:6.2f}"
            if after > before * ratio:
                verdict, well = verdict + "  SLOWER", False
        lines.append("  ".join([f"{short(name):<{width}}", *columns, verdict]))
    return lines, well


def accept(run: dict[str, Any], path: Path) -> None:
    """Write what a comparison needs of a run; the rounds and the host's name are left out."""
    machine = run["machine_info"]
    kept = {
        "machine_info": {
            "cpu": {key: machine["cpu"].get(key) for key in ("brand_raw", "count", "arch")},
            **{key: machine.get(key) for key in ("system", "libc", "python_version", "commit")},
        },
        "datetime": run.get("datetime", ""),
        "benchmarks": [
            {
                "name": bench["name"],
                "stats": {key: bench["stats"][key] for key in ("median", "iqr", "rounds")},
            }
            for bench in run["benchmarks"]
        ],
    }
    path.write_text(json.dumps(kept, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--ratio", type=float, default=RATIO, help="slower than this fails")
    parser.add_argument("--accept", action="store_true", help="make the results the baseline")
    args = parser.parse_args(argv)
    new = read(args.results)
    if args.accept:
        accept(new["run"], args.baseline)
        return 0
    old = read(args.baseline)
    lines, well = compare(old["medians"], new["medians"], args.ratio)
    print("\n".join(lines))
    if old["cpu"] != new["cpu"]:
        print(f"other machines: {old['cpu']} and {new['cpu']}; the ratios compare them, not code")
    print("ok" if well else f"a benchmark is missing, or slower than {args.ratio} x its baseline")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
