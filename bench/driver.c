/* driver.c -- the hot functions of the C library, each alone, for counting instructions and for a
 * look at nanoseconds without Python.
 *
 *     driver                      the names
 *     driver NAME ROUNDS          run the case that often inside measured(), which callgrind watches
 *     driver NAME ROUNDS time     nanoseconds of a round: least, median, 99th percentile, most
 *     driver NAME ROUNDS cpu      the same of the thread's processor time: on a busy machine the tail
 *                                 of the other is the scheduler's
 *
 * instructions.py is its caller. Everything is drawn from one seed: counts repeat exactly with the
 * same compiler. Prompts are those of bench_core.py: a quarter of 8 tenants, half of 64 histories
 * under them, a quarter new.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime() */
#include "lodestar.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PROMPTS 256
#define OPEN_EACH 4 /* requests in flight on each instance, half of them decoding */
#define MOST_ROUNDS 20000

static uint64_t state = 1;
static struct ls_router *r;
static struct ls_model model;
static char *prompts[PROMPTS];
static size_t prompt_bytes;
static uint32_t turn;
static double now = 1;
static int64_t open_tickets[OPEN_EACH * LS_MAX_INSTANCES];
static uint32_t open_count, open_first;

static uint32_t below(uint32_t n) {
    return (uint32_t)(ls_random(&state) * n);
}

static void *must(void *pointer) {
    if (pointer == NULL) exit(3);
    return pointer;
}

/* ---- What the cases run on ------------------------------------------------------------------- */

static void fill(char *text, size_t n) {
    for (size_t i = 0; i < n; i++) text[i] = (char)('a' + below(26));
}

static void make_prompts(uint32_t tokens) {
    prompt_bytes = (size_t)tokens * 4;
    char *tenants = must(malloc(8 * prompt_bytes)), *histories = must(malloc(64 * prompt_bytes));
    fill(tenants, 8 * prompt_bytes);
    fill(histories, 64 * prompt_bytes);
    for (int i = 0; i < PROMPTS; i++) {
        uint32_t history = below(64);
        char *p = prompts[i] = must(malloc(prompt_bytes));
        memcpy(p, tenants + history % 8 * prompt_bytes, prompt_bytes / 4);
        memcpy(p + prompt_bytes / 4, histories + history * prompt_bytes, prompt_bytes / 2);
        fill(p + prompt_bytes / 4 * 3, prompt_bytes / 4);
    }
    free(tenants);
    free(histories);
}

static void make_model(uint32_t layers, uint32_t hidden) {
    static uint8_t blob[400000];
    uint32_t dims[LS_MAX_LAYERS + 1] = {LS_WIDTH},
                                  floats = 1 + LS_WIDTH + (layers ? 4 * LS_WIDTH : 0);
    for (uint32_t i = 1; i <= layers; i++) {
        dims[i] = i < layers ? hidden : 1;
        floats += dims[i] * (dims[i - 1] + 1);
    }
    uint32_t head[] = {LS_BLOB_MAGIC, LS_BLOB_FORMAT}, rest[] = {7, LS_WIDTH, layers};
    uint64_t schema = ls_schema_hash();
    uint8_t *at = blob;
    memcpy(at, head, sizeof head);
    memcpy(at += sizeof head, &schema, sizeof schema);
    memcpy(at += sizeof schema, rest, sizeof rest);
    at += sizeof rest;
    if (layers) memcpy(at, dims, (layers + 1) * sizeof *dims);
    at += layers ? (layers + 1) * sizeof *dims : 0;
    for (uint32_t i = 0; i < floats; i++, at += sizeof(float)) {
        uint32_t range = i < 1 + LS_WIDTH ? 9 : (i - 1 - LS_WIDTH) / LS_WIDTH; /* clips, ranges */
        float value = (float)(ls_random(&state) * 2 - 1) * (hidden > 64 ? 0.15f : 0.3f);
        if (i == 0) value = 0.7f;
        if (i > 0 && i <= LS_WIDTH) value = fabsf(value);
        if (range == 0 || range == 2) value = -1e6f;
        if (range == 1 || range == 3) value = 1e6f;
        memcpy(at, &value, sizeof value);
    }
    at += (3 + LS_WIDTH) * sizeof(float); /* the other heads know nothing */
    if (ls_model_load(&model, blob, (size_t)(at - blob)) < 0) exit(4);
}

