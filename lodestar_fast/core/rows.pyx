"""A kept decision as JSON: the row that the admin port, the log and the evaluation read.

decisions/schema.py says what the members mean. No Python object is touched but in quoted(), so that
a thread can write rows while the event loop goes on.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memcpy, strlen

from lodestar_fast.core.lodestar cimport LS_WIDTH, ls_feature_table
from lodestar_fast.core.record cimport LS_NO_ROW, ls_record, ls_recorded

cdef double[17] POWERS = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16]


cdef const char *SLO_MET[3]  # by ls_slo
cdef const char *OBJECTIVES[3]  # by ls_objective
OBJECTIVES[0], OBJECTIVES[1] = ',"objective":"ttft"', ',"objective":"ttft+tpot"'
OBJECTIVES[2] = ',"objective":"e2e"'
SLO_MET[0], SLO_MET[1], SLO_MET[2] = ',"slo_met":null', ',"slo_met":false', ',"slo_met":true'


cdef bytes quoted(str text):
    """As a JSON string."""
    cdef bytes plain = text.encode("utf-8", "replace")
    cdef const char *p = PyBytes_AS_STRING(plain)
    cdef Py_ssize_t i
    for i in range(PyBytes_GET_SIZE(plain)):
        if <uint8_t>p[i] < 0x20 or p[i] == b'"' or p[i] == b"\\":
            break
    else:
        return b'"%b"' % plain
    cdef list out = []
    for byte in plain:
        if byte == 0x22 or byte == 0x5C:
            out.append(b"\\%c" % byte)
        elif byte < 0x20:
            out.append(b"\\u%04x" % byte)
        else:
            out.append(b"%c" % byte)
    return b'"%b"' % b"".join(out)


cdef void put(Text *t, const char *text, size_t n) noexcept nogil:
    cdef char *grown
    cdef size_t room
    if t.size + n > t.room:
        room = max(2 * t.room, t.size + n + 4096)
        grown = <char *>realloc(t.data, room)
        if grown == NULL:
            t.failed = True
            return
        t.data, t.room = grown, room
    memcpy(t.data + t.size, text, n)
    t.size += n


cdef void put_text(Text *t, const char *text) noexcept nogil:
    put(t, text, strlen(text))


cdef int write_decimal(char *out, double value, int digits) noexcept nogil:
    """The value rounded to so many significant digits; how many characters. A tenth of the time of
    snprintf(), which writes what is very small or large."""
    cdef double size = fabs(value)
    cdef int before = 0, after, n = 0, k
    cdef uint64_t whole
    cdef char text[24]
    if not 1e-6 <= size < 1e9:
        return snprintf(out, 40, "%.*g", digits, value)
    while before < 9 and size >= POWERS[before]:
        before += 1  # digits before the point
    after = digits - before
    while before == 0 and after < 16 and size * POWERS[after - digits + 1] < 1:
        after += 1  # zeros behind the point are not significant
    after = min(after, 16)
    whole = <uint64_t>(size * POWERS[after] + 0.5)
    while after > 0 and whole % 10 == 0:
        whole //= 10
        after -= 1
    if value < 0:
        out[0], n = b"-", 1
    k = 0
    while whole > 0 or k <= after:
        text[k] = <char>(48 + whole % 10)
        whole //= 10
        k += 1
    while k > 0:
        if k == after:
            out[n] = b"."
            n += 1
        k -= 1
        out[n] = text[k]
        n += 1
    return n


cdef void put_number(Text *t, const char *key, double value, int digits) noexcept nogil:
    """key: what stands before it."""
    cdef char digit[40]
    put_text(t, key)
    if value == 0:
        put(t, "0", 1)
    elif isfinite(value):
        put(t, digit, <size_t>write_decimal(digit, value, digits))
    else:
        put(t, "null", 4)


cdef void put_index(Text *t, const char *key, uint8_t row) noexcept nogil:
    put_number(t, key, NAN if row == LS_NO_ROW else row, 3)


cdef void put_candidate(
    Text *t, const ls_recorded *x, const char *name, bint told
) noexcept nogil:
    cdef int k
    put_text(t, '{"name":')
    put_text(t, name)
    put_number(t, ',"hit":', x.seen.hit_tokens, 10)
    put_number(t, ',"hit_blocks":', x.seen.hit_blocks, 10)
    put_number(t, ',"own":', x.seen.own, 9)
    put_number(t, ',"queued":', x.seen.queued, 9)
    put_number(t, ',"waiting":', x.seen.waiting, 10)
    put_number(t, ',"inflight":', x.seen.inflight, 10)
    put_number(t, ',"speed":', x.seen.speed, 9)
    put_number(t, ',"occupancy":', x.seen.occupancy, 9)
    put_number(t, ',"expected":', x.seen.expected, 7)
    put_number(t, ',"predicted":', x.predicted, 9)
    put_number(t, ',"score":', x.score, 9)
    if told:
        put_number(t, ',"upper":', x.upper, 9)
        put_number(t, ',"tpot":', x.tpot, 9)
        put_number(t, ',"late":', x.late, 9)
        put_number(t, ',"price":', x.price, 9)
    put_number(t, ',"odds":', x.odds, 7)
    put_text(t, ',"outside":true,"x":[' if x.outside else ',"outside":false,"x":[')
    for k in range(LS_WIDTH):
        put_number(t, "," if k else "", x.x[k] / ls_feature_table[k].scale, 7)
    put(t, "]}", 2)


cdef void put_row(
    Text *t, const ls_record *r, const char *head, const char **names, const char **reasons,
    double since
) noexcept nogil:
    """A row but for its last brace. since: when the clock stood at 0, seconds since 1970."""
    cdef int k
    cdef bint aimed = r.objective or r.priced or r.slo_ttft > 0 or r.slo_tpot > 0
    put_text(t, head)
    put_number(t, ',"t":', since + r.at, 16)
    put_number(t, ',"at":', r.at, 16)
    put_number(t, ',"in":', r.prompt_tokens, 10)
    put_number(t, ',"bytes":', r.prompt_bytes, 10)
    put_text(t, ',"stream":true,"reason":' if r.streaming else ',"stream":false,"reason":')
    put_text(t, reasons[r.reason])
    if aimed:
        put_text(t, OBJECTIVES[r.objective])
        put_number(t, ',"slo_ttft":', r.slo_ttft if r.slo_ttft > 0 else NAN, 7)
        put_number(t, ',"slo_tpot":', r.slo_tpot if r.slo_tpot > 0 else NAN, 7)
        put_text(t, SLO_MET[r.slo_told])
        put_number(t, ',"answer":', r.answer if r.answer > 0 else NAN, 7)
    put_number(t, ',"version":', r.version, 10)
    put_number(t, ',"predicted":', r.predicted, 7)
    put_number(t, ',"margin":', r.margin, 7)
    put_number(t, ',"unsure":', r.unsure, 7)
    put_number(t, ',"error_low":', r.low, 6)
    put_number(t, ',"error_high":', r.high, 6)
    put_index(t, ',"chosen":', r.chosen)
    put_index(t, ',"fallback":', r.fallback)
    put_index(t, ',"best":', r.best)
    put_index(t, ',"longest_hit":', r.hit)
    put_text(t, ',"linear":')
    if r.learned:
        for k in range(LS_WIDTH):
            put_number(t, "," if k else "[", r.linear[k], 7)
        put(t, "]", 1)
    else:
        put(t, "null", 4)
    put_number(t, ',"candidates_total":', r.total, 10)
    put_text(t, ',"candidates":[')
    for k in range(<int>r.n):
        if k:
            put(t, ",", 1)
        put_candidate(t, &r.rows[k], names[k], aimed)
    put(t, "]", 1)
