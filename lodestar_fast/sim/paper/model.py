"""The published reward predictor and how it is trained; see the package for the source.

    Linear(d, 128) ReLU dropout | Linear(128, 128) ReLU dropout | Linear(128, 128) ReLU | Linear 1

Predicts minus the TTFT in seconds; mean squared error, Adam, from scratch each round with the same
seed. The replay order is a greedy k-center over the last hidden layer's activations.

Deterministic on one machine: torch with one thread, and random numbers of a generator of its own.
Nothing else in a process can disturb it, nor it anything else.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.float32]

SEED: Final = 42  # of every construction there
HIDDEN: Final = 128
DROPOUT: Final = 0.1
EPOCHS: Final = 50
BATCH: Final = 256
TRAINED: Final = 0.8  # share of the window; the rest is only looked at, by nobody
RATE: Final = 3e-4
RATE_DECAY: Final = 0.95  # each epoch
WEIGHT_DECAY: Final = 1e-5
CLIP: Final = 1.0  # norm of the gradient
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
BIAS: Final = 0.01
TRAINING_RATE: Final = 1e10  # multiply-adds a second of one core with torch, at these sizes


class Network:
    """The MLP, and the generator that its dropout draws from.

    All parameters lie in one vector, so that clipping and Adam are a few calls.
    """

    def __init__(self, width: int) -> None:
        torch.set_num_threads(1)
        self.generator = torch.Generator().manual_seed(SEED)
        sizes = (width, HIDDEN, HIDDEN, HIDDEN, 1)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.flat = torch.zeros(sum(out * (into + 1) for out, into in shapes))
        self.slope = torch.zeros_like(self.flat)
        self._layers: list[tuple[Tensor, Tensor]] = []
        at = 0
        for out, into in shapes:
            weight = self._parameter(at, out * into).view(out, into)
            bias = self._parameter(at + out * into, out)
            at += out * (into + 1)
            limit = math.sqrt(6.0 / (into + out))  # Xavier, uniform
            weight.uniform_(-limit, limit, generator=self.generator)
            bias.fill_(BIAS)
            self._layers.append((weight, bias))

    def _parameter(self, start: int, size: int) -> Tensor:
        return self.flat[start : start + size]

    def _drop(self, h: Tensor) -> Tensor:
        kept = torch.rand(h.shape, generator=self.generator) >= DROPOUT
        return h * kept / (1 - DROPOUT)

    def predict(self, z: Rows, dropout: bool) -> Rows:
        """(n, d) standardised rows to (n,) rewards: minus seconds."""
        h = torch.from_numpy(z)
        for depth, (weight, bias) in enumerate(self._layers[:-1]):
            h = torch.relu(torch.addmm(bias, h, weight.T))
            if dropout and depth < 2:
                h = self._drop(h)
        weight, bias = self._layers[-1]
        out: Rows = torch.addmm(bias, h, weight.T).squeeze(1).numpy()
        return out

    def last_hidden(self, z: Rows) -> Tensor:
        """(n, 128) activations before the output, without dropout."""
        h = torch.from_numpy(z)
        for weight, bias in self._layers[:-1]:
            h = torch.relu(torch.addmm(bias, h, weight.T))
        return h

    def gradient(self, z: Tensor, wanted: Tensor) -> None:
        """Into slope, of the mean squared error of a batch, dropout on."""
        inputs, masks = [z], []
        for depth, (weight, bias) in enumerate(self._layers[:-1]):
            h = torch.relu(torch.addmm(bias, inputs[-1], weight.T))
            mask = (h > 0).float()
            if depth < 2:
                mask *= torch.rand(h.shape, generator=self.generator) >= DROPOUT
                mask /= 1 - DROPOUT
                h = h * mask
            inputs.append(h)
            masks.append(mask)
        weight, bias = self._layers[-1]
        error = torch.addmm(bias, inputs[-1], weight.T).squeeze(1) - wanted
        back = (2.0 / len(wanted) * error).unsqueeze(1)
        end = len(self.flat)
        for depth in range(len(self._layers) - 1, -1, -1):
            weight, bias = self._layers[depth]
            start = end - bias.numel() - weight.numel()
            middle = start + weight.numel()
            torch.mm(back.T, inputs[depth], out=self.slope[start:middle].view_as(weight))
            torch.sum(back, 0, out=self.slope[middle:end])
            end = start
            if depth:
                back = torch.mm(back, weight).mul_(masks[depth - 1])


def train(z: Rows, rewards: Rows) -> Network:
    """A network from scratch on that window: (n, d) standardised rows, (n,) minus seconds."""
    net = Network(z.shape[1])
    draw = net.generator
    x, y = torch.from_numpy(z), torch.from_numpy(rewards)
    chosen = torch.randperm(len(x), generator=draw)[: max(1, int(TRAINED * len(x)))]
    x, y = x[chosen], y[chosen]
    flat, slope = net.flat, net.slope
    first, second = torch.zeros_like(flat), torch.zeros_like(flat)
    step, rate = 0, RATE
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=draw)
        for start in range(0, len(x), BATCH):
            pick = order[start : start + BATCH]
            net.gradient(x[pick], y[pick])
            norm = float(slope.norm())
            if norm > CLIP:
                slope.mul_(CLIP / norm)
            slope.add_(flat, alpha=WEIGHT_DECAY)
            step += 1
            first.lerp_(slope, 1 - BETA1)
            second.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
            scale = (second / (1 - BETA2**step)).sqrt_().add_(EPSILON)
            flat.addcdiv_(first, scale, value=-rate / (1 - BETA1**step))
        rate *= RATE_DECAY
    return net


def replay_order(before: Network | None, z: Rows, rewards: Rows, count: int) -> list[int]:
    """The first `count` rows of the window in the order in which the next round may keep them.

    The gradient feature of a row is its last hidden activation under the round before, times the
    size of its error. The first row is the one with the largest; each next one is the furthest, by
    cosine, from those taken. Each row is scaled to length 1 before, so that the size of the error
    counts for nothing but the first. Without a round before: at random.
    """
    count = min(count, len(z))
    if before is None:
        draw = torch.Generator().manual_seed(SEED)
        return [int(i) for i in torch.randperm(len(z), generator=draw)[:count]]
    g = before.last_hidden(z)
    error = torch.from_numpy(np.abs(before.predict(z, dropout=False) - rewards))
    length = g.norm(dim=1)
    row = int(torch.argmax(length * error))
    g = g / length.clamp_min(1e-12).unsqueeze(1)
    cosine = torch.mm(g, g.T)  # of all pairs at once: 400 MB for a while, and half the time
    distance = torch.full((len(z),), math.inf)
    order = []
    for _ in range(count):
        order.append(row)
        torch.minimum(distance, 1 - cosine[row], out=distance)
        distance[row] = -math.inf
        row = int(torch.argmax(distance))
    return order


def round_seconds(rows: int, instances: int, width: int) -> float:
    """What a round takes: passes over all instances of every row, and the replay order."""
    forward = width * HIDDEN + 2 * HIDDEN * HIDDEN + HIDDEN
    trained = 3.0 * forward * instances * TRAINED * rows * EPOCHS  # forward, and back twice as much
    return (trained + float(rows) * rows * HIDDEN) / TRAINING_RATE
