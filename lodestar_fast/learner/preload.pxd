"""Loading shared libraries without holding the GIL."""

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_LAZY
    int RTLD_LOCAL
    void *dlopen(const char *path, int mode)
