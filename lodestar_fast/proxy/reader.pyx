"""Reading from connections: by their transport, or past it where that is cheaper.

A read by a transport of uvloop's costs two calls of Python methods, two rounds of the GIL and a
context (a microsecond, and three at one connection, when nothing of that is in the caches:
measured). libuv's own way to wait for a descriptor, uv_poll_t, calls a C function. So a connection
that is read for the second time is from then on read here: its transport is told to read no more,
and does the rest as before: writing what the socket does not take at once, closing, telling of it.

Two handles of libuv's cannot have one descriptor, so ours has a second one of the same socket. They
are made as long as there are plenty: no connection is refused for want of one.

uvloop says where its loop is, and its module exports libuv's functions; neither is promised for the
next version. look_up() finds them at import, and only what libuv's ABI guards is used: no layout of
its structures. If anything is amiss, transports read all, and WHY_NOT says what was.
"""

import asyncio
import logging
import os
import resource

from uvloop import loop as _extension

from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free

from lodestar_fast.proxy.exports cimport look_up_exports
from lodestar_fast.proxy.wire cimport descriptor

log = logging.getLogger("lodestar.proxy")

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, int n)
    enum:
        F_DUPFD_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* p, size_t n, int flags)
    enum:
        MSG_DONTWAIT

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN

# What is called, as uv.h declares it; loops and handles are addresses here.
ctypedef void (*OnPoll)(void* handle, int status, int events) noexcept
ctypedef void (*OnClose)(void* handle) noexcept
ctypedef int (*PollInit)(void* loop, void* handle, int fd) noexcept
ctypedef int (*PollStart)(void* handle, int events, OnPoll told) noexcept
ctypedef int (*PollStop)(void* handle) noexcept
ctypedef void (*Close)(void* handle, OnClose told) noexcept
ctypedef size_t (*HandleSize)(int kind) noexcept
ctypedef unsigned int (*Version)() noexcept

cdef struct Library:
    PollInit poll_init
    PollStart poll_start
    PollStop poll_stop
    Close close
    HandleSize handle_size
    Version version

# In the order of Library.
FUNCTIONS = ("poll_init", "poll_start", "poll_stop", "close", "handle_size", "version")

cdef enum:
    POLL = 8  # uv_handle_type
    READABLE = 1  # uv_poll_event
    SHARE = 3  # of all descriptors one in so many may be a duplicate
    UNBOUNDED = 1 << 30

cdef Library lib
cdef size_t handle_size
cdef int first


cdef struct Watch:
    void* reader  # held until it parts
    int fd  # the duplicate
    # and the handle behind it


cdef inline void* handle_of(void* watch) noexcept:
    return <char*> watch + sizeof(Watch)


cdef void on_poll(void* handle, int status, int events) noexcept with gil:
    cdef Reader reader = <Reader> (<Watch*> (<char*> handle - sizeof(Watch))).reader
    try:
        reader._readable(status < 0)
    except Exception:
        log.exception("what came over a connection could not be taken; it is cut")
        reader.part()
        reader.transport.abort()


cdef void on_close(void* handle) noexcept nogil:
    free(<char*> handle - sizeof(Watch))


cdef class Reader:
    cdef int attach(self, transport, bytearray into) except -1:
        """The connection is there. into: where to read; valid until received() returns."""
        self.transport = transport
        self._fd = descriptor(transport)
        self._into = into
        return 0

    cdef int received(self, const char* p, Py_ssize_t n) except -1:
        """n bytes came."""
        raise NotImplementedError

    cdef void rest(self, bint rest):
        """Read no more for now, or go on."""
        if rest == self.resting:
            return
        self.resting = rest
        if self._watch is NULL:
            if rest:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
        elif rest:
            lib.poll_stop(handle_of(self._watch))
        else:
            lib.poll_start(handle_of(self._watch), READABLE, on_poll)

    cdef void part(self) noexcept:
        """Read no more: to be called before the transport is told to close."""
        cdef Watch* watch = <Watch*> self._watch
        if watch is not NULL:
            self._watch = NULL
            lib.close(handle_of(watch), on_close)
            close(watch.fd)
            Py_DECREF(self)

    # -- called by the loop --

    def get_buffer(self, sizehint):
        return self._into

    def buffer_updated(self, Py_ssize_t n):
        self._reads += 1
        if self._reads == first and self._fd >= 0:
            self._go_direct()
        self.received(self._into, n)

    cdef int _go_direct(self) except -1:
        """From now on read past the transport, if there is a descriptor to spare."""
        cdef Watch* watch
        cdef long most
        cdef int fd
        loop = asyncio.get_running_loop()  # of uvloop, which alone reads into buffers of ours
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = UNBOUNDED if soft == resource.RLIM_INFINITY else soft // SHARE
        fd = fcntl(self._fd, F_DUPFD_CLOEXEC, 0)
        if fd >= most:
            close(fd)
        if not 0 <= fd < most:
            return 0
        watch = <Watch*> calloc(1, sizeof(Watch) + handle_size)
        uv = PyCapsule_GetPointer(_extension.libuv_get_loop_t_ptr(loop), NULL)
        if watch is NULL or lib.poll_init(uv, handle_of(watch), fd):
            close(fd)
            free(watch)
            return 0
        watch.reader, watch.fd = <void*> self, fd
        Py_INCREF(self)
        self._watch = <void*> watch
        self.transport.pause_reading()
        lib.poll_start(handle_of(watch), READABLE, on_poll)
        return 0

    cdef int _readable(self, bint broken) except -1:
        """There is something to read, or an end. broken: libuv watches no more, for an error; what
        came before that is still there."""
        cdef ssize_t n
        cdef int error
        while self._watch is not NULL and not self.resting:
            n = recv((<Watch*> self._watch).fd, <char*> self._into, len(self._into), MSG_DONTWAIT)
            error = errno
            if n > 0:
                self.received(self._into, n)
            elif n == 0:
                self.part()
                self.eof_received()
                self.transport.close()
            elif broken or error != EAGAIN:
                self.part()
                self.connection_lost(OSError(error, os.strerror(error)))
                self.transport.abort()
            if not broken:
                break
        return 0


cdef str look_up():
    """Find libuv's functions in uvloop's module. What speaks against using them, or None."""
    global handle_size
    cdef str why_not = look_up_exports(_extension, "uv_", FUNCTIONS, <void**> &lib)
    if why_not is not None:
        return why_not
    if not hasattr(_extension, "libuv_get_loop_t_ptr"):
        return "uvloop does not say where its loop is"
    if lib.version() >> 16 != 1:
        return f"libuv {lib.version():#x} is unknown here"
    handle_size = lib.handle_size(POLL)
    return None


def use(int read):
    """Choose from which read of a connection on it is read here; 0: from none."""
    global first
    first = read


# Why transports read all; empty if they need not.
WHY_NOT = look_up() or ""
# A connection that ends after one request is not worth the change.
USUAL = 0 if WHY_NOT else 2
use(USUAL)
