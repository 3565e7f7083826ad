"""Counts events of a stream and keeps its tail. See sse.pyi."""


cdef struct Usage:  # of a request; -1 where the engine gave no number, or none to trust
    long long prompt_tokens
    long long output_tokens
    long long cached_tokens


cdef class Scanner:
    cdef readonly long long events  # data events that carry something: no error, no [DONE]
    cdef readonly long long opening  # of these, the first ones that carry no token
    cdef readonly long long errors  # error events
    cdef readonly bint other  # a line that is neither data nor event: a comment, an id
    cdef int _state  # where in a line the next byte falls
    cdef int _matched  # bytes of the pattern of that state already seen
    cdef Py_ssize_t _begun  # bytes that came of a pending event
    cdef bint _error_event  # the event's name is `error`
    cdef char* _tail  # the last bytes of the body, at most TAIL, in a buffer of twice that
    cdef Py_ssize_t _tail_size

    cdef void reset(self) noexcept
    cdef int feed(self, const char* p, Py_ssize_t n) except -1
    cdef int keep(self, const char* p, Py_ssize_t size) except -1
    cdef bint at_line_start(self) noexcept
    cdef bint begun(self) noexcept
    cdef Usage usage(self) noexcept
    cdef bint aborted(self) noexcept
    cdef void _match(self, char c, const char* mark, int then) noexcept
    cdef void _skip(self) noexcept
    cdef void _event(self, const char* p, const char* end, Py_ssize_t before) noexcept
    cdef void _judge(self, Py_ssize_t end) noexcept
    cdef void _error(self) noexcept


cdef long long number(const char* p, const char* end, const char* key) noexcept nogil
