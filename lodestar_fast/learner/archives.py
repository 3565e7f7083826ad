"""Which old rows are kept beside the newest ones: what a Buffer may have behind its ring.

In quiet hours a ring soon holds nothing but idle instances, and the burst after them meets a
network that has forgotten what load is. Both archives keep SIZE rows of those that leave the ring:
strata evenly over loads, coreset those that are least like each other, as the published system
does. Which of them helps is measured in bench/README.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features

Rows = NDArray[np.float32]

SIZE: Final = 3000  # rows
QUEUE_OCTAVES: Final = 8  # of seconds queued ahead: up to 20 ms, 40 ms, ... above 1.3 s
OWN_OCTAVES: Final = 5  # of seconds of own work: up to 40 ms, ... above 0.3 s
CANDIDATES: Final = 64  # rows a round that the coreset looks at: each costs SIZE distances


class Strata:
    """A reservoir for each octave of queue by each octave of own work.

    Within one, every row replaces a random one: what is forgotten is forgotten slowly, and only for
    news of the same load.
    """

    size = SIZE

    def __init__(self, seed: int) -> None:
        self._draw = np.random.Generator(np.random.PCG64([seed, 1]))
        self._quota = SIZE // (QUEUE_OCTAVES * OWN_OCTAVES)
        self._filled = [0] * (QUEUE_OCTAVES * OWN_OCTAVES)

    def places(self, x: Rows) -> list[int]:
        queue = _octave(x[:, features.INDEX["queue_seconds"]], 0.02, QUEUE_OCTAVES)
        own = _octave(x[:, features.INDEX["own_seconds"]], 0.04, OWN_OCTAVES)
        out = []
        for stratum in (queue * OWN_OCTAVES + own).tolist():
            place = self._filled[stratum]
            if place < self._quota:
                self._filled[stratum] += 1
            else:
                place = int(self._draw.integers(self._quota))
            out.append(stratum * self._quota + place)
        return out


def _octave(seconds: Rows, first: float, count: int) -> NDArray[np.intp]:
    """0 up to `first`, 1 up to its double, ...; the last is all above."""
    octave = np.ceil(np.log2(np.maximum(seconds, first) / first))
    return np.minimum(octave, count - 1).astype(np.intp)


class Coreset:
    """Rows far from each other, k-center as far as a stream allows (Gonzalez 1985).

    A row that is further from all that are kept than the two closest of them are from each other
    takes the place of one of these. Distances: Euclidean, each column in units of the deviation
    that the first SIZE rows had.
    """

    size = SIZE

    def __init__(self) -> None:
        self._z: NDArray[np.float32] = np.zeros((SIZE, features.WIDTH), np.float32)
        self._nearest: Rows = np.full(SIZE, np.inf, np.float32)  # distance squared to another
        self._scale: Rows = np.ones(features.WIDTH, np.float32)
        self._filled = 0

    def places(self, x: Rows) -> list[int]:
        out = [-1] * len(x)
        for i in range(max(0, len(x) - CANDIDATES), len(x)):
            if self._filled < SIZE:
                self._z[self._filled] = x[i]
                out[i] = self._filled
                self._filled += 1
                if self._filled == SIZE:
                    self._begin()
            else:
                out[i] = self._offer(x[i] / self._scale)
        return out

    def _begin(self) -> None:
        """The first SIZE rows are there."""
        self._scale = np.maximum(self._z.std(axis=0), np.float32(1e-4))
        self._z /= self._scale
        for place in range(SIZE):
            self._nearest[place] = self._distances(self._z[place], but=place).min()

    def _distances(self, z: Rows, but: int) -> Rows:
        """Squared, from z to all that are kept; infinite to the one at `but`."""
        off = self._z - z
        out: Rows = np.einsum("ij,ij->i", off, off)
        out[but] = np.inf
        return out

    def _offer(self, z: Rows) -> int:
        place = int(self._nearest.argmin())
        distances = self._distances(z, but=place)
        closest = float(distances.min())
        if closest <= self._nearest[place]:
            return -1
        # Who was closest to the one that goes is further from the rest than noted: never closer.
        self._z[place] = z
        np.minimum(self._nearest, distances, out=self._nearest)
        self._nearest[place] = closest
        return place
