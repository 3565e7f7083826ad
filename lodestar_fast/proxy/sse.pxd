"""Counts events of a stream and keeps its tail. See sse.pyi."""


cdef class Scanner:
    cdef readonly long long events  # data events that carry something: no error, no [DONE]
    cdef readonly long long errors  # error events
    cdef readonly bint other  # a line that is neither data nor event: a comment, an id
    cdef int _state  # where in a line the next byte falls
    cdef int _matched  # bytes of the pattern of that state already seen
    cdef bint _error_event  # the event's name is `error`
    cdef char* _tail  # the last bytes of the body, at most TAIL, in a buffer of twice that
    cdef Py_ssize_t _tail_size

    cdef void reset(self) noexcept
    cdef int feed(self, bytes data) except -1
    cdef int keep(self, bytes data) except -1
    cdef bint at_line_start(self) noexcept
    cpdef bytes tail(self)
    cdef void _match(self, char c, const char* mark, int then) noexcept
    cdef void _skip(self) noexcept
    cdef void _token(self) noexcept
    cdef void _error(self) noexcept


cdef class Usage:
    cdef readonly long long prompt_tokens  # -1: not given
    cdef readonly long long output_tokens  # -1: not given
    cdef readonly long long cached_tokens  # -1: not given


cdef long long number(bytes text, bytes key, Py_ssize_t start, Py_ssize_t stop)
cdef Usage find_usage(bytes tail)
cdef bint is_aborted(bytes tail)
