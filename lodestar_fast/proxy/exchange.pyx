"""One request's life, from its head to the last byte of its answer.

An Exchange belongs to one client connection, which uses it for one request after the other, and to
at most one engine connection at a time. Tries chooses the engines, Reply writes to the client;
what happens when is decided here.

What all ends have in common is in ending.pyx. Another instance is tried only while no byte has gone
to the client. Engines send status 200 at once, and errors as the first event of a stream, so heads
and first events are held back for it.
"""

import logging

from lodestar_fast.errors import HttpError, NoInstanceError
from lodestar_fast.proxy import failures
from lodestar_fast.proxy.lines import first_of
from lodestar_fast.proxy.openai import unknown_model

from lodestar_fast.proxy.body cimport Routing, read_body
from lodestar_fast.proxy.counters cimport COMPLETED, ENGINE_ERROR, SHED
from lodestar_fast.proxy.ending cimport Ending
from lodestar_fast.proxy.head cimport without
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reply cimport BAD, REFUSED, UNDECIDED, Verdict
from lodestar_fast.proxy.states cimport (
    AGAIN,
    CONNECT,
    DISPATCH,
    ENQUEUE,
    HEAD,
    QUEUED,
    RELAY,
    SENT,
    STREAM,
    WAIT,
)
from lodestar_fast.proxy.tries cimport TIMEOUT
from lodestar_fast.proxy.upstream cimport Pool, Upstream
from lodestar_fast.proxy.wire cimport monotonic

log = logging.getLogger("lodestar.proxy")

# A kept connection that ends this soon after a request was sent on it had been closed before: the
# engine is not at fault. Later than that, it is.
cdef double STALE = 1.0


cdef inline bint failed(int status) noexcept:
    """Whether an engine's status says that another engine may do better."""
    return status == 429 or status == 500 or 502 <= status <= 504


