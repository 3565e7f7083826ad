"""One client connection: its socket, its bytes in, its deadlines while no engine is involved.

The loop calls it; it feeds the parser and hands whole requests to its Exchange, one at a time.
What a client sends ahead of its turn is kept as bytes and parsed when its turn comes, so answers
are in order and nothing is decoded for a client that does not wait.

While a request runs, reading goes on: only so is it seen that the client left, which must cancel
the engine's work. A half-close counts as leaving, as in nginx; the two cannot be told apart.
"""

import logging
import socket
import struct

from lodestar_fast.proxy import failures
from lodestar_fast.proxy.openai import error_body

from lodestar_fast.proxy.context cimport Context, Limits
from lodestar_fast.proxy.exchange cimport Exchange
from lodestar_fast.proxy.head cimport new_id, own_answer
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.reply cimport Client
from lodestar_fast.proxy.states cimport BODY, IDLE
from lodestar_fast.proxy.wire cimport emit, monotonic

log = logging.getLogger("lodestar.proxy")

cdef enum:
    # Early bytes kept for one client. Beyond that its reading is paused, and with it the chance to
    # see it leave: a price only for who sends that much ahead.
    EARLY = 262144

# Seconds for a client to read an answer that came before its body was read. Closing at once would
# make the kernel reset the connection, and the answer would be lost on the way.
cdef double LINGER_TIME = 2.0
cdef bytes RESET = struct.pack("ii", 1, 0)


