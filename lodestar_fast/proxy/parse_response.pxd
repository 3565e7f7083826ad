"""The parser of answers. See parse_response.pyx."""

from lodestar_fast.proxy.head cimport MessageParser
from lodestar_fast.proxy.wire cimport Buffer


cdef class ResponseParser(MessageParser):
    cdef int _interim  # answers of 1xx so far
    cdef bint _in_interim

    cdef readonly int status
    cdef bytes reason
    cdef bytes retry_after
    cdef readonly Py_ssize_t length  # -1: chunked, or until the connection ends
    cdef readonly bint chunked
    cdef readonly bint until_close
    cdef readonly bint sse
    cdef readonly bint started  # a byte came
    cdef readonly bint extra  # bytes came behind the answer
    cdef readonly str broken  # why it cannot be relied on, or None
    cdef Buffer body  # what came of it and was not yet taken

    cdef void reset(self)
    cdef int feed(self, const char* p, Py_ssize_t n) except -1
    cdef void _check_head(self)
