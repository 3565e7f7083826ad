"""What is called good about an answer: rewards, plain functions of what was measured.

The higher the better; `log evaluate` takes the mean of one over decisions and shows it in the
units that people think in. None rises with a time or a price: not when all else is the same.

    ttft       -TTFT                                the mean time to the first token
    log_ttft   -ln TTFT                             its geometric mean: twice as long is as bad
                                                    from 50 ms as from 5 s
    in_time    1 if TTFT is within the SLO, else 0  SLO attainment; the request's own SLO if it
                                                    had one (x-slo-ttft-ms), else the given one
    ttft+tpot  -(TTFT + w (end-to-end - TTFT))      what comes after the first token counts, too,
                                                    if less: w is tpot_weight
    e2e        -(end-to-end time)                   the mean time to the end of the answer
    cost       -(TTFT + w price taken)              taken: seconds of the engine's time, its own
                                                    part where several are served at once; w is
                                                    price_weight

The policy makes the same small, of what it predicts (objectives: core/aims.pyi), with what a choice
costs others added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

LEAST: Final = 1e-6  # seconds; a logarithm wants more than zero


class Measured(NamedTuple):
    """Seconds. slo: for the first token, 0: none. taken: of the engine's; price: of its hour."""

    ttft: float
    e2e: float
    slo: float = 0.0
    taken: float = 0.0
    price: float = 0.0


class Weights(NamedTuple):
    """As the settings of the same names: tpot_weight, price_weight."""

    tpot: float = 0.3
    price: float = 1.0


DEFAULT: Final = Weights()


def ttft(m: Measured, w: Weights = DEFAULT) -> float:
    return -m.ttft


def log_ttft(m: Measured, w: Weights = DEFAULT) -> float:
    return -math.log(max(m.ttft, LEAST))


def in_time(m: Measured, w: Weights = DEFAULT) -> float:
    return float(m.ttft <= m.slo)


def ttft_tpot(m: Measured, w: Weights = DEFAULT) -> float:
    return -(m.ttft + w.tpot * (m.e2e - m.ttft))


def e2e(m: Measured, w: Weights = DEFAULT) -> float:
    return -m.e2e


def cost(m: Measured, w: Weights = DEFAULT) -> float:
    return -(m.ttft + w.price * m.price * m.taken)


@dataclass(frozen=True)
class Reward:
    """of: a measurement's reward. shown: a mean reward in the unit that `what` names. whole: it
    needs the answer's end."""

    of: Callable[[Measured, Weights], float]
    what: str
    shown: Callable[[float], float]
    whole: bool = False


def _ms(r: float) -> float:
    return -1e3 * r


REWARDS: Final = {
    "ttft": Reward(ttft, "mean TTFT in ms", _ms),
    "log_ttft": Reward(log_ttft, "geometric mean of TTFT in ms", lambda r: 1e3 * math.exp(-r)),
    "in_time": Reward(in_time, "first tokens in time, per cent", lambda r: 100 * r),
    "ttft+tpot": Reward(
        ttft_tpot, "mean TTFT, with its part of the time after it, in ms", _ms, whole=True
    ),
    "e2e": Reward(e2e, "mean end-to-end time in ms", _ms, whole=True),
    "cost": Reward(cost, "mean TTFT, with the price as a time, in ms", _ms, whole=True),
}
