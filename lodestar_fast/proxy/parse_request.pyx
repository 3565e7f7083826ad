"""The parser of requests: llhttp, and the checks that it leaves to us.

With parse_response.pyx the only place that knows httptools. A message is fed in steps that end
where something may end: a head or a chunked message at a blank line, a body with a length at its
last byte. So a parser never runs into the message behind the one in hand, and bytes that came
early stay with the caller. llhttp is strict about framing; targets, Host, versions, codings in
HTTP/1.0 and sizes are checked here at the end of the head. Trailers are read and dropped.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memchr, memcmp

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from lodestar_fast.errors import InvariantError

from lodestar_fast.proxy.head cimport (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    FRAMING,
    FRAMING_PER_BYTE,
    HOP,
    HOST,
    REQUEST_ID,
    TRANSFER_ENCODING,
    Field,
    classify,
    named_fields,
    put_line,
    valid_host,
    valid_id,
    without,
)
from lodestar_fast.proxy.wire cimport Buffer, length_of, same

cdef extern from "<string.h>" nogil:
    void* memmem(const void* haystack, size_t n, const void* needle, size_t m)

cdef const char* BLANK_LINE = b"\r\n\r\n"


cdef class RequestParser:
    def __init__(self, Py_ssize_t max_head_bytes, Py_ssize_t max_body_bytes):
        self._max_head = max_head_bytes
        self._max_body = max_body_bytes
        self._fields = Buffer()
        self._http = HttpRequestParser(self)
        self.reset()

    cdef void reset(self):
        """Ready for the next message of the connection."""
        self._fields.size = 0
        self._named = None
        self._head_bytes = self._wire_bytes = self._body_bytes = self._left = 0
        self._crlf = 0
        self._hosts = 0
        self._blanks = 0
        self._line_done = self._after_blank = self._usual = False
        self._te = self._ignore_head = self._upgrade = self._begun = False
        self.method = self.target = self.path = self.fields = b""
        self.request_id = self.authorization = self._host = None
        self.old = self.keep_alive = self.expects = self.head_done = self.complete = False
        self.status = 0
        self.reason = None
        self._body = []

    cdef bint begun(self) noexcept:
        """Whether a byte of a message came; blank lines before it do not count."""
        return self._begun

    cdef void close(self):
        """Break the cycle with httptools, which holds our callbacks."""
        self._http = None

    cdef bytes take_body(self):
        cdef bytes body = <bytes> self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return body

    cdef Py_ssize_t feed(self, bytes data, Py_ssize_t at) except -1:
        """Take one step from data[at]; return the position behind it."""
        cdef Py_ssize_t size = len(data)
        cdef Py_ssize_t end
        if self.head_done and self._left >= 0:
            end = at + min(size - at, self._left)
            if end == at:
                raise InvariantError("the request parser does not end")
            self._left -= end - at
            self._run(data, at, end)
            return end
        end = self._blank_line(PyBytes_AS_STRING(data), at, size)
        if not self.head_done:
            self._head_bytes += end - at
            if self._head_bytes > self._max_head:
                self._refuse(431, f"the request head is longer than {self._max_head} bytes")
                return end
            if not self._line_done:
                self._check_line(PyBytes_AS_STRING(data), at, end)
            self._run(data, at, end)
            return end
        self._wire_bytes += end - at
        self._run(data, at, end)
        if self._body_bytes > self._max_body:
            self._refuse(413, f"the request body is longer than {self._max_body} bytes")
        elif self._wire_bytes - self._body_bytes > FRAMING + FRAMING_PER_BYTE * self._body_bytes:
            self._refuse(400, "too much chunk framing")
        return end

    cdef Py_ssize_t _blank_line(self, const char* p, Py_ssize_t at, Py_ssize_t size) noexcept:
        """The position behind the next blank line, or size. One may lie across two reads."""
        cdef Py_ssize_t tail
        cdef void* found
        while self._crlf and at < size:
            if p[at] == BLANK_LINE[self._crlf]:
                self._crlf += 1
            else:
                self._crlf = p[at] == 13
            at += 1
            if self._crlf == 4:
                self._crlf = 0
                return at
        found = memmem(p + at, size - at, BLANK_LINE, 4)
        if found is not NULL:
            return <const char*> found - p + 4
        for tail in range(max(at, size - 3), size):
            if p[tail] == BLANK_LINE[self._crlf]:
                self._crlf += 1
            else:
                self._crlf = p[tail] == 13
        return size

    cdef void _check_line(self, const char* p, Py_ssize_t at, Py_ssize_t end):
        """Refuse two blanks in a row in the request line: llhttp skips them, and others do not."""
        while at < end:
            if p[at] == 10:
                self._line_done = self._blanks > 0  # empty lines before it do not count
                if self._line_done:
                    self._usual = at >= 9 and memcmp(p + at - 9, b"HTTP/1.1\r", 9) == 0
                    return
            elif p[at] == 32:
                self._blanks += 1
                if self._after_blank:
                    self._refuse(400, "malformed request line")
            self._after_blank = p[at] == 32
            at += 1

    cdef int _run(self, bytes data, Py_ssize_t at, Py_ssize_t end) except -1:
        try:
            if at == 0 and end == len(data):
                self._http.feed_data(data)
            else:
                self._http.feed_data(
                    PyMemoryView_FromMemory(PyBytes_AS_STRING(data) + at, end - at, PyBUF_READ)
                )
        except HttpParserUpgrade:
            self._resync()
        except HttpParserCallbackError as e:
            raise InvariantError("a callback of the request parser failed") from e
        except HttpParserError as e:
            self._refuse(400, f"malformed request: {e}")
        return 0

    cdef int _resync(self) except -1:
        """An upgrade was asked for and is ignored; llhttp took it as given and left the framing.

        Feed a parser of its own the framing that was parsed, so that the body follows in step.
        """
        if self.status:
            return 0
        self._http = HttpRequestParser(self)
        self._ignore_head = True
        if self._te:
            self._http.feed_data(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        else:
            self._http.feed_data(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % self._left)
        self._ignore_head = False
        return 0

    cdef void _refuse(self, int status, str reason):
        if not self.status:
            self.status, self.reason = status, reason

    # -- called by httptools --

    def on_message_begin(self):
        self._begun = True
        if self.complete:
            self._refuse(400, "malformed request: no blank line at its end")

    def on_url(self, bytes url):
        if not self._ignore_head:
            self.target += url

    def on_header(self, bytes name, bytes value):
        cdef Field field
        if self.head_done or self._ignore_head:
            return  # a trailer, or our own
        field = classify(name)
        if field == HOST:
            self._hosts += 1
            self._host = value
        elif field == CONTENT_LENGTH:
            self._left = length_of(value)
        elif field == TRANSFER_ENCODING:
            if self._te or not same(value, len(value), b"chunked"):
                self._refuse(501, "unknown Transfer-Encoding")
            self._te = True
        elif field == CONNECTION:
            self._named = named_fields(self._named, value)
        elif field == EXPECT:
            if not same(value, len(value), b"100-continue"):
                self._refuse(417, "unknown expectation")
            self.expects = True
        elif field == REQUEST_ID:
            if self.request_id is None and valid_id(value):
                self.request_id = value
        elif field != HOP:
            if field == AUTHORIZATION:
                self.authorization = value
            put_line(self._fields, name, value)

    def on_headers_complete(self):
        if self._ignore_head:
            return
        self.method = self._http.get_method()
        self.keep_alive = self._http.should_keep_alive()
        self._upgrade = self._http.should_upgrade()
        self.fields = self._fields.take()
        if self._named is not None:
            self.fields = without(self.fields, self._named)
        self._check_head()
        self._check_target()
        if self._te:
            self._left = -1
        elif self._left > self._max_body:
            self._refuse(413, f"the request body is longer than {self._max_body} bytes")
        self.head_done = True

    def on_body(self, bytes body):
        self._body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self):
        if self._upgrade and not self._ignore_head and self._http.should_upgrade():
            return  # see _resync()
        self.complete = True

    cdef void _check_head(self):
        if not self._usual:
            version = self._http.get_http_version()
            self.old = version == "1.0"
            if not self.old and version != "1.1":
                self._refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if self._hosts > 1 or (self._hosts == 0 and not self.old):
            self._refuse(400, "exactly one Host field is needed")
        elif self._host is not None and not valid_host(self._host):
            self._refuse(400, "malformed Host field")
        if self._te and self.old:
            self._refuse(400, "Transfer-Encoding in HTTP/1.0")
        if self.method == b"CONNECT":
            self._refuse(501, "there are no tunnels here")

    cdef void _check_target(self):
        """Origin form, or absolute form with http:, which is turned into the former."""
        cdef bytes target = self.target
        cdef const unsigned char* p = target
        cdef Py_ssize_t n = len(target)
        cdef Py_ssize_t i
        cdef unsigned char c
        for i in range(n):
            c = p[i]
            if c <= 32 or c >= 127 or c == 35:  # '#': no fragment is ever sent
                self._refuse(400, "malformed request target")
                return
        if target.startswith(b"/"):
            pass
        elif target[:7].lower() == b"http://":
            authority, _, rest = target[7:].partition(b"/")
            if not valid_host(authority):
                self._refuse(400, "malformed request target")
            target = b"/" + rest
        else:
            self._refuse(400, "the request target must be a path")
        self.target = target
        self.path = target if memchr(p, 63, n) is NULL else target.partition(b"?")[0]

    # -- for tests --

    def parse(self, bytes data):
        cdef Py_ssize_t at = 0
        while at < len(data) and not (self.complete or self.status):
            at = self.feed(data, at)
        return at

    def body(self):
        return self.take_body()
