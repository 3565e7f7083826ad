"""One client connection. See downstream.pyx."""

from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.exchange cimport Exchange
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.reply cimport Client


cdef enum Phase:
    OPEN  # requests are read
    LINGER  # the last answer is sent and our side ended; what still comes is read and dropped
    CLOSING  # the transport sends what it holds, then ends
    CLOSED

cdef enum Awaits:
    REQUEST  # nothing of the next one came
    REQUEST_HEAD
    REQUEST_BODY


cdef class Downstream(Client):
    cdef Context context
    cdef RequestParser parser
    cdef Exchange exchange
    cdef Phase phase
    cdef Awaits awaits  # what the deadline is for, while no engine is involved
    cdef list early  # bytes that came before their turn
    cdef Py_ssize_t early_bytes
    cdef Py_ssize_t _unsent  # bytes that the transport held when the client was last looked at
    cdef bint consuming  # within _consume(), further up the stack

    cdef int _turn_away(self) except -1
    cdef bint _takes_some(self, double now) except -1
    cdef int _consume(self, const char* p, Py_ssize_t n) except -1
    cdef int _await_more(self) except -1
    cdef int _keep_early(self, bytes data) except -1
    cdef int _go_on(self) except -1
    cdef void _begin_closing(self)
    cdef int _expire_own(self) except -1
