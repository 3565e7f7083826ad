"""Connections to engines. See upstream.pyi."""

from lodestar_fast.proxy.context cimport Context, Reserve
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reader cimport Reader
from lodestar_fast.proxy.wire cimport Buffer


cdef class Receiver:
    """Who uses an engine connection: told of everything that happens on it. Base of Exchange."""

    cdef int on_connected(self, Upstream up) except -1
    cdef int on_answer(self, Upstream up) except -1  # more of the answer lies in up.parser
    cdef int on_gone(self, Upstream up, str kind) except -1  # up is dead; "eof" if it ended
    cdef void on_crash(self, error)  # one of the above raised


cdef class Upstream(Reader):
    cdef Pool pool
    cdef object task  # opening it
    cdef Receiver owner  # None: idle or done with
    cdef readonly ResponseParser parser
    cdef readonly bint reused  # it has answered a request before
    cdef readonly bint dead
    cdef double idle_since
    cdef double sent_at

    cdef int send(self, bytes target, bytes fields, bytes request_id, bytes body) except -1
    cdef void release(self)
    cdef void abort(self)
    cdef void _lost(self, str kind)
    cdef void _forget(self)


cdef class Pool(Reserve):
    cdef Context context
    cdef object instance
    cdef list _idle  # those kept, last used last; None behind them: a list that shrinks is copied
    cdef Py_ssize_t _kept  # how many they are
    cdef Py_ssize_t _open
    cdef bint _closed
    cdef bytes host  # for the Host field
    cdef readonly double heard_at  # when bytes of an answer came last, on any connection
    cdef Buffer _buffer  # for requests being put together

    cdef int _keep(self, Upstream up) except -1
    cdef int _remove(self, Upstream up) except -1
    cdef Upstream acquire(self, Receiver owner, bint fresh)
