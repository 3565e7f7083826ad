/* csrc_soak.c -- a long life of a router: instances join and leave, all requests come to an end.
 *
 *     csrc_soak STEPS     prints what is resident, and what the slowest decisions took of the
 *                         processor; 0 if memory stayed flat and all counters came to 0
 *     csrc_soak STEPS new the same with prompts of 32 KB that share nothing
 *
 * A step is a decision with its events. The life is lived twice, step by step the same. The clock is
 * the thread's processor time, and still has interrupts and cold caches in it; what the code itself
 * makes slow is slow both times. So the lesser time of a step is the decision's, the rest the
 * machine's. Allocation is wrapped as in csrc_fuzz.c: any after the start is a failure.
 * tests/test_csrc.py builds it with optimisation and runs it.
 */
#define _POSIX_C_SOURCE 200809L
#include "lodestar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static int frozen;

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    CHECK(!frozen);
    return __real_malloc(size);
}
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    CHECK(!frozen);
    return __real_calloc(count, size);
}

#define INSTANCES 16
#define OPEN 256
#define BUDGET (64u << 20)
#define SMALL_BUDGET (1u << 20) /* for evictions in prompts that share most of what they have */
#define PROMPT 32768

static uint64_t state = 1;
static uint32_t below(uint32_t n) {
    return (uint32_t)(ls_random(&state) * n);
}

static char text[PROMPT + 4096];

/* Unlike all before: each block gets a number of its own. */
static void make_new(uint64_t step) {
    for (uint64_t i = 0; i < PROMPT / 64; i++) {
        uint64_t unique[2] = {step, i};
        memcpy(text + i * 64, unique, sizeof unique);
    }
}

static long resident_pages(void) {
    long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &size, &resident) == 2);
    fclose(file);
    return resident;
}

static double microseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* what others do meanwhile is not counted */
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void change_fleet(struct ls_router *r) {
    uint32_t slot = below(INSTANCES);
    if (slot < r->slots && r->instances[slot].used) {
        ls_router_remove(r, slot);
        return;
    }
    int added = ls_router_add(r);
    if (added >= 0) r->instances[added].kv_tokens = below(2) ? 0 : 100000 + below(400000);
}

static void finish(struct ls_router *r, int64_t *ticket, double now) {
    if (*ticket == 0) return;
    if (below(4)) ls_router_observe(r, *ticket, LS_FIRST_TOKEN, now, 0, -1);
    if (below(2)) ls_router_observe(r, *ticket, LS_TOKENS, now, 1 + below(20), -1);
    if (below(2))
        ls_router_observe(r, *ticket, LS_USAGE, now, 1 + below(9000), (int64_t)below(9000));
    enum ls_event last = below(20) ? LS_DONE : LS_FAILED + below(3);
    CHECK(ls_router_observe(r, *ticket, last, now, below(300), -1) == 1);
    *ticket = 0;
}

/* The three greatest, greatest first. */
static void rank(double took, double greatest[3]) {
    for (int i = 0; i < 3; i++) {
        double less = took < greatest[i] ? took : greatest[i];
        greatest[i] = took > greatest[i] ? took : greatest[i];
        took = less;
    }
}

/* One life from nothing to nothing. took: of each step, the least microseconds so far. Returns what
 * the index gave up, which two equal lives have in common. */
static uint64_t live(uint64_t steps, int unique, float *took) {
    size_t budget = unique ? BUDGET : SMALL_BUDGET;
    struct ls_config config = {.block_bytes = 64,
                               .ring = 64,
                               .max_instances = INSTANCES,
                               .max_tickets = OPEN,
                               .max_samples = 1024,
                               .index_bytes = budget,
                               .seed = 1};
    struct ls_router *r = ls_router_new(&config);
    CHECK(r != NULL);
    static int64_t tickets[OPEN];
    double slowest[3] = {0};
    struct ls_index_stats stats;
    double now = 0;
    long before = 0;
    state = 1;
    for (uint32_t i = 0; i < sizeof text; i++) text[i] = (char)below(256);
    for (int i = 0; i < INSTANCES / 2; i++) CHECK(ls_router_add(r) == i);
    frozen = 1;
    for (uint64_t step = 0; step < steps; step++) {
        now += 0.001;
        int64_t *ticket = &tickets[below(OPEN)];
        finish(r, ticket, now);
        if (!unique && below(1000) == 0) change_fleet(r);
        struct ls_request request = {.prompt = text, .streaming = below(8) > 0};
        request.prompt_bytes = unique ? PROMPT : below(4096);
        if (unique) {
            make_new(step);
        } else { /* many starts, most of it shared, a fork somewhere */
            request.prompt = text + 64 * below(PROMPT / 64);
            text[below(PROMPT)] = (char)below(256);
        }
        double start = microseconds();
        int n = ls_router_prepare(r, &request, now);
        if (n > 0) *ticket = ls_router_commit(r, below((uint32_t)n), LS_HEURISTIC, NAN, 0);
        double us = microseconds() - start;
        rank(us, slowest);
        if (us < (double)took[step]) took[step] = (float)us;
        if (step % 1024 == 0) {
            ls_index_stats(r->index, &stats);
            CHECK(stats.used_bytes <= stats.budget_bytes && stats.budget_bytes <= budget);
        }
        if (step % (steps / 8 + 1) == 0) CHECK(ls_router_check(r) == 0);
        if (step == steps / 2) before = resident_pages();
    }
    frozen = 0;
    long after = resident_pages();
    frozen = 1;
    for (int i = 0; i < OPEN; i++) finish(r, &tickets[i], now);
    CHECK(r->counters.tickets_open == 0 && ls_router_check(r) == 0);
    for (uint32_t slot = 0; slot < r->slots; slot++) {
        const struct ls_instance *x = &r->instances[slot];
        if (!x->used) continue;
        CHECK(x->prefill_requests + x->prefill_own + x->prefill_prompt == 0);
        CHECK(x->decode_requests + x->decode_context == 0);
        ls_router_remove(r, slot);
    }
    ls_index_stats(r->index, &stats);
    CHECK(stats.nodes == 0 && stats.holdings == 0 && stats.evictions > 0);
    frozen = 0;
    ls_router_free(r);
    long page = sysconf(_SC_PAGESIZE);
    printf("%llu steps, %ld KB resident at half time, %ld KB at the end; slowest decisions"
           " %.0f %.0f %.0f us\n",
           (unsigned long long)steps, before * page / 1024, after * page / 1024, slowest[0],
           slowest[1], slowest[2]);
    CHECK((after - before) * page <= 1 << 20);
    return stats.evictions;
}

int main(int argc, char **argv) {
    uint64_t steps = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    int unique = argc > 2;
    double slowest[3] = {0};
    float *took = malloc(steps * sizeof *took);
    CHECK(took != NULL);
    for (uint64_t i = 0; i < steps; i++) took[i] = INFINITY; /* resident from the start */
    uint64_t evictions = live(steps, unique, took);
    CHECK(live(steps, unique, took) == evictions);
    for (uint64_t i = 0; i < steps; i++) rank((double)took[i], slowest);
    printf("slow both times: %.0f %.0f %.0f us\n", slowest[0], slowest[1], slowest[2]);
    free(took);
    return 0;
}
