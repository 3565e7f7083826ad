"""Who may say what of the model: loud tenants in the other heads and the watchdog, and the
operator's own, verified requests as control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lodestar_fast.config import Config, LearnerConfig, RoutingConfig, ServeConfig
from lodestar_fast.core import Event, Reason, Router
from lodestar_fast.core.evidence import Evidence
from lodestar_fast.errors import ConfigError
from lodestar_fast.learner.export import parse
from lodestar_fast.learner.heads import Heads
from lodestar_fast.learner.train import Trainer
from lodestar_fast.proxy.reload import read_all_keys
from lodestar_fast.shares import LEAST, VERIFIED, most
from tests import batches
from tests.oracle import make_router
from tests.test_heads import samples
from tests.test_router import samples as drained

OTHERS = np.array([1, 3, 5], np.uint32)
LOUD = 9


def senders(n: int, share: float) -> NDArray[np.uint32]:
    """About so large a share of n rows is one tenant's; three others have the rest."""
    loud = np.random.default_rng(1).random(n) < share
    return np.where(loud, LOUD, OTHERS[np.arange(n) % 3]).astype(np.uint32)


# -- heads -------------------------------------------------------------------------------------


def told(share: float, named: bool, **columns: Any) -> Heads:
    """After 1,200 first tokens and answers, 20 a batch; columns: (of the others, of the loud)."""
    heads, n = Heads(), 1200
    tenant = senders(n, share)
    values = {k: np.where(tenant == LOUD, loud, other) for k, (other, loud) in columns.items()}
    rows = samples(n, queue_seconds=0.0, inter_token_seconds=0.0, decode_requests=0.0, **values)
    if named:
        rows["tenant"] = tenant
    for start in range(0, n, 20):
        heads.add(rows[start : start + 20])
        heads.solve()
    return heads


ANSWERS: dict[str, Any] = {"event": (Event.DONE, Event.DONE), "e2e": (1.0, 1.0)}


def test_a_loud_tenant_does_not_set_the_upper_quantile() -> None:
    """Its requests are as quick as predicted; all others take three times as long."""
    first = {"predicted": (0.2, 0.2), "ttft": (0.6, 0.2)}
    assert told(0.93, False, **first).told.upper[0] == pytest.approx(0, abs=1e-6)
    assert told(0.93, True, **first).told.upper[0] == pytest.approx(np.log(3))


def test_a_loud_tenant_does_not_set_the_length_of_answers_or_their_pace() -> None:
    length = {**ANSWERS, "tpot": (0.02, 0.02), "output_tokens": (100, 1000)}
    capped, not_capped = (told(0.8, named, **length).told.answer for named in (True, False))
    assert not_capped == pytest.approx(820, rel=0.05)
    assert capped == pytest.approx(0.3 * 1000 + 0.7 * 100, rel=0.1)
    pace = {**ANSWERS, "tpot": (0.02, 0.2), "output_tokens": (100, 100)}
    x = samples(200, 1, queue_seconds=0.0, inter_token_seconds=0.0, decode_requests=0.0)["x"]
    means = [float((x @ told(0.8, named, **pace).told.slopes).mean()) for named in (True, False)]
    assert means[1] == pytest.approx(0.8 * 0.2 + 0.2 * 0.02, rel=0.1)
    assert means[0] == pytest.approx(0.3 * 0.2 + 0.7 * 0.02, rel=0.15)


def test_tenants_that_all_send_alike_teach_as_one_would() -> None:
    rows = samples(900, queue_seconds=0.0, predicted=0.2)
    rows["ttft"] = 0.2 * np.random.default_rng(2).uniform(0.5, 2, 900)
    uppers = []
    for tenant in (0, 2 * (np.arange(900) % 9) + 1):
        rows["tenant"] = tenant
        heads = Heads()
        for start in range(0, 900, 45):
            heads.add(rows[start : start + 45])
            heads.solve()
        uppers.append(heads.told.upper)
    assert uppers[0] == uppers[1]


# -- the watchdog's evidence -------------------------------------------------------------------


def seen(rows: NDArray[Any], step: int = 100) -> Evidence:
    found = Evidence()
    for start in range(0, len(rows), step):
        found.take(batches.pack(rows[start : start + step]))
    return found


def first_tokens(n: int, share: float, **columns: Any) -> NDArray[Any]:
    tenant = senders(n, share)
    values = {k: np.where(tenant == LOUD, loud, other) for k, (other, loud) in columns.items()}
    return batches.rows(
        n, event=Event.FIRST_TOKEN, tenant=tenant, dispatched=np.arange(n) * 0.1, **values
    )


