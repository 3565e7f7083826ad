"""100,000 hostile requests and answers: 5 seeds, 16,000 requests and 4,000 answers each.

    python -m tests.soak.fuzz [--seeds 5] [--count 20000]

Prints what was seen; ends with status 1 if something that must hold did not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import uvloop

from tests.hostile import fuzz_answers, fuzz_requests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000)
    args = parser.parse_args()
    faults: Counter[str] = Counter()
    for seed in range(args.seeds):
        for fuzz, count in ((fuzz_requests, args.count * 4 // 5), (fuzz_answers, args.count // 5)):
            start = time.monotonic()
            found, seen = uvloop.run(fuzz(seed, count))
            faults += found
            statuses = " ".join(f"{status}:{n}" for status, n in sorted(seen.items()))
            took = time.monotonic() - start
            print(
                f"seed {seed} {fuzz.__name__} {count} in {took:.0f} s, faults {found.total()}, "
                f"statuses {statuses}",
                flush=True,
            )
    for fault, n in faults.most_common(20):
        print(n, fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
