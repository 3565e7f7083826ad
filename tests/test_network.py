"""The network's training: torch's own numbers, without the GIL, and without TorchScript, too."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lodestar_fast.learner import model  # noqa: E402 - imports torch
from lodestar_fast.learner.model import Correction  # noqa: E402

torch.set_num_threads(1)  # as the learner does

WIDTH, BATCH = 7, 16
ATTEMPTS = 30  # of a second each; the first should do


def data(rows: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Standardised rows, and log factors that depend on them, some far out."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    wanted = np.where(z[:, 0] > 1.5, 3.0, 0.4 * z[:, 1] - 0.2).astype(np.float32)
    return z, wanted


@pytest.fixture
def forget() -> Iterator[None]:
    """What compiled() keeps is made anew, before and after."""
    model.compiled.cache_clear()
    yield
    model.compiled.cache_clear()


def reference(z: np.ndarray, wanted: np.ndarray, network: Correction) -> list[np.ndarray]:
    """The parameters after the same steps by torch's own gradients and optimiser."""
    layers: list[Any] = []
    for weight, bias in network.weights():
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(weight))
            dense.bias.copy_(torch.from_numpy(bias))
        layers += [dense, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    adam = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-3)
    for at in range(0, len(z), BATCH):
        got = net(torch.from_numpy(z[at : at + BATCH])).squeeze(-1)
        wish = torch.from_numpy(wanted[at : at + BATCH])
        adam.zero_grad()
        torch.nn.functional.huber_loss(got, wish, delta=0.5).backward()
        adam.step()
    return [p.detach().numpy() for p in net.parameters()]


@pytest.mark.parametrize("run", [model.compiled(), model.descend], ids=["script", "python"])
def test_steps_are_those_of_torchs_gradients_and_adam(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "compiled", lambda: run)
    network = Correction(WIDTH, hidden=(6, 5), seed=1)
    layers = network.weights()
    layers[-1] = (np.full_like(layers[-1][0], 0.3), layers[-1][1])  # zero hides the hidden ones'
    network.set_weights(layers)
    z, wanted = data(40 * BATCH + 5)  # the last batch is short
    expected = reference(z, wanted, network)
    for part in (slice(0, 10 * BATCH), slice(10 * BATCH, None)):  # Adam remembers between calls
        network.learn(z[part], wanted[part], BATCH)
    got = [part for layer in network.weights() for part in layer]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_steps_are_taken_without_the_gil() -> None:
    """One thread learns on, while another one keeps the GIL and looks on."""
    network, (z, wanted) = Correction(WIDTH), data(1000)
    weights = network._parameters.numpy()
    over = threading.Event()

    def learn() -> None:
        while not over.is_set():
            network.learn(z, wanted, 1)

    thread = threading.Thread(target=learn)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600.0)
    try:
        thread.start()
        # From Python it could finish one operation, and would wait for the GIL before the next.
        seen: set[float] = set()
        for _ in range(ATTEMPTS):
            time.sleep(0.001)  # gives up the GIL: a call that is over can be followed by another
            seen.clear()
            until = time.perf_counter() + 1.0
            while len(seen) < 3 and time.perf_counter() < until:  # nothing in here gives it up
                seen.add(float(weights[0]))
            if len(seen) == 3:
                break
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()
    assert len(seen) == 3


@pytest.mark.usefixtures("forget")
def test_without_torchscript_it_learns_the_same_under_the_gil(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: str) -> None:
        raise RuntimeError("no such thing")

    z, wanted = data(20 * BATCH)
    networks = [Correction(WIDTH)]
    model.compiled.cache_clear()
    monkeypatch.setattr(torch.jit, "CompilationUnit", refuse)
    with caplog.at_level(logging.WARNING, "lodestar.learner"):
        networks.append(Correction(WIDTH))
    assert "no such thing" in caplog.text
    for network in networks:
        network.learn(z, wanted, BATCH)
    scripted, plain = (network._parameters.numpy() for network in networks)
    np.testing.assert_allclose(scripted, plain, atol=1e-6)


@pytest.mark.usefixtures("forget")
def test_the_first_calls_and_later_ones_of_a_script_agree_to_the_bit() -> None:
    """TorchScript runs a function twice before it has optimised it."""
    z, wanted = data(20 * BATCH)
    results = []
    for _ in range(4):
        network = Correction(WIDTH, seed=2)
        network.learn(z, wanted, BATCH)
        results.append(network._parameters.numpy().tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -101.0])
def test_weights_that_are_no_numbers_or_too_large_are_not_sound(value: float) -> None:
    network = Correction(WIDTH)
    assert network.sound(100.0)
    weight, bias = network.weights()[0]
    weight[0, 0] = value
    network.set_weights([(weight, bias), *network.weights()[1:]])
    assert not network.sound(100.0)
