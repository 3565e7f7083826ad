"""The parser of requests. See parse_request.pyx."""

from lodestar_fast.proxy.head cimport MessageParser


cdef class RequestParser(MessageParser):
    cdef Py_ssize_t _max_head
    cdef Py_ssize_t _max_body
    cdef Py_ssize_t _left  # of a body with a length; -1: chunked
    cdef int _crlf  # bytes of a blank line at the end of what was fed
    cdef bint _begun
    cdef bint _line_done  # the request line is behind us
    cdef bint _after_blank
    cdef int _blanks  # in the request line so far
    cdef bint _te
    cdef int _hosts
    cdef bint _upgrade
    cdef bint _host_valid

    cdef readonly bytes method
    cdef readonly bytes target  # in origin form
    cdef readonly bytes path  # without the query
    cdef readonly bytes request_id  # the client's, if it may be used
    cdef readonly bytes authorization
    cdef readonly double slo_ttft  # seconds it asks for; 0: for nothing, -1: it does not say
    cdef readonly double slo_tpot
    cdef readonly bint slo_refused  # it asks for something that is no time
    cdef readonly bint old  # HTTP/1.0
    cdef readonly bint expects  # 100-continue
    cdef readonly int status  # why it is refused; 0: it is not
    cdef readonly str reason
    cdef bytes _body  # the first piece of it; None: none came
    cdef list _more  # the other pieces; None: there are none

    cdef void reset(self)
    cdef bint begun(self) noexcept
    cdef Py_ssize_t feed(self, const char* p, Py_ssize_t at, Py_ssize_t size) except -1
    cdef bytes take_body(self)
    cdef Py_ssize_t _blank_line(self, const char* p, Py_ssize_t at, Py_ssize_t size) noexcept
    cdef void _check_line(self, const char* p, Py_ssize_t at, Py_ssize_t end)
    cdef int _run(self, const char* p, Py_ssize_t n) except -1
    cdef int _resync(self) except -1
    cdef void _refuse(self, int status, str reason)
    cdef void _check_target(self)
    cdef double _tighter(self, double seconds, const char* p, Py_ssize_t n) except? -1
    cdef void _check_head(self)
