from lodestar_fast.core.record cimport ls_record


cdef struct Text:
    char *data
    size_t size, room
    bint failed  # memory was short: what is there is of no use


cdef bytes quoted(str text)
cdef void put_row(
    Text *t, const ls_record *r, const char *head, const char **names, const char **reasons,
    double since) noexcept nogil
