"""What all connections of one proxy share: the router, the limits, the counters, the sweep.

Deadlines cost a store a request: each connection keeps the time by which something must have
happened, and a sweep four times a second acts on those that are past. A timer of the loop's own for
each request would cost a microsecond and a half (measured), and nobody needs timeouts more exact.
"""

import asyncio
import logging
from collections import deque
from hmac import compare_digest

from lodestar_fast.proxy import failures, llhttp
from lodestar_fast.proxy.openai import LOCAL, ROUTES

from lodestar_fast.core.router cimport Router
from lodestar_fast.proxy.counters cimport Counters
from lodestar_fast.proxy.parse_request cimport RequestParser

log = logging.getLogger("lodestar.proxy")

SWEEP = 0.25  # seconds between sweeps, so the most that a timeout is late
MOST_MODELS = 1024  # names remembered between sweeps; clients invent them


cdef class Limits:
    def __init__(self, limits):
        self.max_body_bytes = limits.max_body_bytes
        self.max_header_bytes = limits.max_header_bytes
        self.header_timeout = limits.header_timeout
        self.body_timeout = limits.body_timeout
        self.connect_timeout = limits.connect_timeout
        self.first_byte_timeout = limits.first_byte_timeout
        self.stream_idle_timeout = limits.stream_idle_timeout
        self.request_timeout = limits.request_timeout
        self.keep_alive = limits.keep_alive
        self.engine_keep_alive = limits.engine_keep_alive
        self.max_retries = limits.max_retries
        self.max_concurrent_requests = limits.max_concurrent_requests
        self.queue_size = limits.queue_size
        self.queue_timeout = limits.queue_timeout


cdef class Connection:
    cdef int expire(self, double now) except -1:
        raise NotImplementedError

    cdef void abort(self):
        pass


cdef class Reserve:
    cdef int shrink(self, double now) except -1:
        raise NotImplementedError


cdef class Context:
    def __init__(
        self, router, limits, clock, *, str policy_name, bint explain=False, api_keys=None
    ):
        self.router = router
        self.core = router if isinstance(router, Router) else None
        self.limits = Limits(limits)
        self.clock = clock
        self.policy_name = policy_name
        self.explain = explain
        self.api_keys = api_keys
        self.instances = {}
        self.local = None
        self.counters = Counters()
        self.connections = set()
        self.reserves = set()
        self._waiting = deque()
        self._others = {}

    def start(self):
        if self._timer is None:
            self.loop = asyncio.get_running_loop()
            if llhttp.WHY_NOT:
                log.warning("requests cost more than they could: %s", llhttp.WHY_NOT)
            self._timer = self.loop.call_later(SWEEP, self._tick)

    def stop(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self):
        self._timer = self.loop.call_later(SWEEP, self._tick)
        self.sweep(self.clock.now())

    def sweep(self, double now):
        cdef Connection connection
        cdef Reserve reserve
        self._others.clear()
        for connection in list(self.connections):
            try:
                connection.expire(now)
            except Exception:
                log.exception("a deadline's action failed; the connection is cut")
                connection.abort()
        for reserve in list(self.reserves):
            reserve.shrink(now)

    def abort_all(self):
        cdef Connection connection
        for connection in list(self.connections):
            connection.abort()

    def models_changed(self):
        self._others.clear()

    # -- who may ask --

    cdef object refusal(self, RequestParser request):
        """What speaks against a request head, as HttpError; None if nothing does."""
        if request.status:
            return failures.refused(request.status, request.reason)
        routed = request.path in ROUTES
        if self.api_keys is not None and (routed or request.path.startswith(b"/v1/")):
            if not self._authorized(request.authorization):
                return failures.unauthorized()
        if routed:
            return None if request.method == b"POST" else failures.wrong_method("POST")
        if request.path not in LOCAL:
            return failures.not_found()
        if request.method == b"GET" or request.method == b"HEAD":
            return None
        return failures.wrong_method("GET")

    cdef bint _authorized(self, bytes authorization):
        """Whether Authorization carries one of the keys; all are compared, in constant time."""
        cdef bint found = False
        if authorization is None or authorization[:7].lower() != b"bearer ":
            return False
        token = authorization[7:].strip()
        for key in self.api_keys:
            found |= compare_digest(token, key)
        return found

    # -- which instances serve a model --

    cdef tuple others(self, str model):
        """Slots that do not serve the model; None: it is known that no instance does.

        Found anew after each sweep, and remembered in between: fleets of one model pay a look-up.
        """
        if not model:
            return ()
        found = self._others.get(model, self)
        if found is not self:
            return found
        slots = [
            slot for slot, instance in self.instances.items()
            if instance.models and model not in instance.models
        ]
        found = None if slots and len(slots) == len(self.instances) else tuple(slots)
        if len(self._others) < MOST_MODELS:
            self._others[model] = found
        return found

    # -- how many requests at once --

    cdef bint admit(self, exchange):
        """Take a place. False: there was none, and if wait() is False there is no room to wait."""
        if 0 < self.limits.max_concurrent_requests <= self.inflight:
            return False
        self.inflight += 1
        return True

    cdef bint wait(self, exchange):
        """Queue an exchange; its admitted() is called when its turn comes. False: no room."""
        if len(self._waiting) >= self.limits.queue_size:
            return False
        self._waiting.append(exchange)
        return True

    cdef void leave_queue(self, exchange):
        """A waiting exchange gave up."""
        self._waiting.remove(exchange)

    cdef void release(self):
        """Give a place back."""
        self.inflight -= 1
        if self._waiting:
            self.loop.call_soon(self._next)

    def _next(self):
        while self._waiting and self.inflight < self.limits.max_concurrent_requests:
            self.inflight += 1
            self._waiting.popleft().admitted()

    @property
    def queued(self):
        return len(self._waiting)
