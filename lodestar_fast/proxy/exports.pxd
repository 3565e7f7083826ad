"""C functions that an extension module of another package has in it and does not promise.

Inlined where it is used: proxy/llhttp.pyx and proxy/reader.pyx, at import.
"""

cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int flags)
    void* dlsym(void* library, const char* name)
    enum:
        RTLD_LAZY
        RTLD_NOLOAD


cdef inline str look_up_exports(module, str prefix, tuple names, void** into):
    """Find prefix + each name in that module, which is imported already, and write their addresses.
    What speaks against using them, or None."""
    cdef str package = module.__name__.partition(".")[0]
    cdef bytes symbol
    cdef Py_ssize_t i
    cdef void* library = dlopen(module.__file__.encode(), RTLD_LAZY | RTLD_NOLOAD)
    if library is NULL:
        return f"{package} is not an extension module"
    for i, name in enumerate(names):
        symbol = f"{prefix}{name}".encode()
        into[i] = dlsym(library, symbol)
        if into[i] is NULL:
            return f"{package} exports no {prefix}{name}"
    return None
