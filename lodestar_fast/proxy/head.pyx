"""Fields of heads: which pass, which stop here, and how the heads we write ourselves look.

No byte of a head that came in goes out unread: the parsers collect the fields that pass, line by
line, and everything that frames a message (length, coding, connection, host) is written anew.
"""

from http import HTTPStatus
from os import urandom

from libc.stdint cimport uint64_t

from lodestar_fast.proxy.wire cimport Buffer, put_hex, same

REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


cdef Field classify(const char* p, Py_ssize_t n) noexcept:
    """What becomes of a field, by its name. By length first: most fields end there."""
    if n == 2:
        return HOP if same(p, n, b"te") else PASS
    if n == 4:
        return HOST if same(p, n, b"host") else PASS
    if n == 6:
        return EXPECT if same(p, n, b"expect") else PASS
    if n == 7:
        return HOP if same(p, n, b"upgrade") or same(p, n, b"trailer") else PASS
    if n == 10:
        if same(p, n, b"connection"):
            return CONNECTION
        return HOP if same(p, n, b"keep-alive") else PASS
    if n == 11:
        return RETRY_AFTER if same(p, n, b"retry-after") else PASS
    if n == 12:
        if same(p, n, b"content-type"):
            return CONTENT_TYPE
        return REQUEST_ID if same(p, n, b"x-request-id") else PASS
    if n == 13:
        if same(p, n, b"authorization"):
            return AUTHORIZATION
        return SLO_TTFT if same(p, n, b"x-slo-ttft-ms") else (
            SLO_TPOT if same(p, n, b"x-slo-tpot-ms") else PASS)
    if n == 14:
        if same(p, n, b"content-length"):
            return CONTENT_LENGTH
        return HOP if same(p, n, b"http2-settings") else PASS
    if n == 16:
        return HOP if same(p, n, b"proxy-connection") else PASS
    if n == 17:
        return TRANSFER_ENCODING if same(p, n, b"transfer-encoding") else PASS
    if n == 18:
        return HOP if same(p, n, b"proxy-authenticate") else PASS
    if n == 19:
        if same(p, n, b"proxy-authorization"):
            return HOP
        return SLO_TTFT if same(p, n, b"x-llm-d-slo-ttft-ms") else (
            SLO_TPOT if same(p, n, b"x-llm-d-slo-tpot-ms") else PASS)
    return PASS


cdef set named_fields(set named, const char* p, Py_ssize_t n):
    """Add what a Connection field names; close and keep-alive name no field. None: none so far."""
    if same(p, n, b"keep-alive") or same(p, n, b"close"):
        return named
    for token in p[:n].lower().split(b","):
        token = token.strip(b" \t")
        if token not in (b"close", b"keep-alive", b""):
            named = named or set()
            named.add(token)
    return named


cdef class Fields:
    """The fields of a head, collected piece by piece as llhttp finds them."""

    def __cinit__(self):
        self.lines = Buffer()

    cdef void reset(self) noexcept:
        self.lines.clear()
        self._start = self._value = 0

    cdef int name_piece(self, const char* p, Py_ssize_t n) except -1:
        return self.lines.put(p, n)

    cdef int value_piece(self, const char* p, Py_ssize_t n) except -1:
        if not self._value:
            self.lines.put(b": ", 2)
            self._value = self.lines.size
        return self.lines.put(p, n)

    cdef bint open(self) noexcept:
        """Whether the last line has its value, and end() must follow before another name."""
        return self._value != 0

    cdef Field kind(self) noexcept:
        """What the last line is."""
        return classify(self.lines.data + self._start, self._value - 2 - self._start)

    cdef const char* value(self) noexcept:
        return self.lines.data + self._value

    cdef Py_ssize_t length(self) noexcept:
        """Of the last line's value."""
        return self.lines.size - self._value

    cdef int end(self, bint keep) except -1:
        """The last line is complete: keep it, or forget it."""
        if keep:
            self.lines.put(b"\r\n", 2)
        else:
            self.lines.size = self._start
        self._start = self.lines.size
        self._value = 0
        return 0


