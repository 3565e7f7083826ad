"""Metrics of KV events: what engines tell of their caches, and whether all of it arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric

from lodestar_fast.families import counter, gauge


def kv_events(streams: Mapping[str, Any]) -> Iterator[Metric]:
    """streams: by instance, what is listened to; none: no series."""
    yield gauge(
        "lodestar_kv_events_connected",
        "1 while the engine's publisher of KV events is connected; no series if not listened to.",
        {id: int(stream.connected) for id, stream in streams.items()},
        ("instance",),
    )
    yield counter(
        "lodestar_kv_events",
        "KV events by type; all_blocks_cleared empties what is believed to be cached there.",
        {(id, kind): n for id, stream in streams.items() for kind, n in stream.events.items()},
        ("instance", "type"),
    )
    yield counter(
        "lodestar_kv_event_blocks",
        "Blocks of the engine's cache that KV events named, by type of event.",
        {(id, kind): n for id, stream in streams.items() for kind, n in stream.blocks.items()},
        ("instance", "type"),
    )
    yield counter(
        "lodestar_kv_event_faults",
        "Messages of KV events that were missed, broken or out of order; publishers begun anew.",
        {
            (id, kind): stream.faults[kind]
            for id, stream in streams.items()
            for kind in ("missed", "broken", "disorder", "restarted")
        },
        ("instance", "kind"),
    )
