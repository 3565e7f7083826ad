"""How a request ends, whatever its state: one outcome, its engine connection parted from, its place
given back.

The base of Exchange, which says what happens until then; it has all that is known of a request.

Rule 1: every change of state goes through states.TRANSITIONS.
Rule 2: each request ends in _end(), once, with one outcome; its tickets are closed before.
"""

import logging

from lodestar_fast.proxy import failures
from lodestar_fast.proxy.counters import OUTCOMES
from lodestar_fast.proxy.openai import ROUTES

from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.counters cimport (
    CLIENT_ABORT,
    COMPLETED,
    ENGINE_ERROR,
    ROUTER_ERROR,
    SHED,
    Outcome,
)
from lodestar_fast.proxy.reply cimport Client, Reply
from lodestar_fast.proxy.states cimport END, IDLE, QUEUED, STREAM, State, Step, after, name_of
from lodestar_fast.proxy.tries cimport ABANDONED, FAILED, TIMEOUT, Tries
from lodestar_fast.proxy.upstream cimport Receiver, Upstream
from lodestar_fast.proxy.wire cimport monotonic

log = logging.getLogger("lodestar.proxy")


cdef class Ending(Receiver):
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

    cdef int refuse(self, error) except -1:
        """Answer with an error while the body is not in; the connection ends with it."""
        self.reply.keep_alive = False
        return self._fail(error, COMPLETED)

    cdef int shed(self, error) except -1:
        """The same, for want of room."""
        self.reply.keep_alive = False
        return self._fail(error, SHED)

    cdef bint hold(self, Py_ssize_t n) except -1:
        """n bytes of the body are held now. False: with all others they are too many."""
        self.context.body_bytes += n - self.held
        self.held = n
        return self.context.body_bytes <= self.context.limits.max_inflight_body_bytes

    cdef void _drop(self):
        """Part from the engine connection; it is kept only if its answer was read to the end."""
        cdef Upstream up = self.up
        self.up = None
        if up is not None:
            if up.parser.complete:
                up.release()
            else:
                up.abort()

    cdef int _truncate(self, str kind) except -1:
        """The answer cannot be finished. What the client has of it is made to look so."""
        self._drop()
        self.tries.close(TIMEOUT if kind.endswith("timeout") else FAILED, monotonic())
        self.tries.instance.note_failure(kind)
        self.reply.keep_alive = False
        self.reply.truncate(failures.engine_error(kind))
        return self._finish(ENGINE_ERROR)

    cdef int _fail(self, error, Outcome outcome) except -1:
        """Answer with an HttpError; nothing was sent yet."""
        cdef list lines = []
        if error.status == 503:
            lines.append(
                b"retry-after: %b\r\n" % (self.tries.retry_after or self.context.retry_after())
            )
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
            self.client.deadline = monotonic() + (
                self.context.limits.write_timeout if blocked
                else self.context.limits.stream_idle_timeout
            )
            if self.up is not None:
                self.up.rest(blocked)
        return 0

    cdef void on_crash(self, error):
        """Our own code raised. The request ends, and nothing else does."""
        log.error("request %s failed inside the router", self._id(), exc_info=error)
        try:
            self._drop()
            if self.state_ == IDLE:
                self.client.cut(True)
            else:
                self._break_off(failures.internal())
        except Exception:
            log.exception("request %s: so did ending it; its connection is cut", self._id())
            self.client.abort()
            if self.state_ != IDLE:
                self._end(ROUTER_ERROR)

    cdef str _id(self):
        """For the log: what x-request-id says to client and engine; empty between requests."""
        cdef bytes id = self.reply.request_id
        return id.decode("latin-1") if id is not None else ""

    cdef int _break_off(self, error) except -1:
        """End a request in any state, by a fault of ours."""
        self.reply.keep_alive = False
        if self.reply.status:
            self.reply.truncate(error)
        else:
            self.reply.fail(error, [])
        self.tries.close(ABANDONED, monotonic())
        return self._finish(ROUTER_ERROR)

    cdef int stop(self) except -1:
        """The router ends before the request does."""
        if self.state_ == IDLE:
            return 0
        self._drop()
        return self._break_off(failures.stopping())

    cdef int _finish(self, Outcome outcome) except -1:
        self._end(outcome)
        return self.client.finished()

    cdef int _end(self, Outcome outcome) except -1:
        """Count the request, give its place back and let go of what it held."""
        if self.state_ == QUEUED:
            self.context.leave_queue(self)
        self._move(END)
        self.context.counters.count(
            self.path_index, self.reply.status, outcome, monotonic() - self.started
        )
        if self.placed:
            self.placed = False
            self.context.release()
        if self.held:
            self.hold(0)
        if self.trace is not None:
            self.context.tracer.end(
                self.tries.record(
                    self.trace, self.started, monotonic(), self.path, self.reply.status,
                    OUTCOMES[outcome],
                )
            )
            self.trace = None
        self.body = self.refusal = None
        self.tries.forget(self.reply.status)
        self.reply.again()
        return 0
