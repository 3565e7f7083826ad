"""llhttp, by way of httptools: called directly where that is safe, otherwise through its callbacks.

The only place in the data path that knows httptools. Its extension module contains llhttp, and its
callbacks cost more than all the rest of parsing (4 us a request, measured). So the functions are
looked up in the module that is installed and called from here. Nobody promises that they can be
found there, or that they look the same in the next version. Therefore:

    - only functions are called, never a field of llhttp's state read: its layout does not matter
    - the one table it takes, of callbacks, is known in two layouts (LAYOUTS)
    - at import, check() finds the functions, measures the size of state and table, and parses some
      messages: what is reported has to be right to the byte, and what is malformed be refused

If anything is amiss, both parsers use httptools as it is meant to be, and WHY_NOT says what was.
The parsers themselves do not know the difference: the same methods are called, in the same order.
"""

import httptools
from httptools.parser import parser as _extension

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memset, strlen

from lodestar_fast.errors import InvariantError
from lodestar_fast.proxy.samples import SAMPLES

from lodestar_fast.proxy.exports cimport look_up_exports
from lodestar_fast.proxy.wire cimport repeated

cdef extern from "Python.h":
    void* PyErr_Occurred()

# What is called, as llhttp.h declares it; its state and table of callbacks are addresses here.
ctypedef void (*Init)(void* state, int kind, const void* settings)
ctypedef void (*SettingsInit)(void* settings)
ctypedef int (*Execute)(void* state, const char* data, size_t n)
ctypedef void (*Resume)(void* state)
ctypedef int (*Ask)(const void* state)
ctypedef unsigned char (*AskByte)(void* state)
ctypedef const char* (*AskText)(const void* state)
ctypedef const char* (*NameOf)(int code)

cdef struct Library:
    Init init
    SettingsInit settings_init
    Execute execute
    Resume resume_after_upgrade
    AskByte get_http_major
    AskByte get_http_minor
    AskByte get_method
    Ask get_status_code
    AskByte get_upgrade
    Ask should_keep_alive
    AskText get_error_reason
    NameOf method_name

# In the order of Library.
FUNCTIONS = (
    "init", "settings_init", "execute", "resume_after_upgrade", "get_http_major", "get_http_minor",
    "get_method", "get_status_code", "get_upgrade", "should_keep_alive", "get_error_reason",
    "method_name",
)

cdef enum:
    REQUESTS = 1  # llhttp_type_t
    RESPONSES = 2
    PAUSED_UPGRADE = 22  # llhttp_errno_t
    TABLE = 64  # addresses kept for llhttp_settings_t

cdef enum Event:
    BEGIN, TARGET, REASON, NAME, VALUE, HEAD, BODY, END, EVENTS

# Where in llhttp_settings_t the callbacks of Event stand: llhttp 9.3 and later, 9.0 to 9.2.
cdef int LAYOUTS[2][<int> EVENTS]
LAYOUTS[0][:] = [0, 2, 3, 6, 7, 10, 11, 12]
LAYOUTS[1][:] = [0, 1, 2, 5, 6, 9, 10, 11]

cdef Library lib
cdef void* requests[TABLE]
cdef void* responses[TABLE]
cdef bint direct


# -- llhttp's callbacks --
# An exception makes them return -1, which ends llhttp_execute(); it stands when that returns.

cdef int tell_begun(Machine* machine) except -1:
    return (<Parser> machine.owner)._on_begin()


cdef int tell_text(Machine* machine, const char* p, size_t n) except -1:
    return (<Parser> machine.owner)._on_text(p, n)


cdef int tell_name(Machine* machine, const char* p, size_t n) except -1:
    return (<Parser> machine.owner)._on_name(p, n)


cdef int tell_value(Machine* machine, const char* p, size_t n) except -1:
    return (<Parser> machine.owner)._on_value(p, n)


cdef int tell_head(Machine* machine) except -1:
    (<Parser> machine.owner)._on_head()
    return lib.get_upgrade(machine.state)  # 1: no body is read here, as httptools does it


cdef int tell_body(Machine* machine, const char* p, size_t n) except -1:
    return (<Parser> machine.owner)._on_body(p, n)


