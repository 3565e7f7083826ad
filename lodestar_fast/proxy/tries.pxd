"""One request's tries on engines. See tries.pyx."""

from lodestar_fast.proxy.body cimport Routing
from lodestar_fast.proxy.context cimport Context
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.reply cimport Reply
from lodestar_fast.proxy.sse cimport Usage


cdef enum Final:
    DONE
    FAILED
    ABANDONED
    TIMEOUT


cdef class Tries:
    cdef Context context
    cdef Routing routing
    cdef long long ticket  # 0: none, or closed
    cdef object instance  # of the try at hand
    cdef bytes retry_after  # the smallest number of seconds that a busy engine named
    cdef long long tokens  # that came so far, and were reported
    cdef object _decision
    cdef double _decision_seconds
    cdef tuple avoid  # slots that do not serve the model
    cdef bytes session  # whom the request belongs to; None: nobody says
    cdef double slo_ttft, slo_tpot  # seconds that the client asks for; 0: nothing, -1: not said
    cdef bytes tenant  # who asks; None: nobody says
    cdef list _tried  # slots; None: no try has failed
    cdef bint _first_token
    cdef double _first_token_at  # 0: none was seen
    cdef Usage _usage
    cdef int _slot  # of the try at hand
    cdef bint _trial  # the instance counts the requests it is sent, and this is one
    cdef bytes _request_id
    cdef bytes _path
    cdef unsigned long long _serial  # of its decision, if decisions are kept; else 0
    cdef bint _retrying  # counts against the retry budget
    cdef bint _late  # a try was given up for its first byte

    cdef void begin(
        self, Routing routing, tuple avoid, bytes session, bytes request_id, bytes path
    )
    cdef bint route(self) except -1
    cdef bint _choose(self, double start, tuple avoid) except -1
    cdef int keep(self) except -1
    cdef bint another(self, str kind) except -1
    cdef int note_retry_after(self, ResponseParser answer) except -1
    cdef void settle(self)
    cdef int _trial_over(self, bint well) except -1
    cdef int measure(self, ResponseParser answer, Reply reply, double now) except -1
    cdef int complete(self, Reply reply, bint passed_failure, bint excused, double now) except -1
    cdef int _observe(
        self, long long ticket, int event, double now, long long tokens=*, long long cached=*
    ) except -1
    cdef int close(self, Final event, double now) except -1
    cdef void forget(self, int status)
    cdef bytes explanation(self)
    cdef object record(
        self, trace, double started, double ended, bytes path, int status, str outcome
    )
