"""The Prometheus metrics of what is learned and of who may decide; metrics.py says what is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from lodestar_fast.families import counter, gauge

# Counters of learner.status() that should stay at 0.
TROUBLES = ("restarts", "batches_refused", "batches_dropped", "overruns")


def governing(counts: Mapping[str, Any]) -> Iterator[Metric]:
    """counts: of the governor; empty if no learned policy may decide: no series then."""
    for name, help, key, label in (
        ("lodestar_mode", "1 for the mode that is set.", "mode", "mode"),
        (
            "lodestar_watchdog_state",
            "1 for what the watchdog thinks of the model.",
            "state",
            "state",
        ),
    ):
        yield gauge(name, help, {counts[key]: 1} if counts else {}, (label,))
    for name, help, key in (
        ("lodestar_learned_share_ratio", "Share of the requests that the model decides.", "share"),
        ("lodestar_model_frozen", "1 while new weights wait on an operator's word.", "frozen"),
        ("lodestar_model_stale", "1 if nothing new is learned though samples come.", "stale"),
    ):
        yield gauge(name, help, {(): float(counts[key])} if counts else {})
    for name, help, key in (
        (
            "lodestar_prediction_error_median_ratio",
            "Factor by which the last predictions are off, in the median; NaN without any.",
            "median_error",
        ),
        (
            "lodestar_regret_ratio",
            "Plain physics: how much slower the model's choices are than the fallback's.",
            "regret",
        ),
    ):
        yield gauge(name, help, {(): math.exp(counts[key])} if counts else {})
    yield counter(
        "lodestar_watchdog_demotions",
        "Times the model was taken off, by cause.",
        counts.get("demotions", {}),
        ("cause",),
    )
    yield counter(
        "lodestar_prediction_drifts",
        "Times that first tokens drifted away from predictions: of the fleet, of one engine.",
        counts.get("drifts", {}),
        ("of",),
    )
    yield counter(
        "lodestar_model_choices",
        "Decisions the model was asked about, by whether the fallback chose the same.",
        counts.get("choices", {}),
        ("fallback",),
    )
    yield counter(
        "lodestar_choice_predicted_seconds",
        "Sum of times to first token predicted for the choice of either.",
        counts.get("predicted", {}),
        ("choice",),
    )
    yield counter(
        "lodestar_explored_seconds",
        "Predicted seconds that tries of idle engines took beyond the best choice.",
        {(): counts["explored"]} if counts else {},
    )
    sides = SummaryMetricFamily(
        "lodestar_side_ttft_seconds",
        "Time to first token by who decided, while both may.",
        labels=("side",),
    )
    for side, (n, seconds) in counts.get("sides", {}).items():
        sides.add_metric((side,), n, seconds)
    yield sides


def learning(policy: Any, status: Mapping[str, Any]) -> Iterator[Metric]:
    """status: of the learner; empty if nothing is learned."""
    rounds = status.get("rounds", 0)
    yield counter("lodestar_training_rounds", "Training rounds done.", rounds)
    training = SummaryMetricFamily("lodestar_training_seconds", "CPU time of training rounds.")
    training.add_metric((), rounds, status.get("train_seconds", 0.0))
    yield training
    yield counter(
        "lodestar_training_samples",
        "Samples that reached the learner, by what became of them.",
        status.get("samples", {}),
        ("kind",),
    )
    yield counter(
        "lodestar_weights_refused",
        "New weights that the learner did not publish, by why.",
        status.get("refusals", {}),
        ("cause",),
    )
    yield gauge(
        "lodestar_model_version",
        "Version of the weights in use; 0 if none.",
        policy.version,
    )
    yield counter(
        "lodestar_learner_troubles",
        "What went wrong in the learner; requests go on.",
        {kind: status.get(kind, 0) for kind in TROUBLES},
        ("kind",),
    )
    yield gauge(
        "lodestar_learner_state",
        "1 for the state the learner is in; no series without a learner.",
        {status["state"]: 1} if status else {},
        ("state",),
    )
    yield gauge(
        "lodestar_upper_quantile_ratio",
        "Upper quantile of times to first token over the prediction, by whether others wait there.",
        dict(status.get("upper_factor", {})),
        ("kind",),
    )
    for name, help, key in (
        (
            "lodestar_upper_quantile_coverage_ratio",
            "Share of the last first tokens within that quantile; it aims at 0.9. NaN without any.",
            "upper_coverage",
        ),
        (
            "lodestar_tpot_error_ratio",
            "Factor by which times per output token are mispredicted in the mean; NaN without any.",
            "tpot_log_error",
        ),
        (
            "lodestar_e2e_error_ratio",
            "The same for whole answers.",
            "e2e_log_error",
        ),
    ):
        value = status.get(key, math.nan)
        value = value if key == "upper_coverage" else math.exp(value)
        yield gauge(name, help, {(): value} if status else {})
