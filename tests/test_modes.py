"""Who decides: shares, conversations that stay on a side, and what a guarded policy may not change.

Also the evidence that a watchdog judges by, against numpy on the same samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lodestar_fast import features
from lodestar_fast.core import Candidates, Event, Policy, Reason, Router
from lodestar_fast.core.evidence import Evidence
from lodestar_fast.core.modes import Guarded
from lodestar_fast.core.policies import LeastRequest, Lmetric, Lodestar, RoundRobin
from lodestar_fast.errors import BlobError
from lodestar_fast.watchdog import MOST_REGRET
from tests import batches
from tests.oracle import Model, make_router, weighted, work
from tests.test_policies import Bad, drive, fail


def guarded(share: float = 1.0, reason: Reason = Reason.CONTROL, **weights: float) -> Guarded:
    policy = Guarded(weighted([16, 16], **weights), Lmetric())
    policy.steer(share, reason)
    return policy


def reasons(router: Router) -> dict[str, int]:
    return {name: n for name, n in router.stats()["decisions"].items() if n}


# -- one decides, the other is only asked --


@pytest.mark.parametrize("fallback", [Lmetric, RoundRobin, LeastRequest])
def test_with_all_the_share_it_is_the_learned_policy_number_for_number(
    fallback: type[Policy],
) -> None:
    alone = drive(make_router(weighted([16, 16]), 5, kv_tokens=50_000, seed=3), 600)
    policy = Guarded(weighted([16, 16]), fallback())
    assert drive(make_router(policy, 5, kv_tokens=50_000, seed=3), 600) == alone


@pytest.mark.parametrize("reason", [Reason.SHADOW, Reason.DEMOTED])
def test_without_any_share_it_is_the_fallback_number_for_number(reason: Reason) -> None:
    alone = drive(make_router(Lmetric(), 5, kv_tokens=50_000, seed=3), 600)
    router = make_router(policy := guarded(0, reason), 5, kv_tokens=50_000, seed=3)
    assert drive(router, 600) == alone
    assert reasons(router) == {reason.name.lower(): 600}
    assert policy.asked == 600 and 0 < policy.agreed < 600
    assert policy.predicted_learned < policy.predicted_fallback, "it would have chosen otherwise"


def test_off_the_learned_policy_is_not_even_asked() -> None:
    policy = Guarded(Bad(fail), Lmetric())
    policy.steer(1, Reason.HEURISTIC, asks=False)
    router = make_router(policy, 5, seed=3)
    assert drive(router, 300) == drive(make_router(Lmetric(), 5, seed=3), 300)
    assert policy.share == 0 and policy.raised == 0
    assert reasons(router) == {"heuristic": 300}


def test_in_the_shadow_the_prediction_is_of_the_instance_that_was_chosen() -> None:
    """Slot 0 is busy: LMETRIC takes 1, a model that likes waiting takes 0."""
    policy = guarded(0, Reason.SHADOW, base=1.0, prefill_requests=-8.0)
    router = make_router(policy, 2)
    router.set_routable(1, False)
    router.route(b"x" * 400, 0.0)
    router.set_routable(1, True)
    decision = router.route(b"", 0.0, prompt_tokens=64)
    assert (decision.slot, decision.reason) == (1, Reason.SHADOW)
    assert decision.predicted == pytest.approx(policy.predicted_fallback, rel=1e-3)
    assert policy.predicted_learned < 0.7 * policy.predicted_fallback and not policy.agreed


def test_while_there_is_no_model_the_reason_is_cold_whoever_decides() -> None:
    for share in (0.0, 0.5, 1.0):
        policy = Guarded(Lodestar(), Lmetric())
        policy.steer(share, Reason.CONTROL)
        router = make_router(policy, 3)
        drive(router, 50)
        assert reasons(router) == {"cold": 50} and policy.asked == 0


def test_name_version_and_weights_are_the_learned_ones() -> None:
    policy = guarded()
    assert (policy.name, policy.version) == ("lodestar", 1)
    assert policy.load(Model(None, version=9).blob()) == policy.version == 9
    with pytest.raises(BlobError):
        policy.load(b"nothing")
    assert policy.version == 9
    for share, reason in ((-0.1, 0), (1.1, 0), (float("nan"), 0), (0.5, 99), (0.5, -1)):
        with pytest.raises(ValueError):
            policy.steer(share, reason)


# -- shares and sides --


def turns(conversation: int, count: int, system: int) -> list[bytes]:
    """A chat's prompts as they arrive: each the one before with an answer and a question more."""
    draw = np.random.default_rng(conversation)
    text = b'[{"role":"system","content":"' + b"s" * system + b'"}'
    made = []
    for turn in range(count):
        words = bytes(draw.choice(list(b"abcdefgh "), 100 + 40 * turn).tolist())
        text += b',{"role":"user","content":"' + words + b'"}'
        made.append(text + b"]")
    return made


