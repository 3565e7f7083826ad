"""How much each tenant may teach: nobody more than a share, while there are others.

A client controls part of what is measured: it chooses its prompts, reads slowly, gives up. One that
sends most of the traffic would otherwise write the model for all. So where a tenant's weight in the
rows at hand is more than SHARE of all, its rows count less, and the rest decides:

    factor = SHARE total / own weight       total: what is left of all when everyone is capped

With n < 4 tenants the share is 1/n. A row counts LEAST at the least. For else, beside one client
that makes nearly all traffic, a handful of stray requests would be all there is to learn from (and
their sender could write the model); with it the share holds for a tenant of up to nine tenths.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

SHARE: Final = 0.3
LEAST: Final = 0.03


def factors(tenant: NDArray[np.uint32], weight: Vector) -> Vector:
    """(n,) factors in [LEAST, 1] on the weights (n,), all above 0, of rows by tenant (n,)."""
    names, of = np.unique(tenant, return_inverse=True)
    if len(names) < 2:
        return np.ones(len(tenant))
    own: Vector = np.bincount(of, weight).astype(np.float64)
    out: Vector = np.clip(_capped(own) / own, LEAST, 1.0)[of]
    return out


def _capped(own: Vector) -> Vector:
    """The weights, the largest cut to SHARE of their then sum (1/n of it if there are n < 4)."""
    share = max(SHARE, 1.0 / len(own))
    order = np.sort(own)[::-1]
    rest = float(order.sum())
    for count, largest in enumerate(order):
        # With `count` cut already, is the next one within its share?
        total = rest / (1.0 - share * count)
        if largest <= share * total or share * (count + 1) >= 1.0:
            break
        rest -= float(largest)
    out: Vector = np.minimum(own, max(share * total, float(largest)))
    return out
