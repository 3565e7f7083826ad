"""Every Prometheus metric, declared once, in one Collector over counters that others keep anyway.

Nothing is paid per request: proxy and core count in plain fields, and a scrape reads them. Labels
come from closed sets (instance ids, reasons, paths of the allow-list), never from a client's words.

What is read, all of it required:

    counters.snapshot()    requests {(path, status_class, outcome): n}, request_seconds H,
                           decision_seconds H, retries {reason: n}, connections_total,
                           stale_connections, extra_bytes, upstream_opened
    router.stats()         decisions {reason: n}, predicted_ttft H, prediction_error H, index_bytes,
                           index_budget_bytes, index_evictions, predicted_hit_tokens,
                           delivered_hit_tokens, tickets_full, samples_dropped
    router.instance(slot)  inflight, ttft H, speed, kv_tokens, reported_running, reported_waiting,
                           reported_kv_usage
    fleet.all              instances: id, url, slot, healthy, draining, failures, ejections, reports
    learner.status()       state, rounds, train_seconds, samples {kind: n}, restarts,
                           batches_refused, batches_dropped

H is a histogram (bounds, counts, sum) in seconds: upper bounds without +Inf; a count per bucket,
not cumulative, and one more for +Inf. Reasons and kinds are lower-case strings.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Reasons of core.Reason for which a model was asked for and a heuristic decided.
FALLBACKS = ("guard", "cold", "out_of_range", "error")

# Name, help, key of router.instance().
_INSTANCE_GAUGES = (
    ("lodestar_inflight_requests", "Requests dispatched and not ended.", "inflight"),
    (
        "lodestar_instance_prefill_seconds_per_token",
        "Estimated time for a prompt token that is not cached.",
        "speed",
    ),
    (
        "lodestar_instance_kv_capacity_tokens",
        "KV cache as the engine tells; 0: unknown.",
        "kv_tokens",
    ),
    ("lodestar_instance_reported_running", "Requests the engine says it runs.", "reported_running"),
    ("lodestar_instance_reported_waiting", "Requests the engine says wait.", "reported_waiting"),
    (
        "lodestar_instance_reported_kv_usage_ratio",
        "How full the engine says its KV cache is.",
        "reported_kv_usage",
    ),
)

# Counters of learner.status() that should stay at 0.
TROUBLES = ("restarts", "batches_refused", "batches_dropped")

# Samples rendered at a time; about 4 us each.
_PIECE = 128

Histogram = tuple[Iterable[float], Iterable[int], float]


def _counter(
    name: str, help: str, values: Mapping[Any, float] | float, labels: tuple[str, ...] = ()
) -> Metric:
    """A counter; values: a number, or {label value or tuple of them: number}."""
    family = CounterMetricFamily(name, help, labels=labels)
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add_metric(key if isinstance(key, tuple) else (key,), value)
    else:
        family.add_metric((), values)
    return family


def _gauge(
    name: str, help: str, values: Mapping[Any, float] | float, labels: tuple[str, ...] = ()
) -> Metric:
    """A gauge; values as in _counter()."""
    family = GaugeMetricFamily(name, help, labels=labels)
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add_metric(key if isinstance(key, tuple) else (key,), value)
    else:
        family.add_metric((), values)
    return family


def _histogram(
    name: str, help: str, values: Mapping[str, Histogram] | Histogram, labels: tuple[str, ...] = ()
) -> Metric:
    """A histogram; values: one, or {label value: one}."""
    family = HistogramMetricFamily(name, help, labels=labels)
    items = values.items() if isinstance(values, Mapping) else [("", values)]
    for key, (bounds, counts, total) in items:
        running, buckets = 0, []
        for bound, count in zip((*bounds, float("inf")), counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), running))
        family.add_metric((key,) if labels else (), buckets, total)
    return family


class Collector:
    """All metrics of one process. learner: None when the policy does not learn."""

    def __init__(self, version: str, proxy: Any) -> None:
        """proxy: has context, router, fleet, learner (None: nothing is learned),
        incidents and reloads."""
        self._version = version
        self._proxy = proxy

    def collect(self) -> Iterator[Metric]:
        """Every family, also those without samples yet."""
        proxy = self._proxy
        policy = proxy.router.policy
        yield from _requests(proxy.context)
        yield from _decisions(policy, proxy.router.stats())
        yield from _instances(proxy.router, proxy.fleet)
        yield from _learning(policy, proxy.learner.status() if proxy.learner else {})
        yield _counter(
            "lodestar_background_incidents",
            "Failures outside requests: refused weights, a raising learner, a failed task.",
            dict(proxy.incidents),
            ("kind",),
        )
        yield _counter(
            "lodestar_reloads",
            "Configurations read again on SIGHUP, by what became of them.",
            {outcome: proxy.reloads.get(outcome, 0) for outcome in ("applied", "refused")},
            ("outcome",),
        )
        yield _gauge(
            "lodestar_build_info",
            "Always 1; the labels say what runs.",
            {(self._version, platform.python_version(), policy.name): 1},
            ("version", "python", "policy"),
        )


def _requests(context: Any) -> Iterator[Metric]:
    counts = context.counters.snapshot()
    yield _counter(
        "lodestar_requests",
        "Requests ended; each accepted one has exactly one outcome.",
        counts["requests"],
        ("path", "status_class", "outcome"),
    )
    yield _histogram(
        "lodestar_request_seconds",
        "From the request's head to the last byte of its answer.",
        counts["request_seconds"],
    )
    yield _histogram(
        "lodestar_decision_seconds",
        "Time to choose an instance.",
        counts["decision_seconds"],
    )
    yield _counter(
        "lodestar_retries",
        "Further tries on another instance, by why the one before failed.",
        counts["retries"],
        ("reason",),
    )
    yield _counter(
        "lodestar_retries_refused",
        "Further tries not made because the retry budget was used up.",
        counts["retries_refused"],
    )
    yield _gauge(
        "lodestar_client_connections",
        "Open connections of clients.",
        len(context.connections),
    )
    yield _counter(
        "lodestar_client_connections_accepted",
        "Connections of clients since the start.",
        counts["connections_total"],
    )
    yield _counter(
        "lodestar_client_connections_refused",
        "Connections of clients beyond max_connections.",
        counts["connections_refused"],
    )
    yield _gauge(
        "lodestar_request_body_bytes",
        "Bytes of request bodies in hand.",
        context.body_bytes,
    )
    yield _gauge(
        "lodestar_queued_requests",
        "Requests waiting for a place.",
        context.queued,
    )
    yield _counter(
        "lodestar_engine_connections_opened",
        "Connections to engines since the start.",
        counts["upstream_opened"],
    )
    yield _counter(
        "lodestar_engine_connections_dropped",
        "Kept connections to engines that turned out unusable.",
        {"stale": counts["stale_connections"], "extra_bytes": counts["extra_bytes"]},
        ("reason",),
    )
    yield _gauge(
        "lodestar_draining",
        "1 while the router finishes its requests before it ends.",
        int(context.draining),
    )


def _decisions(policy: Any, stats: Mapping[str, Any]) -> Iterator[Metric]:
    reasons = stats["decisions"]
    yield _counter(
        "lodestar_decisions",
        "Routing decisions by the reason for the choice.",
        {(policy.name, reason): n for reason, n in reasons.items()},
        ("policy", "reason"),
    )
    yield _counter(
        "lodestar_fallback",
        "Decisions of the fallback heuristic where a model was asked for.",
        {reason: reasons.get(reason, 0) for reason in FALLBACKS},
        ("reason",),
    )
    yield _counter(
        "lodestar_exploration",
        "Decisions made to learn rather than to serve at once.",
        reasons.get("explore", 0),
    )
    yield _histogram(
        "lodestar_predicted_ttft_seconds",
        "Predicted time to first token of the chosen instance.",
        stats["predicted_ttft"],
    )
    yield _histogram(
        "lodestar_prediction_error_seconds",
        "Distance between predicted and measured time to first token.",
        stats["prediction_error"],
    )
    yield _gauge(
        "lodestar_prefix_index_bytes",
        "Memory in use by the prefix index.",
        stats["index_bytes"],
    )
    yield _gauge(
        "lodestar_prefix_index_budget_bytes",
        "Memory that the prefix index may use.",
        stats["index_budget_bytes"],
    )
    yield _counter(
        "lodestar_prefix_index_evictions",
        "Blocks dropped from the prefix index to keep its budget.",
        stats["index_evictions"],
    )
    yield _counter(
        "lodestar_prefix_predicted_tokens",
        "Prompt tokens believed cached on the chosen instance.",
        stats["predicted_hit_tokens"],
    )
    yield _counter(
        "lodestar_prefix_delivered_tokens",
        "Prompt tokens that engines reported as taken from their cache.",
        stats["delivered_hit_tokens"],
    )
    yield _counter(
        "lodestar_untracked_requests",
        "Requests that no ticket was left for: served, but not learned from.",
        stats["tickets_full"],
    )
    yield _counter(
        "lodestar_samples_dropped",
        "Samples that came faster than they were taken.",
        stats["samples_dropped"],
    )


def _instances(router: Any, fleet: Any) -> Iterator[Metric]:
    instances = list(fleet.all)
    states = {i.id: router.instance(i.slot) for i in instances}
    label = ("instance",)
    yield _histogram(
        "lodestar_ttft_seconds",
        "From dispatch to the first byte that carries a token.",
        {id: state["ttft"] for id, state in states.items()},
        label,
    )
    for name, help, key in _INSTANCE_GAUGES:
        yield _gauge(name, help, {id: state[key] for id, state in states.items()}, label)
    yield _gauge(
        "lodestar_instance_healthy",
        "1 if the last health checks passed and the instance is not ejected.",
        {i.id: int(i.healthy) for i in instances},
        label,
    )
    yield _gauge(
        "lodestar_instance_draining",
        "1 if the instance gets no new requests on an operator's word.",
        {i.id: int(i.draining) for i in instances},
        label,
    )
    yield _gauge(
        "lodestar_instance_info",
        "Always 1; joins an instance to its address.",
        {(i.id, i.url): 1 for i in instances},
        ("instance", "url"),
    )
    yield _counter(
        "lodestar_instance_failures",
        "Failed requests and health checks by kind.",
        {(i.id, kind): n for i in instances for kind, n in i.failures.items()},
        ("instance", "kind"),
    )
    yield _counter(
        "lodestar_instance_ejections",
        "Times an instance was taken out for failing requests.",
        {i.id: i.ejections for i in instances},
        label,
    )
    yield _counter(
        "lodestar_instance_reports",
        "Load reports read from the instance's own metrics.",
        {i.id: i.reports for i in instances},
        label,
    )


def _learning(policy: Any, status: Mapping[str, Any]) -> Iterator[Metric]:
    """status: of the learner; empty if nothing is learned."""
    rounds = status.get("rounds", 0)
    yield _counter("lodestar_training_rounds", "Training rounds done.", rounds)
    training = SummaryMetricFamily("lodestar_training_seconds", "CPU time of training rounds.")
    training.add_metric((), rounds, status.get("train_seconds", 0.0))
    yield training
    yield _counter(
        "lodestar_training_samples",
        "Samples that reached the learner, by what became of them.",
        status.get("samples", {}),
        ("kind",),
    )
    yield _gauge(
        "lodestar_model_version",
        "Version of the weights in use; 0 if none.",
        policy.version,
    )
    yield _counter(
        "lodestar_learner_troubles",
        "What went wrong in the learner; requests go on.",
        {kind: status.get(kind, 0) for kind in TROUBLES},
        ("kind",),
    )
    yield _gauge(
        "lodestar_learner_state",
        "1 for the state the learner is in; no series without a learner.",
        {status["state"]: 1} if status else {},
        ("state",),
    )


def exposition(collector: Collector) -> Iterator[bytes]:
    """The page in pieces of well under a millisecond each.

    A caller on an event loop lets others run in between: at 64 instances the page takes 10 ms.
    """
    for family in collector.collect():
        samples = family.samples
        for start in range(0, len(samples) or 1, _PIECE):
            family.samples = samples[start : start + _PIECE]
            text = generate_latest(_One(family))
            # Each piece opens with the lines # HELP and # TYPE; a page has them once a family.
            yield text.split(b"\n", 2)[2] if start else text


class _One:
    """A registry of one family, all that generate_latest() asks for."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)
