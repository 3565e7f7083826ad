"""CPU of a poll of GET /admin/state and of a point of its series: python bench/state_cost.py

By number of engines, in milliseconds of process time; each has 64 first tokens in its ring.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

from lodestar_fast.proxy.overview import POINTS, STEP  # noqa: E402
from tests.test_overview import Stage  # noqa: E402

REPEAT = 40


async def main() -> None:
    for engines in (8, 64, 300):
        at = Stage(engines)
        for _ in range(64):
            for slot in range(engines):
                at.serve(slot, 0.1)
        for _ in range(POINTS):
            await at.overview.record()
        cost = {"record": 0.0, "state": 0.0}
        for _ in range(REPEAT):
            at.clock.advance_to(at.clock.now() + STEP)
            start = time.process_time()
            await at.overview.record()
            middle = time.process_time()
            size = len(msgspec.json.encode(await at.overview.state(POINTS)))
            cost["record"] += middle - start
            cost["state"] += time.process_time() - middle
        record, state = (1e3 * seconds / REPEAT for seconds in cost.values())
        print(f"{engines:>4} engines: state {state:.2f} ms, {size:,} bytes; point {record:.2f} ms")


asyncio.run(main())