cdef class MessageParser(Parser):
    def __cinit__(self, *args):
        self._fields = Fields()

    cdef int _reset_message(self) except -1:
        """Ready for the next message of the connection."""
        self._fields.reset()
        self._named = None
        self._head_bytes = self._wire_bytes = self._body_bytes = 0
        self.fields = b""
        self._ignore_head = self.keep_alive = self.head_done = self.complete = False
        return 0

    cdef int _on_name(self, const char* p, Py_ssize_t n) except -1:
        if self.head_done or self._ignore_head:
            return 0  # a trailer, or our own
        self._on_field()
        return self._fields.name_piece(p, n)

    cdef int _on_value(self, const char* p, Py_ssize_t n) except -1:
        if self.head_done or self._ignore_head:
            return 0
        return self._fields.value_piece(p, n)

    cdef int _take_fields(self) except -1:
        """The head is complete: keep the lines that pass."""
        self.fields = self._fields.lines.take()
        if self._named is not None:
            self.fields = without(self.fields, self._named)
        return 0

    cdef bint _overframed(self) noexcept:
        """Whether the body's framing is out of proportion to it."""
        return self._wire_bytes - self._body_bytes > FRAMING + FRAMING_PER_BYTE * self._body_bytes


cdef bytes without(bytes lines, set names):
    """Field lines without those whose lower-case names are in names: what Connection named."""
    return b"".join([
        line + b"\r\n" for line in lines.split(b"\r\n")
        if line and line.partition(b":")[0].lower() not in names
    ])


cdef bint _is_name(unsigned char c) noexcept nogil:
    """Letters, digits and ._-: what names of hosts and ids are made of."""
    return 97 <= (c | 32) <= 122 or 48 <= c <= 57 or c == 45 or c == 46 or c == 95


cdef bint valid_host(const char* value, Py_ssize_t n) noexcept:
    """One host, perhaps a port. No list, path, user or space: peers would read those
    differently."""
    cdef const unsigned char* p = <const unsigned char*> value
    cdef Py_ssize_t i = 0
    if n > 0 and p[0] == 91:  # [IPv6]
        i = 1
        while i < n and (p[i] == 58 or _is_name(p[i])):
            i += 1
        if i == 1 or i == n or p[i] != 93:
            return False
        i += 1
    else:
        while i < n and _is_name(p[i]):
            i += 1
        if i == 0:
            return False
    if i == n:
        return True
    if p[i] != 58 or n - i > 6:
        return False
    i += 1
    while i < n and 48 <= p[i] <= 57:
        i += 1
    return i == n


cdef bint valid_id(const char* value, Py_ssize_t n) noexcept:
    cdef const unsigned char* p = <const unsigned char*> value
    cdef Py_ssize_t i
    if not 1 <= n <= 128:
        return False
    for i in range(n):
        if not (_is_name(p[i]) or p[i] == 58):
            return False
    return True


cdef uint64_t _seed = int.from_bytes(urandom(8), "little")
cdef uint64_t _serial = int.from_bytes(urandom(8), "little")


cdef uint64_t _mix(uint64_t x) noexcept nogil:
    """splitmix64's finalizer: one to one, so that distinct serials stay distinct."""
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef bytes new_id():
    """A request id: 32 hexadecimal digits, unique here by the serial and elsewhere by the seed."""
    global _serial
    cdef char text[32]
    _serial += 1
    put_hex(text + 16, _mix(_serial), 16)
    put_hex(text + 32, _mix(_serial ^ _seed), 16)
    return text[:32]


cdef bytes closing(bint close, bint old):
    """The Connection line of an answer; old: to a client of HTTP/1.0."""
    if close:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if old else b""


cdef bytes own_answer(
    int status, bytes content_type, bytes body, bytes request_id, list fields, bint close,
    bint old, bint with_body
):
    """A whole answer of our own. fields: further lines. with_body: False in answer to HEAD."""
    return b"".join([
        b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n" % (
            status, REASONS.get(status, b""), content_type, len(body), request_id
        ),
        *fields,
        closing(close, old),
        b"\r\n",
        body if with_body else b"",
    ])


def host_is_valid(bytes value):
    return valid_host(value, len(value))


def id_is_valid(bytes value):
    return valid_id(value, len(value))