def test_a_loud_tenant_does_not_move_the_median_or_the_comparison() -> None:
    columns: dict[str, Any] = {"predicted": (0.2, 0.2), "ttft": (0.2, 2.0), "reference": (0.2, 0.2)}
    rows = first_tokens(600, 0.8, **columns)
    rows["reason"] = Reason.LEARNED
    found = seen(rows)
    assert found.error == 0 and found.measured == 600
    n, mean, _, _ = found.learned()
    worst = np.log(2.005 / 0.205)
    assert mean == pytest.approx(0.3 * worst, rel=0.15)
    assert n == pytest.approx(120 / 0.7, rel=0.15), "in requests of the others"
    rows["tenant"] = 1
    found = seen(rows)
    assert found.error == pytest.approx(worst)
    assert found.learned()[:2] == pytest.approx((600, 0.8 * worst), rel=0.05)


def test_verified_requests_say_whether_predictions_are_right() -> None:
    """Whatever others make of it, in either direction, and as long as they are not too old."""
    for off in (1.0, 4.0):
        rows = first_tokens(400, 0.5, predicted=(0.2, 0.2), ttft=(0.2 * off, 0.2 * off))
        rows["tenant"][::20] = VERIFIED
        own = rows["tenant"] == VERIFIED
        rows["ttft"][own] = 0.2 * 5.0 / off
        found = seen(rows)
        assert found.verified == 20
        assert found.error == pytest.approx(np.log((1.0 / off + 0.005) / 0.205), abs=1e-3)
    later = first_tokens(200, 0.5, predicted=(0.2, 0.2), ttft=(0.2, 0.2))
    later["dispatched"] += 400.0
    found.take(batches.pack(later))
    assert found.verified == 0 and found.error == 0
    rows = first_tokens(200, 0.5, predicted=(0.2, 0.2), ttft=(0.2, 0.2))
    rows["tenant"][:15] = VERIFIED
    assert seen(rows).verified == 0, "too few"


def test_the_most_a_tenant_may_weigh() -> None:
    assert most([4.0]) == 4.0 and most([9.0, 1.0]) == 1.0
    assert most([80.0, 7, 7, 6]) == pytest.approx(0.3 / 0.7 * 20)
    assert most([45.0, 45, 5, 5]) == pytest.approx(0.3 * 10 / 0.4)
    assert LEAST < 0.3


# -- the gate ----------------------------------------------------------------------------------


def round_of(rng: np.random.Generator, k: int, poisoned: float, verified: bool) -> bytes:
    """200 first tokens, all of unknown senders but some of the operator's."""
    data = batches.physical(rng, 200, start=float(k))
    own = np.arange(200) % 8 == 0
    if verified:
        data["tenant"][own] = VERIFIED
    data["ttft"][~own] *= poisoned
    return batches.pack(data)


@pytest.mark.parametrize("verified", [True, False])
def test_what_is_wrong_of_verified_requests_is_not_published(verified: bool) -> None:
    trainer, rng = Trainer(LearnerConfig(model="linear"), None), np.random.default_rng(3)
    for k in range(10):
        trainer.add(round_of(rng, k, 1.0, verified))
        assert (trainer.round() is not None) == (k > 0)
    honest = trainer.blob
    for k in range(10, 26):
        trainer.add(round_of(rng, k, 3.0, verified))
        trainer.round()
    x = batches.physical(rng, 200)["x"]
    moved = float(np.log(parse(trainer.blob).predict(x) / parse(honest).predict(x)).mean())
    if verified:
        assert moved < 0.3 and "newest verified first tokens" in trainer.refusal
    else:
        assert moved > 0.5 and not trainer.refusal


# -- whose requests those are ------------------------------------------------------------------


def test_the_operators_tenants_are_tagged_and_nobody_else_is() -> None:
    router = make_router(instances=1)

    def tag(name: bytes) -> int:
        router.observe(router.route(b"p" * 64, 1.0, tenant=name).ticket, Event.DONE, 2.0)
        return int(drained(router)["tenant"][-1])

    assert tag(b"probe") % 2
    router.trust([b"probe", b"canary"])
    assert tag(b"probe") == tag(b"canary") == VERIFIED and tag(b"ann") % 2
    router.trust([])
    assert tag(b"probe") % 2
    assert isinstance(router, Router)


def test_verified_keys_are_client_keys_too(tmp_path: Path) -> None:
    keys = {name: tmp_path / name for name in ("clients", "own")}
    keys["clients"].write_text("ann\n")
    keys["own"].write_text("probe\n")

    def read(clients: str, own: str, **routing: str) -> tuple[Any, Any]:
        serve = ServeConfig(api_key_file=clients, verified_key_file=own)
        all_keys = read_all_keys(Config(serve=serve, routing=RoutingConfig(**routing)))
        return all_keys.clients, all_keys.verified

    clients, own = str(keys["clients"]), str(keys["own"])
    assert read("", "") == (None, frozenset())
    assert read(clients, own) == ({b"ann", b"probe"}, {b"probe"})
    assert read("", own) == (None, {b"probe"}), "the port stays open"
    # Where a gateway names tenants, these are names and open no door.
    assert read(clients, own, tenant_header="x-tenant") == ({b"ann"}, {b"probe"})
    with pytest.raises(ConfigError, match="verified_key_file"):
        read("", str(tmp_path / "none"))
