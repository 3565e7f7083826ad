"""Reading from connections. See reader.pyx."""


cdef class Reader:
    """A protocol of the loop's that may be fed without its transport. Base of both ends."""

    cdef object transport  # None until connected
    cdef int _fd  # see wire.descriptor()
    cdef bint _queued  # see wire.emit()
    cdef bint resting  # nothing is read
    cdef bytearray _into  # what is read lies there until received() returns
    cdef Py_ssize_t _reads  # by the transport
    cdef void* _watch  # Watch; NULL: the transport reads

    cdef int attach(self, transport, bytearray into) except -1
    cdef void rest(self, bint rest)
    cdef void part(self) noexcept
    cdef int received(self, const char* p, Py_ssize_t n) except -1
    cdef int _go_direct(self) except -1
    cdef int _readable(self, bint broken) except -1
