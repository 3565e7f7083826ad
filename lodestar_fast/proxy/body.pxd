"""What routing needs of a request's body. See body.pyx."""


cdef class Routing:
    cdef readonly str model  # "" if the body names none
    cdef readonly object prompt  # bytes that identify its prefix; valid while this object lives
    cdef readonly bytes seed  # what else the engine's cache depends on
    cdef readonly bint stream
    cdef bytes _body  # which prompt may lie in


cdef Routing read_body(bytes path, bytes body)
