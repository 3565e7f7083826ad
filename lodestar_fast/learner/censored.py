"""What is learned from a time that was waited in vain: it would have taken longer than that.

The censored regression of Tobin (1958), with normal errors. Given that a normal observation lies
above c, where T is expected and s is the spread, with z = (c - T) / s and the hazard

    m(z) = phi(z) / (1 - Phi(z))

it is expected at T + s m, and a step of Newton's method on its likelihood is one of least squares
toward T + s / (m - z) with the weight m (m - z). The weight is nearly 0 where c is far below T
(waiting so long tells nothing) and nearly 1 where it is far above it (there the target is c and a
bit more).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def hazard(z: float) -> float:
    """Of the standard normal distribution."""
    if z > 20.0:  # both parts of the fraction underflow
        return z + 1.0 / z - 2.0 / z**3
    return math.sqrt(2.0 / math.pi) * math.exp(-0.5 * z * z) / math.erfc(z / math.sqrt(2.0))


def tail(z: float) -> tuple[float, float]:
    """The weight of what lies above z, and its target in spreads above what was expected."""
    m = hazard(z)
    return m * (m - z), 1.0 / (m - z)


def likely(
    waited: NDArray[np.float32], expected: NDArray[np.float32], spread: float
) -> NDArray[np.float32]:
    """(n,) what to expect of observations above `waited`, in the units of all three arguments."""
    z = (waited - expected) / spread
    out: NDArray[np.float32] = expected + np.float32(spread) * np.array(
        [hazard(each) for each in z.tolist()], np.float32
    )
    return out