@pytest.mark.parametrize("system", [0, 4000])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_conversation_stays_on_its_side_and_the_share_is_kept(share: float, system: int) -> None:
    def sides(seed: int) -> list[set[bool]]:
        router = make_router(guarded(share), 4, seed=seed)
        chats = [turns(i, 5, system) for i in range(400)]
        found: list[set[bool]] = [set() for _ in chats]
        for turn in range(5):
            for seen, chat in zip(found, chats, strict=True):
                decision = router.route(chat[turn], float(turn))
                router.observe(decision.ticket, Event.FIRST_TOKEN, turn + 0.1)
                router.observe(decision.ticket, Event.DONE, turn + 0.2)
                seen.add(decision.reason == Reason.CONTROL)
        return found

    found = sides(1)
    assert all(len(seen) == 1 for seen in found)
    learned = sum(seen == {False} for seen in found) / len(found)
    assert learned == pytest.approx(share, abs=3 * (share * (1 - share) / 400) ** 0.5)
    assert found == sides(1) and found != sides(2), "the router's seed draws the sides"


def test_short_questions_under_one_system_prompt_are_drawn_one_by_one() -> None:
    """They end in the same block, and differ only in the bytes behind it."""
    router = make_router(guarded(0.3), 4)
    system = b"s" * 640
    chosen = [router.route(system + b"%d?" % i, 0.0).reason for i in range(2000)]
    assert chosen.count(Reason.CONTROL) / 2000 == pytest.approx(0.7, abs=0.04)
    again = [router.route(system + b"%d?" % i, 0.0).reason for i in range(2000)]
    assert [r == Reason.CONTROL for r in again] == [r == Reason.CONTROL for r in chosen]


def test_prompts_below_one_block_are_drawn_too() -> None:
    router = make_router(guarded(0.3), 4)
    chosen = [router.route(b"%d" % i, 0.0).reason for i in range(2000)]
    assert chosen.count(Reason.CONTROL) / 2000 == pytest.approx(0.7, abs=0.04)


def test_a_new_share_draws_every_side_anew() -> None:
    policy = guarded(0.5)
    router = make_router(policy, 4)
    chats = [turns(i, 2, 0) for i in range(300)]
    before = [router.route(chat[0], 0.0).reason == Reason.CONTROL for chat in chats]
    policy.steer(0.9, Reason.CONTROL)
    after = [router.route(chat[1], 1.0).reason == Reason.CONTROL for chat in chats]
    assert sum(before) / 300 == pytest.approx(0.5, abs=0.1)
    assert sum(after) / 300 == pytest.approx(0.1, abs=0.06)


# -- what it notices --


def test_a_policy_that_raises_fails_no_request_and_shows() -> None:
    policy = Guarded(Bad(fail), Lmetric())
    router = make_router(policy, 5, seed=3)
    assert drive(router, 200) == drive(make_router(Lmetric(), 5, seed=3), 200)
    assert reasons(router) == {"error": 200}
    assert policy.raised > 0.9 and policy.last_error == "RuntimeError: on purpose"
    policy.forget()
    assert policy.raised == 0


@pytest.mark.parametrize("predicted", [float("nan"), float("inf"), 0.0, -1.0, 1e5])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_absurd_predictions_decide_nothing(predicted: float, share: float) -> None:
    def predict(c: Candidates) -> int:
        c.reason, c.predicted = Reason.LEARNED, predicted
        return c.n - 1

    policy = Guarded(Bad(predict), Lmetric())
    policy.steer(share, Reason.SHADOW)
    router = make_router(policy, 5, seed=3)
    assert drive(router, 200) == drive(make_router(Lmetric(), 5, seed=3), 200)
    assert reasons(router) == {"absurd" if share else "shadow": 200}
    assert policy.absurd > 0.9 and policy.asked == 0


def test_choices_that_physics_finds_worse_are_regretted() -> None:
    longest_queue = weighted(policy=Lodestar(spare_weight=0.0), base=1.0, queue_seconds=-100.0)
    policy = Guarded(longest_queue, Lmetric())
    router = make_router(policy, 4)
    for k in range(60):
        router.route(b"", 0.01 * k, prompt_tokens=2000)
    assert policy.regret > MOST_REGRET
    healthy = guarded(1.0, base=0.02, own_seconds=1.0, queue_seconds=1.0)
    router = make_router(healthy, 4)
    for k in range(60):
        router.route(b"", 0.01 * k, prompt_tokens=2000)
    assert healthy.regret < 0.05


