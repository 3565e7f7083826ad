from lodestar_fast.core.lodestar cimport ls_router
from lodestar_fast.core.policies cimport Candidates


cdef class Scene:
    cdef ls_router *r
    cdef Candidates candidates
    cdef double scores[16]         # LS_RECORD_ROWS
    cdef float odds_[16]

    cdef int place(self, Py_ssize_t i, dict kept) except -1
