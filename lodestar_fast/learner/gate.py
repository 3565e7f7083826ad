"""Whether new weights may take the place of those in use: judged by what neither has seen.

    round k: what came since round k - 1   judges   the weights made in round k - 1
             then it is learned from, and the next weights are made; they wait for round k + 1

So each row first tests and then trains, none is lost, and a publish is late by one round: what fits
its own data well and others badly never leaves. Weights wait until LEAST rows have come. Compared
are the absolute log errors of both on each row (paired: what a row makes hard it makes hard for
both), rows of tenants that send too much counting less (tenants.py). New weights are refused if

    mean difference > SLACK + min(SURE standard errors, MOST)

One of six that are as good as those in use, and not the same, is refused for nothing; the next ones
come within a round. Of what is off by 1.8 where the others are right, one in thirty passes when
twelve rows with errors of 30 % judge it.

The first ones are compared with plain physics, which decides until they come.

Verified first tokens, the operator's own, are few: there the newest of them are taken, whether they
were learned from or not. Who is worse even so has been taught by somebody who is not like them.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestar_fast.learner import export, reward, tenants
from lodestar_fast.learner.buffer import Buffer
from lodestar_fast.learner.linear import LinearModel

LEAST: Final = 8  # rows that neither has seen
SURE: Final = 1.0  # standard errors
SLACK: Final = 0.01  # log: a difference that does not matter
MOST: Final = 0.3  # log: a difference that no uncertainty excuses
VERIFIED: Final = 256  # newest verified rows
WORSE: Final = 1.1  # of the mean error on those

Indices = NDArray[np.intp]


class Gate:
    """Holds one set of weights until it can be judged."""

    def __init__(self) -> None:
        self._held = b""
        self._fitted = 0  # rows that came before the weights were made
        self._physics = LinearModel()

    @property
    def empty(self) -> bool:
        return not self._held

    def hold(self, blob: bytes, buffer: Buffer) -> None:
        """Keep weights that were fitted to all rows there are."""
        self._held, self._fitted = blob, buffer.total

    def ask(self, live: bytes, buffer: Buffer) -> tuple[bytes, str]:
        """The weights held, if they may be published now; b"" if not or not yet. And why not.

        live: those in use, b"": none.
        """
        unseen = buffer.latest(buffer.total - self._fitted)
        if not self._held or len(unseen) < LEAST:
            return b"", ""
        held, self._held = self._held, b""
        why = self._worse(held, live, buffer, unseen)
        return (b"", why) if why else (held, "")

    def _worse(self, held: bytes, live: bytes, buffer: Buffer, unseen: Indices) -> str:
        new, old = (self._errors(each, buffer, unseen) for each in (held, live))
        mean, error = about(new - old, tenants.factors(buffer.tenant[unseen], np.ones(len(new))))
        if mean > SLACK + min(SURE * error, MOST):
            return "unseen"
        verified = buffer.verified(VERIFIED)
        if len(verified):
            new, old = (self._errors(each, buffer, verified) for each in (held, live))
            if float(new.mean()) > WORSE * float(old.mean()) + SLACK:
                return "verified"
        return ""

    def _errors(self, blob: bytes, buffer: Buffer, at: Indices) -> NDArray[np.float64]:
        """(n,) absolute log errors on those rows."""
        x, ttft = buffer.x[at], np.maximum(buffer.ttft[at], 1e-4)
        model = export.parse(blob) if blob else self._physics
        out: NDArray[np.float64] = reward.miss(np.log(ttft / model.predict(x)), buffer.censored[at])
        return out


def about(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted mean of at least two values, and its standard error."""
    total = float(weights.sum())
    mean = float(weights @ values) / total
    squares = float(weights**2 @ (values - mean) ** 2)
    return mean, math.sqrt(squares * len(values) / (len(values) - 1)) / total
