"""What is learned beyond the physical model: a small network, trained with torch.

The only module that needs torch at import. The network multiplies the physical model's prediction
by a factor within [1/2, 2]:

    TTFT = T(x) exp(clip(g(x), -ln 2, ln 2)),     g: W -> 24 -> 24 -> 1, ReLU

so it may refine an estimate and never replace it: with a bounded factor on a model that is monotone
in the queue, an instance with a queue twice as long as another's cannot look better than it by
more than the bound allows. It starts as no correction at all (last layer zero).

All parameters are one vector, of which the layers are views, and several steps of a round one call
of `descend`, which TorchScript runs without the GIL: from Python each step is a hundred operations,
each of which gives the GIL up and wants it back, and five times the time.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lodestar_fast.learner.reward import BOUND

Rows = NDArray[np.float32]
Layers = list[tuple[Rows, Rows]]  # (out, in) weight and (out,) bias, from the input on

log = logging.getLogger("lodestar.learner")

WARM_UP = 3  # calls until TorchScript has compiled what it compiles


def descend(
    x: Tensor, wanted: Tensor, batch: int, h1: int, h2: int,
    p: Tensor, slope: Tensor, first: Tensor, second: Tensor, done: int,
) -> None:  # fmt: skip
    """Steps of Adam on batch after batch of standardised rows (n, W) and wanted (n, outputs).

    p, slope, first, second: the parameters, their gradient and Adam's two fading means, vectors in
    the order of the layers; changed in place. done: steps taken before.

    The loss is Huber's with delta 0.5, the mean over a batch: one stalled engine must not pull like
    a square. Adam is Kingma and Ba (2015), algorithm 1, with the decay added to the gradient.

    Both Python and TorchScript: the latter reads this source, so only what it knows stands here.
    """
    rate, decay, beta1, beta2, epsilon = 2e-3, 1e-3, 0.9, 0.999, 1e-8  # the betas as in the paper
    w, outputs = x.size(1), wanted.size(1)
    sizes = [h1 * w, h1, h2 * h1, h2, outputs * h2, outputs]
    w1, b1, w2, b2, w3, b3 = torch.split_with_sizes(p, sizes)
    w1, w2, w3 = w1.view(h1, w), w2.view(h2, h1), w3.view(outputs, h2)
    g1, c1, g2, c2, g3, c3 = torch.split_with_sizes(slope, sizes)
    g1, g2, g3 = g1.view(h1, w), g2.view(h2, h1), g3.view(outputs, h2)
    for at in range(0, x.size(0), batch):
        z, y = x[at : at + batch], wanted[at : at + batch]
        y1 = torch.addmm(b1, z, w1.t()).relu_()
        y2 = torch.addmm(b2, y1, w2.t()).relu_()
        d3 = torch.addmm(b3, y2, w3.t()).sub_(y).clamp_(-0.5, 0.5).div_(z.size(0))
        d2 = torch.mm(d3, w3).mul_(y2 > 0.0)
        d1 = torch.mm(d2, w2).mul_(y1 > 0.0)
        torch.mm(d3.t(), y2, out=g3)
        torch.mm(d2.t(), y1, out=g2)
        torch.mm(d1.t(), z, out=g1)
        torch.sum(d3, 0, out=c3)
        torch.sum(d2, 0, out=c2)
        torch.sum(d1, 0, out=c1)
        done += 1
        slope.add_(p, alpha=decay)
        first.lerp_(slope, 1.0 - beta1)
        second.mul_(beta2).addcmul_(slope, slope, value=1.0 - beta2)
        root = second.sqrt().div_((1.0 - beta2**done) ** 0.5).add_(epsilon)
        p.addcdiv_(first, root, value=-rate / (1.0 - beta1**done))


@functools.cache
def compiled() -> Callable[..., Any]:
    """`descend` in TorchScript, or as it is where torch no longer knows that: slower, no worse.

    From the source text, not by torch.jit.script(): that one is deprecated, and says so.
    """
    try:
        unit: Any = torch.jit.CompilationUnit(inspect.getsource(descend))
        script: Callable[..., Any] = unit.descend
        # TorchScript compiles during the first calls, for 50 ms: now rather than beside requests.
        with torch.inference_mode():
            for _ in range(WARM_UP):
                script(torch.ones(2, 1), torch.ones(2, 1), 1, 1, 1, *torch.ones(4, 6), 0)
    except (AttributeError, OSError, RuntimeError) as e:
        log.warning("learner trains under the GIL, without TorchScript: %s", e)
        return descend
    return script


class Correction:
    """The network g over standardised rows, with its optimiser."""

    def __init__(self, width: int, hidden: tuple[int, int] = (24, 24), seed: int = 0) -> None:
        # Not torch's global generator: two learners in one process must not disturb each other.
        self._generator = torch.Generator().manual_seed(seed)
        self._hidden = hidden
        sizes = (width, *hidden, 1)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self._parameters = torch.zeros(sum(a * b + a for a, b in shapes))
        counts = [count for a, b in shapes for count in (a * b, a)]
        parts = torch.split_with_sizes(self._parameters, counts)
        pairs = zip(parts[::2], parts[1::2], shapes, strict=True)
        self._layers = [(weight.view(shape), bias) for weight, bias, shape in pairs]
        self._descend = compiled()
        self.reset()

    def reset(self) -> None:
        """Back to no correction: hidden layers drawn anew, the last one zero."""
        for weight, bias in self._layers:
            limit = math.sqrt(6.0 / weight.size(1))  # He: keeps the scale through ReLU
            weight.uniform_(-limit, limit, generator=self._generator)
            bias.zero_()
        self._layers[-1][0].zero_()
        # The gradient, and Adam's fading means of it and of its square.
        self._moments = [torch.zeros_like(self._parameters) for _ in range(3)]
        self._steps = 0

    def __call__(self, z: Tensor) -> Tensor:
        """(n, W) standardised rows to (n,) unbounded log factors."""
        *hidden, (weight, bias) = self._layers
        for w, b in hidden:
            z = torch.addmm(b, z, w.t()).relu_()
        return torch.addmm(bias, z, weight.t()).squeeze(-1)

    def learn(self, z: Rows, wanted: Rows, batch: int) -> None:
        """A step on each batch of the standardised rows (n, W) and the log factors wanted (n,)."""
        with torch.inference_mode():  # no books kept for gradients: a fifth less
            self._descend(
                torch.from_numpy(z), torch.from_numpy(wanted).unsqueeze(1), batch, *self._hidden,
                self._parameters, *self._moments, self._steps,
            )  # fmt: skip
        self._steps += -(-len(z) // batch)

    def sound(self, limit: float) -> bool:
        """Whether all weights are numbers of at most this size."""
        return bool(self._parameters.abs().max() <= limit)  # NaN is the largest, and not within

    def log_factor(self, z: Rows) -> Rows:
        """(n,) log factors as served: bounded."""
        out: Rows = self(torch.from_numpy(z)).clamp_(-BOUND, BOUND).numpy()
        return out

    def weights(self) -> Layers:
        """Copies of the layers' weights and biases."""
        return [(weight.numpy().copy(), bias.numpy().copy()) for weight, bias in self._layers]

    def set_weights(self, layers: Layers) -> None:
        """Take weights. Raises ValueError if a shape differs."""
        if [w.shape for w, _ in layers] != [tuple(w.shape) for w, _ in self._layers]:
            raise ValueError("weights of another network")
        for (weight, bias), (w, b) in zip(self._layers, layers, strict=True):
            weight.copy_(torch.from_numpy(w))
            bias.copy_(torch.from_numpy(b))