@pytest.mark.parametrize(("load_weight", "sacrifice"), [(10.0, True), (0.0, False)])
def test_a_wait_that_was_accepted_for_others_is_no_evidence(
    load_weight: float, sacrifice: bool
) -> None:
    """Slot 0 has the prefix and a crowd that decodes: the request is quicker there, but in the way.

    It costs others 5 x 164 tokens there and none at slot 1, where it computes 1,024 itself.
    """
    policy = weighted(policy=Lodestar(load_weight=load_weight), base=0.02, own_seconds=1.0)
    router = make_router(Guarded(policy, Lmetric()), 2)
    prompt = b"".join(b"%08d" % k for k in range(512))
    for text in (prompt[:3456], *(b"" for _ in range(4))):
        ticket = router.route(text, 0.0, prompt_tokens=16 if not text else 864, avoid=[1]).ticket
        router.observe(ticket, Event.FIRST_TOKEN, 0.1)
    router.drain()
    decision = router.route(prompt, 1.0, prompt_tokens=1024)
    assert decision.slot == sacrifice
    router.observe(decision.ticket, Event.FIRST_TOKEN, 1.2)
    (row,) = np.frombuffer(router.drain(), features.sample_dtype(), offset=batches.HEADER.size)
    assert np.isnan(row["reference"]) == sacrifice


def test_a_fallback_that_fails_is_overruled_by_the_router() -> None:
    policy = Guarded(Lodestar(), Bad(fail))
    router = make_router(policy, 3)
    assert router.route(b"", 0.0).reason == Reason.ERROR
    policy = Guarded(Lodestar(), Bad(lambda c: 7))
    router = make_router(policy, 3)
    assert router.route(b"", 0.0).reason == Reason.ERROR


# -- evidence --


def batch(count: int, **columns: Any) -> bytes:
    return batches.pack(batches.rows(count, event=Event.FIRST_TOKEN, **columns))


def test_the_error_is_the_median_over_the_newest_predictions() -> None:
    draw, found = np.random.default_rng(1), Evidence()
    assert found.window == 0 and np.isnan(found.error)
    ttft, predicted = draw.uniform(0.01, 2, 300), draw.uniform(0.01, 2, 300)
    for part in range(0, 300, 50):
        found.take(batch(50, ttft=ttft[part:][:50], predicted=predicted[part:][:50]))
    errors = np.abs(np.log((ttft + 0.005) / (predicted + 0.005)))[-128:]
    assert found.error == pytest.approx(np.sort(errors)[64], rel=1e-5)
    assert (found.window, found.measured) == (128, 300)
    found.forget()
    assert (found.window, found.measured) == (0, 300)


def test_the_newest_pairs_of_predicted_and_measured_are_kept() -> None:
    draw, found = np.random.default_rng(4), Evidence()
    assert found.recent() == []
    n = 700
    ttft, predicted = draw.uniform(0.01, 2, n), draw.uniform(0.01, 2, n)
    reason = draw.choice(list(Reason), n)
    for part in (slice(0, 5), slice(5, n)):
        columns = {"ttft": ttft[part], "predicted": predicted[part], "reason": reason[part]}
        found.take(batch(len(ttft[part]), **columns))
        expected = np.stack([predicted, ttft, reason], 1)[max(0, part.stop - 512) : part.stop]
        assert np.array(found.recent()) == pytest.approx(expected, rel=1e-6)
    found.take(batches.pack(batches.rows(1, event=Event.ABANDONED, ttft=3.0, predicted=1.0)))
    assert found.measured == n + 1 and found.recent()[-1][2] == reason[-1], "no first token came"
    found.forget()
    assert len(found.recent()) == 512


def test_what_was_given_up_counts_only_beyond_the_prediction() -> None:
    found = Evidence()
    for event, waited, counts in (
        (Event.ABANDONED, 0.5, False),
        (Event.ABANDONED, 3.0, True),
        (Event.TIMEOUT, 3.0, True),
        (Event.FAILED, 3.0, False),
        (Event.DONE, 3.0, False),
    ):
        before = found.measured
        found.take(batches.pack(batches.rows(1, event=event, ttft=waited, predicted=1.0)))
        assert found.measured - before == counts, event
    assert found.error == pytest.approx(np.log(3.005 / 1.005))


