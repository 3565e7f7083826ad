"""One request's tries: which engines, in what order, and what the router is told of them.

The only module that calls Router.route() and Router.observe(): if a measurement is wrong, it is
wrong here. Each ticket gets exactly one final event, from close(); whoever ends a try or a request
calls it. Used by Exchange, which moves the bytes.
"""

from time import time

from lodestar_fast.core.router import Event
from lodestar_fast.errors import NoInstanceError
from lodestar_fast.proxy.retry_after import seconds_of
from lodestar_fast.proxy.tracing import Record

from cpython.bytes cimport PyBytes_AS_STRING
from libc.math cimport NAN

from lodestar_fast.core.lodestar cimport ls_request
from lodestar_fast.core.router cimport Decision, Router
from lodestar_fast.proxy.body cimport Routing
from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reply cimport Reply
from lodestar_fast.proxy.sse cimport Usage
from lodestar_fast.proxy.wire cimport monotonic

cdef int FIRST_TOKEN = Event.FIRST_TOKEN
cdef int TOKENS = Event.TOKENS
cdef int USAGE = Event.USAGE
cdef int[4] FINAL = [Event.DONE, Event.FAILED, Event.ABANDONED, Event.TIMEOUT]


cdef class Tries:
    def __cinit__(self, Context context):
        self.context = context

    cdef void begin(
        self, Routing routing, tuple avoid, bytes session, bytes request_id, bytes path
    ):
        """For a new request. avoid: slots that do not serve its model. session: or None."""
        self.routing = routing
        self._request_id, self._path, self._serial = request_id, path, 0
        self.avoid, self.session = avoid, session
        self._tried = None
        self._first_token = self._late = False
        self._first_token_at = self._decision_seconds = 0
        self._usage.prompt_tokens = self._usage.output_tokens = self._usage.cached_tokens = -1
        self.tokens = 0

    cdef bint route(self) except -1:
        """Let the router choose. False: it has no ticket left. Raises NoInstanceError.

        Engines that are full are out of the question, those that asked to be left alone are not.
        """
        cdef double start = monotonic()
        cdef tuple avoid = self.avoid if self._tried is None else self.avoid + tuple(self._tried)
        if self.context.full:
            avoid += self.context.full
        if self.context.busy:
            busy = self.context.busy_slots(start)
            if busy:
                try:
                    return self._choose(start, avoid + busy)
                except NoInstanceError:
                    pass
        return self._choose(start, avoid)

    cdef bint _choose(self, double start, tuple avoid) except -1:
        cdef Routing r = self.routing
        cdef Decision decision
        cdef ls_request request
        if self.context.core is not None:
            request.prompt, request.prompt_bytes = r.prompt_at, r.prompt_size
            request.seed, request.seed_bytes = PyBytes_AS_STRING(r.seed), len(r.seed)
            request.prompt_tokens, request.streaming = 0, r.stream
            request.most_tokens = r.max_tokens
            decision = self.context.core.decide(
                &request, start, avoid, self.session, self.slo_ttft, self.slo_tpot, self.tenant)
            self.ticket, self._slot = decision.ticket, decision.slot
            self._decision = decision
        else:
            self._decision = self.context.router.route(
                r.prompt, start, 0, r.seed, avoid, r.stream, self.session,
                slo_ttft=self.slo_ttft, slo_tpot=self.slo_tpot, tenant=self.tenant,
                max_tokens=r.max_tokens
            )
            self.ticket, self._slot = self._decision.ticket, self._decision.slot
        self._decision_seconds = monotonic() - start
        if not self.ticket:
            self.keep()
            return False
        self.instance = self.context.instances[self._slot]
        self.context.took(self._slot)
        if self.context.on_trial and self._slot in self.context.on_trial:
            self._trial = True
            self.instance.note_trial(True)
        return True

    cdef int keep(self) except -1:
        """Count and keep the decision that route() made: called when its request is on its way,
        which need not wait for it."""
        cdef Router core = self.context.core
        self.context.counters.decision_seconds.add(self._decision_seconds)
        if core is not None and core.decisions is not None:
            core.keep()
            self._serial = core.decisions.label(
                self._request_id, self._path, self.routing.model,
                1 if self._tried is None else len(self._tried) + 1)
        return 0

    cdef bint another(self, str kind) except -1:
        """The try at hand failed: count that, and choose another one if there may be one."""
        cdef bint late = kind == "first_byte_timeout"
        self.close(TIMEOUT if late else FAILED, monotonic())
        self.instance.note_failure(kind)
        if self._tried is None:
            self._tried = []
        self._tried.append(self.instance.slot)
        if len(self._tried) > self.context.limits.max_retries or (late and self._late):
            return False
        self._late = self._late or late
        if not self._retrying:
            # What never reached an engine is no load on any.
            if kind != "connect" and kind != "connect_timeout" and not self.context.may_retry():
                self.context.counters.retries_refused += 1
                return False
            self._retrying = True
            self.context.retrying += 1
        try:
            if not self.route():
                return False
        except NoInstanceError:
            return False
        self.context.counters.add_retry(kind)
        return True

    cdef void settle(self):
        """No further try can follow."""
        if self._retrying:
            self._retrying = False
            self.context.retrying -= 1

    cdef int note_retry_after(self, ResponseParser answer) except -1:
        """An engine is busy. Keep the smallest number of seconds that one named."""
        if answer.retry_after is None:
            return 0
        seconds = seconds_of(answer.retry_after, time())
        if seconds is not None:
            if self.retry_after is None or seconds < int(self.retry_after):
                self.retry_after = b"%d" % seconds
            if answer.status == 503 or answer.status == 429:
                self.context.note_busy(self._slot, seconds, monotonic())
        return 0

    cdef int measure(self, ResponseParser answer, Reply reply, double now) except -1:
        """Report the tokens that came by `now`, if the request was to be streamed."""
        cdef long long events
        if not self.ticket or not self.routing.stream or answer.status != 200:
            return 0
        if reply.event_stream:
            events = reply.scanner.events - reply.scanner.opening
        else:
            # A stream in a format of its own: its first byte is all that can be told.
            events = answer.length < 0
        if events and not self._first_token:
            self._first_token = True
            self._first_token_at = now
            self.tokens = 1
            self._observe(self.ticket, FIRST_TOKEN, now)
            if self._trial:
                self._trial_over(True)
        if events > self.tokens:
            self._observe(self.ticket, TOKENS, now, events - self.tokens)
            self.tokens = events
        return 0

    cdef int complete(self, Reply reply, bint passed_failure, bint excused, double now) except -1:
        """An answer was relayed to its end. Returns whether the engine did well.

        passed_failure: it is an error that was already counted. excused: a stream's error event was
        about the request.
        """
        cdef Usage usage
        cdef str kind = None
        if passed_failure:
            self.close(FAILED, now)
            return False
        if reply.status == 200:
            self._usage = usage = reply.scanner.usage()
            if usage.prompt_tokens >= 0:
                self._observe(
                    self.ticket, USAGE, now, usage.prompt_tokens, usage.cached_tokens
                )
            if usage.output_tokens >= 0:
                self.tokens = usage.output_tokens
            if reply.scanner.errors and not excused:
                kind = "stream_error"
            elif reply.scanner.aborted():
                kind = "aborted"
        if self._trial:
            self._trial_over(kind is None)
        self.close(DONE if kind is None else FAILED, now)
        if kind is None:
            self.instance.note_success()
        else:
            self.instance.note_failure(kind)
        return kind is None

    cdef int close(self, Final event, double now) except -1:
        """Report the final event of the try at hand, unless it has had one."""
        cdef long long ticket = self.ticket
        if ticket:
            self.ticket = 0
            self._observe(ticket, FINAL[<int> event], now, self.tokens)
            self.context.gave(self._slot)
            if self._trial:
                self._trial_over(False)
        return 0

    cdef int _observe(
        self, long long ticket, int event, double now, long long tokens=0, long long cached=-1
    ) except -1:
        if self.context.core is not None:
            self.context.core.observe(ticket, event, now, tokens, cached)
        else:
            self.context.router.observe(ticket, event, now, tokens, cached)
        return 0

    cdef int _trial_over(self, bint well) except -1:
        self._trial = False
        self.instance.note_trial(False, well)
        return 0

    cdef void forget(self, int status):
        """The request is over: let go of what it held. status: what the client got; 0: nothing."""
        self.settle()
        if self._serial:
            self.context.core.decisions.status(self._serial, status)
            self._serial = 0
        self._request_id = self._path = self.session = self.tenant = None
        self.routing = self._decision = self.instance = self.retry_after = None

    cdef bytes explanation(self):
        """The x-lodestar-* lines: why the answer comes from where it does."""
        cdef double predicted = self._decision.predicted
        cdef str lines = (
            f"x-lodestar-instance: {self.instance.id}\r\n"
            f"x-lodestar-policy: {self.context.policy_name}\r\n"
            f"x-lodestar-reason: {self._decision.reason.name.lower()}\r\n"
            f"x-lodestar-decision-us: {self._decision_seconds * 1e6:.1f}\r\n"
        )
        if predicted == predicted:  # not NaN
            lines += f"x-lodestar-predicted-ttft-ms: {predicted * 1e3:.1f}\r\n"
            lines += f"x-lodestar-model-version: {self._decision.weights_version}\r\n"
        return lines.encode()

    cdef object record(
        self, trace, double started, double ended, bytes path, int status, str outcome
    ):
        """All that is told of the request to who traces it."""
        cdef bint chosen = self.instance is not None and self._decision is not None
        cdef int tries = chosen
        if self._tried is not None:  # with the last one, if it failed
            tries = len(self._tried) + (self._slot not in self._tried)
        return Record(
            trace, started, self._first_token_at, ended, path.decode("latin-1"), status, outcome,
            self.routing.model,
            self.instance.id if chosen else "",
            self.instance.host if chosen else "",
            self.instance.port if chosen else 0,
            self.context.policy_name,
            self._decision.reason.name.lower() if chosen else "",
            self._decision.predicted if chosen else NAN,
            self._decision_seconds,
            tries,
            self._usage.prompt_tokens, self._usage.cached_tokens,
            self._usage.output_tokens if self._usage.output_tokens >= 0 else self.tokens or -1,
        )
