"""The physical model of a time to first token: a sum of waits, each at least zero.

    T = th . x        seconds; x a feature row (csrc/features.h), th >= 0

Its terms are times or close to proportional to times (own work, work queued ahead, attention over
what decodes, KV pressure). Two things follow, and both are the reason for it: a longer queue can
never look better, whatever the data, and outside the data it extrapolates as queues do. A free
regression on the same rows does neither: in a healthy fleet queues are nearly always empty, the
columns that tell of them nearly collinear, so it finds large coefficients of opposite signs; one
burst later a long queue looks attractive, and since what waits gives no label, stays so.

Fit: least squares in relative error, with the labels y and weights w of reward.py. Older rows fade
with a time constant of 200 s on the samples' own clock, and a ridge pulls toward the prior: 20 ms,
plus the own work, plus the queue. Only the normal equations are kept:

    A = sum w x x'      b = sum w x y

Requests that were given up before their first token (censored rows) enter as censored.py says, the
spread of errors being that of the measured rows, relative to the work.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.learner import reward
from lodestar_fast.learner.boxed import solve_boxed
from lodestar_fast.learner.censored import tail

Vector = NDArray[np.float64]

FADE_SECONDS: Final = 200.0
SPREAD: Final = 0.3  # of measured times about the prediction, relative: believed at first ...
SPREAD_ROWS: Final = 20.0  # ... as if so many rows had shown it
SWEEPS: Final = 40
MOVED: Final = 1e-7  # when no coefficient moves by more, they are found
LEAST: Final = 1e-4  # seconds; a prediction is never below, in the core as here


class Term(NamedTuple):
    """One column that takes part: where it is pulled to, how hard, and its limits."""

    column: str
    prior: float
    ridge: float
    low: float = 0.0
    high: float = np.inf


# Work and queue are measured in seconds already, by each instance's own speed: a coefficient other
# than 1 would only correct what the speed estimate is there for. Left free in [0.8, 1.25] they move
# with the load, and at saturation that costs (the trials: 512 ms for 447).
TERMS: Final = (
    Term("base", 0.02, 20.0),
    Term("own_seconds", 1.0, 20.0, 1.0, 1.0),
    Term("queue_seconds", 1.0, 20.0, 1.0, 1.0),
    Term("prefill_seconds", 0.0, 5.0),
    Term("work_context", 0.0, 5.0),
    Term("decode_context", 0.0, 5.0),
    Term("decode_seconds", 0.0, 5.0),
    Term("kv_overflow", 0.0, 5.0),
    Term("overdue_seconds", 0.0, 5.0),
    Term("inter_token_seconds", 0.0, 5.0),
)


class LinearModel:
    """Normal equations over TERMS, and the coefficients that solve them.

    coefficients: (W,) in the order of the feature table, 0 for columns that take no part.
    """

    def __init__(self, terms: tuple[Term, ...] = TERMS) -> None:
        self.columns = np.array([features.INDEX[t.column] for t in terms])
        self.prior: Vector = np.array([t.prior for t in terms])
        self.ridge: Vector = np.array([t.ridge for t in terms])
        self.low: Vector = np.array([t.low for t in terms])
        self.high: Vector = np.array([t.high for t in terms])
        self.reset()

    def reset(self) -> None:
        """Forget every sample."""
        n = len(self.columns)
        self.a: Vector = np.zeros((n, n))
        self.b: Vector = np.zeros(n)
        self.time: float | None = None  # of the newest sample in the sums, seconds
        self.theta: Vector = self.prior.copy()
        self._missed, self._seen = SPREAD * SPREAD_ROWS, SPREAD_ROWS  # errors, rows; fading

    @property
    def spread(self) -> float:
        """Standard deviation of measured times about the predicted, relative to the work."""
        return math.sqrt(math.pi / 2) * self._missed / self._seen

    @property
    def coefficients(self) -> Vector:
        out: Vector = np.zeros(features.WIDTH)
        out[self.columns] = self.theta
        return out

    def add(
        self,
        x: NDArray[np.float32],
        ttft: NDArray[np.float32],
        time: Vector,
        censored: NDArray[np.bool_] | None = None,
        share: Vector | None = None,
    ) -> None:
        """Enter samples: x (n, W), ttft (n,) seconds, time (n,) seconds of the first token.

        censored: (n,) whether ttft is only what was waited. share: (n,) factors on the weights.
        """
        if not len(x):
            return
        work = reward.work(x)
        label, weight = reward.label(ttft, work), reward.weight(work)
        expected, scale = self.predict(x), weight**-0.5
        measured = slice(None) if censored is None else ~censored
        self._missed += float(np.abs((label - expected) / scale)[measured].sum())
        self._seen += len(scale[measured])
        if share is not None:
            weight *= share
        if censored is not None and censored.any():
            scale *= self.spread
            for i in np.flatnonzero(censored):
                told, beyond = tail((label[i] - expected[i]) / scale[i])
                weight[i] *= told
                label[i] = expected[i] + scale[i] * beyond
        self.enter(x, label, weight, time)

    def enter(self, x: NDArray[np.float32], label: Vector, weight: Vector, time: Vector) -> None:
        """The same with labels (seconds) and weights that are known."""
        newest = float(time.max())
        if self.time is None:
            self.time = newest
        if newest > self.time:
            self._fade(newest - self.time)
            self.time = newest
        weight = np.exp((time - self.time) / FADE_SECONDS) * weight
        rows = x[:, self.columns].astype(np.float64)
        self.a += rows.T @ (rows * weight[:, None])
        self.b += rows.T @ (weight * label)

    def _fade(self, seconds: float) -> None:
        factor = float(np.exp(-seconds / FADE_SECONDS))
        self.a *= factor
        self.b *= factor
        self._missed *= factor
        self._seen *= factor

    def solve(self) -> None:
        """Coefficients that minimise the weighted error plus the ridge, inside their limits.

        By coordinate descent from the last solution.
        """
        target = self.b + self.ridge * self.prior
        self.theta = np.clip(self.theta, self.low, self.high)
        solve_boxed(
            self.a + np.diag(self.ridge), target, self.low, self.high, self.theta, SWEEPS, MOVED
        )

    def predict(self, x: NDArray[np.float32]) -> Vector:
        """Seconds to the first token for rows (n, W)."""
        return np.maximum(x[:, self.columns].astype(np.float64) @ self.theta, LEAST)
