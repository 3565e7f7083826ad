"""The parser of requests: llhttp, and the checks that it leaves to us.

A message is fed in steps that end where something may end: a head or a chunked message at a blank
line, a body with a length at its last byte. So a parser never runs into the message behind the one
in hand, and bytes that came early stay with the caller. llhttp is strict about framing; targets,
Host, versions, codings in HTTP/1.0 and sizes are checked here at the end of the head. Trailers are
read and dropped.
"""

from libc.string cimport memchr

from lodestar_fast.errors import InvariantError

from lodestar_fast.proxy.head cimport (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    PASS,
    REQUEST_ID,
    RETRY_AFTER,
    SLO_TPOT,
    SLO_TTFT,
    TRANSFER_ENCODING,
    Field,
    Fields,
    MessageParser,
    named_fields,
    valid_host,
    valid_id,
)
from lodestar_fast.proxy.llhttp cimport MALFORMED, UPGRADED, Fed
from lodestar_fast.proxy.search cimport first_of_text
from lodestar_fast.proxy.wire cimport length_of, repeated, same

cdef bytes _last_target = b""
cdef Py_ssize_t SLO_DIGITS = 9  # a week and a half
cdef const char* BLANK_LINE = b"\r\n\r\n"


cdef class RequestParser(MessageParser):
    def __init__(self, Py_ssize_t max_head_bytes, Py_ssize_t max_body_bytes):
        self._max_head = max_head_bytes
        self._max_body = max_body_bytes
        self._requests = True
        self._start()
        self.reset()

    cdef void reset(self):
        """Ready for the next message of the connection."""
        self._reset_message()
        self._left = 0
        self._crlf = 0
        self._hosts = 0
        self._blanks = 0
        self._line_done = self._after_blank = False
        self._te = self._upgrade = self._begun = False
        self.method = self.target = self.path = b""
        self.request_id = self.authorization = None
        self._host_valid = True
        self.old = self.expects = False
        self.slo_ttft = self.slo_tpot = -1
        self.slo_refused = False
        self.status = 0
        self.reason = None
        self._body = self._more = None

    cdef bint begun(self) noexcept:
        """Whether a byte of a message came; blank lines before it do not count."""
        return self._begun

    cdef bytes take_body(self):
        cdef bytes body = b"" if self._body is None else self._body
        if self._more is not None:
            body = b"".join([body, *self._more])
        self._body = self._more = None
        return body

    cdef Py_ssize_t feed(self, const char* p, Py_ssize_t at, Py_ssize_t size) except -1:
        """Take one step from p[at] on; return the position behind it. size: of p."""
        cdef Py_ssize_t end
        if self.head_done and self._left >= 0:
            end = at + min(size - at, self._left)
            if end == at:
                raise InvariantError("the request parser does not end")
            self._left -= end - at
            self._run(p + at, end - at)
            return end
        end = self._blank_line(p, at, size)
        if not self.head_done:
            self._head_bytes += end - at
            if self._head_bytes > self._max_head:
                self._refuse(431, f"the request head is longer than {self._max_head} bytes")
                return end
            if not self._line_done:
                self._check_line(p, at, end)
            self._run(p + at, end - at)
            return end
        self._wire_bytes += end - at
        self._run(p + at, end - at)
        if self._body_bytes > self._max_body:
            self._refuse(413, f"the request body is longer than {self._max_body} bytes")
        elif self._overframed():
            self._refuse(400, "too much chunk framing")
        return end

    cdef Py_ssize_t _blank_line(self, const char* p, Py_ssize_t at, Py_ssize_t size) noexcept:
        """The position behind the next blank line, or size. One may lie across two reads."""
        cdef Py_ssize_t tail
        cdef const char* found
        while self._crlf and at < size:
            if p[at] == BLANK_LINE[self._crlf]:
                self._crlf += 1
            else:
                self._crlf = p[at] == 13
            at += 1
            if self._crlf == 4:
                self._crlf = 0
                return at
        found = first_of_text(p + at, p + size, BLANK_LINE, 4)
        if found is not NULL:
            return found - p + 4
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
                    return
            elif p[at] == 32:
                self._blanks += 1
                if self._after_blank:
                    self._refuse(400, "malformed request line")
            self._after_blank = p[at] == 32
            at += 1

    cdef int _run(self, const char* p, Py_ssize_t n) except -1:
        cdef Fed fed = self._execute(p, n)
        if fed == UPGRADED:
            self._resync()
        elif fed == MALFORMED:
            self._refuse(400, f"malformed request: {self._complaint}")
        return 0

    cdef int _resync(self) except -1:
        """An upgrade was asked for and is ignored; llhttp took it as given and left the framing.

        Start it anew with the framing that was parsed, so that the body follows in step.
        """
        cdef bytes head
        if self.status:
            return 0
        if self._te:
            head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        else:
            head = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % self._left
        self._ignore_head = True
        self._start()
        self._execute(head, len(head))
        self._ignore_head = False
        return 0

    cdef void _refuse(self, int status, str reason):
        if not self.status:
            self.status, self.reason = status, reason

    # -- called by llhttp --

    cdef int _on_begin(self) except -1:
        self._begun = True
        if self.complete:
            self._refuse(400, "malformed request: no blank line at its end")
        return 0

    cdef int _on_text(self, const char* p, Py_ssize_t n) except -1:
        global _last_target
        if self._ignore_head:
            return 0
        if self.target:
            self.target += p[:n]
        else:
            self.target = _last_target = repeated(_last_target, p, n)
        return 0

    cdef int _on_field(self) except -1:
        cdef Fields fields = self._fields
        cdef const char* p
        cdef Py_ssize_t n
        cdef Field field
        if not fields.open():
            return 0
        p, n, field = fields.value(), fields.length(), fields.kind()
        if field == HOST:
            self._hosts += 1
            self._host_valid = valid_host(p, n)
        elif field == CONTENT_LENGTH:
            self._left = length_of(p, n)
        elif field == TRANSFER_ENCODING:
            if self._te or not same(p, n, b"chunked"):
                self._refuse(501, "unknown Transfer-Encoding")
            self._te = True
        elif field == CONNECTION:
            self._named = named_fields(self._named, p, n)
        elif field == EXPECT:
            if not same(p, n, b"100-continue"):
                self._refuse(417, "unknown expectation")
            self.expects = True
        elif field == REQUEST_ID:
            if self.request_id is None and valid_id(p, n):
                self.request_id = p[:n]
        elif field == AUTHORIZATION:
            self.authorization = p[:n]
        elif field == SLO_TTFT:
            self.slo_ttft = self._tighter(self.slo_ttft, p, n)
        elif field == SLO_TPOT:
            self.slo_tpot = self._tighter(self.slo_tpot, p, n)
        return fields.end(field == PASS or field == AUTHORIZATION or field == CONTENT_TYPE
                          or field == RETRY_AFTER or field == SLO_TTFT or field == SLO_TPOT)

    cdef double _tighter(self, double seconds, const char* p, Py_ssize_t n) except? -1:
        """An SLO with one more field that names it, in milliseconds: the least holds. It is a wish,
        so what is no number is left, and noted. Seconds; 0 asks for none, -1: nothing is named."""
        cdef bytes text = p[:n].strip(b" \t")
        if not (len(text) <= SLO_DIGITS and text.replace(b".", b"", 1).isdigit()):
            self.slo_refused = True
            return seconds
        cdef double named = float(text) / 1e3
        return min(named, seconds) if named > 0 and seconds > 0 else max(named, seconds)

    cdef int _on_head(self) except -1:
        if self._ignore_head:
            return 0
        self._on_field()
        self.method = self._method()
        self.keep_alive = self._persistent()
        self._upgrade = self._upgrade_asked()
        self._take_fields()
        self._check_head()
        self._check_target()
        if self._te:
            self._left = -1
        elif self._left > self._max_body:
            self._refuse(413, f"the request body is longer than {self._max_body} bytes")
        self.head_done = True
        return 0

    cdef int _on_body(self, const char* p, Py_ssize_t n) except -1:
        if self._body is None:
            self._body = p[:n]
        elif self._more is None:
            self._more = [p[:n]]
        else:
            self._more.append(p[:n])
        self._body_bytes += n
        return 0

    cdef int _on_end(self) except -1:
        if self._upgrade and not self._ignore_head and self._upgrade_asked():
            return 0  # see _resync()
        self.complete = True
        return 0

    cdef void _check_head(self):
        self.old = self._is_old()
        if not self._known_version():
            self._refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if self._hosts > 1 or (self._hosts == 0 and not self.old):
            self._refuse(400, "exactly one Host field is needed")
        elif not self._host_valid:
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
            if not valid_host(authority, len(authority)):
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
            at = self.feed(data, at, len(data))
        return at

    def body(self):
        return self.take_body()