def test_arms_are_means_of_log_ratios_by_who_decided() -> None:
    draw, found = np.random.default_rng(2), Evidence()
    n, known = 400, list(Reason)
    reason = draw.choice(known, n)
    reference, ttft = draw.uniform(0.02, 1, n), draw.exponential(0.3, n)
    agreed = draw.random(n) < 0.5
    own = np.where(agreed, reference - 0.02, reference + 0.1)
    columns = {"reason": reason, "reference": reference, "ttft": ttft, "own_seconds": own}
    for part in (slice(0, 150), slice(150, n)):
        some = {name: values[part] for name, values in columns.items()}
        found.take(batch(len(some["ttft"]), predicted=1.0, **some))
    ratio = np.clip(np.log((ttft + 0.005) / (reference + 0.005)), -4, 4)
    learned = np.isin(reason, [Reason.LEARNED, Reason.GUARD, Reason.OUT_OF_RANGE, Reason.EXPLORE])
    for arm, mask in (
        (found.agreed(), learned & agreed),
        (found.deviated(), learned & ~agreed),
        (found.learned(), learned),
        (found.control(), np.isin(reason, [Reason.SHADOW, Reason.CONTROL, Reason.DEMOTED])),
    ):
        values = ratio[mask]
        error = values.std(ddof=1) / len(values) ** 0.5
        assert arm == pytest.approx(
            (len(values), values.mean(), error, ttft[mask].mean()), rel=1e-4, abs=1e-5
        )
    found.compare_anew()
    assert found.learned()[0] == found.control()[0] == 0 and found.window == 128


def drifting(found: Evidence, n: int, slots: list[int], factor: float, seed: int = 0) -> list[int]:
    """n first tokens of four engines, those of slots so many times as late: drifts seen so far."""
    rng = np.random.default_rng(seed)
    slot = rng.integers(0, 4, n)
    ttft = 0.2 * np.exp(rng.normal(0, 0.2, n)) * np.where(np.isin(slot, slots), factor, 1)
    found.take(
        batches.pack(batches.rows(n, ttft=ttft, predicted=0.2, slot=slot, event=Event.FIRST_TOKEN))
    )
    return [found.fleet_drifts, found.engine_drifts]


def test_predictions_that_drift_are_noticed_of_one_engine_and_of_the_fleet() -> None:
    found = Evidence()
    assert drifting(found, 5000, [], 1.0) == [0, 0] and found.drifted == -2
    fleet, engine = drifting(found, 100, [2], 2.0, seed=1)
    assert fleet == 0 and engine >= 1
    assert (found.drifted, found.slower) == (2, True)
    assert drifting(found, 3000, [], 1.0, seed=2)[0] == 0
    before = found.fleet_drifts
    drifting(found, 60, [0, 1, 2, 3], 0.5, seed=3)
    assert found.fleet_drifts > before and not found.slower


def test_a_change_that_lasts_becomes_the_habit() -> None:
    found = Evidence()
    drifting(found, 1000, [], 1.0)
    seen = drifting(found, 3000, [0, 1, 2, 3], 2.0, seed=1)
    assert seen[0] >= 1
    assert drifting(found, 3000, [0, 1, 2, 3], 2.0, seed=2) == seen


def test_samples_carry_the_reference_of_the_decision() -> None:
    router = make_router(guarded(0.5), 3)
    ticket = router.route(b"x" * 4000, 0.0).ticket
    router.observe(ticket, Event.FIRST_TOKEN, 0.3)
    rows = np.frombuffer(router.drain(), features.sample_dtype(), offset=24)
    assert rows["reference"][0] == pytest.approx(0.02 + work(1000) * 1.2e-4, rel=1e-3)
    router = make_router(Lmetric(), 3)
    router.observe(router.route(b"", 0.0).ticket, Event.FIRST_TOKEN, 0.3)
    rows = np.frombuffer(router.drain(), features.sample_dtype(), offset=24)
    assert np.isnan(rows["reference"][0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 23,
        batches.pack(batches.rows(2))[:-1],
        batches.pack(batches.rows(2), magic=1),
        batches.pack(batches.rows(2), schema=1),
    ],
)
def test_other_bytes_are_no_evidence(data: bytes) -> None:
    with pytest.raises(BlobError):
        Evidence().take(data)


def test_each_guard_is_a_policy() -> None:
    assert isinstance(guarded(), Policy)
    with pytest.raises(TypeError):
        Guarded(None, Lmetric())  # type: ignore[arg-type]
