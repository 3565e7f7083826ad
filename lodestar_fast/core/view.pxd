from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport ls_instance, ls_router
from lodestar_fast.core.policies cimport Policy


cdef class RouterView:
    cdef ls_router *r
    cdef Policy _policy
    cdef list names                         # by slot, None where free
    cdef str policy_error                   # the last exception of a policy, "" if none

    cdef ls_instance *known(self, Py_ssize_t slot) except NULL
    cdef uint32_t hash_into(self, bytes prompt, bytes seed) noexcept
