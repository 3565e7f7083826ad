"""One request's life, from its head to the last byte of its answer.

An Exchange belongs to one client connection, which uses it for one request after the other, and to
at most one engine connection at a time. Tries chooses the engines, Reply writes to the client;
what happens when is decided here.

Rule 1: every change of state goes through states.TRANSITIONS.
Rule 2: each request ends in _end(), once, with one outcome; its tickets are closed before.
Rule 3: another instance is tried only while no byte has gone to the client. Engines send status 200
at once, and errors as the first event of a stream, so heads and first events are held back for it.
"""

import logging

from lodestar_fast.errors import HttpError, NoInstanceError
from lodestar_fast.proxy import failures
from lodestar_fast.proxy.openai import ROUTES, unknown_model

from lodestar_fast.proxy.body cimport Routing, read_body
from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.counters cimport (
    CLIENT_ABORT,
    COMPLETED,
    ENGINE_ERROR,
    ROUTER_ERROR,
    SHED,
    Outcome,
)
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reply cimport BAD, REFUSED, UNDECIDED, Client, Reply, Verdict
from lodestar_fast.proxy.states cimport (
    AGAIN,
    CONNECT,
    DISPATCH,
    END,
    ENQUEUE,
    HEAD,
    IDLE,
    QUEUED,
    RELAY,
    SENT,
    STREAM,
    WAIT,
    State,
    Step,
    after,
    name_of,
)
from lodestar_fast.proxy.tries cimport ABANDONED, FAILED, TIMEOUT, Tries
from lodestar_fast.proxy.upstream cimport Pool, Receiver, Upstream
from lodestar_fast.proxy.wire cimport monotonic

log = logging.getLogger("lodestar.proxy")

# A kept connection that ends this soon after a request was sent on it had been closed before: the
# engine is not at fault. Later than that, it is.
cdef double STALE = 1.0


cdef inline bint failed(int status) noexcept:
    """Whether an engine's status says that another engine may do better."""
    return status == 429 or status == 500 or 502 <= status <= 504


