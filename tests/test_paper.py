"""The published router in the simulator: its parts against independent code, its record's rules."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lodestar_fast.core.enums import Reason
from lodestar_fast.core.policies import PrefixCache
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Job
from lodestar_fast.sim.paper.index import TTL_SECONDS, Index
from lodestar_fast.sim.run import Simulation
from tests.conversations import conversations

torch = pytest.importorskip("torch")

from lodestar_fast.sim.paper import model, policy  # noqa: E402
from lodestar_fast.sim.paper.policy import Paper, Row  # noqa: E402

load = partial(conversations, output=40, turns=24)


def simulate(jobs: list[Job], fleet: str, paper: Paper | PrefixCache, **more: object) -> Simulation:
    ours = paper if isinstance(paper, Paper) else None
    world = Simulation(
        jobs,
        parse_fleet(fleet),
        paper,
        seed=1,
        governor=ours,
        watcher=ours,
        **more,  # type: ignore[arg-type]
    )
    if ours:
        ours.world = world
    world.run()
    assert world.router.stats()["policy_error"] == ""
    return world


# -- the index -------------------------------------------------------------------------------------


def test_the_index_against_a_plain_one() -> None:
    """Prefixes and times, with eviction by capacity and by age."""
    rng = random.Random(5)
    index, plain = Index(40), {}  # type: ignore[var-annotated]
    now = 0.0
    for _ in range(3000):
        now += rng.choice((0.1, 1.0, 40.0))
        family, depth = rng.randrange(4), rng.randrange(1, 16)
        prompt = [100 * family + k for k in range(depth)]
        want = {}
        for slot in range(3):
            held = 0
            while held < depth and slot in plain.get(prompt[held], {}):
                held += 1
            if held:
                want[slot] = (held, plain[prompt[held - 1]][slot])
        assert index.match(prompt) == want
        slot = rng.randrange(3)
        index.insert(prompt, slot, now)
        for block in prompt:  # the newest entry is the last of the dict
            plain[block] = {**plain.pop(block, {}), slot: now}
        while len(plain) > 40 or max(plain[next(iter(plain))].values()) < now - TTL_SECONDS:
            del plain[next(iter(plain))]
        assert len(index) == len(plain)


# -- the network -----------------------------------------------------------------------------------


def problem(rows: int) -> tuple[model.Rows, model.Rows]:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((rows, 10)).astype(np.float32)
    return z, (-np.abs(z[:, 0]) - z[:, 1] ** 2).astype(np.float32)


def reference(net: model.Network) -> torch.nn.Sequential:
    """The same network as torch builds it, without dropout."""
    sizes = (10, 128, 128, 128, 1)
    layers: list[torch.nn.Module] = []
    at = 0
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layer = torch.nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.copy_(net.flat[at : at + a * b].view(b, a))
            layer.bias.copy_(net.flat[at + a * b : at + a * b + b])
        at += a * b + b
        layers += [layer, torch.nn.ReLU()]
    assert at == len(net.flat) == 34_561
    return torch.nn.Sequential(*layers[:-1])


def test_forward_and_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "DROPOUT", 0.0)
    net = model.Network(10)
    other = reference(net)
    z, y = problem(300)
    assert np.allclose(
        net.predict(z, dropout=True), other(torch.from_numpy(z)).detach().squeeze(1), atol=1e-5
    )
    net.gradient(torch.from_numpy(z), torch.from_numpy(y))
    loss = torch.nn.functional.mse_loss(other(torch.from_numpy(z)).squeeze(1), torch.from_numpy(y))
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in other.parameters()])
    assert torch.allclose(net.slope, theirs, atol=1e-5)


def test_dropout_is_on_while_serving_and_keeps_the_mean() -> None:
    z, y = problem(500)
    net = model.train(z, y)
    still = net.predict(z[:1], dropout=False)
    assert still == net.predict(z[:1], dropout=False)
    noisy = [float(net.predict(z[:1], dropout=True)[0]) for _ in range(400)]
    assert len(set(noisy)) > 300
    assert np.mean(noisy) == pytest.approx(float(still[0]), abs=4 * np.std(noisy) / 20 + 0.05)


def test_it_learns_and_repeats_itself() -> None:
    z, y = problem(2000)
    net = model.train(z, y)
    assert np.mean((net.predict(z, dropout=False) - y) ** 2) < 0.25 * y.var()
    torch.manual_seed(7)
    torch.rand(3)
    assert torch.equal(net.flat, model.train(z, y).flat)


def test_replay_takes_the_worst_first_and_then_what_is_furthest() -> None:
    z, y = problem(300)
    net = model.train(z, y)
    order = model.replay_order(net, z, y, 40)
    g = net.last_hidden(z).numpy()
    error = np.abs(net.predict(z, dropout=False) - y)
    assert order[0] == int(np.argmax(np.linalg.norm(g, axis=1) * error))
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    for k in range(1, 40):
        nearest = (1 - unit @ unit[order[:k]].T).min(axis=1)
        assert nearest[order[k]] == pytest.approx(np.delete(nearest, order[:k]).max(), abs=1e-5)
    assert len(set(order)) == 40
    first = model.replay_order(None, z, y, 1000)
    assert sorted(first) == list(range(300)) and first != list(range(300))


# -- the loop --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds as they are, but of few rows and epochs."""
    monkeypatch.setattr(model, "EPOCHS", 3)
    monkeypatch.setattr(policy, "NEW_ROWS", 100)
    monkeypatch.setattr(policy, "FLUSH_LEAST", 20)


