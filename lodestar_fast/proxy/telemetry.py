"""Spans and GenAI metrics of ended requests, over OTLP, for who switches them on.

A thread takes what tracing.py kept and makes of each request one span of kind SERVER, with the
attributes of OpenTelemetry's semantic conventions for generative AI (in development there, so names
may change with a version), and its share in four histograms. It yields after each request, so that
the event loop never waits for more than one. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and
OTEL_EXPORTER_OTLP_HEADERS are read by the SDK as everywhere.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.tracing import Record, Tracer

log = logging.getLogger(__name__)

_PAUSE = 0.1  # seconds between looks
_FLUSH = 5.0  # seconds at the end
_METRICS_EVERY = 10_000  # milliseconds between exports of metrics

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
# The bounds that the conventions advise.
_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10]
_EACH = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_TOKENS = [4.0**n for n in range(14)]


class Telemetry:
    """The thread and what it exports to."""

    def __init__(self, endpoint: str, tracer: Tracer, version: str) -> None:
        """endpoint: the collector's base URL, http://host:4318. Raises ConfigError."""
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import IdGenerator
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ModuleNotFoundError as e:
            raise ConfigError(
                f"serve.otlp_endpoint (--otlp-endpoint): {e.name} is not installed: "
                "pip install 'lodestar-fast[otel]'"
            ) from None

        class Given(IdGenerator):  # type: ignore[misc, unused-ignore]
            """The ids that the engine was told already."""

            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                return self.span_id

        base = endpoint.rstrip("/")
        resource = Resource.create({"service.version": version}).merge(Resource.create({}))
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "lodestar"}))
        self._ids = Given()
        # What is not to be recorded is left out before it gets here.
        self._spans = TracerProvider(
            resource=resource, id_generator=self._ids, sampler=ALWAYS_ON, shutdown_on_exit=False
        )
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics"), export_interval_millis=_METRICS_EVERY
        )
        self._metrics = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._make = self._spans.get_tracer("lodestar", version)
        meter = self._metrics.get_meter("lodestar", version)

        def histogram(name: str, unit: str, text: str, bounds: list[float]) -> Any:
            return meter.create_histogram(
                name, unit, text, explicit_bucket_boundaries_advisory=bounds
            )

        server = "gen_ai.server."
        self._duration = histogram(
            server + "request.duration", "s", "From the request to the end of its answer", _SECONDS
        )
        self._first = histogram(
            server + "time_to_first_token", "s", "From the request to the first token", _FIRST
        )
        self._each = histogram(
            server + "time_per_output_token", "s", "A token after the first", _EACH
        )
        self._usage = histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of a request and its answer", _TOKENS
        )
        self._tracer = tracer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_PAUSE)
            offset = time.time() - time.monotonic()
            while self._tracer.ended:
                try:
                    self._tell(self._tracer.ended.popleft(), offset)
                except Exception:
                    log.exception("a request could not be told of")
                time.sleep(0)  # lets the event loop run

    def _tell(self, record: Record, offset: float) -> None:
        """offset: what makes wall-clock times of the record's."""
        common = _common(record)
        self._measure(record, common)
        if record.trace.sampled:
            self._span(record, common, offset)

    def _measure(self, record: Record, common: dict[str, Any]) -> None:
        self._duration.record(record.ended - record.started, common)
        if record.first_token:
            self._first.record(record.first_token - record.started, common)
            if record.output_tokens > 1 and record.status == 200:
                each = (record.ended - record.first_token) / (record.output_tokens - 1)
                self._each.record(each, common)
        for kind, tokens in (("input", record.prompt_tokens), ("output", record.output_tokens)):
            if tokens > 0:
                self._usage.record(tokens, {**common, "gen_ai.token.type": kind})

    def _span(self, record: Record, common: dict[str, Any], offset: float) -> None:
        from opentelemetry import trace as api
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import StatusCode

        at = record.trace
        parent = None
        if at.parent:
            state = api.TraceState.from_header([at.state]) if at.state else None
            remote = SpanContext(at.trace_id, at.parent, True, TraceFlags(1), state)
            parent = api.set_span_in_context(NonRecordingSpan(remote))
        self._ids.trace_id, self._ids.span_id = at.trace_id, at.span_id
        name = f"{common['gen_ai.operation.name']} {record.model}".strip()
        span = self._make.start_span(
            name,
            parent,
            SpanKind.SERVER,
            {**common, **_attributes(record)},
            start_time=_ns(record.started, offset),
        )
        if record.first_token:
            span.add_event("first_token", timestamp=_ns(record.first_token, offset))
        if record.outcome in ("engine_error", "router_error"):
            span.set_status(StatusCode.ERROR)
        span.end(_ns(record.ended, offset))

    def close(self) -> None:
        """Tell of what has ended, within some seconds; a collector that is not there gets less."""
        self._over.set()
        # The SDK tries again for half a minute and cannot be told to stop; the process can end.
        last = threading.Thread(target=self._end, name="telemetry-end", daemon=True)
        last.start()
        last.join(_FLUSH)
        if last.is_alive():
            log.warning("the collector did not take the last spans in %g s", _FLUSH)

    def _end(self) -> None:
        self._thread.join()
        self._spans.shutdown()
        self._metrics.shutdown()


def _ns(seconds: float, offset: float) -> int:
    return int((seconds + offset) * 1e9)


def _common(record: Record) -> dict[str, Any]:
    """What spans and metrics share; few values each."""
    common: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS.get(record.path, record.path.rpartition("/")[2]),
        "gen_ai.request.model": record.model,
    }
    if record.instance:
        common["server.address"] = record.address
        common["server.port"] = record.port
    if record.outcome != "completed" or record.status >= 400:
        common["error.type"] = record.outcome if record.outcome != "completed" else "client_error"
    return common


def _attributes(record: Record) -> dict[str, Any]:
    """What only a span has."""
    found: dict[str, Any] = {
        "url.path": record.path,
        "http.response.status_code": record.status,
        "lodestar.outcome": record.outcome,
        "lodestar.policy": record.policy,
        "lodestar.tries": record.tries,
    }
    if record.instance:
        found["lodestar.instance"] = record.instance
        found["lodestar.reason"] = record.reason
        found["lodestar.decision_seconds"] = record.decision_seconds
    if not math.isnan(record.predicted):
        found["lodestar.predicted_ttft"] = record.predicted
    for name, tokens in (
        ("gen_ai.usage.input_tokens", record.prompt_tokens),
        ("gen_ai.usage.output_tokens", record.output_tokens),
        ("lodestar.cached_tokens", record.cached_tokens),
    ):
        if tokens >= 0:
            found[name] = tokens
    return found
