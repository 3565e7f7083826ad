"""What routing needs of a request's body. See body.pyx."""


cdef class Routing:
    cdef readonly str model  # "" if the body names none
    cdef const char* prompt_at  # bytes that identify its prefix; within _body
    cdef Py_ssize_t prompt_size
    cdef readonly bytes seed  # what else the engine's cache depends on
    cdef readonly bint stream
    cdef readonly unsigned int max_tokens  # that the answer may have at most; 0: not told
    cdef bytes _body


cdef Routing read_body(bytes path, bytes body)
