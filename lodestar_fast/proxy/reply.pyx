"""The answer to one request, as the client gets it: heads, framing, held-back bytes, cuts.

Used by Exchange, which decides; this writes. An engine's body passes byte for byte: with its
length if it has one, otherwise chunked, one chunk a read and one write a read. Heads are written
anew. An answer that breaks off never looks complete: not to a client that counts, nor to one that
waits for the end of the connection.
"""

from lodestar_fast.proxy.openai import error_body, error_event

from lodestar_fast.proxy.context cimport Connection
from lodestar_fast.proxy.head cimport closing, new_id, own_answer
from lodestar_fast.proxy.parse_request cimport RequestParser
from lodestar_fast.proxy.parse_response cimport ResponseParser
from lodestar_fast.proxy.sse cimport Scanner, number
from lodestar_fast.proxy.wire cimport Buffer

cdef enum:
    HELD_MOST = 16384  # bytes of a first event; what is longer is let through
    MARK = 32  # more than the size of a chunk takes


cdef class Client(Connection):
    cdef int send(self, const char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int finished(self) except -1:
        raise NotImplementedError

    cdef void cut(self, bint hard):
        pass


cdef class Reply:
    def __cinit__(self, Client client):
        self.client = client
        self.scanner = Scanner()
        self._buffer = Buffer(MARK)

    cdef void begin(self, RequestParser request):
        """For a new request, whose head is in or was refused."""
        self.keep_alive = request.keep_alive and not request.status
        self.request_id = new_id() if request.request_id is None else request.request_id
        self.old = request.old
        self.bodyless = request.method == b"HEAD"
        self.status = 0
        self.chunked = self.sized = self.event_stream = self.ended = False
        self.again()

    cdef void again(self):
        """Forget what was held back: nothing of it was sent."""
        self.scanner.reset()
        self._seen = 0

    cdef Verdict judge(self, ResponseParser answer) except *:
        """Whether a stream starts with an error; until that is known, it is left in answer.body.

        A few bytes tell, usually. Lines that are no events, such as comments, are let through: they
        keep the client patient.
        """
        cdef bytes text
        cdef const char* start = answer.body.data
        cdef long long code
        self.event_stream = True
        self._scan(answer)
        if self.scanner.begun() or self.scanner.other or self._seen > HELD_MOST:
            return GOOD
        if not self.scanner.errors:
            return GOOD if answer.complete else UNDECIDED
        text = start[:self._seen]
        if not answer.complete and b"\n\n" not in text and b"\r\n\r\n" not in text:
            return UNDECIDED
        # A code of 4xx is about the request: no other engine would like it better.
        code = number(start, start + self._seen, b'"code"')
        return REFUSED if 400 <= code < 500 and code != 429 else BAD

    cdef int _scan(self, ResponseParser answer) except -1:
        """Show the scanner what it has not seen."""
        cdef const char* p = answer.body.data + self._seen
        cdef Py_ssize_t n = answer.body.size - self._seen
        self._seen = answer.body.size
        return self.scanner.feed(p, n) if self.event_stream else self.scanner.keep(p, n)

    cdef int relay(self, ResponseParser answer, list extra) except -1:
        """Send what came of an engine's answer, in one write. extra: lines for its head.

        Framing and head are written around the body, where it lies.
        """
        cdef Buffer out = answer.body
        if self.status == 0:
            self.event_stream = answer.sse
            self._head(answer, extra)
        self._scan(answer)
        self.ended = answer.complete
        if self.chunked:
            out.frame(self.ended)
        if self._buffer.size:
            out.prepend(self._buffer.data, self._buffer.size)
            self._buffer.clear()
        if out.size:
            self.client.send(out.data, out.size)
        out.clear()
        self._seen = 0
        return 0

    cdef int _head(self, ResponseParser answer, list extra) except -1:
        """Write the head for the client into the buffer."""
        cdef Buffer head = self._buffer
        cdef Py_ssize_t size = answer.body.size
        cdef bytes line
        self.status = answer.status
        head.put(b"HTTP/1.1 ", 9)
        head.put_number(answer.status)
        head.put(b" ", 1)
        head.put_bytes(answer.reason)
        head.put(b"\r\n", 2)
        head.put_bytes(answer.fields)
        head.put(b"x-request-id: ", 14)
        head.put_bytes(self.request_id)
        head.put(b"\r\n", 2)
        if answer.length >= 0 and answer.status != 204:
            size = answer.length
            self.sized = True
        elif answer.status == 204 or answer.status == 304:
            self.sized = True
            size = -1
        elif not self.old:
            self.chunked = True
            head.put(b"transfer-encoding: chunked\r\n", 28)
        elif answer.complete:
            self.sized = True
        else:
            self.keep_alive = False  # the end of the connection ends the body
        if self.sized and size >= 0:
            head.put(b"content-length: ", 16)
            head.put_number(size)
            head.put(b"\r\n", 2)
        if extra is not None:
            for line in extra:
                head.put_bytes(line)
        head.put_bytes(closing(not self.keep_alive, self.old))
        head.put(b"\r\n", 2)
        return 0

    cdef int own(self, int status, bytes content_type, bytes body, list extra) except -1:
        """Send a whole answer of ours. extra: further lines of its head."""
        self.status = status
        cdef bytes answer = own_answer(
            status, content_type, body, self.request_id, extra, not self.keep_alive, self.old,
            not self.bodyless,
        )
        self.ended = True
        return self.client.send(answer, len(answer))

    cdef int fail(self, error, list extra) except -1:
        """Send an HttpError; nothing may have been sent before."""
        return self.own(error.status, b"application/json", error_body(error), extra)

    cdef int truncate(self, error) except -1:
        """Break off an answer that was begun. A stream is told why; none gets a proper end."""
        cdef Buffer out = self._buffer
        if self.ended:  # what failed was ours, after the last byte
            self.client.cut(False)
            return 0
        if self.event_stream and not self.sized:
            if not self.scanner.at_line_start():
                out.put(b"\n\n", 2)  # or it would continue the line that broke off
            out.put_bytes(error_event(error))
            if self.chunked:
                out.frame(False)
            self.client.send(out.data, out.size)
            out.clear()
        self.client.cut(not (self.chunked or self.sized))
        return 0
