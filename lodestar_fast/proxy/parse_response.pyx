"""The parser of answers: llhttp, and the checks that it leaves to us.

With parse_request.pyx the only place that knows httptools. Engines are trusted no more than
clients: heads, interim answers and framing are bounded, unknown codings and versions refused, and
bytes behind an answer noted, so that its connection is never used again.
"""

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)

from lodestar_fast.errors import InvariantError

from lodestar_fast.proxy.head cimport (
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    FRAMING,
    FRAMING_PER_BYTE,
    HOP,
    REQUEST_ID,
    RETRY_AFTER,
    TRANSFER_ENCODING,
    Field,
    classify,
    named_fields,
    put_line,
    without,
)
from lodestar_fast.proxy.wire cimport Buffer, length_of, same

cdef enum:
    MAX_HEAD = 65536
    MAX_INTERIM = 8  # answers of 1xx before the real one


cdef class ResponseParser:
    def __init__(self):
        self._fields = Buffer()
        self._http = HttpResponseParser(self)
        self.reset()

    cdef void reset(self):
        """Ready for the answer to the connection's next request."""
        self._fields.size = 0
        self._named = None
        self._head_bytes = self._wire_bytes = self._body_bytes = 0
        self._interim = 0
        self._in_interim = False
        self.status = 0
        self.reason = self.fields = b""
        self.retry_after = None
        self.length = -1
        self.chunked = self.until_close = self.keep_alive = self.sse = False
        self.started = self.head_done = self.complete = self.extra = False
        self.broken = None
        self.parts = []
        self.size = 0

    cdef void close(self):
        """Break the cycle with httptools, which holds our callbacks."""
        self._http = None

    cdef list take(self):
        """The parts of the body that came since the last call."""
        cdef list parts = self.parts
        self.parts = []
        self.size = 0
        return parts

    cdef int feed(self, bytes data) except -1:
        if not self.started:
            self.started = True
            self._usual = data.startswith(b"HTTP/1.1 ")
        if self.head_done:
            self._wire_bytes += len(data)
        else:
            self._head_bytes += len(data)
        try:
            self._http.feed_data(data)
        except HttpParserUpgrade:
            self.broken = "an upgrade nobody asked for"
        except HttpParserCallbackError as e:
            raise InvariantError("a callback of the response parser failed") from e
        except HttpParserError as e:
            if self.complete:
                self.extra = True
            else:
                self.broken = str(e)
        if not self.head_done:
            if self._head_bytes > MAX_HEAD:
                self.broken = "head too long"
        elif self._wire_bytes - self._body_bytes > FRAMING + FRAMING_PER_BYTE * self._body_bytes:
            self.broken = "too much chunk framing"
        return 0

    # -- called by httptools --

    def on_message_begin(self):
        if self.complete:
            self.extra = True

    def on_status(self, bytes reason):
        if not self.complete:
            self.reason += reason

    def on_header(self, bytes name, bytes value):
        cdef Field field
        if self.head_done:
            return  # a trailer
        field = classify(name)
        if field == CONTENT_LENGTH:
            if self.length >= 0:
                self.broken = "two lengths"
            self.length = length_of(value)
        elif field == TRANSFER_ENCODING:
            if self.chunked or not same(value, len(value), b"chunked"):
                self.broken = "unknown transfer coding"
            self.chunked = True
        elif field == CONNECTION:
            self._named = named_fields(self._named, value)
        elif field == RETRY_AFTER:
            self.retry_after = value
        elif field != HOP and field != REQUEST_ID:
            if field == CONTENT_TYPE:
                self.sse = value[:17].lower() == b"text/event-stream"
            put_line(self._fields, name, value)
            if self._fields.size > MAX_HEAD:
                self.broken = "head too long"

    def on_headers_complete(self):
        if self.complete:
            return
        self.status = self._http.get_status_code()
        if 100 <= self.status < 200:
            self._in_interim = True
            self._interim += 1
            if self.status == 101:
                self.broken = "an upgrade nobody asked for"
            elif self._interim > MAX_INTERIM:
                self.broken = "too many interim answers"
            return
        self.keep_alive = self._http.should_keep_alive()
        self.fields = self._fields.take()
        if self._named is not None:
            self.fields = without(self.fields, self._named)
        self._check_head()
        self.head_done = True

    def on_body(self, bytes body):
        self._body_bytes += len(body)
        if not self.complete:
            self.parts.append(body)
            self.size += len(body)

    def on_message_complete(self):
        if self._in_interim:
            self._in_interim = self._usual = False
            self._fields.size = 0
            self._named = None
            self.reason = b""
            self.status, self.length, self.chunked = 0, -1, False
            self.sse = False
            self.retry_after = None
        else:
            self.complete = True

    cdef void _check_head(self):
        if not self._usual and self._http.get_http_version() not in ("1.1", "1.0"):
            self.broken = "unknown HTTP version"
        elif not 200 <= self.status <= 599:
            self.broken = "impossible status"
        bodyless = self.status == 204 or self.status == 304
        self.until_close = not (self.chunked or self.length >= 0 or bodyless)

    # -- for tests --

    def parse(self, bytes data):
        self.feed(data)
        return self.fields, b"".join(self.take())
