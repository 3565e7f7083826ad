"""One request's life. See exchange.pyx."""

from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.counters cimport Outcome
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reply cimport Client, Reply
from lodestar_fast.proxy.states cimport State, Step
from lodestar_fast.proxy.tries cimport Tries
from lodestar_fast.proxy.upstream cimport Receiver, Upstream


cdef class Exchange(Receiver):
    cdef Context context
    cdef Client client
    cdef Reply reply
    cdef State state_
    cdef object refusal  # HttpError found in the head; answered once the body is in, or at once

    # The request
    cdef int path_index  # of its counters
    cdef bytes path
    cdef bytes target
    cdef bytes fields
    cdef bytes body
    cdef double started
    cdef double expires  # by request_timeout
    cdef bint placed  # holds one of the context's places

    cdef Tries tries
    cdef Upstream up
    cdef bint engine_failed  # an engine's error is passed on
    cdef bint excused  # an error event that is not the engine's fault

    cdef int begin(self, RequestParser request) except -1
    cdef int full(self, bytes body) except -1
    cdef int refuse(self, error) except -1
    cdef void client_gone(self)
    cdef void detach(self)
    cdef int client_blocked(self, bint blocked) except -1
    cdef int expire(self, double now) except -1

    cdef int _move(self, Step step) except -1
    cdef int _answer_locally(self) except -1
    cdef int _dispatch(self) except -1
    cdef int _connect(self, bint fresh) except -1
    cdef bint _again(self, str kind) except -1
    cdef int _lost_try(self, str kind) except -1
    cdef void _drop(self)
    cdef bint _turned_away(self, ResponseParser answer) except -1
    cdef int _relay(self, ResponseParser answer) except -1
    cdef list _extra_lines(self, ResponseParser answer)
    cdef int _truncate(self, str kind) except -1
    cdef int _fail(self, error, Outcome outcome) except -1
    cdef void _heed_drain(self)
    cdef int _end(self, Outcome outcome) except -1
    cdef int _finish(self, Outcome outcome) except -1
