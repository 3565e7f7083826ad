"""The metrics page: what must be on it, its form, its cost to others on the event loop."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lodestar_fast.metrics import Collector, exposition

BOUNDS = (1e-6, 0.0025, 0.5, 30.0)
HISTOGRAM = (BOUNDS, [1, 0, 2, 0, 4], 123.5)

REQUIRED = """
lodestar_requests_total lodestar_decisions_total lodestar_decision_seconds lodestar_ttft_seconds
lodestar_request_seconds lodestar_inflight_requests lodestar_instance_healthy lodestar_retries_total
lodestar_predicted_ttft_seconds lodestar_prediction_error_seconds lodestar_fallback_total
lodestar_exploration_total lodestar_training_rounds_total lodestar_training_seconds
lodestar_training_samples_total lodestar_model_version lodestar_prefix_index_bytes
lodestar_prefix_index_evictions_total lodestar_prefix_predicted_tokens_total
lodestar_prefix_delivered_tokens_total lodestar_build_info
""".split()


def instance(slot: int) -> SimpleNamespace:
    return SimpleNamespace(
        id=f"i{slot}",
        url=f"http://e{slot}:8000",
        slot=slot,
        healthy=slot != 1,
        draining=False,
        failures={"connect": 2, "check_refused": slot},
        ejections=1,
        reports=100,
    )


def proxy(instances: int = 2, learner: bool = True, busy: bool = True) -> SimpleNamespace:
    n = int(busy)
    counts: dict[str, Any] = {
        "requests": {("/v1/chat/completions", "2xx", "completed"): 5} if busy else {},
        "request_seconds": HISTOGRAM,
        "decision_seconds": HISTOGRAM,
        "retries": {"connect": 3} if busy else {},
        "connections_total": 9 * n,
        "stale_connections": n,
        "extra_bytes": 0,
        "upstream_opened": 7 * n,
        "retries_refused": 2 * n,
        "connections_refused": 3 * n,
        "slo_ignored": 2 * n,
    }
    stats = {
        "decisions": {
            "learned": 7 * n,
            "cold": 2 * n,
            "guard": n,
            "explore": 4 * n,
            "control": 3 * n,
        },
        "predicted_ttft": HISTOGRAM,
        "prediction_error": HISTOGRAM,
        "slo": {("kept", "missed"): 2 * n, ("unknown", "kept"): n},
        "index_bytes": 4096,
        "index_budget_bytes": 1 << 20,
        "index_evictions": 3 * n,
        "predicted_hit_tokens": 1000 * n,
        "delivered_hit_tokens": 900 * n,
        "tickets_full": 0,
        "samples_dropped": 0,
    }
    state = {
        "inflight": 2,
        "ttft": HISTOGRAM,
        "speed": 1.2e-4,
        "kv_tokens": 12288,
        "reported_running": 1,
        "reported_waiting": 0,
        "reported_kv_usage": 0.25,
    }
    governed = {
        "mode": "canary",
        "share": 0.1,
        "frozen": True,
        "stale": False,
        "state": "trusted",
        "demotions": {"regret": n, "stale": 0},
        "fallbacks": {"watchdog_regret": 9 * n, "watchdog_stale": 0},
        "median_error": math.log(1.5) if busy else math.nan,
        "regret": 0.0,
        "drifts": {"fleet": n, "engine": 2 * n},
        "choices": {"same": 6 * n, "other": n},
        "predicted": {"learned": 1.5 * n, "fallback": 2.5 * n},
        "explored": 0.75 * n,
        "sides": {"learned": (3 * n, 1.25 * n), "fallback": (0, 0.0)},
    }
    status = {
        "state": "training",
        "rounds": 3,
        "train_seconds": 0.5,
        "samples": {"used": 11},
        "refusals": {"unseen": 2, "verified": 0},
        "overruns": 4,
        "upper_factor": {"no_queue": 1.25, "queue": 2.0},
        "upper_coverage": 0.9,
        "tpot_log_error": math.log(1.25),
        "e2e_log_error": math.log(1.5),
    }
    told = SimpleNamespace(
        connected=True,
        events={"block_stored": 5, "all_blocks_cleared": 1},
        blocks={"block_stored": 40},
        faults=Counter(missed=3),
    )
    return SimpleNamespace(
        context=SimpleNamespace(
            counters=SimpleNamespace(snapshot=lambda: counts),
            connections={1, 2},
            draining=False,
            body_bytes=0,
            queued=0,
            tracer=SimpleNamespace(dropped=6) if busy else None,
        ),
        router=SimpleNamespace(
            policy=SimpleNamespace(name="lodestar", version=4),
            stats=lambda: stats,
            instance=lambda slot: state,
        ),
        fleet=SimpleNamespace(all=[instance(i) for i in range(instances)]),
        members=SimpleNamespace(
            counts=lambda: {"static": instances, "file": 3 * n}, changes={"added": 3, "gone": n}
        ),
        discovery=SimpleNamespace(
            health=lambda: (
                {"file": SimpleNamespace(age=2.5, syncs=9, errors={"invalid": 4})} if busy else {}
            )
        ),
        kv_events=SimpleNamespace(streams={"i0": told} if busy else {}),
        learner=SimpleNamespace(status=lambda: status) if learner else None,
        governor=SimpleNamespace(counts=lambda router: governed) if learner else None,
        incidents={"learner": 1} if busy else {},
        reloads={"refused": 2} if busy else {},
        log_counts=lambda: {"written": 9, "dropped": n} if busy else {},
    )


def page(**how: Any) -> str:
    return b"".join(exposition(Collector("1.2.3", proxy(**how)))).decode()


def samples(text: str) -> dict[str, float]:
    """'name{labels}' -> value, as a Prometheus server would read it."""
    return {
        s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@pytest.mark.parametrize("name", REQUIRED)
def test_the_least_is_there(name: str) -> None:
    for text in (page(), page(instances=0, learner=False, busy=False)):
        family = name.removesuffix("_total")
        assert re.search(rf"^# HELP {family}(_total)? .", text, re.M)
        assert re.search(rf"^# TYPE {family}(_total)? ", text, re.M)


def test_values_and_labels() -> None:
    found = samples(page())
    for name, value in {
        "lodestar_requests_total outcome=completed path=/v1/chat/completions status_class=2xx": 5,
        "lodestar_decisions_total policy=lodestar reason=learned": 7,
        "lodestar_fallback_total reason=cold": 2,
        "lodestar_fallback_total reason=guard": 1,
        "lodestar_fallback_total reason=out_of_range": 0,
        "lodestar_fallback_total reason=control": 3,
        "lodestar_fallback_total reason=watchdog_regret": 9,
        "lodestar_mode mode=canary": 1,
        "lodestar_watchdog_state state=trusted": 1,
        "lodestar_learned_share_ratio": 0.1,
        "lodestar_model_frozen": 1,
        "lodestar_model_stale": 0,
        "lodestar_prediction_error_median_ratio": 1.5,
        "lodestar_regret_ratio": 1,
        "lodestar_watchdog_demotions_total cause=regret": 1,
        "lodestar_prediction_drifts_total of=fleet": 1,
        "lodestar_prediction_drifts_total of=engine": 2,
        "lodestar_model_choices_total fallback=other": 1,
        "lodestar_choice_predicted_seconds_total choice=fallback": 2.5,
        "lodestar_side_ttft_seconds_count side=learned": 3,
        "lodestar_side_ttft_seconds_sum side=learned": 1.25,
        "lodestar_kv_events_connected instance=i0": 1,
        "lodestar_kv_events_total instance=i0 type=block_stored": 5,
        "lodestar_kv_event_blocks_total instance=i0 type=block_stored": 40,
        "lodestar_kv_event_faults_total instance=i0 kind=missed": 3,
        "lodestar_kv_event_faults_total instance=i0 kind=broken": 0,
        "lodestar_exploration_total": 4,
        "lodestar_slo_requests_total measured=missed predicted=kept": 2,
        "lodestar_slo_ignored_total": 2,
        "lodestar_upper_quantile_ratio kind=queue": 2.0,
        "lodestar_upper_quantile_coverage_ratio": 0.9,
        "lodestar_tpot_error_ratio": 1.25,
        "lodestar_e2e_error_ratio": 1.5,
        "lodestar_telemetry_dropped_total": 6,
        "lodestar_retries_total reason=connect": 3,
        "lodestar_inflight_requests instance=i1": 2,
        "lodestar_instance_healthy instance=i0": 1,
        "lodestar_instance_healthy instance=i1": 0,
        "lodestar_instance_info instance=i1 url=http://e1:8000": 1,
        "lodestar_instance_failures_total instance=i1 kind=check_refused": 1,
        "lodestar_training_rounds_total": 3,
        "lodestar_training_seconds_count": 3,
        "lodestar_training_seconds_sum": 0.5,
        "lodestar_training_samples_total kind=used": 11,
        "lodestar_explored_seconds_total": 0.75,
        "lodestar_weights_refused_total cause=unseen": 2,
        "lodestar_learner_troubles_total kind=overruns": 4,
        "lodestar_learner_state state=training": 1,
        "lodestar_discovery_instances source=file": 3,
        "lodestar_discovery_changes_total change=gone": 1,
        "lodestar_discovery_age_seconds source=file": 2.5,
        "lodestar_discovery_syncs_total source=file": 9,
        "lodestar_discovery_errors_total kind=invalid source=file": 4,
        "lodestar_model_version": 4,
        "lodestar_background_incidents_total kind=learner": 1,
        "lodestar_engine_connections_dropped_total reason=stale": 1,
    }.items():
        assert found[name] == value, name


def test_histograms_are_cumulative() -> None:
    found = samples(page())
    buckets = {k: v for k, v in found.items() if k.startswith("lodestar_decision_seconds_bucket")}
    assert list(buckets.items()) == [
        ("lodestar_decision_seconds_bucket le=1e-06", 1),
        ("lodestar_decision_seconds_bucket le=0.0025", 1),
        ("lodestar_decision_seconds_bucket le=0.5", 3),
        ("lodestar_decision_seconds_bucket le=30.0", 3),
        ("lodestar_decision_seconds_bucket le=+Inf", 7),
    ]
    assert found["lodestar_decision_seconds_count"] == 7
    assert found["lodestar_decision_seconds_sum"] == 123.5
    assert found["lodestar_ttft_seconds_bucket instance=i1 le=0.5"] == 3


def test_without_a_learner_there_is_no_state_and_all_counts_are_zero() -> None:
    found = samples(page(learner=False))
    for name in ("learner_state", "mode ", "watchdog_state", "learned_share_ratio", "side_ttft"):
        assert not [found_name for found_name in found if found_name.startswith(f"lodestar_{name}")]
    assert found["lodestar_training_rounds_total"] == 0


@pytest.mark.parametrize("instances", [0, 1, 100])
def test_pieces_make_one_page(instances: int) -> None:
    text = page(instances=instances)
    heads = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(heads) == len(set(heads)), "HELP and TYPE come once a family"
    assert text.endswith("\n") and "\n\n" not in text
    assert (
        len([n for n in samples(text) if n.startswith("lodestar_instance_healthy ")]) == instances
    )


def test_a_broken_source_is_not_hidden() -> None:
    broken = proxy()
    del broken.router.stats()["decisions"]
    with pytest.raises(KeyError, match="decisions"):
        list(exposition(Collector("1", broken)))


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize(
    "make", [page, lambda: page(instances=0, learner=False, busy=False)], ids=["busy", "idle"]
)
def test_promtool_has_nothing_to_say(make: Callable[[], str]) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=make(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
