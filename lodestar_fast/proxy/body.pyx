"""The routed fields of a request's body, found without decoding it.

One pass over the bytes, which checks the grammar of JSON and notes where the values of a dozen
top-level keys lie. Strings are passed 16 bytes at a time. Whatever is not plainly right is left to
openai.routing_fields(), whose verdict is the one that counts: a body is never refused here, nor is
anything let through that would be refused there. Unlike RFC 8259, and like there, a string may hold
bytes that are not UTF-8: the engine sees the body as it came.

At 32 KB this takes a sixth of the time that decoding takes.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp, memset

from lodestar_fast.proxy.openai import MOST_DIGITS, ROUTES, routing_fields

from lodestar_fast.proxy.search cimport plain_text

cdef enum:
    DEEPEST = 64  # levels of nesting that are followed

cdef enum Key:
    MODEL
    STREAM
    CACHE_SALT  # this and the next three, with the model, are the seed
    TOOLS
    SYSTEM
    INSTRUCTIONS
    MESSAGES
    PROMPT
    INPUT
    QUERY
    TEXT_1
    TOKENS
    MAX_COMPLETION_TOKENS  # this and the next two bound the answer, the first that is named
    MAX_OUTPUT_TOKENS
    MAX_TOKENS
    KEYS

cdef tuple NAMES = (
    b"model", b"stream", b"cache_salt", b"tools", b"system", b"instructions", b"messages",
    b"prompt", b"input", b"query", b"text_1", b"tokens", b"max_completion_tokens",
    b"max_output_tokens", b"max_tokens",
)  # in the order of Key

cdef Py_ssize_t DIGITS = MOST_DIGITS

cdef const char* _names[<int> KEYS]
cdef Py_ssize_t _sizes[<int> KEYS]
cdef bytes _name
for _i, _name in enumerate(NAMES):
    _names[<int> _i] = _name
    _sizes[<int> _i] = len(_name)

# Path -> the keys that may hold its prompt, best first, one a byte.
cdef dict _prompts = {
    path: bytes(NAMES.index(name.encode()) for name in names) for path, names in ROUTES.items()
}

# The last path asked for, and its entry.
cdef bytes _path = None
cdef bytes _order = b""

# The last model asked for, and the seed of a request that has nothing else in its seed.
cdef bytes _model_bytes = b""
cdef str _model = ""
cdef bytes _model_seed = b"\0\0\0\0"


cdef struct Span:
    const char* p  # NULL: there is none
    Py_ssize_t n


cdef inline const char* blanks(const char* p, const char* end) noexcept nogil:
    while p < end and (p[0] == 32 or p[0] == 10 or p[0] == 13 or p[0] == 9):
        p += 1
    return p


cdef const char* string(const char* p, const char* end) noexcept nogil:
    """Behind the string whose opening quote is before p. Here and below NULL means: not sure."""
    cdef int i
    cdef char c
    while True:
        p = plain_text(p, end)
        if p >= end or <unsigned char> p[0] < 32:
            return NULL
        if p[0] == 34:
            return p + 1
        p += 1
        if p >= end:
            return NULL
        c = p[0]
        p += 1
        if c == 117:  # \uXXXX
            if end - p < 4 or (p[0] | 32) == 100:  # perhaps one of a pair, which must be whole
                return NULL
            for i in range(4):
                if not (48 <= p[i] <= 57 or 97 <= (p[i] | 32) <= 102):
                    return NULL
            p += 4
        elif memchr(b'"\\/bfnrt', c, 8) is NULL:
            return NULL


cdef inline const char* digits(const char* p, const char* end) noexcept nogil:
    """Behind at least one digit."""
    cdef const char* start = p
    while p < end and 48 <= p[0] <= 57:
        p += 1
    if p == start:
        return NULL
    return p


cdef const char* number(const char* p, const char* end) noexcept nogil:
    if p < end and p[0] == 45:
        p += 1
    if p < end and p[0] == 48:
        p += 1
    else:
        p = digits(p, end)
    if p is not NULL and p < end and p[0] == 46:
        p = digits(p + 1, end)
    if p is not NULL and p < end and (p[0] | 32) == 101:
        p += 1
        if p < end and (p[0] == 43 or p[0] == 45):
            p += 1
        p = digits(p, end)
    return p


cdef const char* scalar(const char* p, const char* end) noexcept nogil:
    if p >= end:
        return NULL
    if p[0] == 34:
        return string(p + 1, end)
    if end - p >= 4 and (memcmp(p, b"true", 4) == 0 or memcmp(p, b"null", 4) == 0):
        return p + 4
    if end - p >= 5 and memcmp(p, b"false", 5) == 0:
        return p + 5
    return number(p, end)


cdef const char* colon(const char* p, const char* end) noexcept nogil:
    """The start of the value behind a key that ends at p."""
    if p is NULL:
        return NULL
    p = blanks(p, end)
    return blanks(p + 1, end) if p < end and p[0] == 58 else NULL


cdef const char* key(const char* p, const char* end) noexcept nogil:
    """The start of the value whose key starts at p."""
    return colon(string(p + 1, end), end) if p < end and p[0] == 34 else NULL


cdef const char* skip(const char* p, const char* end) noexcept nogil:
    """Behind the value that starts at p."""
    cdef uint64_t objects = 0  # of the levels around p, innermost lowest: 1 if it is an object
    cdef int depth = 0
    cdef char opening
    while p is not NULL and p < end:
        opening = p[0]
        if opening == 123 or opening == 91:
            p = blanks(p + 1, end)
            if p < end and p[0] == opening + 2:
                p += 1
            elif depth == DEEPEST:
                return NULL
            else:
                depth += 1
                objects = objects << 1 | (opening == 123)
                if opening == 123:
                    p = key(p, end)
                continue
        else:
            p = scalar(p, end)
        while p is not NULL:  # a value ends at p
            if depth == 0:
                return p
            p = blanks(p, end)
            if p >= end:
                return NULL
            if p[0] == 44:
                p = blanks(p + 1, end)
                if objects & 1:
                    p = key(p, end)
                break
            if p[0] != (125 if objects & 1 else 93):
                return NULL
            p += 1
            depth -= 1
            objects >>= 1
    return NULL


cdef bint find(const char* p, const char* end, Span* found) noexcept nogil:
    """Note the values of the keys in `found`. False: not sure of the body."""
    cdef const char* name
    cdef Py_ssize_t size
    cdef int i
    p = blanks(p, end)
    if p >= end or p[0] != 123:
        return False
    p = blanks(p + 1, end)
    if p < end and p[0] == 125:
        return blanks(p + 1, end) == end
    while p < end and p[0] == 34:
        name = p + 1
        p = string(name, end)
        if p is NULL:
            return False
        size = p - 1 - name
        if memchr(name, 92, size) is not NULL:
            return False  # it may be one of ours in disguise
        p = colon(p, end)
        if p is NULL:
            return False
        for i in range(<int> KEYS):
            if size == _sizes[i] and memcmp(name, _names[i], size) == 0:
                found[i].p = p
                break
        else:
            i = -1
        p = skip(p, end)
        if p is NULL:
            return False
        if i >= 0:
            found[i].n = p - found[i].p
        p = blanks(p, end)
        if p >= end:
            return False
        if p[0] == 125:
            return blanks(p + 1, end) == end
        if p[0] != 44:
            return False
        p = blanks(p + 1, end)
    return False


cdef inline bint is_null(Span value) noexcept nogil:
    return value.p is NULL or value.p[0] == 110


cdef bint plain_model(Span value) noexcept nogil:
    """Whether it is a string of ASCII without escapes."""
    cdef Py_ssize_t i
    if value.p[0] != 34:
        return False
    for i in range(1, value.n - 1):
        if not 32 <= value.p[i] < 127 or value.p[i] == 92:
            return False
    return True


cdef unsigned int counted(Span value) noexcept:
    """A plain number of tokens; 0: it is none."""
    cdef unsigned int n = 0
    cdef Py_ssize_t i
    if value.p is NULL or value.n > DIGITS:
        return 0
    for i in range(value.n):
        if not 48 <= value.p[i] <= 57:
            return 0
        n = 10 * n + <unsigned int> (value.p[i] - 48)
    return n


cdef Routing scanned(bytes path, bytes body):
    """The routed fields; None: not sure."""
    global _model, _model_bytes, _model_seed, _path, _order
    cdef Span found[<int> KEYS]
    cdef const char* start = PyBytes_AS_STRING(body)
    cdef Routing routing
    cdef Span value
    cdef bytes order
    cdef char c
    cdef int i
    memset(found, 0, sizeof(found))
    if not find(start, start + len(body), found):
        return None
    routing = Routing.__new__(Routing)
    value = found[<int> STREAM]
    if not is_null(value) and value.p[0] != 116 and value.p[0] != 102:
        return None
    routing.stream = not is_null(value) and value.p[0] == 116
    value = found[<int> MODEL]
    if is_null(value):
        value.p, value.n = b'""', 2
    elif not plain_model(value):
        return None
    value.p += 1
    value.n -= 2
    if value.n != len(_model_bytes) or memcmp(value.p, <const char*> _model_bytes, value.n) != 0:
        _model_bytes = value.p[:value.n]
        _model = _model_bytes.decode()
        _model_seed = _model_bytes + b"\0\0\0\0"
    routing.model, routing.seed = _model, _model_seed
    for i in range(<int> CACHE_SALT, <int> INSTRUCTIONS + 1):
        if found[i].p is not NULL:
            routing.seed = b"\0".join(
                [_model_bytes, *[
                    found[j].p[:found[j].n]
                    for j in range(<int> CACHE_SALT, <int> INSTRUCTIONS + 1)
                ]]
            )
            break
    routing.max_tokens = 0
    for i in range(<int> MAX_COMPLETION_TOKENS, <int> MAX_TOKENS + 1):
        if routing.max_tokens == 0:
            routing.max_tokens = counted(found[i])
    if path is not _path:
        _path, _order = path, _prompts[path]
    routing._body = body
    routing.prompt_at = start
    order = _order
    for c in order:
        value = found[<int> c]
        if value.p is not NULL:
            routing.prompt_at, routing.prompt_size = value.p, value.n
            break
    return routing


cdef Routing read_body(bytes path, bytes body):
    """The routed fields of a body posted to one of ROUTES. Raises ClientError (400)."""
    cdef Routing routing = scanned(path, body)
    if routing is None:
        fields = routing_fields(path, body)
        routing = Routing.__new__(Routing)
        routing.model, routing.seed, routing.stream = fields.model, fields.seed, fields.stream
        routing.max_tokens = fields.max_tokens
        routing._body = bytes(fields.prompt)
        routing.prompt_at = PyBytes_AS_STRING(routing._body)
        routing.prompt_size = len(routing._body)
    return routing


cdef class Routing:
    @property
    def prompt(self):
        return self.prompt_at[:self.prompt_size]


def read(bytes path, bytes body):
    return read_body(path, body)


def scan(bytes path, bytes body):
    return scanned(path, body)
