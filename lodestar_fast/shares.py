"""How much each tenant may weigh: nobody more than a share, while there are others.

A client controls part of what is measured: it chooses its prompts, reads slowly, gives up. One that
sends most of the traffic would otherwise write the model for all, and its watchdog's judgement. So
where a tenant's weight in the rows at hand is more than SHARE of all, its rows count less, and the
rest decides:

    factor = SHARE total / own weight       total: what is left of all when everyone is capped

With n < 4 tenants the share is 1/n. A row counts LEAST at the least. For else, beside one client
that makes nearly all traffic, a handful of stray requests would be all there is to learn from (and
their sender could write the model); with it the share holds for a tenant of up to nine tenths.

Verified rows, the operator's own requests, are never cut.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

SHARE: Final = 0.3
LEAST: Final = 0.03
VERIFIED: Final = 2  # LS_VERIFIED in csrc/lodestar.h; hashes of other tenants are odd


def most(weights: Collection[float]) -> float:
    """The weight that the largest of these are cut to, so that each has at most its share."""
    share = max(SHARE, 1.0 / len(weights))
    rest = float(sum(weights))
    out = 0.0
    for count, largest in enumerate(sorted(weights, reverse=True)):
        # With `count` cut already, is the next one within its share?
        allowed = share * rest / (1.0 - share * count)
        out = max(allowed, largest)
        if largest <= allowed or share * (count + 1) >= 1.0:
            break
        rest -= largest
    return out
