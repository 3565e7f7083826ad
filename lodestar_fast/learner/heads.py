"""What is predicted besides the time to the first token (TTFT), for objectives that ask for it.

Upper quantile: of ten first tokens nine come within T exp(u). u is a quantile of the newest errors
log(measured / predicted), each made by weights that had not seen the request (conformal prediction,
Vovk et al. 2005). Since load and model move, so does the level of that quantile: up a little with
each that was above, down with each that was not, so that nine of ten are right in the long run
whatever happens (Gibbs and Candes 2021). There are two windows of errors, for requests with and
without a queue before them, for these differ most.

Time per output token (TPOT): a physical model like that of the first token, in seconds, no
coefficient negative: the present iteration's length, what decodes, and the prompts that come
between. A streamed answer teaches its own; a plain one shows no first token, so it teaches
(e2e - T) / (tokens - 1), and nothing else.

Answer: the recent mean of output tokens. Together: e2e = TTFT + (answer - 1) TPOT.

In all of it no tenant weighs more than tenants.py allows.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import export, reward, tenants
from lodestar_fast.learner.buffer import ABANDONED, DONE, FIRST_TOKEN, TIMEOUT, plausible
from lodestar_fast.learner.linear import LinearModel, Term

Rows = NDArray[np.float32]
Vector = NDArray[np.float64]
Errors = tuple[Vector, NDArray[np.uint32]]

QUANTILE: Final = 0.9
WINDOW: Final = 512  # errors, of either kind
STEP: Final = 0.005  # of the level, for each first token
LEVELS: Final = (0.5, 0.995)
LEAST: Final = 32  # errors before they are believed
MEMORY: Final = 500.0  # answers after which a mean has faded to 1/e
MOST_FACTOR: Final = 3.0  # log; beyond it the prediction is worth nothing anyway
MIN_ANSWERS: Final = 8
PLAIN_TOKENS: Final = 16  # a plain answer must be as long: else T's error is most of its label

PACE_TERMS: Final = (
    Term("base", 0.005, 1.0),
    Term("inter_token_seconds", 0.5, 5.0, 0.0, 1.0),
    Term("speed", 0.01, 1.0),
    Term("decode_requests", 0.0, 1.0),
    Term("decode_seconds", 0.0, 1.0),
    Term("decode_context", 0.0, 1.0),
    Term("prefill_seconds", 0.0, 1.0),
    Term("queue_seconds", 0.0, 1.0),
    Term("kv_overflow", 0.0, 1.0),
)


class Fading:
    """A mean over about the last MEMORY values."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, values: NDArray[Any], weights: Vector) -> None:
        """weights: at most 1 each."""
        count = float(weights.sum())
        decay = math.exp(-count / MEMORY)
        self.total = self.total * decay + float((values * weights).sum(dtype=np.float64))
        self.weight = self.weight * decay + count

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else math.nan


class Window:
    """The newest errors of one kind, in a ring."""

    def __init__(self) -> None:
        self.values: Vector = np.zeros(WINDOW)
        self.whose: NDArray[np.uint32] = np.zeros(WINDOW, np.uint32)
        self.total = 0

    def add(self, errors: Vector, whose: NDArray[np.uint32]) -> None:
        kept = errors[-WINDOW:]
        at = np.arange(self.total + len(errors) - len(kept), self.total + len(errors)) % WINDOW
        self.values[at], self.whose[at] = kept, whose[-WINDOW:]
        self.total += len(errors)

    def __len__(self) -> int:
        return min(self.total, WINDOW)

    def newest(self) -> Errors:
        """Errors, and whose they are."""
        return self.values[: len(self)], self.whose[: len(self)]


def upper(errors: Vector, level: float = QUANTILE, weights: Vector | None = None) -> float:
    """The log factor that holds that share of errors like these, the next one counted in.

    weights: of the errors, at most 1 each; None: 1.
    """
    if weights is None or weights.min() == 1.0:
        rank = min(math.ceil((len(errors) + 1) * level), len(errors))
        value = float(np.partition(errors, rank - 1)[rank - 1])
    else:
        order = np.argsort(errors)
        below = np.cumsum(weights[order])
        rank = int(np.searchsorted(below, (below[-1] + 1) * level))
        value = float(errors[order[min(rank, len(errors) - 1)]])
    return min(max(value, -MOST_FACTOR), MOST_FACTOR)


