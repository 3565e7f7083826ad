from libc.stdint cimport uint8_t

from lodestar_fast.core.lodestar cimport ls_restore, ls_snapshot_t
from lodestar_fast.core.router cimport Router


cdef class Snapshot:
    cdef Router router
    cdef ls_snapshot_t at


cdef class Restore:
    cdef const uint8_t[::1] records         # held for as long as rs reads them
    cdef ls_restore *rs
