"""What the data path counts, in C fields; read by metrics.py at scrape time only.

A request costs three increments here. Labels come from closed sets: the allow-listed paths, five
outcomes, the names of failures.
"""

from lodestar_fast.proxy.openai import LOCAL, ROUTES

OUTCOMES = ("completed", "engine_error", "router_error", "shed", "client_abort")
CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")

# Requests take from under a millisecond (local answers) to the hour of request_timeout.
REQUEST_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0,
    150.0, 300.0, 600.0, 1800.0,
)
# Decisions take microseconds; the upper end shows a machine that is out of breath.
DECISION_BOUNDS = (
    1e-6, 2e-6, 3e-6, 5e-6, 7e-6, 1e-5, 1.5e-5, 2e-5, 3e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2,
)


cdef class Histogram:
    def __init__(self, tuple bounds):
        if not 0 < len(bounds) < MAX_BUCKETS:
            raise ValueError(f"bounds: 1 to {MAX_BUCKETS - 1} wanted, not {len(bounds)}")
        if any(b <= a for a, b in zip(bounds, bounds[1:])):
            raise ValueError("bounds must rise")
        self.bounds = bounds
        self._n = len(bounds)
        for i, bound in enumerate(bounds):
            self._bounds[i] = bound

    cdef void add(self, double seconds) noexcept:
        cdef int i = 0
        if seconds != seconds:
            return
        if seconds < 0:
            seconds = 0
        while i < self._n and seconds > self._bounds[i]:
            i += 1
        self._counts[i] += 1
        self._sum += seconds

    def observe(self, double seconds):
        self.add(seconds)

    def snapshot(self):
        return self.bounds, [self._counts[i] for i in range(self._n + 1)], self._sum


cdef class Counters:
    def __init__(self):
        self._labels = [path.decode() for path in (*ROUTES, *LOCAL)] + ["other"]
        if len(self._labels) > MAX_PATHS:
            raise ValueError(f"{len(self._labels)} paths, room for {MAX_PATHS}")
        self._paths = {label.encode(): i for i, label in enumerate(self._labels)}
        self.routed = len(ROUTES)
        self._last_path, self._last_index = b"", len(self._labels) - 1
        self._retries = {}
        self.request_seconds = Histogram(REQUEST_BOUNDS)
        self.decision_seconds = Histogram(DECISION_BOUNDS)

    cdef int path_index(self, bytes path):
        """Index of a path's counters; unknown paths share one. Those of ROUTES come first."""
        if path is not self._last_path:
            self._last_path = path
            self._last_index = self._paths.get(path, len(self._labels) - 1)
        return self._last_index

    cdef void count(self, int path, int status, Outcome outcome, double seconds) noexcept:
        cdef int status_class = status // 100
        if not 0 <= status_class < STATUS_CLASSES:
            status_class = 0
        self._requests[path][status_class][<int> outcome] += 1
        self.request_seconds.add(seconds)

    def finish(self, str path, int status, str outcome, double seconds):
        if outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {outcome}")
        self.count(
            self.path_index(path.encode()), status, <Outcome> <int> OUTCOMES.index(outcome), seconds
        )

    cpdef void add_retry(self, str reason):
        self._retries[reason] = self._retries.get(reason, 0) + 1

    def snapshot(self):
        cdef int path, status, outcome
        requests = {}
        for path in range(len(self._labels)):
            for status in range(STATUS_CLASSES):
                for outcome in range(len(OUTCOMES)):
                    if n := self._requests[path][status][outcome]:
                        requests[self._labels[path], CLASSES[status], OUTCOMES[outcome]] = n
        return {
            "requests": requests,
            "request_seconds": self.request_seconds.snapshot(),
            "decision_seconds": self.decision_seconds.snapshot(),
            "retries": dict(self._retries),
            "connections_total": self.connections_total,
            "stale_connections": self.stale_connections,
            "extra_bytes": self.extra_bytes,
            "upstream_opened": self.upstream_opened,
            "retries_refused": self.retries_refused,
            "connections_refused": self.connections_refused,
            "slo_ignored": self.slo_ignored,
        }
