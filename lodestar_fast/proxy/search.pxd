"""Searching bytes, 16 at a time. Inlined where it is used.

memmem() of glibc prepares a table at each call, which costs more than the search of a head or the
end of an answer; memchr() from quote to quote costs a call for each.
"""

cdef extern from *:
    """
    #ifndef LODESTAR_SEARCH
    #define LODESTAR_SEARCH
    #include <string.h>

    typedef unsigned char ls_block __attribute__((vector_size(16)));
    typedef char ls_signs __attribute__((vector_size(16)));

    static inline ls_block ls_load(const char *p) {
        ls_block a;
        memcpy(&a, p, 16);
        return a;
    }

    /* Of a comparison's outcome: bit i for byte i. */
    static inline unsigned ls_bits(ls_block outcome) {
    #ifdef __SSE2__
        return (unsigned)__builtin_ia32_pmovmskb128((ls_signs)outcome);
    #else
        unsigned long long half[2];
        unsigned bits = 0;
        memcpy(half, &outcome, 16);
        if (half[0] | half[1])
            for (int i = 0; i < 16; i++) bits |= (unsigned)(outcome[i] & 1) << i;
        return bits;
    #endif
    }

    /* Those of 16 positions from p on where the first and last byte of `what` stand. */
    static inline unsigned ls_likely(const char *p, const char *what, size_t n) {
        ls_block first = ls_load(p) == (ls_block){0} + (unsigned char)what[0];
        ls_block last = ls_load(p + n - 1) == (ls_block){0} + (unsigned char)what[n - 1];
        return ls_bits(first & last);
    }

    /* Where `what` (n bytes, at least 1) occurs first in p..end; NULL: it does not. */
    static inline const char *first_of_text(const char *p, const char *end, const char *what,
                                            size_t n) {
        unsigned at;
        for (; end - p >= (long)n + 15; p += 16)
            for (unsigned bits = ls_likely(p, what, n); bits; bits &= bits - 1) {
                at = (unsigned)__builtin_ctz(bits);
                if (memcmp(p + at, what, n) == 0) return p + at;
            }
        for (; end - p >= (long)n; p++)
            if (*p == *what && memcmp(p, what, n) == 0) return p;
        return NULL;
    }

    /* Where it occurs last. */
    static inline const char *last_of_text(const char *p, const char *end, const char *what,
                                           size_t n) {
        unsigned at;
        for (; end - p >= (long)n + 15; end -= 16)
            for (unsigned bits = ls_likely(end - n - 15, what, n); bits; bits ^= 1u << at) {
                at = 31 - (unsigned)__builtin_clz(bits);
                if (memcmp(end - n - 15 + at, what, n) == 0) return end - n - 15 + at;
            }
        for (; end - p >= (long)n; end--)
            if (end[-(long)n] == *what && memcmp(end - n, what, n) == 0) return end - n;
        return NULL;
    }

    /* Of 16 bytes, those that a JSON string does not hold as they are. */
    static inline ls_block ls_odd(const char *p) {
        ls_block a = ls_load(p);
        return (ls_block)(a < 32) | (ls_block)(a == '"') | (ls_block)(a == 92);
    }

    /* The first byte from p on that a JSON string does not hold as it is: a quote, a backslash, a
       control character. Or end. */
    static inline const char *plain_text(const char *p, const char *end) {
        unsigned bits;
        for (int short_ones = 1; end - p >= 16; p += 16) {
            bits = ls_bits(ls_odd(p));
            if (bits) return p + __builtin_ctz(bits);
            for (; short_ones == 0 && end - p >= 80; p += 64)
                if (ls_bits(ls_odd(p + 16) | ls_odd(p + 32) | ls_odd(p + 48) | ls_odd(p + 64)))
                    break;
            short_ones = 0;
        }
        while (p < end && (unsigned char)*p >= 32 && *p != '"' && *p != 92) p++;
        return p;
    }
    #endif
    """
    const char* first_of_text(
        const char* p, const char* end, const char* what, size_t n
    ) noexcept nogil
    const char* last_of_text(
        const char* p, const char* end, const char* what, size_t n
    ) noexcept nogil
    const char* plain_text(const char* p, const char* end) noexcept nogil
