"""What is called good about an answer: rewards, plain functions of what was measured.

The higher the better; `log evaluate` takes the mean of one over decisions and shows it in the
units that people think in. None rises with a time: not when all else is the same.

    ttft      -TTFT                                the mean time to the first token
    log_ttft  -ln TTFT                             its geometric mean: twice as long is as bad
                                                   from 50 ms as from 5 s
    in_time   1 if TTFT is within the SLO, else 0  SLO attainment; the request's own SLO if it
                                                   had one (x-slo-ttft-ms), else the given one
    e2e       -(end-to-end time)                   the mean time to the end of the answer
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

LEAST: Final = 1e-6  # seconds; a logarithm wants more than zero


class Measured(NamedTuple):
    """Seconds. slo: for the first token, 0: none."""

    ttft: float
    e2e: float
    slo: float = 0.0


def ttft(m: Measured) -> float:
    return -m.ttft


def log_ttft(m: Measured) -> float:
    return -math.log(max(m.ttft, LEAST))


def in_time(m: Measured) -> float:
    return float(m.ttft <= m.slo)


def e2e(m: Measured) -> float:
    return -m.e2e


@dataclass(frozen=True)
class Reward:
    """of: a measurement's reward. shown: a mean reward in the unit that `what` names."""

    of: Callable[[Measured], float]
    what: str
    shown: Callable[[float], float]


REWARDS: Final = {
    "ttft": Reward(ttft, "mean TTFT in ms", lambda r: -1e3 * r),
    "log_ttft": Reward(log_ttft, "geometric mean of TTFT in ms", lambda r: 1e3 * math.exp(-r)),
    "in_time": Reward(in_time, "first tokens in time, per cent", lambda r: 100 * r),
    "e2e": Reward(e2e, "mean end-to-end time in ms", lambda r: -1e3 * r),
}
