"""Metrics of discovery: which sources list how many engines, and whether they still tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics_core import Metric

from lodestar_fast.families import counter, gauge


def discovering(members: Any, discovery: Any) -> Iterator[Metric]:
    """members, discovery: as the top of metrics.py says."""
    health = discovery.health()
    yield gauge(
        "lodestar_discovery_instances",
        "Engines that a source lists; one may be listed by several.",
        members.counts(),
        ("source",),
    )
    yield counter(
        "lodestar_discovery_changes",
        "Engines that were found, went, came back, or could not be added.",
        dict(members.changes),
        ("change",),
    )
    yield gauge(
        "lodestar_discovery_age_seconds",
        "Time since a source last told what there is; since the start if it never did.",
        {name: source.age for name, source in health.items()},
        ("source",),
    )
    yield counter(
        "lodestar_discovery_syncs",
        "Times that a source told what there is.",
        {name: source.syncs for name, source in health.items()},
        ("source",),
    )
    yield counter(
        "lodestar_discovery_errors",
        "Times that a source could not be asked, by kind; what it said last stays.",
        {(name, kind): n for name, s in health.items() for kind, n in s.errors.items()},
        ("source", "kind"),
    )
