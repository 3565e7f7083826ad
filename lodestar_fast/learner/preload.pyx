"""Loading shared libraries without holding the GIL.

`import torch` spends most of its time in dlopen() of some 400 MB of libraries, with the GIL held:
an event loop in another thread stands still for 170-220 ms. ctypes does not help, it keeps the GIL.
Opened here first, the libraries are merely found by the import.
"""

from __future__ import annotations


def preload(path: bytes) -> bool:
    """Open a shared library for good; whether it could be. The GIL is released meanwhile.

    What failed to open here, the import proper will open itself, or explain.
    """
    cdef const char *name = path
    cdef void *handle
    with nogil:
        handle = dlopen(name, RTLD_LAZY | RTLD_LOCAL)
    return handle != NULL
