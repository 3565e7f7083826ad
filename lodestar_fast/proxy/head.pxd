"""Fields of heads: which pass, which stop here, and how heads are written. See head.pyx."""

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


cdef Field classify(bytes name) noexcept
cdef set named_fields(set named, bytes value)
cdef int put_line(Buffer fields, bytes name, bytes value) except -1
cdef bytes without(bytes lines, set names)
cdef bint valid_host(bytes value) noexcept
cdef bint valid_id(bytes value) noexcept
cdef bytes new_id()
cdef bytes own_answer(
    int status, bytes content_type, bytes body, bytes request_id, list fields, bint close,
    bint old, bint with_body
)
cdef bytes closing(bint close, bint old)
