"""Small things the data path needs everywhere: precise time, a byte buffer, ASCII comparison."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t send(int fd, const void* p, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef const char* HEX = b"0123456789abcdef"

cdef enum:
    KEPT = 16384  # bytes of memory that an empty buffer keeps


cdef bytes repeated(bytes last, const char* p, Py_ssize_t n):
    """n bytes as an object: `last`, with the hash that it has by now, if they are the same."""
    if n == len(last) and memcmp(p, <const char*> last, n) == 0:
        return last
    return p[:n]


cdef bint same(const char* a, Py_ssize_t n, const char* lower) noexcept nogil:
    """Whether n bytes are `lower`, whatever the case of their letters; lower ends in NUL."""
    cdef Py_ssize_t i
    cdef unsigned char c
    for i in range(n):
        c = a[i]
        if c != <unsigned char> lower[i] and (not 65 <= c <= 90 or c + 32 != lower[i]):
            return False
        if c == 0:
            return False
    return lower[n] == 0


cdef int put_hex(char* end, uint64_t n, int least) noexcept nogil:
    """Write n in at least that many hexadecimal digits before end; how many there are."""
    cdef int digits = 0
    while n or digits < least:
        digits += 1
        end[-digits] = HEX[n & 15]
        n >>= 4
    return digits


cdef Py_ssize_t length_of(const char* p, Py_ssize_t n) noexcept nogil:
    """A Content-Length whose digits llhttp has checked; beyond 2**60 just that."""
    cdef Py_ssize_t value = 0
    cdef Py_ssize_t i
    for i in range(n):
        if value >= <Py_ssize_t> 1 << 60:
            break
        if 48 <= p[i] <= 57:
            value = value * 10 + (p[i] - 48)
    return value


cdef bint emit(transport, int fd, bint queued, const char* p, Py_ssize_t n) except -1:
    """Write to a connection; whether some of it waits in its transport. The only way out.

    queued: what the last call returned. As long as nothing waits, the socket is written to
    directly: what the transport would do too, without a Python object for each write. What the
    socket does not take, and an error, is for the transport to deal with.
    """
    cdef Py_ssize_t sent = 0
    if queued:
        queued = transport.get_write_buffer_size() > 0
    if not queued and fd >= 0:
        sent = max(0, send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT))
        if sent == n:
            return False
    transport.write(PyBytes_FromStringAndSize(p + sent, n - sent))
    return True


cdef bint emit_two(transport, int fd, bint queued, Buffer head, bytes body) except -1:
    """emit() for a head and a body that is too long to be copied behind it."""
    cdef iovec parts[2]
    cdef msghdr message
    cdef Py_ssize_t sent = 0
    if queued:
        queued = transport.get_write_buffer_size() > 0
    if not queued and fd >= 0:
        parts[0].iov_base, parts[0].iov_len = head.data, head.size
        parts[1].iov_base, parts[1].iov_len = PyBytes_AS_STRING(body), len(body)
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = parts, 2
        sent = max(0, sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT))
        if sent == head.size + len(body):
            return False
    if sent < head.size:
        transport.writelines((head.data[sent:head.size], body))
    else:
        transport.write(memoryview(body)[sent - head.size:])
    return True


cdef int descriptor(transport) except -2:
    """The socket of a plain TCP connection, for emit(); -1: there is none."""
    socket = transport.get_extra_info("socket")
    return -1 if socket is None else socket.fileno()


cdef class Buffer:
    def __cinit__(self, Py_ssize_t front=0):
        self._front = front

    def __dealloc__(self):
        PyMem_Free(self._memory)

    cdef int _grow(self, Py_ssize_t before, Py_ssize_t behind) except -1:
        """Make room for that many more bytes on both sides."""
        cdef Py_ssize_t capacity = max(512, self._capacity)
        cdef Py_ssize_t at = self._front if self._memory is NULL else self.data - self._memory
        cdef char* memory
        if before:
            at = max(before, self._front)
        while capacity < at + self.size + behind:
            capacity *= 2
        memory = <char*> PyMem_Malloc(capacity)
        if memory is NULL:
            raise MemoryError()
        if self.size:
            memcpy(memory + at, self.data, self.size)
        PyMem_Free(self._memory)
        self._memory, self._capacity = memory, capacity
        self.data = memory + at
        return 0

    cdef void clear(self) noexcept:
        """Empty it. What was large goes back, so that an idle connection does not hold it."""
        self.size = 0
        if self._capacity > KEPT:
            PyMem_Free(self._memory)
            self._memory = NULL
            self._capacity = 0
        self.data = self._memory + min(self._front, self._capacity)

    cdef int prepend(self, const char* p, Py_ssize_t n) except -1:
        if self._memory is NULL or self.data - self._memory < n:
            self._grow(n, 0)
        self.data -= n
        memcpy(self.data, p, n)
        self.size += n
        return 0

    cdef int frame(self, bint last) except -1:
        """Make what it holds one chunk, with the closing one behind it if it is the last."""
        cdef char mark[24]
        cdef int digits
        if self.size:
            memcpy(mark + sizeof(mark) - 2, b"\r\n", 2)
            digits = put_hex(mark + sizeof(mark) - 2, self.size, 1)
            self.prepend(mark + sizeof(mark) - 2 - digits, digits + 2)
            self.put(b"\r\n", 2)
        if last:
            self.put(b"0\r\n\r\n", 5)
        return 0

    cdef int put_number(self, long long n) except -1:
        """n in decimal digits; n >= 0."""
        cdef char text[24]
        cdef int at = sizeof(text)
        while True:
            at -= 1
            text[at] = <char> (48 + n % 10)
            n //= 10
            if n == 0:
                break
        return self.put(text + at, sizeof(text) - at)

    cdef bytes take(self):
        """What it holds, and empty it."""
        cdef bytes out = PyBytes_FromStringAndSize(self.data, self.size)
        self.clear()
        return out