cdef class Exchange(Receiver):
    def __cinit__(self, Context context, Client client):
        self.context = context
        self.client = client
        self.reply = Reply(client)
        self.tries = Tries(context)

    @property
    def state(self):
        return name_of(self.state_)

    cdef int _move(self, Step step) except -1:
        self.state_ = <State> after(self.state_, step)
        return 0

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
        self.engine_failed = self.excused = False
        self.reply.begin(request)
        self.refusal = self.context.refusal(request)
        return 0

    cdef int refuse(self, error) except -1:
        """Answer with an error while the body is not in; the connection ends with it."""
        self.reply.keep_alive = False
        return self._fail(error, COMPLETED)

    cdef int full(self, bytes body) except -1:
        """The request is complete."""
        cdef Routing routing
        cdef tuple avoid
        if self.refusal is not None:
            return self._fail(self.refusal, COMPLETED)
        if self.path not in ROUTES:
            return self._answer_locally()
        self.body = body
        try:
            routing = read_body(self.path, body)
            avoid = self.context.others(routing.model)
            if avoid is None:
                raise unknown_model(routing.model)
        except HttpError as e:
            return self._fail(e, COMPLETED)
        self.tries.begin(routing, avoid)
        if self.context.admit(self):
            return self._dispatch()
        if not self.context.wait(self):
            return self._fail(failures.overloaded(), SHED)
        self.client.deadline = monotonic() + self.context.limits.queue_timeout
        return self._move(ENQUEUE)

    def admitted(self):
        """A place became free; called by the context."""
        try:
            self._dispatch()
        except Exception as e:
            self.on_crash(e)

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

    cdef int _dispatch(self) except -1:
        self.placed = True
        self._move(DISPATCH)
        try:
            if not self.tries.route():
                return self._fail(failures.overloaded(), SHED)
        except NoInstanceError:
            return self._fail(failures.no_instance(), ENGINE_ERROR)
        return self._connect(False)

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
        return True

    cdef int _lost_try(self, str kind) except -1:
        """A try failed and left no answer that could be passed on."""
        self._drop()
        if not self._again(kind):
            self._fail(failures.engine_error(kind), ENGINE_ERROR)
        return 0

    cdef void _drop(self):
        """Part from the engine connection; it is kept only if its answer was read to the end."""
        cdef Upstream up = self.up
        self.up = None
        if up is not None:
            if up.parser.complete:
                up.release()
            else:
                up.abort()

    # -- the answer --

    cdef int on_answer(self, Upstream up) except -1:
        if self.state_ == WAIT:
            if self._turned_away(up.parser):
                return 0
            self._move(RELAY)
        return self._relay(up.parser)

    cdef bint _turned_away(self, ResponseParser answer) except -1:
        """Whether the answer's first bytes led to another try, or are held back until more come."""
        cdef Verdict verdict
        if failed(answer.status):
            kind = "busy" if answer.status == 503 or answer.status == 429 else "status"
            self.tries.note_retry_after(answer.retry_after)
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
        """What the router adds to an engine's head."""
        cdef list lines = []
        retry_after = answer.retry_after
        if failed(answer.status) and self.tries.retry_after is not None:
            retry_after = self.tries.retry_after
        if retry_after is not None:
            lines += (b"retry-after: ", retry_after, b"\r\n")
        self._heed_drain()
        if self.context.explain:
            lines.append(self.tries.explanation())
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
            self.context.leave_queue(self)
            return self._fail(failures.queue_timeout(), SHED)
        if self.state_ == STREAM and self.client.blocked:
            log.info("a client took nothing for the stream-idle timeout: cut")
            self.client_gone()
            self.client.cut(True)
            return 0
        if self.state_ == STREAM:
            kind = "request_timeout" if now >= self.expires else "stream_idle_timeout"
            return self._truncate(kind)
        if self.state_ == CONNECT and now < self.expires:
            return self._lost_try("connect_timeout")
        kind = "request_timeout" if now >= self.expires else "first_byte_timeout"
        self._drop()
        self.tries.close(TIMEOUT, now)
        self.tries.instance.note_failure(kind)
        return self._fail(failures.engine_error(kind), ENGINE_ERROR)

    cdef int _truncate(self, str kind) except -1:
        """The answer cannot be finished. What the client has of it is made to look so."""
        self._drop()
        self.tries.close(FAILED if kind == "truncated" else TIMEOUT, monotonic())
        self.tries.instance.note_failure(kind)
        self.reply.keep_alive = False
        self.reply.truncate(failures.engine_error(kind))
        return self._finish(ENGINE_ERROR)

    cdef int _fail(self, error, Outcome outcome) except -1:
        """Answer with an HttpError; nothing was sent yet."""
        cdef list lines = []
        if error.status == 503:
            lines.append(b"retry-after: %b\r\n" % (self.tries.retry_after or b"1"))
        elif error.status == 405:
            lines.append(b"allow: POST\r\n" if self.path in ROUTES else b"allow: GET, HEAD\r\n")
        elif error.status == 401:
            lines.append(b"www-authenticate: Bearer\r\n")
        self._heed_drain()
        self.reply.fail(error, lines)
        return self._finish(outcome)

    cdef void _heed_drain(self):
        """A head is about to be written: say in it whether the router takes another request."""
        if self.context.draining:
            self.reply.keep_alive = False

    cdef void client_gone(self):
        """The client left: the engine is told at once, by the end of its connection."""
        if self.state_ == IDLE:
            return
        try:
            if self.state_ == QUEUED:
                self.context.leave_queue(self)
            self._drop()
            self.tries.close(ABANDONED, monotonic())
            self._end(CLIENT_ABORT)
        except Exception as e:
            self.on_crash(e)

    cdef void detach(self):
        """The connection has ended: break the cycle with it."""
        self.client = self.reply.client = None

    cdef int client_blocked(self, bint blocked) except -1:
        """The client stopped taking bytes, or goes on; reading from the engine follows it."""
        if self.state_ == STREAM:
            self.client.deadline = monotonic() + self.context.limits.stream_idle_timeout
            if self.up is not None:
                self.up.pause(blocked)
        return 0

    cdef void on_crash(self, error):
        """Our own code raised. The request ends, and nothing else does."""
        log.error("a request failed inside the router", exc_info=error)
        try:
            self._drop()
            self.reply.keep_alive = False
            if self.state_ == IDLE:
                self.client.cut(True)
                return
            if self.reply.status:
                self.reply.truncate(failures.internal())
            else:
                self.reply.fail(failures.internal(), [])
            self.tries.close(ABANDONED, monotonic())
            self._finish(ROUTER_ERROR)
        except Exception:
            log.exception("and so did ending it; the connection is cut")
            self.client.abort()
            if self.state_ != IDLE:
                self._end(ROUTER_ERROR)

    cdef int _finish(self, Outcome outcome) except -1:
        self._end(outcome)
        return self.client.finished()

    cdef int _end(self, Outcome outcome) except -1:
        """Count the request, give its place back and let go of what it held."""
        self._move(END)
        self.context.counters.count(
            self.path_index, self.reply.status, outcome, monotonic() - self.started
        )
        if self.placed:
            self.placed = False
            self.context.release()
        self.body = self.refusal = None
        self.tries.forget()
        self.reply.again()
        return 0
