"""Connections to one engine: opening, keeping, reading answers, dropping at the least doubt.

A Pool belongs to an Instance and is used by exchanges. A connection carries one request at a time
and is kept afterwards only if nothing speaks against it: the answer ended where its framing said,
both sides meant to keep it, no byte followed, the request was sent whole. Everything else closes
it, so that no client can get another one's answer.

Opening is the only thing here that takes a task. The last used connection is taken first: the
others age, and leave before the engine closes them under us (vLLM does after 5 s).
"""

import logging

from lodestar_fast.proxy.context cimport Context, Reserve
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reader cimport Reader
from lodestar_fast.proxy.wire cimport Buffer, emit, emit_two, monotonic

log = logging.getLogger("lodestar.proxy")

# Bodies up to this are copied behind the head, which is cheaper than two pieces of one message.
cdef enum:
    JOIN = 4096


cdef class Receiver:
    cdef int on_connected(self, Upstream up) except -1:
        raise NotImplementedError

    cdef int on_answer(self, Upstream up) except -1:
        raise NotImplementedError

    cdef int on_gone(self, Upstream up, str kind) except -1:
        raise NotImplementedError

    cdef void on_crash(self, error):
        pass


cdef class Upstream(Reader):
    def __cinit__(self, Pool pool, Receiver owner):
        self.pool = pool
        self.owner = owner
        self.parser = ResponseParser()

    # -- used by the owner --

    cdef int send(self, bytes target, bytes fields, bytes request_id, bytes body) except -1:
        """Send a request; its answer comes by on_answer(). fields: lines that pass."""
        cdef Buffer out = self.pool._buffer
        if self.reused:
            self.parser.reset()
        self.sent_at = monotonic()
        out.put(b"POST ", 5)
        out.put_bytes(target)
        out.put(b" HTTP/1.1\r\nhost: ", 17)
        out.put_bytes(self.pool.host)
        out.put(b"\r\n", 2)
        out.put_bytes(fields)
        out.put(b"x-request-id: ", 14)
        out.put_bytes(request_id)
        out.put(b"\r\ncontent-length: ", 18)
        out.put_number(len(body))
        out.put(b"\r\n\r\n", 4)
        if len(body) <= JOIN:
            out.put_bytes(body)
            self._queued = emit(self.transport, self._fd, self._queued, out.data, out.size)
        else:
            self._queued = emit_two(self.transport, self._fd, self._queued, out, body)
        out.clear()
        return 0

    cdef void release(self):
        """The answer is complete: keep the connection if it can carry another request."""
        cdef ResponseParser parser = self.parser
        self.owner = None
        if self.dead:
            return
        if parser.extra:
            self.pool.context.counters.extra_bytes += 1
        if (
            parser.extra or not parser.keep_alive or self.pool._closed
            or self._queued and self.transport.get_write_buffer_size()
        ):
            self.abort()
            return
        self.rest(False)
        self.reused = True
        self.idle_since = monotonic()
        self.pool._keep(self)

    cdef void abort(self):
        """Drop the connection now, opened or not: the engine sees it and ends the request."""
        self.owner = None
        if self.dead:
            return
        self._forget()
        if self.transport is not None:
            self.transport.abort()
        else:
            self.task.cancel()

    # -- opening --

    async def _open(self):
        """Connect. Failing is told to the owner; success is, by connection_made()."""
        instance = self.pool.instance
        try:
            await self.pool.context.loop.create_connection(
                lambda: self, instance.host, instance.port
            )
        except Exception as e:  # OSError mostly; a host that cannot be encoded is UnicodeError
            log.debug("cannot connect to instance %s: %s", instance.id, e)
            self._lost("connect")

    # -- called by the loop --

    def connection_made(self, transport):
        self.attach(transport, self.pool.context.read_buffer)
        if self.dead:  # given up in the same turn of the loop
            transport.abort()
            return
        self.pool.context.counters.upstream_opened += 1
        owner = self.owner
        try:
            owner.on_connected(self)
        except Exception as e:
            owner.on_crash(e)

    cdef int received(self, const char* p, Py_ssize_t n) except -1:
        cdef Receiver owner = self.owner
        if owner is None:
            # Nobody asked: an answer to nothing, which would be the next client's.
            if not self.dead:
                self.pool.context.counters.extra_bytes += 1
                self.abort()
            return 0
        try:
            self.parser.feed(p, n)
            if self.parser.broken is not None:
                log.info("instance %s: %s", self.pool.instance.id, self.parser.broken)
                self._lost("malformed")
            elif self.parser.body.size or self.parser.complete:
                owner.on_answer(self)
        except Exception as e:
            owner.on_crash(e)
        return 0

    def eof_received(self):
        self._lost("eof")
        return False

    def connection_lost(self, exc):
        self._lost("eof" if exc is None else "reset")

    def pause_writing(self):
        pass  # a request is one write, and nothing more is read from its client

    def resume_writing(self):
        pass

    cdef void _lost(self, str kind):
        """The connection ended, or is given up for what came over it."""
        cdef Receiver owner = self.owner
        self.owner = None
        if self.dead:
            return
        self._forget()
        if self.transport is not None:
            self.transport.abort()
        if owner is not None:
            try:
                owner.on_gone(self, kind)
            except Exception as e:
                owner.on_crash(e)

    cdef void _forget(self):
        """Take it off the pool's books."""
        cdef Pool pool = self.pool
        self.dead = True
        self.part()
        self.parser.close()
        pool._open -= 1
        pool._remove(self)


cdef class Pool(Reserve):
    def __init__(self, Context context, instance):
        self.context = context
        self.instance = instance
        self._idle = []
        self.heard_at = float("-inf")
        self._buffer = Buffer()
        host = f"[{instance.host}]" if ":" in instance.host else instance.host
        self.host = f"{host}:{instance.port}".encode()
        context.reserves.add(self)

    cdef Upstream acquire(self, Receiver owner, bint fresh):
        """A connection for the owner: a kept one, or one that calls on_connected() later.

        fresh: a new one, for kept ones of this engine have just turned out to be closed.
        """
        cdef Upstream up
        while self._kept and not fresh:
            self._kept -= 1
            up = <Upstream> self._idle[self._kept]
            self._idle[self._kept] = None
            if up.transport.is_closing():
                up._forget()
                continue
            up.owner = owner
            return up
        up = Upstream(self, owner)
        self._open += 1
        up.task = self.context.loop.create_task(up._open())
        return up

    cdef int _keep(self, Upstream up) except -1:
        if self._kept < len(self._idle):
            self._idle[self._kept] = up
        else:
            self._idle.append(up)
        self._kept += 1
        return 0

    cdef int _remove(self, Upstream up) except -1:
        """Forget a connection, if it is kept."""
        if up in self._idle:
            self._idle.remove(up)
            self._kept -= 1
        return 0

    cdef int shrink(self, double now) except -1:
        """Close what has been idle for too long; the oldest come first."""
        cdef double since = now - self.context.limits.engine_keep_alive
        while self._kept and (<Upstream> self._idle[0]).idle_since <= since:
            (<Upstream> self._idle[0]).abort()
        return 0

    @property
    def idle(self):
        return self._kept

    @property
    def open(self):
        return self._open

    @property
    def busy(self):
        return self._open - self._kept

    def close(self):
        self._closed = True
        self.context.reserves.discard(self)
        while self._kept:
            (<Upstream> self._idle[0]).abort()
