"""The prefix index as bytes, and back: slices of work between which the router goes on."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from lodestar_fast.core.lodestar cimport (
    LS_EVALUE, LS_MAX_INSTANCES, LS_SNAPSHOT_ROOM, ls_instance, ls_restore_free, ls_restore_new,
    ls_restore_step, ls_router_capacity, ls_snapshot_begin, ls_snapshot_slice,
)


cdef class Snapshot:
    """Reads the index of a router from end to end. See snapshot.pyi."""

    def __cinit__(self, Router router not None):
        self.router = router
        self.at = ls_snapshot_begin(router.r.index)

    @property
    def done(self):
        return self.at.node == 0

    def slice(self, Py_ssize_t room=1 << 18):
        if room < LS_SNAPSHOT_ROOM:
            raise ValueError(f"room: {room} bytes, at least {LS_SNAPSHOT_ROOM}")
        if self.at.node == 0:
            return b""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, room)
        cdef size_t size = ls_snapshot_slice(
            self.router.r.index, &self.at, <uint8_t *>PyBytes_AS_STRING(out), <size_t>room)
        return out[:<Py_ssize_t>size]


cdef class Restore:
    """What a snapshot says, ready to be entered into a router. See snapshot.pyi."""

    def __cinit__(self, const uint8_t[::1] records not None):
        cdef const void *data = &records[0] if records.shape[0] else NULL
        cdef size_t size = <size_t>records.shape[0]
        cdef int error
        self.records = records
        with nogil:  # a tenth of a second for a full index: for another thread
            error = ls_restore_new(data, size, &self.rs)
        if error == LS_EVALUE:
            raise ValueError("no records of a prefix index")
        if error < 0:
            raise MemoryError

    def __dealloc__(self):
        ls_restore_free(self.rs)

    def step(self, Router router not None, dict slots not None, uint32_t blocks=4096):
        cdef int32_t now[LS_MAX_INSTANCES]
        cdef uint64_t capacities[LS_MAX_INSTANCES]
        cdef ls_instance *x
        cdef Py_ssize_t was, slot
        router.may_change()
        for was in range(LS_MAX_INSTANCES):
            now[was], capacities[was] = -1, 0
        for was, slot in slots.items():
            x = router.known(slot)
            if 0 <= was < LS_MAX_INSTANCES and x.prefix_caching:
                now[was] = <int32_t>slot
                capacities[was] = ls_router_capacity(router.r, x)
        return ls_restore_step(self.rs, router.r.index, now, capacities, blocks)
