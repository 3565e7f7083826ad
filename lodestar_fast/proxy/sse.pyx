"""Counts events of a stream and keeps its tail, so that usage can be read at the end.

A stream is relayed as raw bytes; this looks at the first bytes of each line and jumps from line to
line, so a piece of 200 bytes costs some tens of nanoseconds. Lines, as the engines write them:

    data: {"id":...}        a token (the first may carry the role only; it comes with the token)
    data: {"error":...}     the engine failed, with status 200: vLLM, SGLang
    event: error            the same in the dialects that name their events; its data follows
    data: [DONE]            the end

A piece may end anywhere, within a line's first bytes too: the state is carried over.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcpy, memmove

# A final usage chunk has about 0.5 KB; 4 KB leave room for what engines append to it.
cdef enum:
    TAIL = 4096
    # Larger numbers are an engine's nonsense, and would not fit the samples' 32 bits.
    MOST_TOKENS = 1 << 30

cdef enum:
    START  # at the start of a line
    DATA  # within `data:`
    VALUE  # behind it, blanks aside
    ERROR  # within `{"error"`
    NAME  # within `event:`
    NAMED  # behind it, blanks aside, within `error`
    REST  # anywhere in a line that needs no further look

cdef const char* DATA_MARK = b"data:"
cdef const char* NAME_MARK = b"event:"
cdef const char* ERROR_MARK = b'{"error"'
cdef const char* ERROR_NAME = b"error"


cdef class Scanner:
    def __dealloc__(self):
        PyMem_Free(self._tail)

    cdef void reset(self) noexcept:
        """As new; the tail's memory goes back, so that an idle connection does not hold it."""
        self.events = self.errors = 0
        self.other = self._error_event = False
        self._state = START
        self._matched = 0
        self._tail_size = 0
        PyMem_Free(self._tail)
        self._tail = NULL

    cdef int feed(self, bytes data) except -1:
        """The next piece of an event stream."""
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef const char* end = p + len(data)
        cdef char c
        self.keep(data)
        while p < end:
            if self._state == REST:
                p = <const char*> memchr(p, 10, end - p)
                if p is NULL:
                    return 0
                p += 1
                self._state = START
                continue
            c = p[0]
            p += 1
            if c == 10:
                if self._state == NAMED:
                    self._error_event = ERROR_NAME[self._matched] == 0
                self._state = START
            elif c == 13:
                continue
            elif self._state == START:
                self._matched = 1
                if c == DATA_MARK[0]:
                    self._state = DATA
                elif c == NAME_MARK[0]:
                    self._state = NAME
                else:
                    self._skip()
            elif self._state == DATA:
                self._match(c, DATA_MARK, VALUE)
            elif self._state == NAME:
                self._match(c, NAME_MARK, NAMED)
            elif self._state == VALUE:
                if c == 32:
                    continue
                if self._error_event:
                    self._error()
                elif c == 91:  # [DONE]; no engine sends an array
                    self._state = REST
                elif c == ERROR_MARK[0]:
                    self._state, self._matched = ERROR, 1
                else:
                    self._token()
            elif self._state == ERROR:
                if c != ERROR_MARK[self._matched]:
                    self._token()
                else:
                    self._matched += 1
                    if ERROR_MARK[self._matched] == 0:
                        self._error()
            elif self._state == NAMED:
                if c == 32 and self._matched == 0:
                    continue
                if c == ERROR_NAME[self._matched]:
                    self._matched += 1
                else:
                    self._error_event = False
                    self._state = REST
        return 0

    cdef void _match(self, char c, const char* mark, int then) noexcept:
        """One more byte of a line's keyword."""
        if c != mark[self._matched]:
            self._skip()
            return
        self._matched += 1
        if mark[self._matched] == 0:
            self._state, self._matched = then, 0

    cdef void _skip(self) noexcept:
        self.other = True
        self._state = REST

    cdef void _token(self) noexcept:
        self.events += 1
        self._state = REST

    cdef void _error(self) noexcept:
        self.errors += 1
        self._error_event = False
        self._state = REST

    cdef int keep(self, bytes data) except -1:
        """Take over the tail of a piece. Each byte is copied twice at most."""
        cdef Py_ssize_t size = len(data)
        cdef const char* p = PyBytes_AS_STRING(data)
        if self._tail is NULL:
            self._tail = <char*> PyMem_Malloc(2 * TAIL)
            if self._tail is NULL:
                raise MemoryError()
        if size >= TAIL:
            memcpy(self._tail, p + size - TAIL, TAIL)
            self._tail_size = TAIL
            return 0
        if self._tail_size + size > 2 * TAIL:
            memmove(self._tail, self._tail + self._tail_size - TAIL, TAIL)
            self._tail_size = TAIL
        memcpy(self._tail + self._tail_size, p, size)
        self._tail_size += size
        return 0

    cdef bint at_line_start(self) noexcept:
        return self._state == START

    cpdef bytes tail(self):
        return PyBytes_FromStringAndSize(self._tail, self._tail_size)


