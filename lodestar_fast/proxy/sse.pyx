"""Counts events of a stream and keeps its tail, so that usage can be read at the end.

A stream is relayed as raw bytes; this looks at the first bytes of each line and jumps from line to
line, so a piece of 200 bytes costs some tens of nanoseconds. Lines, as the engines write them:

    data: {"id":...}        a token, unless it opens the stream: see `opens` below
    data: {"error":...}     the engine failed, with status 200: vLLM, SGLang
    event: error            the same in the dialects that name their events; its data follows
    data: [DONE]            the end

A piece may end anywhere, within a line's first bytes too: the state is carried over.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, strlen

from lodestar_fast.proxy.search cimport first_of_text, last_of_text

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
    PENDING  # in an event that may only open the stream, cut off by the end of the last piece

cdef const char* DATA_MARK = b"data:"
cdef const char* NAME_MARK = b"event:"
cdef const char* ERROR_MARK = b'{"error"'
cdef const char* ERROR_NAME = b"error"


# The last tail given back, for who needs one next: nearly every time there is no other.
cdef char* _spare = NULL


cdef char* borrow() except NULL:
    """Memory for a tail."""
    global _spare
    cdef char* tail = _spare
    _spare = NULL
    if tail is NULL:
        tail = <char*> PyMem_Malloc(2 * TAIL)
        if tail is NULL:
            raise MemoryError()
    return tail


cdef void give_back(char* tail) noexcept:
    global _spare
    if _spare is NULL:
        _spare = tail
    else:
        PyMem_Free(tail)


cdef class Scanner:
    def __dealloc__(self):
        PyMem_Free(self._tail)

    cdef void reset(self) noexcept:
        """As new; the tail's memory goes back, so that an idle connection does not hold it."""
        self.events = self.opening = self.errors = 0
        self.other = self._error_event = False
        self._state = START
        self._matched = 0
        self._tail_size = 0
        if self._tail is not NULL:
            give_back(self._tail)
            self._tail = NULL

    cdef int feed(self, const char* p, Py_ssize_t n) except -1:
        """The next piece of an event stream."""
        cdef const char* start = p
        cdef const char* end = p + n
        cdef char c
        if self._state == PENDING and self._begun + n > TAIL:
            self._judge(self._tail_size)  # its first bytes go now; they say most
        self.keep(p, n)
        if self._state == PENDING and n:
            p = <const char*> memchr(p, 10, n)
            self._begun += (end if p is NULL else p) - start
            if p is NULL:
                return 0
            self._judge(self._tail_size - (end - p))
        while p < end:
            if self._state == REST:
                p = <const char*> memchr(p, 10, end - p)
                if p is NULL:
                    return 0
                p += 1
                self._state = START
                continue
            if (
                self._state == START and not self._error_event and end - p > 8
                and memcmp(p, b'data: {"', 8) == 0 and p[8] != ERROR_MARK[2]
            ):
                self._event(p + 6, end, 0)  # as nearly all lines; below byte by byte
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
                    self._event(p, end, 0)
            elif self._state == ERROR:
                if c != ERROR_MARK[self._matched]:
                    # From its brace, which may have come with the last piece.
                    self._event(
                        max(start, p - 1 - self._matched), end,
                        max(0, self._matched - (p - 1 - start)))
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

    cdef void _event(self, const char* p, const char* end, Py_ssize_t before) noexcept:
        """An event whose data goes on at p, behind as many bytes that are in the tail only. Once a
        token came, nothing more of it is looked at."""
        cdef const char* line
        self._state = REST
        if self.opening == self.events:
            line = <const char*> memchr(p, 10, end - p)
            self._begun = before + (end if line is NULL else line) - p
            if line is NULL and self._begun < TAIL:
                self._state = PENDING
                return
            if before and before + (end - p) <= TAIL:
                self._judge(self._tail_size - (0 if line is NULL else end - line))
                return
            self.opening += opens(p, end if line is NULL else line)
        self.events += 1

    cdef void _judge(self, Py_ssize_t end) noexcept:
        """An event that came in pieces, and ends before that place of the tail."""
        self.opening += opens(self._tail + max(0, end - self._begun), self._tail + end)
        self.events += 1
        self._state = REST

    cdef void _error(self) noexcept:
        self.errors += 1
        self._error_event = False
        self._state = REST

    cdef int keep(self, const char* p, Py_ssize_t size) except -1:
        """Take over the tail of a piece. Each byte is copied twice at most."""
        if not size:
            return 0
        if self._tail is NULL:
            self._tail = borrow()
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

    cdef bint begun(self) noexcept:
        """Whether an event has begun that is none of an error."""
        return self.events > 0 or self._state == PENDING

    cdef Usage usage(self) noexcept:
        """The last usage object of the tail."""
        return find_usage(self._tail, self._tail + self._tail_size)

    cdef bint aborted(self) noexcept:
        """Whether the last finish_reason of the tail is "abort"."""
        return is_aborted(self._tail, self._tail + self._tail_size)

    def tail(self):
        return PyBytes_FromStringAndSize(self._tail, self._tail_size)