def test_until_the_first_round_is_over_it_is_the_prefix_heuristic(quick: None) -> None:
    jobs = load(500, 8.0)
    paper = simulate(jobs, "3xa30", Paper())
    cold = [o for o in paper.outcomes if o.reason == Reason.COLD]
    learned = [o for o in paper.outcomes if o.reason == Reason.LEARNED]
    assert len(cold) + len(learned) == 500 and len(learned) > 100
    start = learned[0].arrival
    assert 30.0 <= start  # first look of the trainer, and the round's own seconds
    assert all(o.arrival < start for o in cold) and all(math.isnan(o.predicted) for o in cold)
    plain = simulate(jobs, "3xa30", PrefixCache())
    assert [o.slot for o in cold] == [o.slot for o in plain.outcomes[: len(cold)]]
    assert all(o.predicted >= 0 for o in learned)


def test_a_run_repeats_itself(quick: None) -> None:
    jobs = load(400, 8.0)
    first, second = (simulate(jobs, "2xa30+1xh100", Paper(), jitter=0.1) for _ in range(2))
    assert repr(first.outcomes) == repr(second.outcomes)


def test_a_round_takes_simulated_time(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "TRAINING_RATE", 1.0)  # years
    world = simulate(load(400, 8.0), "2xa30", Paper())
    assert {o.reason for o in world.outcomes} == {Reason.COLD}


def test_counters_come_to_nothing(quick: None) -> None:
    paper = Paper()

    def crash(world: Simulation) -> None:
        world.crash(1)

    world = simulate(load(300, 12.0), "3xa30", paper, calls=[(10.0, crash)])
    assert any(o.error for o in world.outcomes)
    assert not paper._rows and not paper._begun
    assert set(paper._prefill.values()) == {0} and set(paper._decoding.values()) == {0}