cdef int tell_ended(Machine* machine) except -1:
    return (<Parser> machine.owner)._on_end()


cdef int pending() except? -1:
    """Raise what a callback raised."""
    return -1 if PyErr_Occurred() is not NULL else 0


cdef class Parser:
    cdef int _start(self) except -1:
        """Ready for the first message of a connection."""
        self._machine.owner = <void*> self
        if not direct:
            if self._requests:
                self._http = httptools.HttpRequestParser(self)
            else:
                self._http = httptools.HttpResponseParser(self)
        elif self._requests:
            lib.init(self._machine.state, REQUESTS, requests)
        else:
            lib.init(self._machine.state, RESPONSES, responses)
        return 0

    cdef void close(self):
        """Break the cycle with httptools, which holds our methods."""
        self._http = None

    cdef Fed _execute(self, const char* p, Py_ssize_t n) except *:
        """Feed n bytes. What is found in them is told to the methods below meanwhile."""
        cdef int error
        if self._http is not None:
            return self._execute_callbacks(p, n)
        error = lib.execute(self._machine.state, p, n)
        if error == 0:
            return FED
        pending()
        if error == PAUSED_UPGRADE and lib.get_upgrade(self._machine.state) == 1:
            lib.resume_after_upgrade(self._machine.state)
            return UPGRADED
        self._complaint = lib.get_error_reason(self._machine.state).decode("latin-1")
        return MALFORMED

    cdef Fed _execute_callbacks(self, const char* p, Py_ssize_t n) except *:
        try:
            self._http.feed_data(PyMemoryView_FromMemory(<char*> p, n, PyBUF_READ))
        except httptools.HttpParserUpgrade:
            return UPGRADED
        except httptools.HttpParserCallbackError as e:
            raise InvariantError("a callback of a parser failed") from e
        except httptools.HttpParserError as e:
            self._complaint = str(e)
            return MALFORMED
        return FED

    # -- of the message whose head is in --

    cdef bint _is_old(self) except -1:
        """HTTP/1.0."""
        if self._http is not None:
            return self._http.get_http_version() == "1.0"
        return (
            lib.get_http_major(self._machine.state) == 1
            and lib.get_http_minor(self._machine.state) == 0
        )

    cdef bint _known_version(self) except -1:
        """HTTP/1.1 or HTTP/1.0."""
        if self._http is not None:
            return self._http.get_http_version() in ("1.1", "1.0")
        return (
            lib.get_http_major(self._machine.state) == 1
            and lib.get_http_minor(self._machine.state) <= 1
        )

    cdef bint _persistent(self) except -1:
        if self._http is not None:
            return self._http.should_keep_alive()
        return lib.should_keep_alive(self._machine.state) != 0

    cdef bint _upgrade_asked(self) except -1:
        if self._http is not None:
            return self._http.should_upgrade()
        return lib.get_upgrade(self._machine.state) != 0

    cdef bytes _method(self):
        if self._http is not None:
            return self._http.get_method()
        cdef const char* name = lib.method_name(lib.get_method(self._machine.state))
        return repeated(b"POST", name, strlen(name))

    cdef int _code(self) except -1:
        if self._http is not None:
            return self._http.get_status_code()
        return lib.get_status_code(self._machine.state)

    # -- what is found --

    cdef int _on_begin(self) except -1:
        raise NotImplementedError

    cdef int _on_text(self, const char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int _on_name(self, const char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int _on_value(self, const char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int _on_field(self) except -1:
        return 0

    cdef int _on_head(self) except -1:
        raise NotImplementedError

    cdef int _on_body(self, const char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int _on_end(self) except -1:
        raise NotImplementedError

    # -- the same, told by httptools --

    def on_message_begin(self):
        self._on_begin()

    def on_url(self, bytes url):
        self._on_text(url, len(url))

    def on_status(self, bytes reason):
        self._on_text(reason, len(reason))

    def on_header(self, bytes name, bytes value):
        self._on_name(name, len(name))
        self._on_value(value, len(value))
        self._on_field()

    def on_headers_complete(self):
        self._on_head()

    def on_body(self, bytes body):
        self._on_body(body, len(body))

    def on_message_complete(self):
        self._on_end()


# -- whether llhttp can be called directly --

cdef class Probe(Parser):
    """Writes down what it is told."""

    cdef list trace
    cdef bytes data

    def __init__(self, bint requests):
        self._requests = requests
        self.trace = []
        self._start()

    cdef int _note(self, str what, const char* p, Py_ssize_t n) except -1:
        # httptools tells of copies. What llhttp tells of lies in the data, unless it is no text.
        cdef const char* start = self.data
        if self._http is None and not (start <= p <= start + len(self.data) - n):
            what, n = "stray", 0
        self.trace.append((what, p[:n]))
        return 0

    cdef int _on_begin(self) except -1:
        return self._note("begin", self.data, 0)

    cdef int _on_text(self, const char* p, Py_ssize_t n) except -1:
        return self._note("text", p, n)

    cdef int _on_name(self, const char* p, Py_ssize_t n) except -1:
        return self._note("name", p, n)

    cdef int _on_value(self, const char* p, Py_ssize_t n) except -1:
        return self._note("value", p, n)

    cdef int _on_head(self) except -1:
        self.trace.append((
            self._method() if self._requests else self._code(),
            self._is_old(), self._known_version(), self._persistent(), self._upgrade_asked(),
        ))
        return 0

    cdef int _on_body(self, const char* p, Py_ssize_t n) except -1:
        return self._note("body", p, n)

    cdef int _on_end(self) except -1:
        return self._note("end", self.data, 0)

    def run(self, bytes data):
        """What is told of the data, as a list."""
        cdef Fed fed
        self.data = data
        fed = self._execute(data, len(data))
        if fed == MALFORMED:  # httptools tells of a field when the next one comes, or never
            self.trace = [entry for entry in self.trace if entry[0] not in ("name", "value")]
        return [*self.trace, (<int> fed, self._complaint)]


cdef Py_ssize_t extent(const unsigned char* area, Py_ssize_t n) noexcept:
    """How far the area was written to; it was full of 0xA5 before."""
    while n and area[n - 1] == 0xA5:
        n -= 1
    return n


cdef str look_up():
    """Find llhttp's functions in httptools' module. What speaks against using them, or None."""
    cdef unsigned char area[2][4096]
    cdef str why_not = look_up_exports(_extension, "llhttp_", FUNCTIONS, <void**> &lib)
    if why_not is not None:
        return why_not
    memset(area, 0xA5, sizeof(area))
    lib.settings_init(area[0])
    lib.init(area[1], REQUESTS, area[0])
    if extent(area[0], 4096) > <Py_ssize_t> sizeof(requests):
        return "llhttp's table of callbacks is too large"
    if extent(area[1], 4096) > ROOM:
        return "llhttp's state is too large"
    return None


cdef int fill(int layout) noexcept:
    """Write the tables of callbacks."""
    cdef void* callbacks[<int> EVENTS]
    cdef int event
    callbacks[:] = [
        <void*> tell_begun, <void*> tell_text, <void*> tell_text, <void*> tell_name,
        <void*> tell_value, <void*> tell_head, <void*> tell_body, <void*> tell_ended,
    ]
    memset(requests, 0, sizeof(requests))
    memset(responses, 0, sizeof(responses))
    for event in range(<int> EVENTS):
        if event != <int> REASON:
            requests[LAYOUTS[layout][event]] = callbacks[event]
        if event != <int> TARGET:
            responses[LAYOUTS[layout][event]] = callbacks[event]
    return 0


cdef str check():
    """Make llhttp ready to be called. What speaks against that, or None."""
    reason = look_up()
    if reason is not None:
        return reason
    use(False)
    wanted = [Probe(kind).run(data) for kind, data in SAMPLES]
    for layout in range(2):
        fill(layout)
        use(True)
        if wanted == [Probe(kind).run(data) for kind, data in SAMPLES]:
            return None
    return f"llhttp in httptools {httptools.__version__} is unknown here"


def use(bint directly):
    """Choose how parsers made from now on reach llhttp."""
    global direct
    direct = directly


# Why llhttp is not called directly; empty if it is.
WHY_NOT = check() or ""
use(not WHY_NOT)
