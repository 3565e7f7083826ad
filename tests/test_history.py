"""The life of a model: versions that come, are kept, go back into use, survive the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lodestar_fast import history
from lodestar_fast.errors import BlobError
from lodestar_fast.governor import Governor
from lodestar_fast.history import KEPT, History, Version
from tests.oracle import Model, rows
from tests.test_governor import Learning, Scripted, blob, govern


class Publishing(Learning):
    """Publishes what the test puts in."""

    def __init__(self) -> None:
        super().__init__()
        self.next: bytes | None = None

    def poll(self) -> bytes | None:
        published, self.next = self.next, None
        return published


def predictions(governor: Governor) -> list[float]:
    x, seconds = rows(20, 3), np.empty(20, "<f4")
    governor.policy.learned.predict(x, seconds)  # type: ignore[attr-defined]
    return [float(s) for s in seconds]


def publish(it: Scripted, version: int) -> None:
    learner = it.governor.learner
    assert isinstance(learner, Publishing)
    learner.next = Model([16], seed=version, version=version).blob()
    it.second()


def test_rollback_returns_the_old_predictions_exactly_and_freezes() -> None:
    it = Scripted(learner=Publishing())
    said = {}
    for version in (1, 2, 3):
        publish(it, version)
        said[version] = predictions(it.governor)
    assert it.governor.rollback() == 2 and predictions(it.governor) == said[2]
    assert it.governor.rollback(1) == 1 and predictions(it.governor) == said[1]
    publish(it, 4)
    about = it.governor.status(it.now)
    assert (about["version"], about["frozen"], about["waiting_version"]) == (1, True, 4)
    assert [v["version"] for v in about["versions"] if v["in_use"]] == [1]
    assert predictions(it.governor) == said[1] != said[2]
    with pytest.raises(LookupError, match="version 9"):
        it.governor.rollback(9)
    with pytest.raises(LookupError, match="an earlier version"):
        it.governor.rollback()
    it.governor.thaw(it.now)
    assert it.governor.policy.version == 4 and not it.governor.frozen


def test_coefficients_are_shown_by_name() -> None:
    it = Scripted(learner=Publishing())
    assert it.governor.status(0.0)["coefficients"] == {}
    it.governor.learner.next = blob(1, base=0.5, queue_seconds=1.0)  # type: ignore[union-attr]
    it.second()
    about = it.governor.status(it.now)
    assert about["coefficients"] == {"base": 0.5, "queue_seconds": 1.0} and not about["network"]
    model = Model([16, 8], version=2)
    it.governor.learner.next = model.blob()  # type: ignore[union-attr]
    it.second()
    about = it.governor.status(it.now)
    assert list(about["coefficients"].values()) == model.linear.tolist() and about["network"]


def test_a_refused_blob_leaves_all_as_it_is() -> None:
    it = Scripted(learner=Publishing())
    publish(it, 1)
    it.governor.learner.next = b"nothing"  # type: ignore[union-attr]
    with pytest.raises(BlobError):
        it.second()
    assert it.governor.policy.version == 1 and len(it.governor.history.kept) == 1


def test_ages_of_the_kept_versions_grow_by_a_steady_factor() -> None:
    kept = History()
    kept.pinned = 7
    for version in range(1, 10_001):
        kept.add(version, float(version), b"")
    ages = [10_000 - v.version for v in reversed(kept.kept)]
    assert len(ages) == KEPT and ages[0] == 0 and ages[-1] == 9999
    assert kept.find(7) is not None
    steps = [b / a for a, b in zip(ages[1:-2], ages[2:-1], strict=True)]
    assert max(steps) < 4


def test_versions_survive_the_process(tmp_path: Path) -> None:
    made = [Version(v, 1e9 + v, Model([8], seed=v, version=v).blob()) for v in (3, 4, 5)]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "00000001-5.weights").write_bytes(b"left over")
    history.save(str(tmp_path), made, 4)
    assert history.load(str(tmp_path)) == (made, 4)
    assert len(list((tmp_path / "models").iterdir())) == 4
    history.save(str(tmp_path), made[1:], 0)
    assert history.load(str(tmp_path)) == (made[1:], 0)


def test_a_frozen_version_is_in_use_again_after_a_restart(tmp_path: Path) -> None:
    it = Scripted(learner=Publishing(), state_dir=str(tmp_path), wall=lambda: 1e9)
    assert it.governor.unsaved() is None
    for version in (1, 2, 3):
        publish(it, version)
    it.governor.rollback(2)
    unsaved = it.governor.unsaved()
    assert unsaved is not None and it.governor.unsaved() is None
    history.save(*unsaved)
    later = govern(learner=Publishing(), state_dir=str(tmp_path))
    assert later.policy.version == 2 and later.frozen
    assert predictions(later) == predictions(it.governor)
    assert [v.version for v in later.history.kept] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"x" * 40, None])
def test_damaged_versions_are_left_out(tmp_path: Path, damage: bytes | None) -> None:
    made = [Version(v, 1e9 + v, Model([8], seed=v, version=v).blob()) for v in (3, 4)]
    history.save(str(tmp_path), made, 3)
    path = tmp_path / "models" / f"00000003-{1e9 + 3:.0f}.weights"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert history.load(str(tmp_path)) == (made[1:], 3)
    assert not govern(state_dir=str(tmp_path)).frozen
    assert history.load(str(tmp_path / "nowhere")) == ([], 0)
