"""llhttp, which finds the parts of HTTP messages, and the base of both parsers. See llhttp.pyx."""

cdef enum:
    ROOM = 512  # bytes kept for one llhttp_t, whose layout is its own; check() sees that it fits

cdef enum Fed:
    FED
    UPGRADED  # an upgrade was asked for: llhttp is behind its head, and out of step with the body
    MALFORMED  # see complaint()


cdef struct Machine:
    # llhttp hands its callbacks the address of its state, which is the Machine's.
    char state[ROOM]
    void* owner  # the Parser it is part of


cdef class Parser:
    """Base of RequestParser and ResponseParser. llhttp calls its methods named _on_..."""

    cdef Machine _machine
    cdef object _http  # httptools' parser, if llhttp cannot be called directly
    cdef bint _requests  # it parses requests
    cdef str _complaint

    cdef int _start(self) except -1
    cdef void close(self)
    cdef Fed _execute(self, const char* p, Py_ssize_t n) except *
    cdef Fed _execute_callbacks(self, const char* p, Py_ssize_t n) except *
    cdef bint _is_old(self) except -1
    cdef bint _known_version(self) except -1
    cdef bint _persistent(self) except -1
    cdef bint _upgrade_asked(self) except -1
    cdef bytes _method(self)
    cdef int _code(self) except -1

    cdef int _on_begin(self) except -1
    cdef int _on_text(self, const char* p, Py_ssize_t n) except -1  # of the target, or the reason
    cdef int _on_name(self, const char* p, Py_ssize_t n) except -1
    cdef int _on_value(self, const char* p, Py_ssize_t n) except -1
    cdef int _on_field(self) except -1  # the last one is complete; llhttp itself does not tell
    cdef int _on_head(self) except -1
    cdef int _on_body(self, const char* p, Py_ssize_t n) except -1
    cdef int _on_end(self) except -1
