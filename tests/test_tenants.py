"""Whose requests teach the learner, and how much: tags in samples, and the share of each tenant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lodestar_fast import features
from lodestar_fast.config import LearnerConfig
from lodestar_fast.core import Event
from lodestar_fast.learner.tenants import factors
from lodestar_fast.learner.train import Trainer
from lodestar_fast.shares import LEAST, SHARE, VERIFIED
from tests.batches import pack, physical
from tests.oracle import make_router
from tests.proxy_rig import Rig, chat, with_rig
from tests.test_router import PROMPT, samples

# -- who it is -------------------------------------------------------------------------------------


def test_samples_name_the_tenant_by_a_keyed_hash() -> None:
    def tags(key: bytes | None = None) -> list[int]:
        router = make_router(instances=1, key=key)
        for tenant in (b"ann", b"bob", None, b"ann", b""):
            router.observe(router.route(PROMPT, 1.0, tenant=tenant).ticket, Event.DONE, 2.0)
        return [int(tag) for tag in samples(router)["tenant"]]

    ann, bob, nobody, again, empty = tags()
    assert ann == again != bob and nobody == 0 and 0 not in (ann, bob, empty)
    assert tags(bytes(range(64)))[:2] != [ann, bob]


async def tenant_of(rig: Rig, extra: str) -> bytes | None:
    client = await rig.client()
    client.post(chat("hello"), extra=extra)
    assert (await client.reply()).status == 200
    tenant: bytes | None = rig.router.routes[-1]["tenant"]
    return tenant


@with_rig(engines=1)
async def test_the_key_is_the_tenant_however_it_is_sent(rig: Rig) -> None:
    for line in ("Bearer k1", "bearer k1", "BEARER   k1"):
        assert await tenant_of(rig, f"Authorization: {line}\r\n") == b"k1"
    assert await tenant_of(rig, "x-user-id: ann\r\n") is None


@with_rig(engines=1)
async def test_a_gateway_may_name_the_tenant(rig: Rig) -> None:
    rig.context.tenant_headers = (b"x-user-id",)
    assert await tenant_of(rig, "X-User-ID: ann\r\nAuthorization: Bearer gateway\r\n") == b"ann"
    assert await tenant_of(rig, "Authorization: Bearer gateway\r\n") is None


# -- what it may ---------------------------------------------------------------------------------


def tags(n: int) -> NDArray[np.uint32]:
    """So many tenants; their tags are odd."""
    return 2 * np.arange(n, dtype=np.uint32) + 1


WEIGHTS = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=12)


@given(own=WEIGHTS)
def test_no_tenant_has_more_than_its_share(own: list[float]) -> None:
    """But for the floor: below the share, or cut to the least, or the only one."""
    n = len(own)
    got = factors(tags(n), np.array(own))
    capped = got * own
    assert (got >= LEAST).all() and (got <= 1.0).all()
    above = capped > max(SHARE, 1 / n) * capped.sum() * (1 + 1e-9)
    assert (got[above] == LEAST).all() or n == 1
    cut = np.flatnonzero(got < 1.0)
    if (got > LEAST).all() and len(cut):  # those that were cut have exactly their share
        assert capped[cut] == pytest.approx(max(SHARE, 1 / n) * capped.sum())


def test_one_tenant_alone_and_those_below_the_share_are_left_as_they_are() -> None:
    rng = np.random.default_rng(1)
    assert (factors(np.full(50, 7, np.uint32), rng.uniform(1, 2, 50)) == 1.0).all()
    assert (factors(tags(50) % 5, np.ones(50)) == 1.0).all()


def test_the_operators_own_requests_are_never_cut() -> None:
    tenant = np.array([VERIFIED] * 80 + [3] * 15 + [5] * 3 + [7] * 2, np.uint32)
    assert (factors(tenant, np.ones(100))[:80] == 1.0).all()
    tenant[:80], tenant[80:95] = 3, VERIFIED
    got = factors(tenant, np.ones(100))
    assert got[:80].max() < 1.0 and (got[80:] == 1.0).all()


def test_rows_of_one_tenant_share_its_factor() -> None:
    tenant = np.array([1] * 80 + [3] * 7 + [5] * 7 + [7] * 6, np.uint32)
    got = factors(tenant, np.ones(100))
    assert got[80:].tolist() == [1.0] * 20
    assert got[:80] == pytest.approx(SHARE / (1 - SHARE) * 20 / 80)


def traffic(rng: np.random.Generator, attacker: float, kind: str, k: int, named: bool) -> bytes:
    """A round of 200 rows, three tenants' and an attacker's share of them.

    kind: what the attacker makes of its own, "slow" as if every answer took ten times as long,
    "quick" as if none took any time, "tiny" prompts of no work, whose rows weigh most, and slow.
    """
    data = physical(rng, 200, start=float(k))
    bad = np.arange(200) < round(200 * attacker)
    if kind == "tiny":
        data["x"][bad, features.INDEX["own_seconds"]] = 0.001
        data["x"][bad, features.INDEX["queue_seconds"]] = 0.0
    data["ttft"][bad] = 0.001 if kind == "quick" else data["ttft"][bad] * 10.0
    if named:
        data["tenant"] = np.where(bad, 9, tags(200) % 6)
    return pack(data)


def learned(
    attacker: float, kind: str = "slow", named: bool = True, model: str = "linear"
) -> Trainer:
    """After 40 rounds of such traffic."""
    config = LearnerConfig(model=model)  # type: ignore[arg-type]
    network = None
    if model == "mlp":
        pytest.importorskip("torch")
        from lodestar_fast.learner.model import Correction

        network = Correction(features.WIDTH)
    trainer, rng = Trainer(config, network), np.random.default_rng(3)
    for k in range(40):
        trainer.add(traffic(rng, attacker, kind, k, named))
        trainer.round()
    return trainer


@pytest.mark.parametrize("kind", ["slow", "quick"])
def test_four_fifths_of_the_traffic_teach_no_more_than_three_tenths(kind: str) -> None:
    clean = learned(0.0).linear.theta
    moved, allowed, unchecked = (
        np.abs(learned(share, kind, named).linear.theta - clean)
        for share, named in ((0.8, True), (0.3, False), (0.8, False))
    )
    assert moved.sum() <= 1.1 * allowed.sum()
    assert moved.sum() < 0.8 * unchecked.sum(), "the attack is one"


def test_the_share_is_one_of_weight_and_not_of_rows() -> None:
    """Three tenths of the rows, of tiny prompts, are most of the weight."""
    clean = learned(0.0).linear.coefficients[features.INDEX["base"]]
    base = {
        named: learned(0.3, "tiny", named).linear.coefficients[features.INDEX["base"]] - clean
        for named in (True, False)
    }
    assert base[False] > 0.1
    assert base[True] < 0.5 * base[False]


def test_the_network_is_not_the_loudest_tenants() -> None:
    """Rows that the attacker alone has (a column that physics does not use) are not where it can
    be told apart: what the network says of everybody's is what the cap leaves it."""
    rows_of_all = physical(np.random.default_rng(5), 300)
    said = []
    for share, named in ((0.8, True), (0.8, False)):
        trainer = learned(share, "slow", named, "mlp")
        assert trainer.network is not None
        factor = trainer.network.log_factor(trainer._standardise(rows_of_all["x"]))
        predicted = trainer.linear.predict(rows_of_all["x"]) * np.exp(factor)
        said.append(float(np.log(predicted / rows_of_all["ttft"]).mean()))
    assert said[0] < 0.6 * said[1]
