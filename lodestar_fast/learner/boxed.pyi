"""Types of learner/boxed.pyx."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Vector = NDArray[np.float64]

def solve_boxed(
    a: _Vector, b: _Vector, low: _Vector, high: _Vector, x: _Vector, sweeps: int, least: float
) -> None:
    """Minimise x' A x / 2 - b' x within limits, in place. Raises ValueError if sizes differ."""