class Spy(Paper):
    """Keeps what the network was asked, and what was kept for training."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.asked: list[tuple[int, np.ndarray, Row]] = []

    def pick(self, c):  # type: ignore[no-untyped-def]
        served, seen = self._served, []
        if served is not None:
            real = served.net.predict
            spied = lambda z, dropout: seen.append((z, dropout)) or real(z, dropout)  # noqa: E731
            self._served = replace(served, net=type("Net", (), {"predict": staticmethod(spied)})())
        choice = super().pick(c)
        self._served = served
        if seen:
            z, dropout = seen[0]
            assert dropout is not self._mended
            x = z * served.deviation + served.mean
            self.asked.append((choice, x, self._rows[self.world.arriving]))
        return choice


@pytest.mark.parametrize("mended", [False, True])
def test_rows_that_serve_and_rows_that_teach_differ_as_recorded(quick: None, mended: bool) -> None:
    spy = Spy(mended=mended)
    simulate(load(700, 14.0), "2xa30", spy)
    assert len(spy.asked) > 100
    busy = 0
    for choice, x, row in spy.asked:
        assert x.shape == (2, 10)
        if mended:
            assert np.allclose(x[choice], row.x, rtol=1e-3, atol=1e-3)
            continue
        assert np.allclose(x[:, :2], 0.0, atol=1e-4)
        assert row.x[0] >= 1.0  # itself
        assert row.x[5] == pytest.approx(x[choice, 5] + row.x[9], rel=1e-3, abs=0.1)
        assert np.allclose(
            x[choice, [2, 3, 4, 6, 7, 8, 9]], row.x[[2, 3, 4, 6, 7, 8, 9]], rtol=1e-3, atol=1e-2
        )
        busy += row.x[1] > 0
    assert mended or busy > 50


def test_a_mixed_fleet_is_told_apart_by_its_gpus(quick: None) -> None:
    spy = Spy()
    simulate(load(500, 14.0), "1xa30+1xv100+1xh20", spy)
    _, x, _ = spy.asked[-1]
    assert x.shape == (3, 21)
    kinds = [int(np.argmax(row)) for row in x[:, 8:19]]
    assert kinds == [2, 10, policy.UNKNOWN_GPU]
    assert np.allclose(x[:, 8:19].sum(axis=1), 1.0, atol=1e-4)
    assert all(
        each[1, 19] == pytest.approx(0, abs=1e-3) for _, each, _ in spy.asked
    )  # V100: no cache


def test_the_filter_leaves_two_and_the_same_two(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "SATURATED_KV", -1.0)  # always saturated
    world = simulate(load(900, 14.0), "4xa30", Paper())
    by_prefix: dict[int, set[int]] = {}
    for o in world.outcomes:
        hashes = world.jobs[o.index].hashes
        if o.reason == Reason.LEARNED and len(hashes) >= 5 and o.hit_tokens > 200:
            by_prefix.setdefault(hashes[4], set()).add(o.slot)
    assert len(by_prefix) > 5
    assert all(len(slots) <= 2 for slots in by_prefix.values())


def row(index: int) -> Row:
    return Row(index, np.zeros(10, np.float32), np.zeros(10), np.zeros(10), 1, 1.0)


def test_the_window_is_new_rows_fifo_and_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIFO", 10)
    monkeypatch.setattr(policy, "STORE", 20)
    paper = Paper()
    paper._store, paper._new = [row(k) for k in range(20, 60)], 5
    paper._replay = [row(k) for k in (1, 50, 2, 57, 3)]
    window = [each.index for each in paper._window()]
    assert len(window) == len(set(window)) == 20
    assert set(range(55, 60)) | set(range(45, 55)) | {1, 2, 3} <= set(window)
    rest = set(window) - set(range(45, 60)) - {1, 2, 3}
    assert len(rest) == 2 and rest <= set(range(20, 45))


def test_slow_and_failed_requests_never_teach(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact's survivorship: what waits longest is not learned from."""
    monkeypatch.setattr(policy, "LONGEST_TTFT", 0.3)
    paper = Paper()
    world = simulate(load(600, 16.0), "2xa30", paper)
    slow = {o.index for o in world.outcomes if o.ttft > 0.3}
    assert len(slow) > 20 and len(paper._store) > 100
    assert not slow & {each.index for each in paper._store}
