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
    governor.counts()      as governor.py writes it; governor None: nothing learned decides
    members                counts() engines by source, changes {change: n}
    kv_events.streams      by instance id: connected, events {type: n}, blocks {type: n},
                           faults {kind: n}
    discovery.health()     by source: age, syncs, errors {kind: n}
    log_counts()           decisions by what their log did with them; empty without one
    learner.status()       state, rounds, train_seconds, samples {kind: n}, restarts,
                           batches_refused, batches_dropped, overruns, refusals {cause: n}

H is a histogram (bounds, counts, sum) in seconds: upper bounds without +Inf; a count per bucket,
not cumulative, and one more for +Inf. Reasons and kinds are lower-case strings.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from lodestar_fast.families import counter, gauge, histogram
from lodestar_fast.metrics_discovery import discovering
from lodestar_fast.metrics_events import kv_events
from lodestar_fast.metrics_model import governing, learning

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Reasons of core.Reason for which a model was asked for and a heuristic decided.
FALLBACKS = ("guard", "cold", "out_of_range", "error", "control", "absurd")

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

# Samples rendered at a time; about 4 us each.
_PIECE = 128


class Collector:
    """All metrics of one process. learner: None when the policy does not learn."""

    def __init__(self, version: str, proxy: Any) -> None:
        """proxy: has context, router, fleet, members, discovery, governor, learner (both may
        be None), incidents and reloads."""
        self._version = version
        self._proxy = proxy

    def collect(self) -> Iterator[Metric]:
        """Every family, also those without samples yet."""
        proxy = self._proxy
        policy = proxy.router.policy
        yield from _requests(proxy.context)
        counts = proxy.governor.counts(proxy.router) if proxy.governor else {}
        yield from _decisions(policy, proxy.router.stats(), counts.get("fallbacks", {}))
        yield from _instances(proxy.router, proxy.fleet)
        yield from discovering(proxy.members, proxy.discovery)
        yield from kv_events(proxy.kv_events.streams)
        yield from governing(counts)
        yield from learning(policy, proxy.learner.status() if proxy.learner else {})
        yield counter(
            "lodestar_background_incidents",
            "Failures outside requests: refused weights, a raising learner, a failed task.",
            dict(proxy.incidents),
            ("kind",),
        )
        yield counter(
            "lodestar_decision_log_decisions",
            "Decisions by what the log did with them; no series without a log.",
            proxy.log_counts(),
            ("fate",),
        )
        yield counter(
            "lodestar_reloads",
            "Configurations read again on SIGHUP, by what became of them.",
            {outcome: proxy.reloads.get(outcome, 0) for outcome in ("applied", "refused")},
            ("outcome",),
        )
        yield gauge(
            "lodestar_build_info",
            "Always 1; the labels say what runs.",
            {(self._version, platform.python_version(), policy.name): 1},
            ("version", "python", "policy"),
        )


def _requests(context: Any) -> Iterator[Metric]:
    counts = context.counters.snapshot()
    yield counter(
        "lodestar_requests",
        "Requests ended; each accepted one has exactly one outcome.",
        counts["requests"],
        ("path", "status_class", "outcome"),
    )
    yield histogram(
        "lodestar_request_seconds",
        "From the request's head to the last byte of its answer.",
        counts["request_seconds"],
    )
    yield histogram(
        "lodestar_decision_seconds",
        "Time to choose an instance.",
        counts["decision_seconds"],
    )
    yield counter(
        "lodestar_retries",
        "Further tries on another instance, by why the one before failed.",
        counts["retries"],
        ("reason",),
    )
    yield counter(
        "lodestar_retries_refused",
        "Further tries not made because the retry budget was used up.",
        counts["retries_refused"],
    )
    yield gauge(
        "lodestar_client_connections",
        "Open connections of clients.",
        len(context.connections),
    )
    yield counter(
        "lodestar_client_connections_accepted",
        "Connections of clients since the start.",
        counts["connections_total"],
    )
    yield counter(
        "lodestar_client_connections_refused",
        "Connections of clients beyond max_connections.",
        counts["connections_refused"],
    )
    yield counter(
        "lodestar_slo_ignored",
        "Requests whose x-slo-ttft-ms or x-slo-tpot-ms was no number of milliseconds.",
        counts["slo_ignored"],
    )
    yield gauge(
        "lodestar_request_body_bytes",
        "Bytes of request bodies in hand.",
        context.body_bytes,
    )
    yield gauge(
        "lodestar_queued_requests",
        "Requests waiting for a place.",
        context.queued,
    )
    yield counter(
        "lodestar_engine_connections_opened",
        "Connections to engines since the start.",
        counts["upstream_opened"],
    )
    yield counter(
        "lodestar_engine_connections_dropped",
        "Kept connections to engines that turned out unusable.",
        {"stale": counts["stale_connections"], "extra_bytes": counts["extra_bytes"]},
        ("reason",),
    )
    yield counter(
        "lodestar_telemetry_dropped",
        "Requests that no span or GenAI metric tells of, for they ended too fast.",
        context.tracer.dropped if context.tracer else 0,
    )
    yield gauge(
        "lodestar_draining",
        "1 while the router finishes its requests before it ends.",
        int(context.draining),
    )


