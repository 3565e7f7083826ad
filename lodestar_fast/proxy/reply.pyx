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
from lodestar_fast.proxy.wire cimport Buffer, frame

cdef enum:
    HELD_MOST = 16384  # bytes of a first event; what is longer is let through


cdef class Client(Connection):
    cdef int send(self, bytes data) except -1:
        raise NotImplementedError

    cdef int finished(self) except -1:
        raise NotImplementedError

    cdef void cut(self, bint hard):
        pass


cdef class Reply:
    def __cinit__(self, Client client):
        self.client = client
        self.scanner = Scanner()
        self._buffer = Buffer()

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
        self.held = None
        self.held_bytes = 0

    cdef Verdict judge(self, ResponseParser answer) except *:
        """Whether a stream starts with an error; what came of it is held. A few bytes tell,
        usually.

        Lines that are no events, such as comments, are let through: they keep the client patient.
        """
        cdef bytes part, text
        cdef const char* start
        cdef long long code
        for part in answer.parts:
            self.scanner.feed(part)
        self.held_bytes += answer.size
        if self.held is None:
            self.held = []
        self.held += answer.take()
        if self.scanner.events or self.scanner.other or self.held_bytes > HELD_MOST:
            return GOOD
        if not self.scanner.errors:
            return GOOD if answer.complete else UNDECIDED
        text = b"".join(self.held)
        start = text
        if not answer.complete and b"\n\n" not in text and b"\r\n\r\n" not in text:
            return UNDECIDED
        # A code of 4xx is about the request: no other engine would like it better.
        code = number(start, start + len(text), b'"code"')
        return REFUSED if 400 <= code < 500 and code != 429 else BAD

    cdef int relay(self, ResponseParser answer, list extra) except -1:
        """Send what came of an engine's answer, in one write. extra: lines for its head."""
        cdef Py_ssize_t size = answer.size
        cdef list parts = answer.take()
        cdef bytes head = b""
        cdef bytes part
        if self.status == 0:
            self.event_stream = answer.sse
            head = self._head(answer, size + self.held_bytes, extra)
        for part in parts:
            if self.event_stream:
                self.scanner.feed(part)
            else:
                self.scanner.keep(part)
        if self.held is not None:
            parts, size = self.held + parts, size + self.held_bytes
            self.held = None
        self.ended = answer.complete
        return self.client.send(frame(parts, size, head, self.chunked, self.ended))

    cdef bytes _head(self, ResponseParser answer, Py_ssize_t size, list extra):
        """The head for the client. size: of the body, if the answer is complete."""
        cdef Buffer head = self._buffer
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
        return head.take()

    cdef int own(self, int status, bytes content_type, bytes body, list extra) except -1:
        """Send a whole answer of ours. extra: further lines of its head."""
        self.status = status
        self.ended = True
        return self.client.send(own_answer(
            status, content_type, body, self.request_id, extra, not self.keep_alive, self.old,
            not self.bodyless,
        ))

    cdef int fail(self, error, list extra) except -1:
        """Send an HttpError; nothing may have been sent before."""
        return self.own(error.status, b"application/json", error_body(error), extra)

    cdef int truncate(self, error) except -1:
        """Break off an answer that was begun. A stream is told why; none gets a proper end."""
        cdef bytes event
        if self.ended:  # what failed was ours, after the last byte
            self.client.cut(False)
            return 0
        if self.event_stream and not self.sized:
            event = error_event(error)
            if not self.scanner.at_line_start():
                event = b"\n\n" + event  # or it would continue the line that broke off
            self.client.send(frame([event], len(event), b"", self.chunked, False))
        self.client.cut(not (self.chunked or self.sized))
        return 0