cdef class Usage:
    def __cinit__(self):
        self.prompt_tokens = self.output_tokens = self.cached_tokens = -1


cdef long long number(bytes text, bytes key, Py_ssize_t start, Py_ssize_t stop):
    """The integer behind `key` (with quotes) in text[start:stop]; -1 if there is none to trust."""
    cdef Py_ssize_t at = text.find(key, start, stop)
    cdef Py_ssize_t i
    cdef long long value = 0
    cdef bint digits = False
    cdef const char* p = PyBytes_AS_STRING(text)
    if at < 0:
        return -1
    i = at + len(key)
    while i < stop and p[i] in (32, 58):  # blank, colon
        i += 1
    while i < stop and 48 <= p[i] <= 57:
        digits = True
        value = value * 10 + (p[i] - 48)
        if value >= MOST_TOKENS:
            return -1
        i += 1
    if not digits or i >= stop or p[i] in (46, 69, 101):  # cut off, or not an integer
        return -1
    return value


cdef Usage find_usage(bytes tail):
    """The last `"usage": {...}`. Inside a string its quotes would be escaped, so text cannot fake
    it.

    Names of both dialects: prompt_/completion_tokens, and input_/output_tokens.
    """
    cdef Usage found = Usage()
    cdef Py_ssize_t at = len(tail)
    cdef Py_ssize_t i
    cdef Py_ssize_t stop = len(tail)
    cdef const char* p = PyBytes_AS_STRING(tail)
    while True:
        at = tail.rfind(b'"usage"', 0, at)
        if at < 0:
            return found
        i = at + 7
        while i < stop and p[i] in (32, 58):
            i += 1
        if i < stop and p[i] == 123:
            break
    # The object's end is not looked for; names cannot repeat within what follows it in any dialect.
    found.prompt_tokens = number(tail, b'"prompt_tokens"', i, stop)
    if found.prompt_tokens < 0:
        found.prompt_tokens = number(tail, b'"input_tokens"', i, stop)
    found.output_tokens = number(tail, b'"completion_tokens"', i, stop)
    if found.output_tokens < 0:
        found.output_tokens = number(tail, b'"output_tokens"', i, stop)
    found.cached_tokens = number(tail, b'"cached_tokens"', i, stop)
    if found.cached_tokens > found.prompt_tokens:
        found.cached_tokens = -1
    return found


cdef bint is_aborted(bytes tail):
    cdef Py_ssize_t at = tail.rfind(b'"abort"')
    if at < 0:
        return False
    return tail[:at].rstrip(b" ").endswith(b'"finish_reason":')


def scan(list pieces):
    cdef Scanner scanner = Scanner()
    scanner.reset()
    for piece in pieces:
        scanner.feed(piece)
    return scanner


def usage(bytes tail):
    return find_usage(tail)


def aborted(bytes tail):
    return is_aborted(tail)