cdef long long number(const char* p, const char* end, const char* key) noexcept nogil:
    """The integer behind `key` (with its quotes) before end; -1 if there is none to trust."""
    cdef size_t n = strlen(key)
    cdef long long value = 0
    cdef bint digits = False
    p = first_of_text(p, end, key, n)
    if p is NULL:
        return -1
    p += n
    while p < end and (p[0] == 32 or p[0] == 58):  # blank, colon
        p += 1
    while p < end and 48 <= p[0] <= 57:
        digits = True
        value = value * 10 + (p[0] - 48)
        if value >= MOST_TOKENS:
            return -1
        p += 1
    if not digits or p >= end or p[0] == 46 or p[0] == 69 or p[0] == 101:
        return -1  # cut off, or not an integer
    return value


cdef Usage find_usage(const char* start, const char* end) noexcept nogil:
    """The last `"usage": {...}`. Within a string its quotes are escaped: text cannot fake it.

    Names of both dialects: prompt_/completion_tokens, and input_/output_tokens. The object's end is
    not looked for: no dialect has one of these names again behind it.
    """
    cdef Usage found
    cdef const char* p = end
    cdef const char* i
    found.prompt_tokens = found.output_tokens = found.cached_tokens = -1
    while True:
        p = last_of_text(start, p, b'"usage"', 7)
        if p is NULL:
            return found
        i = p + 7
        while i < end and (i[0] == 32 or i[0] == 58):
            i += 1
        if i < end and i[0] == 123:
            break
    found.prompt_tokens = number(i, end, b'"prompt_tokens"')
    if found.prompt_tokens < 0:
        found.prompt_tokens = number(i, end, b'"input_tokens"')
    found.output_tokens = number(i, end, b'"completion_tokens"')
    if found.output_tokens < 0:
        found.output_tokens = number(i, end, b'"output_tokens"')
    found.cached_tokens = number(i, end, b'"cached_tokens"')
    if found.cached_tokens > found.prompt_tokens:
        found.cached_tokens = -1
    return found


cdef bint filled(const char* p, const char* end, const char* key) noexcept nogil:
    """Whether the first value of `key` (with its quotes) is a string or an array, and not empty."""
    cdef size_t n = strlen(key)
    p = first_of_text(p, end, key, n)
    if p is NULL:
        return False
    p += n
    while p < end and (p[0] == 32 or p[0] == 58):  # blank, colon
        p += 1
    return end - p >= 2 and (p[0] == 34 and p[1] != 34 or p[0] == 91 and p[1] != 93)


cdef bint opens(const char* p, const char* end) noexcept nogil:
    """Whether an event only opens a stream: it tells the role, or what was asked for, but no text.

    vLLM's chat sends it with the first token. `transformers serve`, and vLLM in the Responses
    dialect, send it at once: to take it for the token would be to take the prompt for read.
    """
    if not filled(p, end, b'"role"') and first_of_text(p, end, b'"response.', 10) is NULL:
        return False
    return not (
        filled(p, end, b'"content"')
        or filled(p, end, b'"reasoning_content"')
        or filled(p, end, b'"reasoning"')
        or filled(p, end, b'"text"')
        or filled(p, end, b'"delta"')
        or filled(p, end, b'"tool_calls"')
    )


cdef bint is_aborted(const char* start, const char* end) noexcept nogil:
    cdef const char* p = last_of_text(start, end, b'"abort"', 7)
    if p is NULL:
        return False
    while p > start and (p - 1)[0] == 32:
        p -= 1
    return p - start >= 16 and memcmp(p - 16, b'"finish_reason":', 16) == 0


def scan(list pieces):
    cdef Scanner scanner = Scanner()
    cdef bytes piece
    scanner.reset()
    for piece in pieces:
        scanner.feed(piece, len(piece))
    return scanner


def usage(bytes tail):
    cdef const char* p = tail
    cdef Usage found = find_usage(p, p + len(tail))
    return found.prompt_tokens, found.output_tokens, found.cached_tokens


def aborted(bytes tail):
    cdef const char* p = tail
    return is_aborted(p, p + len(tail))