class Heads:
    """Learns all of them. add() takes the rows of a batch, solve() makes what export() tells."""

    def __init__(self) -> None:
        self.windows = (Window(), Window())  # no queue, queue
        self.level = QUANTILE  # of their errors
        self.pace = LinearModel(PACE_TERMS)
        self.answers = 0  # that taught the time per token
        self.answer = Fading()  # tokens
        self.coverage = Fading()  # of first tokens: 1 within the upper quantile told before
        self.pace_error, self.e2e_error = Fading(), Fading()  # absolute log errors
        self._asked, self._answered = tenants.Recent(WINDOW), tenants.Recent(WINDOW)
        self._paced = tenants.Recent(WINDOW)
        self.told = export.Heads()

    def add(self, rows: NDArray[Any]) -> None:
        """Rows of features.sample_dtype(), in the order in which they came."""
        rows = rows[plausible(rows)]
        self._first_tokens(rows)
        self._answers(rows[rows["event"] == DONE])

    def _first_tokens(self, rows: NDArray[Any]) -> None:
        """Errors of the predictions. Who gave up before it waited at least so long: a miss if that
        is beyond the upper quantile already, else nobody knows."""
        event, ttft, predicted = rows["event"], rows["ttft"], rows["predicted"]
        with np.errstate(invalid="ignore"):
            known = (predicted > 0) & np.isfinite(predicted) & (ttft >= 0) & np.isfinite(ttft)
        rows, event = rows[known], event[known]
        error = np.log(np.maximum(ttft[known], 1e-4) / predicted[known]).astype(np.float64)
        queue = rows["x"][:, features.INDEX["queue_seconds"]]
        loaded = queue > export.LOADED_SECONDS
        told = np.where(loaded, self.told.upper[1], self.told.upper[0])
        gone = ((event == ABANDONED) | (event == TIMEOUT)) & (error > told)
        counted = (event == FIRST_TOKEN) | gone
        within, tenant = (error <= told)[counted], rows["tenant"]
        share = self._asked.factors(tenant[counted], np.ones(len(within)))
        self.coverage.add(within, share)
        self.level += STEP * float(((QUANTILE - within) * share).sum())
        self.level = min(max(self.level, LEVELS[0]), LEVELS[1])
        for kind, window in enumerate(self.windows):
            of_kind = counted & (loaded == kind)
            window.add(error[of_kind], tenant[of_kind])

    def _answers(self, rows: NDArray[Any]) -> None:
        """Ended answers: how long, and how long a token took."""
        tokens = rows["output_tokens"].astype(np.float64)
        some = tokens > 0
        share = self._answered.factors(rows["tenant"][some], np.ones(int(some.sum())))
        self.answer.add(tokens[some], share)
        rows, tokens = rows[tokens > 1], tokens[tokens > 1]
        e2e, first = rows["e2e"].astype(np.float64), rows["predicted"].astype(np.float64)
        plain = np.isnan(rows["tpot"])
        paced = np.where(plain, (e2e - first) / (tokens - 1), rows["tpot"])
        with np.errstate(invalid="ignore"):
            known = np.isfinite(paced) & (paced > 0) & (~plain | (tokens >= PLAIN_TOKENS))
        x, paced, first = rows["x"][known], paced[known], first[known]
        e2e, tokens = e2e[known], tokens[known]
        if not len(x):
            return
        now = x[:, features.INDEX["inter_token_seconds"]].astype(np.float64)
        weight = reward.pace_weight(now)
        share = self._paced.factors(rows["tenant"][known], weight)
        guess = np.maximum(self.pace.predict(x), export.LEAST_TPOT)
        self.pace_error.add(np.abs(np.log(paced / guess)), share)
        total = first + (tokens - 1) * guess
        judged = np.isfinite(total) & (e2e > 0)
        self.e2e_error.add(np.abs(np.log(e2e[judged] / total[judged])), share[judged])
        ended = rows["dispatched"][known] + e2e
        self.pace.enter(x, reward.pace_label(paced, now), weight * share, ended)
        self.answers += len(x)

    def solve(self) -> export.Heads:
        """What the next weights tell."""
        kinds = [window.newest() for window in self.windows]
        both = np.concatenate([k[0] for k in kinds]), np.concatenate([k[1] for k in kinds])
        factors = [
            self._factor((kind, both), past)
            for kind, past in zip(kinds, self.told.upper, strict=True)
        ]
        slopes = self.told.tpot
        if self.answers >= MIN_ANSWERS:
            self.pace.solve()
            found = self.pace.coefficients.astype(np.float32)
            if np.isfinite(found).all():
                slopes = found
            else:
                self.pace.reset()
                self.answers = 0
        answer = self.answer.mean if self.answer.weight >= MIN_ANSWERS else self.told.answer
        self.told = export.Heads((factors[0], factors[1]), answer, slopes)
        return self.told

    def _factor(self, kinds: tuple[Errors, Errors], past: float) -> float:
        """Of its own kind's errors; of all if those are few; if there are few at all, as it was."""
        for errors, whose in kinds:
            if len(errors) >= LEAST:
                return upper(errors, self.level, tenants.factors(whose, np.ones(len(whose))))
        return past

    def status(self) -> dict[str, Any]:
        """For metrics and the admin port. Errors: mean absolute log errors, NaN: nothing known."""
        light, loaded = self.told.upper
        return {
            "upper_factor": {"no_queue": math.exp(light), "queue": math.exp(loaded)},
            "upper_coverage": self.coverage.mean,
            "tpot_log_error": self.pace_error.mean,
            "e2e_log_error": self.e2e_error.mean,
            "answer_tokens": self.told.answer,
        }

    # -- checkpoints: what was told, and the sums behind the time per token --

    def state(self) -> bytes:
        parts = [[*self.told.upper, self.told.answer, self.answers], self.told.slopes]
        parts += [self.pace.a.ravel(), self.pace.b, self.pace.theta]
        return np.concatenate([np.asarray(part, np.float64) for part in parts]).tobytes()

    def restore(self, data: bytes) -> None:
        """Raises BlobError, and then nothing is taken."""
        n, width = len(self.pace.columns), features.WIDTH
        sizes = np.cumsum([4, width, n * n, n])
        if len(data) != 8 * (int(sizes[-1]) + n):
            raise BlobError(f"checkpoint has {len(data)} bytes of heads")
        values = np.frombuffer(data, "<f8").copy()
        if not np.isfinite(values).all():
            raise BlobError("checkpoint has a head that is not finite")
        head, slopes, a, self.pace.b, self.pace.theta = np.split(values, sizes)
        self.pace.a = a.reshape(n, n)
        self.answers = int(head[3])
        known = slopes.astype(np.float32) if slopes.any() else None
        self.told = export.Heads((float(head[0]), float(head[1])), float(head[2]), known)