static struct ls_request next_request(void) {
    return (struct ls_request){.prompt = prompts[turn++ % PROMPTS],
                               .prompt_bytes = prompt_bytes,
                               .seed = "model",
                               .seed_bytes = 5,
                               .streaming = 1};
}

static int settling; /* while a case is set up: any instance, as the model is slow under valgrind */

static uint32_t choose(void) {
    static float seconds[LS_MAX_INSTANCES];
    static uint8_t outside[LS_MAX_INSTANCES];
    if (settling) return below(r->n);
    ls_model_score(&model, r->rows, r->n, seconds, outside);
    uint32_t best = 0;
    for (uint32_t i = 1; i < r->n; i++)
        if (seconds[i] < seconds[best]) best = i;
    return best;
}

/* One decision, with the events that keep OPEN_EACH requests on each instance. */
static void route(void) {
    uint32_t most = r->slots * OPEN_EACH;
    now += 0.005;
    if (open_count == most) {
        int64_t *oldest = &open_tickets[open_first % most];
        ls_router_observe(r, open_tickets[(open_first + most / 2) % most], LS_FIRST_TOKEN, now, 0,
                          -1);
        ls_router_observe(r, *oldest, LS_DONE, now, 100, -1);
        open_first++;
        open_count--;
    }
    struct ls_request request = next_request();
    if (ls_router_prepare(r, &request, now) < 0) exit(5);
    int64_t ticket = ls_router_commit(r, choose(), LS_LEARNED, 0.1f, 7);
    open_tickets[(open_first + open_count++) % most] = ticket;
}

static void make_router(uint32_t instances, uint32_t tokens, size_t index_bytes) {
    struct ls_config config = {.block_bytes = 64,
                               .ring = 64,
                               .max_instances = instances,
                               .max_tickets = 16384,
                               .max_samples = 8192,
                               .index_bytes = index_bytes,
                               .seed = 1};
    r = must(ls_router_new(&config));
    make_prompts(tokens);
    make_model(3, 32);
    for (uint32_t i = 0; i < instances; i++) r->instances[ls_router_add(r)].kv_tokens = 400000;
    settling = 1;
    for (uint32_t i = 0; i < 2 * OPEN_EACH * instances; i++) route();
    for (uint32_t i = 0; instances < PROMPTS && i < PROMPTS; i++) route();
    settling = 0;
}

/* ---- The cases ------------------------------------------------------------------------------- */

static float score_rows[LS_MAX_INSTANCES * LS_WIDTH], score_seconds[LS_MAX_INSTANCES];
static uint8_t score_outside[LS_MAX_INSTANCES];

static void score(void) {
    ls_model_score(&model, score_rows, 16, score_seconds, score_outside);
}
static void hash(void) {
    ls_hash_blocks(&r->key, "model", 5, prompts[0], prompt_bytes, 64, r->hashes, LS_MAX_BLOCKS);
}
static void match(void) {
    memset(r->hits, 0, r->slots * sizeof *r->hits);
    ls_index_match(r->index, r->hashes, r->blocks, r->hits);
}
static void insert(void) { /* what is known already: the path becomes the newest */
    ls_index_insert(r->index, turn++ % r->slots, r->hashes, r->blocks, 0);
}
static void insert_new(void) { /* nothing is known, and the index is full: as much goes as comes */
    for (uint32_t i = 0; i < 512; i++)
        r->hashes[i] = (uint64_t)(ls_random(&state) * 0x1p53) * 0x9E3779B97F4A7C15u;
    ls_index_insert(r->index, turn++ % r->slots, r->hashes, 512, 0);
}
static void prepare(void) {
    struct ls_request request = next_request();
    ls_router_prepare(r, &request, now);
}
static void events(void) { /* a streamed token */
    ls_router_observe(r, open_tickets[(open_first + open_count / 4) % (r->slots * OPEN_EACH)],
                      LS_TOKENS, now, 1, -1);
}

