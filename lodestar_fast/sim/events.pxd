# Declarations for sim/events; see events.pyi for what Python sees.
from libc.stdint cimport uint64_t


cdef struct Entry:
    double time                   # when, seconds
    uint64_t number               # as which it was planned: the order of those of one time
    Py_ssize_t place              # of its call in Events.calls


cdef class Events:
    cdef readonly object clock    # a VirtualClock
    cdef double now               # what it shows, as far as it is moved from here
    cdef list calls               # of (call, arguments), None where none is
    cdef list unused              # places in calls
    cdef Entry *heap
    cdef Py_ssize_t count, room   # entries there are, entries there is memory for
    cdef uint64_t planned         # so far

    cpdef bint step(self) except -1
    cdef int grow(self) except -1
    cdef void rise(self, Entry entry) noexcept
    cdef void sink(self, Entry entry) noexcept
