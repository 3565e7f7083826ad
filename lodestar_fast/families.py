"""Prometheus families from plain numbers and dictionaries; metrics.py declares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric

Histogram = tuple[Iterable[float], Iterable[int], float]


def _fill(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[Any, float] | float
) -> Metric:
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add_metric(key if isinstance(key, tuple) else (key,), value)
    else:
        family.add_metric((), values)
    return family


def counter(
    name: str, help: str, values: Mapping[Any, float] | float, labels: tuple[str, ...] = ()
) -> Metric:
    """A counter; values: a number, or {label value or tuple of them: number}."""
    family = CounterMetricFamily(name, help, labels=labels)
    return _fill(family, values)


def gauge(
    name: str, help: str, values: Mapping[Any, float] | float, labels: tuple[str, ...] = ()
) -> Metric:
    """A gauge; values as in counter()."""
    family = GaugeMetricFamily(name, help, labels=labels)
    return _fill(family, values)


def histogram(
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