static void setup_score(uint32_t layers, uint32_t hidden) {
    make_model(layers, hidden);
    for (uint32_t i = 0; i < 16 * LS_WIDTH; i++) score_rows[i] = (float)ls_random(&state) * 1.5f;
}
static void setup_linear(void) {
    setup_score(0, 0);
}
static void setup_small(void) {
    setup_score(3, 32);
}
static void setup_large(void) {
    setup_score(4, 128);
}
static void setup_8(void) {
    make_router(8, 4096, 64 << 20);
}
static void setup_8_long(void) {
    make_router(8, 32768, 64 << 20);
}
static void setup_64(void) {
    make_router(64, 4096, 64 << 20);
}
static void setup_1024(void) {
    make_router(1024, 4096, 64 << 20);
}
static void setup_tight(void) { /* far less index than prompts need */
    make_router(8, 4096, 1 << 20);
}
static void setup_full(void) {
    make_router(8, 4096, 4 << 20);
    for (int i = 0; i < 2000; i++) insert_new();
}
static void setup_portable(void) {
    setup_small();
    model.simd = LS_PORTABLE;
}
/* A prompt of half a million tokens that 32 instances hold. */
static void setup_shared(void) {
    make_router(64, 4096, 64 << 20);
    for (uint32_t i = 0; i < LS_MAX_BLOCKS; i++)
        r->hashes[i] = (uint64_t)(ls_random(&state) * 0x1p53) * 0x9E3779B97F4A7C15u;
    r->blocks = LS_MAX_BLOCKS / 2;
    for (uint32_t slot = 0; slot < 32; slot++)
        ls_index_insert(r->index, slot, r->hashes, r->blocks, 0);
}

static const struct bench_case {
    const char *name;
    void (*setup)(void), (*run)(void);
} cases[] = {
    {"hash-4096", setup_8, hash},
    {"match-8-4096", setup_8, match},
    {"match-64-4096", setup_64, match},
    {"match-64-524288", setup_shared, match},
    {"insert-8-4096", setup_8, insert},
    {"insert-new-8192", setup_full, insert_new},
    {"score-linear-16", setup_linear, score},
    {"score-mlp-2x32-16", setup_small, score},
    {"score-mlp-3x128-16", setup_large, score},
    {"score-portable-mlp-2x32-16", setup_portable, score},
    {"prepare-8-4096", setup_8, prepare},
    {"prepare-64-4096", setup_64, prepare},
    {"route-8-4096", setup_8, route},
    {"route-8-32768", setup_8_long, route},
    {"route-64-4096", setup_64, route},
    {"route-1024-4096", setup_1024, route},
    {"route-tight-8-4096", setup_tight, route},
    {"observe", setup_8, events},
};

/* ---- The two ways to run them ---------------------------------------------------------------- */

/* The name that callgrind collects in: nothing but the rounds. */
__attribute__((noinline)) void measured(void (*run)(void), uint32_t rounds);
void measured(void (*run)(void), uint32_t rounds) {
    for (uint32_t i = 0; i < rounds; i++) run();
}

static double seconds_now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show_times(void (*run)(void), uint32_t rounds, clockid_t clock) {
    static double times[MOST_ROUNDS];
    for (uint32_t i = 0; i < rounds; i++) {
        double start = seconds_now(clock);
        run();
        times[i] = seconds_now(clock) - start;
    }
    qsort(times, rounds, sizeof *times, by_size);
    double tick = seconds_now(clock);
    tick = seconds_now(clock) - tick; /* what reading the clock costs is taken off */
    uint32_t shown[] = {0, rounds / 2, rounds / 100 * 99, rounds - 1};
    for (int i = 0; i < 4; i++) printf("%10.0f", (times[shown[i]] - tick) * 1e9);
    putchar('\n');
}

int main(int argc, char **argv) {
    size_t n = sizeof cases / sizeof *cases;
    if (argc < 3) {
        for (size_t i = 0; i < n; i++) puts(cases[i].name);
        return 0;
    }
    uint32_t rounds = (uint32_t)strtoul(argv[2], NULL, 10);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(cases[i].name, argv[1]) != 0) continue;
        cases[i].setup();
        cases[i].run();
        if (argc > 3)
            show_times(cases[i].run, rounds < MOST_ROUNDS ? rounds : MOST_ROUNDS,
                       strcmp(argv[3], "cpu") ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID);
        else
            measured(cases[i].run, rounds);
        return 0;
    }
    return 2;
}
