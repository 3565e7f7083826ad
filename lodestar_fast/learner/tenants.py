"""How much each tenant may teach: the rule of shares.py on the weights of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import shares

Vector = NDArray[np.float64]


def factors(tenant: NDArray[np.uint32], weight: Vector) -> Vector:
    """(n,) factors in [LEAST, 1] on the weights (n,), all above 0, of rows by tenant (n,)."""
    names, of = np.unique(tenant, return_inverse=True)
    if len(names) < 2:
        return np.ones(len(tenant))
    own: Vector = np.bincount(of, weight).astype(np.float64)
    factor = np.clip(shares.most(own.tolist()) / own, shares.LEAST, 1.0)
    factor[names == shares.VERIFIED] = 1.0
    out: Vector = factor[of]
    return out


class Recent:
    """Who sent the newest rows of a stream, for a fit that keeps sums and no rows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tenant: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._weight: Vector = np.zeros(0)

    def factors(self, tenant: NDArray[np.uint32], weight: Vector) -> Vector:
        """(n,) factors on the weights of these rows, which are the newest now."""
        n = len(tenant)
        self._tenant = np.concatenate([self._tenant, tenant])[-max(self._size, n) :]
        self._weight = np.concatenate([self._weight, weight])[-max(self._size, n) :]
        return factors(self._tenant, self._weight)[len(self._tenant) - n :]
