"""What all connections of one proxy share: the router, the limits, the counters, the sweep.

Deadlines cost a store a request: each connection keeps the time by which something must have
happened, and a sweep four times a second acts on those that are past. A timer of the loop's own for
each request would cost a microsecond and a half (measured), and nobody needs timeouts more exact.
"""

import asyncio
import logging
from hmac import compare_digest

from lodestar_fast.proxy import failures, llhttp, reader
from lodestar_fast.proxy.openai import LOCAL
from lodestar_fast.proxy.waiting import Waiting, priority_of

from lodestar_fast.core.router cimport Router
from lodestar_fast.proxy.counters cimport Counters
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.reader cimport Reader

log = logging.getLogger("lodestar.proxy")

SWEEP = 0.25  # seconds between sweeps, so the most that a timeout is late
# A sweep that comes this many seconds late says that nothing ran for a while: a machine that slept,
# a process that was stopped. The next one comes after as many, so that all can show that they live.
LATE = 2.0
READ = 262144  # bytes taken by one read at most
MOST_MODELS = 1024  # names remembered between sweeps; clients invent them
MOST_BUSY = 10.0  # seconds at most that an engine's Retry-After keeps requests from it
UNBOUNDED = 1 << 40
cdef double SMOOTH = 0.1  # weight of the last sweep in the rate of requests ended
cdef double LONGEST_WAIT = 60.0  # seconds at most in a Retry-After of ours


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
        self.write_timeout = limits.write_timeout
        self.retry_budget = limits.retry_budget
        self.retry_floor = limits.retry_floor
        self.max_inflight_body_bytes = limits.max_inflight_body_bytes
        self.max_engine_requests = limits.max_engine_requests
        self.priority_header = limits.priority_header.lower().encode()


cdef class Connection(Reader):
    cdef int expire(self, double now) except -1:
        raise NotImplementedError

    cdef void abort(self):
        pass

    cdef int stop(self) except -1:
        return 0

    cdef bint give_up(self, instance, double silent_since) except -1:
        return False


cdef class Reserve:
    cdef int shrink(self, double now) except -1:
        raise NotImplementedError


