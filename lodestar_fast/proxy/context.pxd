"""What all connections of one proxy share. See context.pyi."""

from lodestar_fast.core.router cimport Router
from lodestar_fast.proxy.counters cimport Counters
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.reader cimport Reader


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
    cdef double write_timeout
    cdef double retry_budget
    cdef long retry_floor
    cdef Py_ssize_t max_inflight_body_bytes
    cdef long max_engine_requests
    cdef bytes priority_header


cdef class Connection(Reader):
    """Something with deadlines, looked at by every sweep."""

    cdef int expire(self, double now) except -1
    cdef void abort(self)
    cdef int stop(self) except -1  # end its request, saying that the router stops
    # End its request if it is on an instance from which nothing came since then; whether it was.
    cdef bint give_up(self, instance, double silent_since) except -1


cdef enum:
    MOST_INSTANCES = 1024  # as in config


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
    cdef public tuple session_headers  # in lower case; empty: nobody wants to know the session
    cdef public tuple tenant_headers  # likewise; empty: the key says whose a request is
    cdef public object tracer  # tracing.Tracer; None: trace context passes as it came
    cdef frozenset api_keys
    cdef public dict instances
    cdef public object local
    cdef public Counters counters
    cdef bytearray read_buffer  # what any connection reads into; valid until its call returns
    cdef readonly set connections
    cdef set reserves
    cdef public bint draining
    cdef readonly long inflight
    cdef public long max_connections
    cdef bint hide_authorization  # the client's is not passed on
    cdef bytes authorization  # our own line for engines; empty: none
    cdef public dict on_trial  # slot -> instance that hears of each request it is sent
    cdef dict busy  # slot -> time until which the engine asked to be left alone
    cdef readonly tuple full  # slots with max_engine_requests
    cdef readonly long retrying  # requests on a further try, nothing relayed yet
    cdef readonly Py_ssize_t body_bytes  # of requests in hand
    cdef long _load[MOST_INSTANCES]  # requests by slot
    cdef object _waiting  # waiting.Waiting of exchanges
    cdef readonly Py_ssize_t queued  # how many they are
    cdef bint _waking  # _next() is about to run
    cdef long long _ended  # requests that gave their place back
    cdef long long _seen  # of them at the last sweep
    cdef double _rate  # of them a second, smoothed
    cdef object loop
    cdef object _timer
    cdef double _due  # when it shall run
    cdef dict _others  # model -> slots that do not serve it, or None: no instance does
    cdef str _asked  # the model last asked for, nearly always the same object again; None: none
    cdef tuple _avoided  # what was answered

    cdef int _sweep_in(self, double seconds) except -1
    cdef object refusal(self, RequestParser request, bint routed)
    cdef bint _authorized(self, bytes authorization)
    cdef tuple others(self, str model)
    cdef bint admit(self, bint waited) except -1
    cdef bint wait(self, exchange, bytes fields) except -1
    cdef int leave_queue(self, exchange) except -1
    cdef void put_back(self)
    cdef int release(self) except -1
    cdef int _wake(self) except -1
    cdef int took(self, int slot) except -1
    cdef int gave(self, int slot) except -1
    cdef int _count_full(self, int slot) except -1
    cdef bytes retry_after(self)
    cdef bint may_retry(self) noexcept
    cdef int note_busy(self, int slot, double seconds, double now) except -1
    cdef tuple busy_slots(self, double now)