def _decisions(
    policy: Any, stats: Mapping[str, Any], demoted: Mapping[str, int]
) -> Iterator[Metric]:
    """demoted: decisions of the fallback for the watchdog's sake, {reason: n}."""
    reasons = stats["decisions"]
    yield counter(
        "lodestar_decisions",
        "Routing decisions by the reason for the choice.",
        {(policy.name, reason): n for reason, n in reasons.items()},
        ("policy", "reason"),
    )
    yield counter(
        "lodestar_fallback",
        "Decisions of the fallback heuristic where a model was asked for.",
        {reason: reasons.get(reason, 0) for reason in FALLBACKS} | dict(demoted),
        ("reason",),
    )
    yield counter(
        "lodestar_exploration",
        "Decisions made to learn rather than to serve at once.",
        reasons.get("explore", 0),
    )
    yield histogram(
        "lodestar_predicted_ttft_seconds",
        "Predicted time to first token of the chosen instance.",
        stats["predicted_ttft"],
    )
    yield histogram(
        "lodestar_prediction_error_seconds",
        "Distance between predicted and measured time to first token.",
        stats["prediction_error"],
    )
    yield counter(
        "lodestar_slo_requests",
        "Streamed requests with an SLO that ended, by whether it was to be kept and was.",
        stats["slo"],
        ("predicted", "measured"),
    )
    yield gauge(
        "lodestar_prefix_index_bytes",
        "Memory in use by the prefix index.",
        stats["index_bytes"],
    )
    yield gauge(
        "lodestar_prefix_index_budget_bytes",
        "Memory that the prefix index may use.",
        stats["index_budget_bytes"],
    )
    yield counter(
        "lodestar_prefix_index_evictions",
        "Blocks dropped from the prefix index to keep its budget.",
        stats["index_evictions"],
    )
    yield counter(
        "lodestar_prefix_predicted_tokens",
        "Prompt tokens believed cached on the chosen instance.",
        stats["predicted_hit_tokens"],
    )
    yield counter(
        "lodestar_prefix_delivered_tokens",
        "Prompt tokens that engines reported as taken from their cache.",
        stats["delivered_hit_tokens"],
    )
    yield counter(
        "lodestar_untracked_requests",
        "Requests that no ticket was left for: served, but not learned from.",
        stats["tickets_full"],
    )
    yield counter(
        "lodestar_samples_dropped",
        "Samples that came faster than they were taken.",
        stats["samples_dropped"],
    )


def _instances(router: Any, fleet: Any) -> Iterator[Metric]:
    instances = list(fleet.all)
    states = {i.id: router.instance(i.slot) for i in instances}
    label = ("instance",)
    yield histogram(
        "lodestar_ttft_seconds",
        "From dispatch to the first byte that carries a token.",
        {id: state["ttft"] for id, state in states.items()},
        label,
    )
    for name, help, key in _INSTANCE_GAUGES:
        yield gauge(name, help, {id: state[key] for id, state in states.items()}, label)
    yield gauge(
        "lodestar_instance_healthy",
        "1 if the last health checks passed and the instance is not ejected.",
        {i.id: int(i.healthy) for i in instances},
        label,
    )
    yield gauge(
        "lodestar_instance_draining",
        "1 if the instance gets no new requests: drained, or no source lists it any more.",
        {i.id: int(i.draining) for i in instances},
        label,
    )
    yield gauge(
        "lodestar_instance_info",
        "Always 1; joins an instance to its address.",
        {(i.id, i.url): 1 for i in instances},
        ("instance", "url"),
    )
    yield counter(
        "lodestar_instance_failures",
        "Failed requests and health checks by kind.",
        {(i.id, kind): n for i in instances for kind, n in i.failures.items()},
        ("instance", "kind"),
    )
    yield counter(
        "lodestar_instance_ejections",
        "Times an instance was taken out for failing requests.",
        {i.id: i.ejections for i in instances},
        label,
    )
    yield counter(
        "lodestar_instance_reports",
        "Load reports read from the instance's own metrics.",
        {i.id: i.reports for i in instances},
        label,
    )


def as_markdown(collector: Collector) -> str:
    """The table of all families: as a query names them, with their labels."""
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for family in collector.collect():
        name = family.name + "_total" * (family.type == "counter")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines)


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