cdef class Context:
    def __init__(
        self, router, limits, clock, *, str policy_name, bint explain=False, api_keys=None,
        bytes engine_key=b"", bint forward_client_key=False
    ):
        self.router = router
        self.core = router if isinstance(router, Router) else None
        self.clock = clock
        self.policy_name = policy_name
        self.session_headers = self.tenant_headers = ()
        self.instances = {}
        self.reconfigure(limits, explain, api_keys, engine_key, forward_client_key)
        self.on_trial = {}
        self.busy = {}
        self.local = None
        self.counters = Counters()
        self.read_buffer = bytearray(READ)
        self.connections = set()
        self.reserves = set()
        self._waiting = Waiting()
        self._others = {}

    def reconfigure(self, limits, explain, api_keys, engine_key, forward_client_key):
        self.limits = Limits(limits)
        self.max_connections = limits.max_connections or UNBOUNDED
        self.explain = explain
        self.api_keys = api_keys
        # Where we check the keys, they are ours, and engines need not know them.
        self.hide_authorization = bool(engine_key) or (
            api_keys is not None and not forward_client_key
        )
        self.authorization = b""
        if engine_key:
            self.authorization = b"authorization: Bearer %b\r\n" % engine_key
        self.full = ()
        for slot in self.instances:
            self._count_full(slot)

    def start(self):
        if self._timer is None:
            self.loop = asyncio.get_running_loop()
            for why_not in (llhttp.WHY_NOT, reader.WHY_NOT):
                if why_not:
                    log.warning("requests cost more than they could: %s", why_not)
            self._sweep_in(SWEEP)

    def stop(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    cdef int _sweep_in(self, double seconds) except -1:
        self._due = self.clock.now() + seconds
        self._timer = self.loop.call_later(seconds, self._tick)
        return 0

    def _tick(self):
        cdef double now = self.clock.now()
        if now > self._due + LATE:
            log.warning("nothing ran for %.1f s: deadlines wait for %g s", now - self._due, LATE)
            self._sweep_in(LATE)
        else:
            self._sweep_in(SWEEP)
            self.sweep(now)

    def sweep(self, double now):
        cdef Connection connection
        cdef Reserve reserve
        self.models_changed()
        self._rate += SMOOTH * ((self._ended - self._seen) / SWEEP - self._rate)
        self._seen = self._ended
        if self.queued:
            self._wake()
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

    def stop_all(self):
        cdef Connection connection
        for connection in list(self.connections):
            try:
                connection.stop()
            except Exception:
                log.exception("a request could not be ended")
                connection.abort()

    def give_up(self, instance, double silent_since):
        cdef Connection connection
        cdef int n = 0
        for connection in list(self.connections):
            n += connection.give_up(instance, silent_since)
        return n

    def models_changed(self):
        self._others.clear()
        self._asked = None

    # -- who may ask --

    cdef object refusal(self, RequestParser request, bint routed):
        """What speaks against a request head, as HttpError; None if nothing does.

        routed: its path is one of ROUTES.
        """
        if request.status:
            return failures.refused(request.status, request.reason)
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
        if model is self._asked:
            return self._avoided
        found = self._others.get(model, self)
        if found is not self:
            self._asked, self._avoided = model, found
            return found
        slots = [
            slot for slot, instance in self.instances.items()
            if instance.models and model not in instance.models
        ]
        # An engine that was never reached may serve it, but tells nothing while nobody asks it.
        may = any(
            model in instance.models if instance.models else instance.routable
            for instance in self.instances.values()
        )
        found = None if slots and not may else tuple(slots)
        if len(self._others) < MOST_MODELS:
            self._others[model] = found
        return found

    # -- how many requests at once --

    cdef bint admit(self, bint waited) except -1:
        """Take a place. False: none is free, or it belongs to one that waited for longer."""
        if 0 < self.limits.max_concurrent_requests <= self.inflight:
            return False
        if self._waking and not waited:
            return False
        self.inflight += 1
        return True

    cdef bint wait(self, exchange, bytes fields) except -1:
        """Queue an exchange; its admitted() is called when a place is free. False: no room.

        One that is less urgent gives way.
        """
        priority = priority_of(fields, self.limits.priority_header)
        if self.queued >= self.limits.queue_size:
            last = self._waiting.last(priority)
            if last is None:
                return False
            last.displaced()
        self._waiting.add(exchange, priority)
        self.queued += 1
        return True

    cdef int leave_queue(self, exchange) except -1:
        """A waiting exchange has its place, or gave up."""
        self._waiting.remove(exchange)
        self.queued -= 1
        return 0

    cdef void put_back(self):
        """A place taken a moment ago is of no use: the engines are full."""
        self.inflight -= 1

    cdef int release(self) except -1:
        """Give a place back; its request has ended."""
        self.inflight -= 1
        self._ended += 1
        if self.queued:
            self._wake()
        return 0

    cdef int _wake(self) except -1:
        if not self._waking:
            self._waking = True
            self.loop.call_soon(self._next)
        return 0

    def _next(self):
        self._waking = False
        stuck = set()  # what those cannot use who found no engine free
        for exchange in self._waiting.items():
            if 0 < self.limits.max_concurrent_requests <= self.inflight:
                return
            kind = exchange.avoids
            if exchange in self._waiting and kind not in stuck and not exchange.admitted():
                stuck.add(kind)

    cdef int took(self, int slot) except -1:
        """A request goes to an engine."""
        self._load[slot] += 1
        if self.limits.max_engine_requests:
            self._count_full(slot)
        return 0

    cdef int gave(self, int slot) except -1:
        """It has ended there."""
        self._load[slot] -= 1
        if self.full:
            self._count_full(slot)
            if self.queued:
                self._wake()
        return 0

    cdef int _count_full(self, int slot) except -1:
        cdef long most = self.limits.max_engine_requests
        cdef bint full = 0 < most <= self._load[slot]
        if full != (slot in self.full):
            others = tuple([each for each in self.full if each != slot])
            self.full = (*others, slot) if full else others
        return 0

    cdef bytes retry_after(self):
        """Seconds until a place should be free for one who comes now, from how fast they end."""
        cdef double seconds = 1.0
        if self._rate > 0:
            seconds = (self.queued + 1) / self._rate
        return b"%d" % int(min(max(seconds, 1.0), LONGEST_WAIT) + 0.999)

    # -- who is asked again, and who is not --

    cdef bint may_retry(self) noexcept:
        """Whether one more request may be on a further try: retries must not double a load that
        makes engines fail."""
        return self.retrying < max(
            <double> self.limits.retry_floor, self.limits.retry_budget * self.inflight
        )

    cdef int note_busy(self, int slot, double seconds, double now) except -1:
        """An engine asked to be left alone for a while."""
        self.busy[slot] = now + min(seconds, MOST_BUSY)
        return 0

    cdef tuple busy_slots(self, double now):
        """Engines that asked to be left alone."""
        self.busy = {slot: until for slot, until in self.busy.items() if until > now}
        return tuple(self.busy)
