"""What is learned beyond the physical model: a small network, trained with torch.

The only module that needs torch at import. The network multiplies the physical model's prediction
by a factor within [1/2, 2]:

    TTFT = T(x) exp(clip(g(x), -ln 2, ln 2)),     g: W -> 24 -> 24 -> 1, ReLU

so it may refine an estimate and never replace it: with a bounded factor on a model that is monotone
in the queue, an instance with a queue twice as long as another's cannot look better than it by
more than the bound allows. It starts as no correction at all (last layer zero).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lodestar_fast.learner.reward import BOUND

Rows = NDArray[np.float32]
Layers = list[tuple[Rows, Rows]]  # (out, in) weight and (out,) bias, from the input on

LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # as in the paper and in torch


class Adam:
    """Kingma and Ba (2015), algorithm 1, with the decay added to the gradient.

    The same rule as torch.optim.Adam, which a test compares. Making one of those imports the
    compiler behind torch: 1.1 s of CPU, 800 modules and 76 MB that nobody here uses, and stalls of
    the event loop.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in self.parameters]  # fading mean of gradients
        self._second = [torch.zeros_like(p) for p in self.parameters]  # and of their squares
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients, and clear these."""
        self._steps += 1
        rate = LEARNING_RATE / (1.0 - BETA1**self._steps)
        root = math.sqrt(1.0 - BETA2**self._steps)
        for p, first, second in zip(self.parameters, self._first, self._second, strict=True):
            assert p.grad is not None
            slope = p.grad.add(p, alpha=WEIGHT_DECAY)
            first.lerp_(slope, 1.0 - BETA1)
            second.mul_(BETA2).addcmul_(slope, slope, value=1.0 - BETA2)
            p.addcdiv_(first, second.sqrt().div_(root).add_(EPSILON), value=-rate)
            p.grad = None


class Correction(nn.Module):
    """The network g over standardised rows, with its optimiser."""

    def __init__(self, width: int, hidden: tuple[int, ...] = (24, 24), seed: int = 0) -> None:
        super().__init__()
        # Not torch's global generator: two learners in one process must not disturb each other.
        self._generator = torch.Generator().manual_seed(seed)
        sizes = (width, *hidden, 1)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.reset()

    def reset(self) -> None:
        """Back to no correction: hidden layers drawn anew, the last one zero."""
        with torch.no_grad():
            for layer in self._dense():
                limit = math.sqrt(6.0 / layer.in_features)  # He: keeps the scale through ReLU
                layer.weight.uniform_(-limit, limit, generator=self._generator)
                layer.bias.zero_()
            self._dense()[-1].weight.zero_()
        self.optimizer = Adam(self.parameters())

    def _dense(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, z: Tensor) -> Tensor:
        """(n, W) standardised rows to (n,) unbounded log factors."""
        *hidden, last = self._dense()
        for layer in hidden:
            z = torch.relu(layer(z))
        out: Tensor = last(z)
        return out.squeeze(-1)

    def step(self, z: Rows, wanted: Rows) -> None:
        """One step of Adam on a batch. Huber: one stalled engine must not pull like a square."""
        loss = nn.functional.huber_loss(
            self(torch.from_numpy(z)), torch.from_numpy(wanted), delta=0.5
        )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def log_factor(self, z: Rows) -> Rows:
        """(n,) log factors as served: bounded."""
        out: Rows = self(torch.from_numpy(z)).clamp_(-BOUND, BOUND).numpy()
        return out

    @torch.no_grad()
    def weights(self) -> Layers:
        """Copies of the layers' weights and biases."""
        return [(layer.weight.numpy().copy(), layer.bias.numpy().copy()) for layer in self._dense()]

    @torch.no_grad()
    def set_weights(self, layers: Layers) -> None:
        """Take weights. Raises ValueError if a shape differs."""
        dense = self._dense()
        if [w.shape for w, _ in layers] != [tuple(d.weight.shape) for d in dense]:
            raise ValueError("weights of another network")
        for layer, (weight, bias) in zip(dense, layers, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
