"""Small things the data path needs everywhere: precise time, a byte buffer, ASCII comparison."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef const char* HEX = b"0123456789abcdef"


cdef bint same(const char* a, Py_ssize_t n, const char* lower) noexcept nogil:
    """Whether n bytes are `lower`, whatever the case of their letters; lower ends in NUL."""
    cdef Py_ssize_t i
    cdef unsigned char c
    for i in range(n):
        c = a[i]
        if 65 <= c <= 90:
            c |= 32
        if c != <unsigned char> lower[i] or lower[i] == 0:
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


cdef Py_ssize_t length_of(bytes digits) noexcept:
    """A Content-Length whose digits llhttp has checked; beyond 2**60 just that."""
    cdef Py_ssize_t value = 0
    cdef const char* p = digits
    while p[0] and value < <Py_ssize_t> 1 << 60:
        if 48 <= p[0] <= 57:
            value = value * 10 + (p[0] - 48)
        p += 1
    return value


cdef bytes frame(list parts, Py_ssize_t size, bytes before, bint chunked, bint last):
    """One bytes object for one write: `before` (a head or nothing), then the body in parts.

    size is that of all parts. chunked: as a single chunk, with the closing one if it is the last.
    """
    cdef char mark[24]
    cdef int marked = 0
    cdef Py_ssize_t total = len(before) + size
    cdef bytes part, out
    cdef char* p
    if not chunked:
        if not parts:
            return before
        if len(parts) == 1 and not before:
            return <bytes> parts[0]
    else:
        if size:
            marked = put_hex(mark + sizeof(mark), size, 1)
            total += marked + 4
        if last:
            total += 5
    out = PyBytes_FromStringAndSize(NULL, total)
    p = PyBytes_AS_STRING(out)
    memcpy(p, <const char*> before, len(before))
    p += len(before)
    if marked:
        memcpy(p, mark + sizeof(mark) - marked, marked)
        memcpy(p + marked, b"\r\n", 2)
        p += marked + 2
    for part in parts:
        memcpy(p, <const char*> part, len(part))
        p += len(part)
    if marked:
        memcpy(p, b"\r\n", 2)
        p += 2
    if chunked and last:
        memcpy(p, b"0\r\n\r\n", 5)
    return out


cdef class Buffer:
    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int _grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t capacity = max(512, self._capacity)
        cdef char* data
        while capacity < self.size + more:
            capacity *= 2
        data = <char*> PyMem_Realloc(self.data, capacity)
        if data is NULL:
            raise MemoryError()
        self.data, self._capacity = data, capacity
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
        self.size = 0
        return out
