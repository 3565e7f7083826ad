"""What all connections of one proxy share. See context.pyi."""

from lodestar_fast.core.router cimport Router
from lodestar_fast.proxy.counters cimport Counters
from lodestar_fast.proxy.parse_request cimport RequestParser


cdef class Limits:
    """LimitsConfig as C numbers; seconds and bytes."""

    cdef Py_ssize_t max_body_bytes
    cdef Py_ssize_t max_header_bytes
    cdef double header_timeout
    cdef double body_timeout
    cdef double connect_timeout
    cdef double first_byte_timeout
    cdef double stream_idle_timeout
    cdef double request_timeout
    cdef double keep_alive
    cdef double engine_keep_alive
    cdef int max_retries
    cdef long max_concurrent_requests
    cdef long queue_size
    cdef double queue_timeout


cdef class Connection:
    """Something with deadlines, looked at by every sweep."""

    cdef int expire(self, double now) except -1
    cdef void abort(self)


cdef class Reserve:
    """Something that holds idle connections, looked at by every sweep."""

    cdef int shrink(self, double now) except -1


cdef class Context:
    cdef readonly object router
    cdef Router core  # router, if it is the real one, whose methods are called as C functions
    cdef readonly Limits limits
    cdef readonly object clock
    cdef public str policy_name
    cdef public bint explain
    cdef frozenset api_keys
    cdef public dict instances
    cdef public object local
    cdef public Counters counters
    cdef readonly set connections
    cdef set reserves
    cdef public bint draining
    cdef readonly long inflight
    cdef object _waiting  # deque of exchanges, in the order they came
    cdef object loop
    cdef object _timer
    cdef dict _others  # model -> slots that do not serve it, or None: no instance does

    cdef object refusal(self, RequestParser request)
    cdef bint _authorized(self, bytes authorization)
    cdef tuple others(self, str model)
    cdef bint admit(self, exchange)
    cdef bint wait(self, exchange)
    cdef void release(self)
    cdef void leave_queue(self, exchange)
