"""Checkpoints: whole or not at all, and never believed blindly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.errors import BlobError
from lodestar_fast.learner import checkpoint, export
from lodestar_fast.learner.checkpoint import NAME, State, decode, encode, load, save
from lodestar_fast.learner.thread import InlineLearner
from lodestar_fast.learner.train import Trainer
from tests.batches import pack, physical

LINEAR = LearnerConfig(model="linear", min_samples=32)


def trainer_after(rounds: int, config: LearnerConfig = LINEAR, network: bool = False) -> Trainer:
    correction = None
    if network:
        from lodestar_fast.learner.model import Correction

        correction = Correction(features.WIDTH)
    trainer, rng = Trainer(config, correction), np.random.default_rng(1)
    for k in range(rounds):
        trainer.add(pack(physical(rng, 60, start=float(k))))
        trainer.round()
    return trainer


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    state = trainer_after(3).state()
    save(str(tmp_path), state)
    assert load(str(tmp_path)) == state
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert load(str(tmp_path)) is None


def test_each_damaged_byte_is_noticed(tmp_path: Path) -> None:
    data = encode(trainer_after(2).state())
    for at in [*range(checkpoint.HEADER.size), *range(checkpoint.HEADER.size, len(data), 97)]:
        broken = bytearray(data)
        broken[at] ^= 0x40
        with pytest.raises(BlobError):
            decode(bytes(broken))


@pytest.mark.parametrize("length", [0, 10, 40, 200, -1])
def test_cut_files_are_noticed(length: int) -> None:
    with pytest.raises(BlobError):
        decode(encode(trainer_after(2).state())[:length])


def test_another_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(trainer_after(2).state())
    monkeypatch.setattr(features, "SCHEMA_HASH", features.SCHEMA_HASH ^ 1)
    with pytest.raises(BlobError, match="schema"):
        decode(data)


def test_oversized_file_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / NAME, "wb") as f:
        f.truncate(checkpoint.MAX_BYTES + 1)
    with pytest.raises(BlobError, match="more than"):
        load(str(tmp_path))


def test_failed_write_leaves_the_old_one_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = trainer_after(2).state(), trainer_after(3).state()
    save(str(tmp_path), old)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(str(tmp_path), new)
    monkeypatch.undo()
    assert load(str(tmp_path)) == old
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("network", [False, True], ids=["linear", "mlp"])
def test_a_restored_trainer_predicts_the_same_and_learns_on(network: bool) -> None:
    if network:
        pytest.importorskip("torch")
    config = LearnerConfig(model="mlp" if network else "linear", min_samples=32)
    first = trainer_after(20, config, network)
    second = trainer_after(0, config, network)
    second.restore(first.state())
    assert second.blob == first.blob
    assert second.version == first.version
    assert second.state() == first.state()
    # One more sample must not throw over what hundreds have taught.
    rng = np.random.default_rng(2)
    second.add(pack(physical(rng, 1)))
    assert second.round() is None
    second.add(pack(physical(rng, 20)))
    blob = second.round()
    assert blob is not None
    before, after = export.parse(first.blob), export.parse(blob)
    assert after.version == before.version + 1
    x = physical(np.random.default_rng(3), 50)["x"]
    np.testing.assert_allclose(after.predict(x), before.predict(x), rtol=0.1)
    assert (after.network is None) == (before.network is None)


def test_states_that_do_not_fit_are_refused_whole() -> None:
    good = trainer_after(3).state()
    fields = {name: getattr(good, name) for name in State.__struct_fields__}
    nan = np.full(len(good.theta) // 8, np.nan).tobytes()
    for name, value in (("normal_a", b""), ("theta", nan), ("blob", b"x"), ("std", b"1234")):
        trainer = trainer_after(0)
        with pytest.raises(BlobError):
            trainer.restore(State(**{**fields, name: value}))
        assert trainer.blob == b""
        assert trainer.linear.theta.tolist() == trainer.linear.prior.tolist()


def test_inline_learner_takes_up_where_it_left_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    learner = InlineLearner(LINEAR, str(tmp_path))
    for k in range(3):
        learner.submit(pack(physical(rng, 40, start=float(k))))
    last = learner.poll()
    learner.close()
    assert last == InlineLearner(LINEAR, str(tmp_path)).poll()
