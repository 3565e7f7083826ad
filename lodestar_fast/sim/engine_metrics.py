"""The /metrics page of a simulated engine: vLLM 0.32's names and labels, those that routers read.

Used by sim/engine_http. Gauges and counters are read from the engine model at scrape time; only
the two latency histograms are fed, once a request.
"""

from __future__ import annotations

from bisect import bisect_left

from lodestar_fast.sim.engine import Engine

# vLLM's buckets, seconds.
TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
E2E_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        out, total = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}.0')
        return [*out, f"{name}_count{{{labels}}} {total}.0", f"{name}_sum{{{labels}}} {self.sum}"]


class EngineMetrics:
    """What the page needs beyond the engine's own counters."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine = engine
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self.labels = f'engine="0",model_name="{escaped}"'
        self.ttft = Histogram(TTFT_BOUNDS)
        self.e2e = Histogram(E2E_BOUNDS)
        self.finished = 0

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        e = self.engine
        lines: list[str] = []

        def family(name: str, kind: str, help: str, *samples: tuple[str, float]) -> None:
            lines.extend((f"# HELP vllm:{name} {help}", f"# TYPE vllm:{name} {kind}"))
            for label, value in samples:
                lines.append(f"vllm:{name}{{{self.labels}{label}}} {float(value)}")

        def histogram(name: str, help: str, of: Histogram) -> None:
            family(name, "histogram", help)
            lines.extend(of.lines(f"vllm:{name}", self.labels))

        family("num_requests_running", "gauge", "Requests in the batch.", ("", e.running))
        family("num_requests_waiting", "gauge", "Requests in the queue.", ("", e.waiting))
        family(
            "num_requests_waiting_by_reason", "gauge", "Requests in the queue, by reason.",
            (',reason="capacity"', e.waiting), (',reason="deferred"', 0),
        )  # fmt: skip
        family("kv_cache_usage_perc", "gauge", "KV-cache usage, 0 to 1.", ("", e.kv_usage))
        family(
            "prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.",
            ("", e.prefix_queries),
        )  # fmt: skip
        family(
            "prefix_cache_hits_total", "counter", "Tokens found in the prefix cache.",
            ("", e.prefix_hits),
        )  # fmt: skip
        family("num_preemptions_total", "counter", "Preemptions.", ("", e.preemptions))
        family("prompt_tokens_total", "counter", "Prompt tokens processed.", ("", e.prompt_tokens))
        family("generation_tokens_total", "counter", "Tokens generated.", ("", e.generation_tokens))
        family(
            "request_success_total", "counter", "Requests finished, by reason.",
            *((f',finished_reason="{reason}"', self.finished if reason == "length" else 0)
              for reason in ("stop", "length", "abort", "error")),
        )  # fmt: skip
        histogram("time_to_first_token_seconds", "Time to first token.", self.ttft)
        histogram("e2e_request_latency_seconds", "Time to the last token.", self.e2e)
        spec = e.spec
        family(
            "cache_config_info", "gauge", "Configuration of the cache.",
            (f',block_size="{spec.block}",enable_prefix_caching="{spec.prefix_caching}",'
             f'num_gpu_blocks="{spec.blocks}"', 1),
        )  # fmt: skip
        return "\n".join(lines).encode() + b"\n"
