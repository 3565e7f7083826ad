"""Fields of heads: which pass, which stop here, and how heads are written. See head.pyx."""

from lodestar_fast.proxy.llhttp cimport Parser
from lodestar_fast.proxy.wire cimport Buffer


cdef enum:
    # Framing of a chunked body: a fixed allowance and a share of the body. A byte a chunk costs 5;
    # who sends more than 16 is not sending a body but keeping us busy.
    FRAMING = 65536
    FRAMING_PER_BYTE = 16

cdef enum Field:
    PASS  # goes on as it is
    HOP  # ends here: hop-by-hop, or made anew
    CONNECTION
    TRANSFER_ENCODING
    CONTENT_LENGTH
    CONTENT_TYPE
    HOST
    EXPECT
    REQUEST_ID
    AUTHORIZATION
    RETRY_AFTER
    SLO_TTFT
    SLO_TPOT


cdef class Fields:
    cdef Buffer lines
    cdef Py_ssize_t _start  # where the last line begins
    cdef Py_ssize_t _value  # where its value does; 0: its name is not complete

    cdef void reset(self) noexcept
    cdef int name_piece(self, const char* p, Py_ssize_t n) except -1
    cdef int value_piece(self, const char* p, Py_ssize_t n) except -1
    cdef bint open(self) noexcept
    cdef Field kind(self) noexcept
    cdef const char* value(self) noexcept
    cdef Py_ssize_t length(self) noexcept
    cdef int end(self, bint keep) except -1


cdef class MessageParser(Parser):
    """What parsing a request and parsing an answer have in common."""

    cdef Fields _fields
    cdef set _named  # fields that Connection named, lower case; None if none
    cdef Py_ssize_t _head_bytes
    cdef Py_ssize_t _wire_bytes  # of a body, framing included
    cdef Py_ssize_t _body_bytes  # of them, without
    cdef bint _ignore_head  # what is fed was made here
    cdef readonly bytes fields  # lines that pass
    cdef readonly bint keep_alive
    cdef readonly bint head_done
    cdef readonly bint complete

    cdef int _reset_message(self) except -1
    cdef bint _overframed(self) noexcept
    cdef int _take_fields(self) except -1


cdef Field classify(const char* p, Py_ssize_t n) noexcept
cdef set named_fields(set named, const char* p, Py_ssize_t n)
cdef bytes without(bytes lines, set names)
cdef bint valid_host(const char* value, Py_ssize_t n) noexcept
cdef bint valid_id(const char* value, Py_ssize_t n) noexcept
cdef bytes new_id()
cdef bytes own_answer(
    int status, bytes content_type, bytes body, bytes request_id, list fields, bint close,
    bint old, bint with_body
)
cdef bytes closing(bint close, bint old)
