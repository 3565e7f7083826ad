"""The answer to one request, as the client gets it. See reply.pyx."""

from lodestar_fast.proxy.context cimport Connection
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.sse cimport Scanner
from lodestar_fast.proxy.wire cimport Buffer


cdef class Client(Connection):
    """The downstream side of an exchange: the base of Downstream."""

    cdef double deadline  # when the exchange, or the connection, has waited long enough
    cdef readonly bint blocked  # the client does not take what was sent

    cdef int send(self, const char* p, Py_ssize_t n) except -1
    cdef int finished(self) except -1  # the exchange is over; keep_alive says what follows
    cdef void cut(self, bint hard)  # end the connection so that the answer shows as incomplete


cdef enum Verdict:
    UNDECIDED  # hold it back and wait for more
    GOOD
    REFUSED  # the engine says in its stream that the request is at fault
    BAD  # the engine says in its stream that it failed


cdef class Reply:
    cdef Client client
    cdef bint keep_alive  # the connection may carry another request
    cdef bytes request_id
    cdef bint old  # the client speaks HTTP/1.0
    cdef bint bodyless  # it is to have no body: the request was HEAD
    cdef int status  # as sent; 0: nothing was
    cdef bint chunked
    cdef bint sized  # it has a content-length
    cdef bint ended  # its last byte was sent
    cdef bint event_stream
    cdef Scanner scanner
    cdef Py_ssize_t _seen  # bytes of the body in hand that the scanner had
    cdef Buffer _buffer  # for the head

    cdef void begin(self, RequestParser request)
    cdef void again(self)
    cdef Verdict judge(self, ResponseParser answer) except *
    cdef int relay(self, ResponseParser answer, list extra) except -1
    cdef int own(self, int status, bytes content_type, bytes body, list extra) except -1
    cdef int fail(self, error, list extra) except -1
    cdef int truncate(self, error) except -1
    cdef int _scan(self, ResponseParser answer) except -1
    cdef int _head(self, ResponseParser answer, list extra) except -1
