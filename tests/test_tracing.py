"""Trace context: passed through when tracing is off, our span in between when it is on."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lodestar_fast.proxy.tracing import Record, Trace, Tracer
from tests.fake_engine import free_port, plain, reset, stream, token, usage
from tests.proxy_rig import Rig, chat, with_rig

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
CANARY = "canary-in-a-prompt"


def sent(rig: Rig, name: bytes) -> list[bytes]:
    """That field of the last request that the engine got."""
    return rig.engines[0].calls[-1].field(name)


@with_rig()
async def test_without_tracing_the_context_passes_as_it_came(rig: Rig) -> None:
    client = await rig.client()
    for lines in ("", f"Traceparent: {PARENT}\r\ntracestate: a=1,b=2\r\n", "traceparent: x\r\n"):
        client.post(extra=lines)
        assert (await client.reply()).status == 200
        wanted = [line.partition(": ")[2].encode() for line in lines.split("\r\n") if line]
        assert sent(rig, b"traceparent") + sent(rig, b"tracestate") == wanted


@with_rig()
async def test_with_tracing_our_span_is_the_engines_parent(rig: Rig) -> None:
    tracer = rig.context.tracer = Tracer(1.0)
    body = b'data: {"choices":[],"usage":%b}\n\n' % usage(9, 3, 4)
    rig.engines[0].script.append(stream(token(1), token(2), body, b"data: [DONE]\n\n"))
    client = await rig.client()
    client.post(
        chat(CANARY, stream=True), extra=f"TraceParent:{PARENT}\r\ntracestate: a=1\r\nX-Y: z\r\n"
    )
    assert (await client.reply()).status == 200
    (record,) = tracer.ended
    (line,) = sent(rig, b"traceparent")
    assert line.decode() == f"00-{TRACE}-{record.trace.span_id:016x}-01" != PARENT
    assert sent(rig, b"tracestate") == [b"a=1"] and sent(rig, b"x-y") == [b"z"]
    assert record.trace == Trace(int(TRACE, 16), record.trace.span_id, int(SPAN, 16), True, "a=1")
    assert record.started < record.first_token <= record.ended
    assert (record.path, record.status, record.outcome) == (
        "/v1/chat/completions",
        200,
        "completed",
    )
    assert (record.model, record.instance, record.tries) == ("m", "i0", 1)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (9, 3, 4)
    assert record.port == rig.engines[0].port and math.isnan(record.predicted)
    assert CANARY not in repr(record)


@with_rig(engines=2)
async def test_a_request_without_a_context_begins_a_trace(rig: Rig) -> None:
    tracer = rig.context.tracer = Tracer(1.0)
    client = await rig.client()
    for lines in ("", "traceparent: 00-0-0-01\r\n", f"traceparent: {PARENT}\r\n" * 2):
        client.post(extra=lines)
        assert (await client.reply()).status == 200
        record = tracer.ended.pop()
        assert record.trace.parent == 0 and record.trace.sampled and record.first_token == 0
    assert (
        len({line for e in rig.engines for c in e.calls for line in c.field(b"traceparent")}) == 3
    )


@with_rig(engines=2)
async def test_tries_and_failures_are_told(rig: Rig) -> None:
    tracer = rig.context.tracer = Tracer(0.0)
    rig.engines[0].default = rig.engines[1].default = reset
    client = await rig.client()
    client.post()
    assert (await client.reply()).status == 502
    (record,) = tracer.ended
    assert (record.outcome, record.status, record.tries) == ("engine_error", 502, 2)
    assert not record.trace.sampled
    client.get("/health")
    await client.reply("GET")
    client.post(b"no json")
    await client.reply()
    assert len(tracer.ended) == 1, "what never gets to an engine is not traced"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        PARENT + "-more",
        PARENT.upper(),
        "ff" + PARENT[2:],
        PARENT.replace(TRACE, "0" * 32),
        PARENT.replace(SPAN, "0" * 16),
        PARENT[:-1],
    ],
)
def test_a_context_that_is_none_is_replaced(value: str) -> None:
    trace, fields = Tracer(1.0).begin(f"a: b\r\ntraceparent: {value}\r\nc: d\r\n".encode())
    assert trace.parent == 0 and fields.startswith(b"a: b\r\nc: d\r\ntraceparent: 00-")
    assert fields.count(b"traceparent") == 1


def test_a_later_version_may_have_more() -> None:
    trace, _ = Tracer(0.0).begin(f"traceparent: cc{PARENT[2:]}-what-the-future\r\n".encode())
    assert trace.parent == int(SPAN, 16) and trace.sampled, "the client decides"
    trace, _ = Tracer(1.0).begin(f"traceparent: {PARENT[:-2]}00\r\n".encode())
    assert not trace.sampled


def record(**more: Any) -> Record:
    given = {
        "trace": Trace(int(TRACE, 16), 7, int(SPAN, 16), True, "a=1"),
        "started": 100.0,
        "first_token": 100.5,
        "ended": 102.5,
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "completed",
        "model": "llama",
        "instance": "i0",
        "address": "10.0.0.1",
        "port": 8000,
        "policy": "lodestar",
        "reason": "learned",
        "predicted": 0.25,
        "decision_seconds": 4e-6,
        "tries": 1,
        "prompt_tokens": 100,
        "cached_tokens": 60,
        "output_tokens": 5,
    }
    return Record(**{**given, **more})


def test_the_queue_is_bounded() -> None:
    tracer = Tracer(1.0)
    for _ in range(5000):
        tracer.end(record())
    assert len(tracer.ended) == 4096 and tracer.dropped == 5000 - 4096


class Collector(ThreadingHTTPServer):
    """Keeps what is posted, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.posted: dict[str, list[bytes]] = defaultdict(list)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.posted[self.path].append(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_spans_and_metrics_reach_a_collector() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from lodestar_fast.proxy.telemetry import Telemetry

    tracer = Tracer(1.0)
    collector = Collector()
    telemetry = Telemetry(collector.url + "/", tracer, "1.2.3")
    tracer.end(record())
    root = Trace(9, 8, 0, True, "")
    tracer.end(record(trace=root, outcome="engine_error", status=502, predicted=math.nan))
    tracer.end(record(trace=root._replace(sampled=False)))
    telemetry.close()
    collector.shutdown()
    collector.server_close()

    spans = []
    for body in collector.posted["/v1/traces"]:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert names["service.name"] == "lodestar" and names["service.version"] == "1.2.3"
            spans += [s for scope in resource.scope_spans for s in scope.spans]
    first, second = spans
    assert first.trace_id.hex() == TRACE and first.parent_span_id.hex() == SPAN
    assert int.from_bytes(first.span_id, "big") == 7 and first.trace_state == "a=1"
    assert first.name == "chat llama" and first.kind == first.SPAN_KIND_SERVER
    assert (first.end_time_unix_nano - first.start_time_unix_nano) == pytest.approx(2.5e9)
    (event,) = first.events
    assert event.time_unix_nano - first.start_time_unix_nano == pytest.approx(0.5e9)
    found = {a.key: a.value for a in first.attributes}
    assert found["gen_ai.usage.input_tokens"].int_value == 100
    assert found["lodestar.instance"].string_value == "i0"
    assert found["lodestar.predicted_ttft"].double_value == 0.25
    assert found["server.port"].int_value == 8000 and "error.type" not in found
    assert not second.parent_span_id and second.status.code == second.status.STATUS_CODE_ERROR
    found = {a.key: a.value for a in second.attributes}
    assert found["error.type"].string_value == "engine_error"
    assert "lodestar.predicted_ttft" not in found

    points: dict[str, list[Any]] = defaultdict(list)
    for body in collector.posted["/v1/metrics"]:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points[metric.name] += metric.histogram.data_points
    assert sum(p.count for p in points["gen_ai.server.request.duration"]) == 3, "unsampled too"
    assert sum(p.sum for p in points["gen_ai.server.time_to_first_token"]) == pytest.approx(1.5)
    (each,) = points["gen_ai.server.time_per_output_token"]
    assert each.sum == pytest.approx(2 * 0.5)
    assert len(points["gen_ai.client.token.usage"]) == 4


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from lodestar_fast.proxy import telemetry

    monkeypatch.setattr(telemetry, "_FLUSH", 0.5)
    tracer = Tracer(1.0)
    told = telemetry.Telemetry(f"http://127.0.0.1:{free_port()}", tracer, "1")
    tracer.end(record())
    ends = threading.Thread(target=told.close)
    ends.start()
    ends.join(20)
    assert not ends.is_alive()


@with_rig()
async def test_an_error_of_the_engine_is_passed_with_its_span(rig: Rig) -> None:
    tracer = rig.context.tracer = Tracer(1.0)
    rig.engines[0].script.append(plain(400, b'{"error":{}}'))
    client = await rig.client()
    client.post()
    assert (await client.reply()).status == 400
    (ended,) = tracer.ended
    assert (ended.status, ended.outcome) == (400, "completed")
