"""The parser of answers: llhttp, and the checks that it leaves to us.

Engines are trusted no more than clients: heads, interim answers and framing are bounded, unknown
codings and versions refused, and bytes behind an answer noted, so that its connection is never used
again. The body that came, without its framing, waits in a buffer for whoever takes it.
"""

from lodestar_fast.proxy.head cimport (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    PASS,
    RETRY_AFTER,
    SLO_TPOT,
    SLO_TTFT,
    TRANSFER_ENCODING,
    Field,
    Fields,
    MessageParser,
    named_fields,
)
from lodestar_fast.proxy.llhttp cimport MALFORMED, UPGRADED, Fed
from lodestar_fast.proxy.wire cimport Buffer, length_of, repeated, same

cdef enum:
    MAX_HEAD = 65536
    MAX_INTERIM = 8  # answers of 1xx before the real one
    FRONT = 512  # bytes kept free before a body: for the client's head, or the size of a chunk


cdef class ResponseParser(MessageParser):
    def __init__(self):
        self.body = Buffer(FRONT)
        self._start()
        self.reset()

    cdef void reset(self):
        """Ready for the answer to the connection's next request."""
        self._reset_message()
        self._interim = 0
        self._in_interim = False
        self.status = 0
        self.reason = b""
        self.retry_after = None
        self.length = -1
        self.chunked = self.until_close = self.sse = False
        self.started = self.extra = False
        self.broken = None
        self.body.clear()

    cdef int feed(self, const char* p, Py_ssize_t n) except -1:
        cdef Fed fed
        self.started = True
        if self.head_done:
            self._wire_bytes += n
        else:
            self._head_bytes += n
        fed = self._execute(p, n)
        if fed == UPGRADED:
            self.broken = "an upgrade nobody asked for"
        elif fed == MALFORMED:
            if self.complete:
                self.extra = True
            else:
                self.broken = self._complaint
        if not self.head_done:
            if self._head_bytes > MAX_HEAD:
                self.broken = "head too long"
        elif self._overframed():
            self.broken = "too much chunk framing"
        return 0

    # -- called by llhttp --

    cdef int _on_begin(self) except -1:
        if self.complete:
            self.extra = True
        return 0

    cdef int _on_text(self, const char* p, Py_ssize_t n) except -1:
        if self.complete:
            return 0
        self.reason = self.reason + p[:n] if self.reason else repeated(b"OK", p, n)
        return 0

    cdef int _on_field(self) except -1:
        cdef Fields fields = self._fields
        cdef const char* p
        cdef Py_ssize_t n
        cdef Field field
        if not fields.open():
            return 0
        p, n, field = fields.value(), fields.length(), fields.kind()
        if field == CONTENT_LENGTH:
            if self.length >= 0:
                self.broken = "two lengths"
            self.length = length_of(p, n)
        elif field == TRANSFER_ENCODING:
            if self.chunked or not same(p, n, b"chunked"):
                self.broken = "unknown transfer coding"
            self.chunked = True
        elif field == CONNECTION:
            self._named = named_fields(self._named, p, n)
        elif field == RETRY_AFTER:
            self.retry_after = p[:n]
        elif field == CONTENT_TYPE:
            self.sse = n >= 17 and same(p, 17, b"text/event-stream")
        fields.end(
            field == PASS or field == CONTENT_TYPE or field == HOST or field == EXPECT
            or field == AUTHORIZATION or field == SLO_TTFT or field == SLO_TPOT
        )
        if fields.lines.size > MAX_HEAD:
            self.broken = "head too long"
        return 0

    cdef int _on_head(self) except -1:
        if self.complete:
            return 0
        self._on_field()
        self.status = self._code()
        if 100 <= self.status < 200:
            self._in_interim = True
            self._interim += 1
            if self.status == 101:
                self.broken = "an upgrade nobody asked for"
            elif self._interim > MAX_INTERIM:
                self.broken = "too many interim answers"
            return 0
        self.keep_alive = self._persistent()
        self._take_fields()
        self._check_head()
        self.head_done = True
        return 0

    cdef int _on_body(self, const char* p, Py_ssize_t n) except -1:
        self._body_bytes += n
        if not self.complete:
            self.body.put(p, n)
        return 0

    cdef int _on_end(self) except -1:
        if self._in_interim:
            self._in_interim = False
            self._fields.reset()
            self._named = None
            self.reason = b""
            self.status, self.length, self.chunked = 0, -1, False
            self.sse = False
            self.retry_after = None
        else:
            self.complete = True
        return 0

    cdef void _check_head(self):
        if not self._known_version():
            self.broken = "unknown HTTP version"
        elif not 200 <= self.status <= 599:
            self.broken = "impossible status"
        bodyless = self.status == 204 or self.status == 304
        self.until_close = not (self.chunked or self.length >= 0 or bodyless)

    # -- for tests --

    def parse(self, bytes data):
        self.feed(data, len(data))
        return self.fields, self.body.take()
