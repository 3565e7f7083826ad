"""How a request ends. See ending.pyx."""

from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.counters cimport Outcome
from lodestar_fast.proxy.reply cimport Client, Reply
from lodestar_fast.proxy.states cimport State, Step
from lodestar_fast.proxy.tries cimport Tries
from lodestar_fast.proxy.upstream cimport Receiver, Upstream


cdef class Ending(Receiver):
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
    cdef Py_ssize_t held  # bytes of its body that are counted in context.body_bytes
    cdef bint placed  # holds one of the context's places

    cdef object trace  # tracing.Trace; None: nothing is traced

    cdef Tries tries
    cdef Upstream up

    cdef int refuse(self, error) except -1
    cdef int shed(self, error) except -1
    cdef bint hold(self, Py_ssize_t n) except -1
    cdef int stop(self) except -1
    cdef void client_gone(self)
    cdef void detach(self)
    cdef int client_blocked(self, bint blocked) except -1

    cdef int _move(self, Step step) except -1
    cdef void _drop(self)
    cdef int _truncate(self, str kind) except -1
    cdef int _fail(self, error, Outcome outcome) except -1
    cdef void _heed_drain(self)
    cdef str _id(self)
    cdef int _break_off(self, error) except -1
    cdef int _finish(self, Outcome outcome) except -1
    cdef int _end(self, Outcome outcome) except -1