cdef class Downstream(Client):
    def __cinit__(self, Context context):
        self.context = context
        self.exchange = Exchange(context, self)
        self.parser = RequestParser(context.limits.max_header_bytes, context.limits.max_body_bytes)
        self.early = []
        self.phase = CLOSED
        self.awaits = REQUEST

    @property
    def busy(self):
        return self.exchange.state_ != IDLE or self.parser.begun() or self.blocked

    @property
    def unsent(self):
        return self.transport.get_write_buffer_size()

    # -- called by the loop --

    def connection_made(self, transport):
        self.attach(transport, self.context.read_buffer)
        self.phase = OPEN
        self.context.start()
        if len(self.context.connections) >= self.context.max_connections:
            self._turn_away()
            return
        self.context.connections.add(self)
        self.context.counters.connections_total += 1
        self.deadline = monotonic() + self.context.limits.header_timeout

    cdef int _turn_away(self) except -1:
        """One connection too many: say so, and read nothing."""
        self.context.counters.connections_refused += 1
        self.phase = CLOSING
        self.exchange.reply.request_id = new_id()
        self.transport.write(own_answer(
            503, b"application/json", error_body(failures.too_many_connections()),
            self.exchange.reply.request_id, [b"retry-after: 1\r\n"], True, False, True,
        ))
        self.transport.close()
        return 0

    cdef int received(self, const char* p, Py_ssize_t n) except -1:
        if self.phase != OPEN:
            return 0
        try:
            # Behind a request that runs, or answers that are not taken, it is too early.
            if self.exchange.state_ > BODY or self.blocked:
                self._keep_early(p[:n])
            else:
                self._consume(p, n)
        except Exception as e:
            self.exchange.on_crash(e)
        return 0

    def eof_received(self):
        if self.phase == OPEN:
            self._begin_closing()
            self.exchange.client_gone()
        return False  # the transport closes itself

    def connection_lost(self, exc):
        self.phase = CLOSED
        self.part()
        self.exchange.client_gone()
        self.exchange.detach()
        self.parser.close()
        self.early = []
        self.context.connections.discard(self)

    def pause_writing(self):
        self._block(True)

    def resume_writing(self):
        self._block(False)

    def _block(self, bint blocked):
        if self.phase == CLOSED:
            return
        self.blocked = blocked
        self._unsent = self.transport.get_write_buffer_size()
        try:
            if self.exchange.state_ != IDLE:
                self.exchange.client_blocked(blocked)
            elif blocked:
                self.deadline = monotonic() + self.context.limits.write_timeout
            else:
                self._go_on()
        except Exception as e:
            self.exchange.on_crash(e)

    # -- requests --

    cdef int _consume(self, const char* p, Py_ssize_t n) except -1:
        """Parse, and begin each request as it is complete, until one is not answered at once."""
        cdef RequestParser parser = self.parser
        cdef bytes body
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t before
        self.consuming = True
        try:
            while at < n and self.phase == OPEN:
                if self.exchange.state_ > BODY or self.blocked:
                    return self._keep_early(p[at:n])
                before = at
                at = parser.feed(p, at, n)
                if self.exchange.state_ == BODY and not self.exchange.hold(
                    self.exchange.held + at - before
                ):
                    return self.exchange.shed(failures.bodies_too_large())
                if self.exchange.state_ == IDLE and (parser.head_done or parser.status):
                    self.exchange.begin(parser)
                if parser.status:
                    self.exchange.refuse(failures.refused(parser.status, parser.reason))
                elif parser.complete:
                    body = parser.take_body()
                    parser.reset()
                    self.awaits = REQUEST
                    self.exchange.full(body)
        finally:
            self.consuming = False
        return self._await_more() if self.phase == OPEN else 0

    cdef int _await_more(self) except -1:
        """All that came is parsed: the deadline for what is to come next."""
        cdef Limits limits = self.context.limits
        if self.exchange.state_ == BODY:
            if self.exchange.refusal is not None:
                return self.exchange.refuse(self.exchange.refusal)
            if self.awaits != REQUEST_BODY:
                self.awaits = REQUEST_BODY
                self.deadline = monotonic() + limits.body_timeout
                if self.parser.expects and not self.parser.old:
                    self.send(b"HTTP/1.1 100 Continue\r\n\r\n", 25)
        elif self.exchange.state_ == IDLE and not self.blocked:
            if not self.parser.begun():
                self.deadline = monotonic() + limits.keep_alive
            elif self.awaits != REQUEST_HEAD:
                self.awaits = REQUEST_HEAD
                self.deadline = monotonic() + limits.header_timeout
        return 0

    cdef int _keep_early(self, bytes data) except -1:
        self.early.append(data)
        self.early_bytes += len(data)
        if self.early_bytes > EARLY:
            self.rest(True)
        return 0

    cdef int _go_on(self) except -1:
        """The request in hand is over, and its answer is on its way: take up what came early."""
        cdef bytes data
        if not self.early_bytes:
            return self._await_more() if self.phase == OPEN else 0
        data = b"".join(self.early)
        self.early = []
        self.early_bytes = 0
        self.rest(False)
        return self._consume(data, len(data))

    # -- used by the exchange --

    cdef int send(self, const char* p, Py_ssize_t n) except -1:
        if self.phase == OPEN:
            self._queued = emit(self.transport, self._fd, self._queued, p, n)
        return 0

    cdef int finished(self) except -1:
        if self.phase != OPEN:
            return 0
        if self.exchange.reply.keep_alive:
            if self.consuming or self.blocked:
                return 0  # _consume() or resume_writing() goes on
            return self._go_on()
        if not self.parser.begun():
            self._begin_closing()
            self.transport.close()
            return 0
        # Answered before its request was read. Closing now would make the kernel reset the
        # connection, and the client might lose the answer.
        self.phase = LINGER
        self.deadline = monotonic() + LINGER_TIME
        self.transport.write_eof()
        return 0

    cdef void cut(self, bint hard):
        """End the connection. hard: by a reset, for a client to whom the end means completeness."""
        if self.phase != OPEN:
            return
        self._begin_closing()
        if hard:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, RESET
            )
            self.transport.abort()
        else:
            self.transport.close()

    cdef void abort(self):
        if self.phase != CLOSED:
            self._begin_closing()
            self.transport.abort()

    cdef void _begin_closing(self):
        """Whatever is still queued goes out, but not for ever."""
        self.phase = CLOSING
        self.part()
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = monotonic() + self.context.limits.write_timeout

    # -- called by the sweep --

    cdef int stop(self) except -1:
        if self.phase == OPEN:
            self.exchange.stop()
        return 0

    cdef bint give_up(self, instance, double silent_since) except -1:
        return self.phase == OPEN and self.exchange.give_up(instance, silent_since)

    cdef bint _takes_some(self, double now) except -1:
        """Whether a client that is behind took something since it was looked at: a slow reader."""
        cdef Py_ssize_t unsent
        if not self.blocked and self.phase != CLOSING:
            return False
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            return False
        self._unsent = unsent
        self.deadline = now + self.context.limits.write_timeout
        return True

    cdef int expire(self, double now) except -1:
        if self.exchange.state_ > BODY and self.phase == OPEN:
            if now >= self.exchange.expires or (
                now >= self.deadline and not self._takes_some(now)
            ):
                self.exchange.expire(now)
        elif now >= self.deadline:
            if not self._takes_some(now):
                self._expire_own()
        elif self.context.draining and self.phase == OPEN and not self.busy:
            self._begin_closing()
            self.transport.close()
        return 0

    cdef int _expire_own(self) except -1:
        """A deadline of the connection itself has passed."""
        if self.phase != OPEN or self.blocked:
            self.abort()
        elif self.exchange.state_ == BODY:
            self.exchange.refuse(failures.client_timeout("body_timeout"))
        elif self.parser.begun():
            self.exchange.begin(self.parser)
            self.exchange.refuse(failures.client_timeout("header_timeout"))
        else:
            self._begin_closing()
            self.transport.close()
        return 0
