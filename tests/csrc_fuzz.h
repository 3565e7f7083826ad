/* csrc_fuzz.h -- what the parts of csrc_fuzz.c share. */
#ifndef CSRC_FUZZ_H
#define CSRC_FUZZ_H

#include "lodestar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern uint64_t fuzz_seed, fuzz_state;
extern int frozen;  /* while it is set an allocation is a failure */
extern int failing; /* so many allocations more, the next one fails */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "seed %llu: %s:%d: %s\n", (unsigned long long)fuzz_seed, __FILE__,     \
                    __LINE__, #condition);                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inline uint32_t below(uint32_t n) {
    return (uint32_t)(ls_random(&fuzz_state) * n);
}

void fuzz_indexes(void); /* csrc_fuzz_index.c */
void fuzz_records(void); /* csrc_fuzz_record.c */

#endif
