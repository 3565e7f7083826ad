"""What a measurement teaches: the one place that turns measurements into things to learn.

The reward of a decision is its time to the first token, negated. Both models learn the time itself
(the policy takes the least), each in the form that suits it. Samples hold measurements, not
rewards, so another reward is a change of this file and of nothing else.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features

Vector = NDArray[np.float64]

BASE_SECONDS: Final = 0.03  # about one iteration of an engine: no answer is relatively exact below
PACE_SECONDS: Final = 0.01  # the quickest iteration of an engine, about
CAP_FACTOR: Final = 10.0
CAP_SECONDS: Final = 0.3
BOUND: Final = math.log(2.0)  # of the network's correction as served, log factor
TARGET_BOUND: Final = 1.5  # of what it is taught, log factor


def work(x: NDArray[np.float32]) -> Vector:
    """Seconds of work in front of the first token, own and queued, of rows (n, W)."""
    columns = [features.INDEX["own_seconds"], features.INDEX["queue_seconds"]]
    out: Vector = x[:, columns].sum(axis=1, dtype=np.float64)
    return out


def miss(log_ratio: NDArray[Any], censored: NDArray[np.bool_]) -> NDArray[Any]:
    """(n,) errors of predictions: |log of measured over predicted|.

    Where the time is only what was waited in vain, a prediction above it is no error.
    """
    out: NDArray[Any] = np.where(censored, np.maximum(log_ratio, 0.0), np.abs(log_ratio))
    return out


def label(ttft: NDArray[Any], work: Vector) -> Vector:
    """Seconds for the physical model: measured, but at most ten times what the work explains.

    A stalled engine or a client's trick can then not outweigh a minute of ordinary answers.
    work: seconds of work in front of the first token (own and queued).
    """
    return np.minimum(ttft.astype(np.float64), CAP_FACTOR * (BASE_SECONDS + work) + CAP_SECONDS)


def weight(work: Vector) -> Vector:
    """Weight of a label: errors count in relation to the work, never to the label itself."""
    out: Vector = 1.0 / (BASE_SECONDS + work) ** 2
    return out


def target(ttft: NDArray[Any], physical: Vector) -> NDArray[np.float32]:
    """What the network is to say: log of measured over physical time (both seconds), bounded."""
    ratio = np.log(np.maximum(ttft, 1e-4) / physical)
    out: NDArray[np.float32] = np.clip(ratio, -TARGET_BOUND, TARGET_BOUND).astype(np.float32)
    return out


def pace_label(tpot: Vector, present: Vector) -> Vector:
    """Seconds a token for the physical model, bounded as label() is.

    present: length of the instance's iterations when the request was dispatched, seconds.
    """
    return np.minimum(tpot, CAP_FACTOR * (PACE_SECONDS + present) + CAP_SECONDS)


def pace_weight(present: Vector) -> Vector:
    """As weight(): errors count in relation to what could be known before."""
    out: Vector = 1.0 / (PACE_SECONDS + present) ** 2
    return out
