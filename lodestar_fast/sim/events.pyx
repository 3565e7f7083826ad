"""What happens next, in virtual time: a heap of calls on a VirtualClock.

Calls due at one time are made in the order in which they were planned, so a run is a pure function
of what it was given. A run makes two for each iteration of each engine, tens of millions in all:
hence compiled. The heap holds numbers only, so that one of a thousand costs little to keep; the
calls lie in a list, where the garbage collector sees them, at the place that the entry names.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cython cimport final
from libc.math cimport isnan


@final
cdef class Events:
    def __cinit__(self, clock not None):
        self.clock = clock
        self.now = clock.now()
        self.calls, self.unused = [], []

    def __dealloc__(self):
        PyMem_Free(self.heap)

    def at(self, double time, call, *args):
        if isnan(time):
            raise ValueError("a call at no time (NaN)")
        if self.count == self.room:
            self.grow()
        cdef Py_ssize_t place
        if self.unused:
            place = self.unused.pop()
            self.calls[place] = (call, args)
        else:
            place = len(self.calls)
            self.calls.append((call, args))
        self.planned += 1
        cdef Entry entry
        entry.time, entry.number, entry.place = time, self.planned, place
        self.rise(entry)

    cpdef bint step(self) except -1:
        if self.count == 0:
            return False
        cdef Entry first = self.heap[0]
        self.count -= 1
        if self.count:
            self.sink(self.heap[self.count])
        call, args = <tuple>self.calls[first.place]
        self.calls[first.place] = None
        self.unused.append(first.place)
        if first.time != self.now:
            self.clock.advance_to(first.time)
            self.now = first.time
        (<object>call)(*<tuple>args)
        return True

    cdef int grow(self) except -1:
        cdef Py_ssize_t room = 2 * self.room + 64
        cdef Entry *larger = <Entry *>PyMem_Realloc(self.heap, room * sizeof(Entry))
        if larger == NULL:
            raise MemoryError
        self.heap, self.room = larger, room
        return 0

    cdef void rise(self, Entry entry) noexcept:
        """One more entry, from the end of the heap to its place."""
        cdef Py_ssize_t at = self.count, above
        self.count += 1
        while at:
            above = (at - 1) // 2
            if not before(&entry, &self.heap[above]):
                break
            self.heap[at] = self.heap[above]
            at = above
        self.heap[at] = entry

    cdef void sink(self, Entry entry) noexcept:
        """The last entry, from the root, which is vacant, to its place."""
        cdef Py_ssize_t at = 0, below = 1
        while below < self.count:
            if below + 1 < self.count and before(&self.heap[below + 1], &self.heap[below]):
                below += 1
            if before(&entry, &self.heap[below]):
                break
            self.heap[at] = self.heap[below]
            at, below = below, 2 * below + 1
        self.heap[at] = entry


cdef bint before(const Entry *a, const Entry *b) noexcept:
    return a.time < b.time or (a.time == b.time and a.number < b.number)