cdef class Exchange(Ending):
    # -- the request --

    cdef int begin(self, RequestParser request) except -1:
        """A head is in, or what came was refused before that. Look at refusal."""
        self._move(HEAD)
        self.started = monotonic()
        self.expires = self.started + self.context.limits.request_timeout
        self.path = request.path
        self.path_index = self.context.counters.path_index(request.path)
        self.target = request.target
        self.fields = request.fields
        self.tries.slo_ttft, self.tries.slo_tpot = request.slo_ttft, request.slo_tpot
        self.context.counters.slo_ignored += request.slo_refused
        self.tries.tenant = None
        if request.authorization is not None:  # of `Bearer KEY` the key, however it is written
            self.tries.tenant = request.authorization.rpartition(b" ")[2]
        if self.context.hide_authorization:
            self.fields = without(self.fields, {b"authorization"}) + self.context.authorization
        self.engine_failed = self.excused = False
        self.reply.begin(request)
        self.refusal = self.context.refusal(request, self._routed())
        return 0

    cdef int full(self, bytes body) except -1:
        """The request is complete."""
        cdef Routing routing
        cdef tuple avoid
        cdef bytes session = None
        if self.refusal is not None:
            return self._fail(self.refusal, COMPLETED)
        if not self._routed():
            return self._answer_locally()
        self.body = body
        try:
            routing = read_body(self.path, body)
            avoid = self.context.others(routing.model)
            if avoid is None:
                raise unknown_model(routing.model)
        except HttpError as e:
            return self._fail(e, COMPLETED)
        if self.context.tracer is not None:
            self.trace, self.fields = self.context.tracer.begin(self.fields)
        if self.context.session_headers:
            session = first_of(self.fields, self.context.session_headers)
        if self.context.tenant_headers:
            self.tries.tenant = first_of(self.fields, self.context.tenant_headers)
        self.tries.begin(routing, avoid, session, self.reply.request_id, self.path)
        if self.context.admit(False) and self._dispatch():
            return 0
        if not self.context.wait(self, self.fields):
            return self._fail(failures.overloaded(), SHED)
        self.client.deadline = monotonic() + self.context.limits.queue_timeout
        return self._move(ENQUEUE)

    cdef bint _routed(self) noexcept:
        """Whether its path is one of those that engines answer."""
        return self.path_index < self.context.counters.routed

    @property
    def avoids(self):
        """The instances that do not serve it; two requests that avoid the same are alike."""
        return self.tries.avoid

    def admitted(self):
        """A place became free; called by the context. False: it is of no use."""
        try:
            return self.context.admit(True) and self._dispatch()
        except Exception as e:
            self.on_crash(e)
            return True

    def displaced(self):
        """A more urgent request needs the room; called by the context."""
        self._fail(failures.overloaded(), SHED)

    cdef int _answer_locally(self) except -1:
        answer = None
        if self.context.local is not None:
            answer = self.context.local(b"GET", self.path)
        if answer is None:
            return self._fail(failures.not_found(), COMPLETED)
        status, content_type, body = answer
        self._heed_drain()
        self.reply.own(status, content_type, body, [])
        return self._finish(COMPLETED)

    # -- the tries --

    cdef bint _dispatch(self) except -1:
        """Use a place that was taken. False: it is given back, for all engines are full."""
        cdef bint routed = False
        self.placed = True
        try:
            routed = self.tries.route()
        except NoInstanceError:
            if self.context.full:
                self.placed = False
                self.context.put_back()
                return False
            self.refusal = failures.no_instance()
        if self.state_ == QUEUED:
            self.context.leave_queue(self)
        self._move(DISPATCH)
        if routed:
            self._connect(False)
            self.tries.keep()
        elif self.refusal is not None:
            self._fail(self.refusal, ENGINE_ERROR)
        else:
            self._fail(failures.overloaded(), SHED)
        return True

    cdef int _connect(self, bint fresh) except -1:
        self.up = (<Pool> self.tries.instance.pool).acquire(self, fresh)
        if self.up.transport is not None:
            return self.on_connected(self.up)
        self.client.deadline = monotonic() + self.context.limits.connect_timeout
        return 0

    cdef int on_connected(self, Upstream up) except -1:
        self._move(SENT)
        up.send(self.target, self.fields, self.reply.request_id, self.body)
        self.client.deadline = up.sent_at + self.context.limits.first_byte_timeout
        return 0

    cdef bint _again(self, str kind) except -1:
        """A try failed before anything was relayed: begin another one. False: there is none."""
        if not self.tries.another(kind):
            return False
        self._drop()
        self.reply.again()
        self._move(AGAIN)
        self._connect(False)
        self.tries.keep()
        return True

    cdef int _lost_try(self, str kind) except -1:
        """A try failed and left no answer that could be passed on."""
        self._drop()
        if not self._again(kind):
            self._fail(failures.engine_error(kind), ENGINE_ERROR)
        return 0

    # -- the answer --

    cdef int on_answer(self, Upstream up) except -1:
        if self.state_ == WAIT:
            if self._turned_away(up.parser):
                return 0
            self._move(RELAY)
            self.tries.settle()
        return self._relay(up.parser)

    cdef bint _turned_away(self, ResponseParser answer) except -1:
        """Whether the answer's first bytes led to another try, or are held back until more come."""
        cdef Verdict verdict
        if failed(answer.status):
            kind = "busy" if answer.status == 503 or answer.status == 429 else "status"
            self.tries.note_retry_after(answer)
            if self._again(kind):
                return True
            self.engine_failed = True
        elif answer.sse and answer.status == 200:
            verdict = self.reply.judge(answer)
            if verdict == UNDECIDED:
                return True
            if verdict == BAD:
                if self._again("stream_error"):
                    return True
                self.engine_failed = True
            self.excused = verdict == REFUSED
        return False

    cdef int _relay(self, ResponseParser answer) except -1:
        cdef double now = monotonic()
        self.up.pool.heard_at = now
        self.reply.relay(answer, self._extra_lines(answer) if self.reply.status == 0 else None)
        self.tries.measure(answer, self.reply, now)
        if answer.complete:
            done = self.tries.complete(self.reply, self.engine_failed, self.excused, now)
            self._drop()
            return self._finish(COMPLETED if done else ENGINE_ERROR)
        if not self.client.blocked:
            self.client.deadline = now + self.context.limits.stream_idle_timeout
        return 0

    cdef list _extra_lines(self, ResponseParser answer):
        """What the router adds to an engine's head; None: nothing."""
        cdef list lines = None
        retry_after = answer.retry_after
        if failed(answer.status) and self.tries.retry_after is not None:
            retry_after = self.tries.retry_after
        if retry_after is not None:
            lines = [b"retry-after: ", retry_after, b"\r\n"]
        self._heed_drain()
        if self.context.explain:
            lines = [*(lines or ()), self.tries.explanation()]
        return lines

    cdef int on_gone(self, Upstream up, str kind) except -1:
        """The engine's connection was lost, or its answer cannot be relied on."""
        cdef ResponseParser answer = up.parser
        if kind == "eof" and answer.head_done and answer.until_close:
            answer.complete = True
            return self.on_answer(up)
        if self.state_ == STREAM:
            return self._truncate("truncated")
        if up.reused and not answer.started and monotonic() - up.sent_at < STALE:
            self.context.counters.stale_connections += 1
            self._move(AGAIN)
            return self._connect(True)
        return self._lost_try("reset" if kind == "eof" else kind)

    # -- endings --

    cdef int expire(self, double now) except -1:
        """A deadline has passed; which one follows from the state."""
        if self.state_ == QUEUED:
            return self._fail(failures.queue_timeout(), SHED)
        if self.state_ == STREAM and self.client.blocked:
            log.info("request %s: its client took nothing for the write timeout: cut", self._id())
            self.client_gone()
            self.client.cut(True)
            return 0
        if self.state_ == STREAM:
            kind = "request_timeout" if now >= self.expires else "stream_idle_timeout"
            return self._truncate(kind)
        if self.state_ == CONNECT and now < self.expires:
            return self._lost_try("connect_timeout")
        if now < self.expires:
            return self._lost_try("first_byte_timeout")
        kind = "request_timeout"
        self._drop()
        self.tries.close(TIMEOUT, now)
        self.tries.instance.note_failure(kind)
        return self._fail(failures.engine_error(kind), ENGINE_ERROR)

    cdef bint give_up(self, instance, double silent_since) except -1:
        """The engine is gone, though its connection is open. Whether this request was on it, and
        nothing came for it since then."""
        cdef double heard
        if self.up is None or self.tries.instance is not instance or self.client.blocked:
            return False
        if self.state_ == STREAM:
            heard = self.client.deadline - self.context.limits.stream_idle_timeout
        elif self.state_ == WAIT:
            heard = self.up.sent_at
        else:
            return False
        if heard > silent_since:
            return False
        if self.state_ == STREAM:
            self._truncate("engine_gone")
        else:
            self._lost_try("engine_gone")
        return True
