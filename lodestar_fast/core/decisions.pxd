from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t

from lodestar_fast.core.lodestar cimport ls_router
from lodestar_fast.core.policies cimport Candidates, Policy
from lodestar_fast.core.record cimport ls_outcome, ls_record, ls_records


# Who decided and who asked: references, or NULL. In C, for a request's tuple would be 88 bytes that
# the collector counts, and a miss of the cache when it goes.
cdef struct Label:
    PyObject *decider              # (policy, mode)
    PyObject *id
    PyObject *path
    PyObject *model                # a str, or None
    int attempt


cdef class Decisions:
    cdef ls_records *records
    cdef double *scores            # lent to Candidates
    cdef float *odds
    cdef Label *labels             # by place in the ring
    cdef dict names                # slot and epoch: the instance's name as a JSON string
    cdef Policy policy             # that made the last decision, and its (name, mode)
    cdef tuple decider
    cdef uint64_t taken, ended     # serials and outcomes that take() has given out
    cdef readonly long long lost   # decisions and outcomes overwritten before take()

    cdef int keep(
        self, ls_router *r, Candidates c, Policy policy, Py_ssize_t choice, long long ticket,
        uint64_t version) except -1
    cdef int enter(self, Py_ssize_t slot, uint64_t epoch, str name) except -1
    cpdef uint64_t label(
        self, bytes id, bytes path, object model=*, int attempt=*) except? 0
    cpdef void status(self, uint64_t serial, int status) noexcept
    cdef tuple label_at(self, Py_ssize_t place)
    cdef Batch copy(self, uint64_t first, Py_ssize_t n)


# Decisions copied out of the ring: nothing changes them any more, and any thread may read them.
cdef class Batch:
    cdef ls_record *rows_
    cdef uint64_t *marks_
    cdef ls_outcome *outcomes_
    cdef Py_ssize_t n, ended
    cdef list labels, deciders, names  # names: of each row's candidates, JSON strings
