"""One request's life. See exchange.pyx."""

from lodestar_fast.proxy.ending cimport Ending
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser


cdef class Exchange(Ending):
    cdef bint engine_failed  # an engine's error is passed on
    cdef bint excused  # an error event that is not the engine's fault

    cdef int begin(self, RequestParser request) except -1
    cdef int full(self, bytes body) except -1
    cdef bint give_up(self, instance, double silent_since) except -1
    cdef int expire(self, double now) except -1

    cdef bint _routed(self) noexcept
    cdef int _answer_locally(self) except -1
    cdef bint _dispatch(self) except -1
    cdef int _connect(self, bint fresh) except -1
    cdef bint _again(self, str kind) except -1
    cdef int _lost_try(self, str kind) except -1
    cdef bint _turned_away(self, ResponseParser answer) except -1
    cdef int _relay(self, ResponseParser answer) except -1
    cdef list _extra_lines(self, ResponseParser answer)
