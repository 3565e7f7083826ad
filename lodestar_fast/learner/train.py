"""One round of learning, from the samples that came to a blob worth publishing.

    fresh samples -> judge the weights of the last round on them (gate.py): publish, or refuse
                  -> judge the network on them
                  -> enter them in the physical model's sums, solve
                  -> a few steps of the network on the ring
                  -> check -> the next weights, which wait for fresh samples

Validation is progressive: every sample is first predicted, then learned from, so all data both
tests and trains. The network is exported only while its running error on samples it had not seen
is below that of the physical model alone; else the blob is linear. Numbers that are not finite or
beyond any meaning never leave: the part that has them starts anew and the round makes no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import export, reward
from lodestar_fast.learner.buffer import Archive, Buffer, decode
from lodestar_fast.learner.censored import likely
from lodestar_fast.learner.checkpoint import State
from lodestar_fast.learner.gate import Gate
from lodestar_fast.learner.heads import Heads
from lodestar_fast.learner.linear import TERMS, LinearModel, Term
from lodestar_fast.learner.timebox import TimeBox

if TYPE_CHECKING:
    from lodestar_fast.learner.model import Correction

Rows = NDArray[np.float32]
Vector = NDArray[np.float64]

STEPS: Final = 16  # of the network in a round
BATCH: Final = 128
AT_ONCE: Final = 4  # of the steps, between two looks at the clock
LEAST_STD: Final = 1e-4  # a column that varies less is constant: the network does not see it
CLIP: Final = 3.0  # standard deviations: how far the network is asked to extrapolate
JUDGED: Final = 64.0  # samples the network must have been judged on
MEMORY: Final = 500.0  # samples after which a judgement has faded to 1/e
MAX_COEFFICIENT: Final = 1e3  # seconds for a feature of size 1: a quarter of an hour
MAX_WEIGHT: Final = 100.0  # of the network, standardised inputs; it starts at 0.5 and stays near

# Why a round refused weights: numbers that are none or too large, of either part; a blob that the
# core would not take; worse than those in use on rows that neither has seen, or on verified ones.
REFUSALS: Final = {
    "physics": "physical model has coefficients that are not finite or too large",
    "network": "network has weights that are not finite or too large",
    "blob": "the core would refuse them",
    "unseen": "worse than the weights in use on first tokens that neither has seen",
    "verified": "worse than the weights in use on the newest verified first tokens",
}


def always() -> bool:
    return True


class Trainer:
    """All that is learned. One thread owns it.

    network: learned on top of the physical model, or None for the physical model alone.
    terms: of the physical model. archive: of old rows, beside the newest.
    """

    def __init__(
        self,
        config: LearnerConfig,
        network: Correction | None,
        terms: tuple[Term, ...] = TERMS,
        archive: Archive | None = None,
    ) -> None:
        self.buffer = Buffer(archive=archive)
        self.linear = LinearModel(terms)
        self.heads = Heads()
        self.network = network
        self.version = 0
        self.rounds = 0
        self.refusals = Counter(dict.fromkeys(REFUSALS, 0))  # of weights, by cause
        self.refusal = ""  # why the last of them were, if that should not happen
        self.blob = b""  # the last one that passed every check
        self._gate = Gate()
        self._min_samples = config.min_samples
        self._draw = np.random.Generator(np.random.PCG64(config.learner_seed))
        width = features.WIDTH
        self._mean: Vector = np.zeros(width)
        self._std: Vector = np.zeros(width)
        self._low: Vector = np.full(width, np.inf)
        self._high: Vector = np.full(width, -np.inf)
        self._earlier: tuple[Vector, Vector, Vector, Vector] | None = None
        self._losses: Vector = np.zeros(3)  # linear, with network, weight: fading sums

    def add(self, samples: bytes) -> int:
        """Take a batch, return how many first tokens it held. Raises BlobError."""
        first = self.buffer.add(samples)
        self.heads.add(decode(samples))
        return first

    @property
    def ready(self) -> bool:
        return bool(self.blob) or self.buffer.measured >= self._min_samples

    @property
    def errors(self) -> tuple[float, float]:
        """Mean absolute log error on unseen samples: physical model, and with the network."""
        weight = max(float(self._losses[2]), 1e-9)
        return float(self._losses[0]) / weight, float(self._losses[1]) / weight

    def round(self, more: Callable[[], bool] = always, box: TimeBox | None = None) -> bytes | None:
        """Learn from what came. A blob if there is a new one to use: that of the round before.

        more: asked between parts; may pause, and answers whether the network should learn, too.
        box: opened by the caller when the round began; None: there is all the time.
        """
        fresh = self.buffer.fresh()
        if not len(fresh):
            return None
        blob = self._pass()
        x, ttft = self.buffer.x[fresh], self.buffer.ttft[fresh]
        censored, share = self.buffer.censored[fresh], self.buffer.shares(fresh)
        self.buffer.settle()
        self.rounds += 1
        more()
        if self.network is not None:
            self._judge(self.network, x, ttft, censored)
        more()
        self.linear.add(x, ttft, self.buffer.time[fresh], censored, share)
        more()
        if self._learn(more, box or TimeBox()) and self.ready and self._gate.empty:
            more()
            self._make()
        return blob

    def _pass(self) -> bytes | None:
        """What waited at the gate, if what came since lets it through: the blob in use from now."""
        blob, why = self._gate.ask(self.blob, self.buffer)
        if why:
            self._refuse(why)
        if not blob:
            return None
        self.version += 1
        self.blob = blob
        return blob

    def _learn(self, more: Callable[[], bool], box: TimeBox) -> bool:
        """Solve, and train the network. Whether all numbers are sound; what is not begins anew."""
        self.linear.solve()
        theta = self.linear.theta
        if not (np.isfinite(theta).all() and float(np.abs(theta).max()) <= MAX_COEFFICIENT):
            self.linear.reset()
            self._refuse("physics", f": {theta.tolist()}")
            return False
        if not self.ready or self.network is None or not more() or box.full():
            return True
        self._train(self.network, more, box)
        if self.network.sound(MAX_WEIGHT):
            return True
        self.network.reset()
        self._losses[:] = 0.0
        self._refuse("network")
        return False

    def _refuse(self, cause: str, more: str = "") -> None:
        self.refusals[cause] += 1
        if cause != "unseen":  # that happens by chance, too: counted, and nobody is alarmed
            self.refusal = REFUSALS[cause] + more

    def _judge(self, network: Correction, x: Rows, ttft: Rows, censored: NDArray[np.bool_]) -> None:
        """Enter the errors of both models on samples neither has seen."""
        if not self._std.any():
            return
        wanted = reward.target(ttft, self.linear.predict(x))
        factor = network.log_factor(self._standardise(x))
        inside = ((x >= self._low) & (x <= self._high)).all(axis=1)
        corrected = wanted - np.where(inside, factor, 0.0)
        errors = [float(reward.miss(each, censored).sum()) for each in (wanted, corrected)]
        self._losses *= np.exp(-len(x) / MEMORY)
        self._losses += [*errors, len(x)]

    def _train(self, network: Correction, more: Callable[[], bool], box: TimeBox) -> None:
        """Some steps on random batches of the ring."""
        self._measure(self.buffer.x[self.buffer.held()])
        more()
        pick = self.buffer.draw(self._draw, STEPS * BATCH)
        x, censored = self.buffer.x[pick], self.buffer.censored[pick]
        z, wanted = (
            self._standardise(x),
            reward.target(self.buffer.ttft[pick], self.linear.predict(x)),
        )
        if censored.any():
            expected = network.log_factor(z[censored])
            wanted[censored] = likely(wanted[censored], expected, self.linear.spread)
        for at in range(0, len(z), AT_ONCE * BATCH):
            if not more() or box.full():
                break
            part = slice(at, at + AT_ONCE * BATCH)
            network.learn(z[part], wanted[part], BATCH)

    def _measure(self, x: Rows) -> None:
        """Mean, deviation and range of the ring's columns.

        What a checkpoint says of them stands in for the rows the ring still lacks.
        """
        columns = (x.mean(axis=0), x.std(axis=0), x.min(axis=0), x.max(axis=0))
        mean, std, low, high = (column.astype(np.float64) for column in columns)
        if self._earlier is not None and len(x) < self.buffer.capacity:
            mean0, std0, low0, high0 = self._earlier
            share = len(x) / self.buffer.capacity
            square = share * (std**2 + mean**2) + (1.0 - share) * (std0**2 + mean0**2)
            mean = share * mean + (1.0 - share) * mean0
            std = np.sqrt(np.maximum(square - mean**2, 0.0))
            low, high = np.minimum(low, low0), np.maximum(high, high0)
        self._mean, self._std, self._low, self._high = mean, std, low, high

    @property
    def _inverse_std(self) -> Vector:
        return np.where(self._std > LEAST_STD, 1.0 / np.maximum(self._std, LEAST_STD), 0.0)

    def _standardise(self, x: Rows) -> Rows:
        z = (x - self._mean.astype(np.float32)) * self._inverse_std.astype(np.float32)
        return np.clip(z, -CLIP, CLIP)

    @property
    def corrects(self) -> bool:
        """Whether the network is good enough to be exported."""
        linear, corrected, weight = self._losses.tolist()
        return self.network is not None and weight >= JUDGED and corrected < linear

    def _make(self) -> None:
        """A blob of the present weights, as the next version; the gate has it."""
        from_network = None
        bound = 0.0
        if self.network is not None and self.corrects:
            bound = reward.BOUND
            reach = CLIP * self._std
            from_network = export.Network(
                clip_low=(self._mean - reach).astype(np.float32),
                clip_high=(self._mean + reach).astype(np.float32),
                range_low=self._low.astype(np.float32),
                range_high=self._high.astype(np.float32),
                layers=export.fold(self.network.weights(), self._mean, self._inverse_std),
            )
        linear = self.linear.coefficients.astype(np.float32)
        heads = self.heads.solve()
        try:
            blob = export.pack(export.Blob(self.version + 1, linear, bound, from_network, heads))
        except BlobError as e:
            self._refuse("blob", f": {e}")
        else:
            self._gate.hold(blob, self.buffer)

    def state(self) -> State:
        """What a checkpoint keeps."""
        layers = self.network.weights() if self.network is not None else []
        return State(
            version=self.version,
            blob=self.blob,
            normal_a=self.linear.a.tobytes(),
            normal_b=self.linear.b.tobytes(),
            theta=self.linear.theta.tobytes(),
            heads=self.heads.state(),
            mean=self._mean.tobytes(),
            std=self._std.tobytes(),
            low=self._low.tobytes(),
            high=self._high.tobytes(),
            network=tuple(part.tobytes() for layer in layers for part in layer),
            losses=tuple(self._losses.tolist()),
        )

    def restore(self, state: State) -> None:
        """Take up where a checkpoint left off. Raises BlobError, and then nothing is taken."""
        export.parse(state.blob)
        n, width = len(self.linear.columns), features.WIDTH
        a = _vector(state.normal_a, n * n).reshape(n, n)
        b, theta = _vector(state.normal_b, n), _vector(state.theta, n)
        rows = [_vector(part, width) for part in (state.mean, state.std)]
        # The range is infinite until the network has been trained once.
        rows += [_vector(part, width, finite=False) for part in (state.low, state.high)]
        self.heads.restore(state.heads)
        if self.network is not None and state.network:
            self.network.set_weights(_layers(state.network, self.network))
            self._losses[:] = state.losses
        self.linear.a, self.linear.b, self.linear.theta = a, b, theta
        self._mean, self._std, self._low, self._high = rows
        if self._std.any():
            self._earlier = (rows[0], rows[1], rows[2], rows[3])
        self.version, self.blob = state.version, state.blob


def _vector(data: bytes, count: int, finite: bool = True, kind: str = "<f8") -> NDArray[Any]:
    """A writable array of count numbers. Raises BlobError."""
    if len(data) != count * np.dtype(kind).itemsize:
        raise BlobError(f"checkpoint has {len(data)} bytes where {count} numbers belong")
    out = np.frombuffer(data, kind).copy()
    if not (np.isfinite(out).all() if finite else not np.isnan(out).any()):
        raise BlobError("checkpoint has a number that is not finite")
    return out


def _layers(parts: tuple[bytes, ...], network: Correction) -> list[tuple[Rows, Rows]]:
    """A checkpoint's network in the shapes of ours. Raises BlobError if they differ."""
    shapes = [(weight.shape, bias.shape) for weight, bias in network.weights()]
    if len(parts) != 2 * len(shapes):
        raise BlobError(f"checkpoint has a network of {len(parts) // 2} layers")
    return [
        (
            _vector(parts[2 * i], weight[0] * weight[1], kind="<f4").reshape(weight),
            _vector(parts[2 * i + 1], bias[0], kind="<f4"),
        )
        for i, (weight, bias) in enumerate(shapes)
    ]
