/* csrc_fuzz.c -- random operations on the C library against slow, obvious models of it.
 *
 *     csrc_fuzz SEED        runs every part once from this seed; silent and 0 if all held
 *
 * Built with address and undefined-behaviour sanitizers and with malloc and its kin wrapped: while
 * `frozen` an allocation is a failure. tests/test_csrc.py builds and runs it.
 */
#include "csrc_fuzz.h"

uint64_t fuzz_seed, fuzz_state;
int frozen, failing;

#define WRAP(function, parameters, ...)                                                            \
    void *__real_##function parameters;                                                            \
    void *__wrap_##function parameters;                                                            \
    void *__wrap_##function parameters {                                                           \
        CHECK(!frozen);                                                                            \
        if (failing && --failing == 0) return NULL;                                                \
        return __real_##function(__VA_ARGS__);                                                     \
    }
WRAP(malloc, (size_t size), size)
WRAP(calloc, (size_t count, size_t size), count, size)
WRAP(realloc, (void *old, size_t size), old, size)

/* ---- The router against a list of what was dispatched ------------------------------------------- */

#define SLOTS 7
#define MOST 512

static struct shadow {
    int64_t ticket;
    uint32_t slot, tenant, own, prompt, output;
    int state, streaming; /* state: 0 closed, 1 prefill, 2 decode */
} shadows[MOST];
static uint32_t shadow_count, tenants[SLOTS];

static void check_instances(const struct ls_router *r) {
    uint64_t open = 0;
    for (uint32_t i = 0; i < shadow_count;
         i++) { /* not streamed: it begins when it is believed to */
        uint32_t id = (uint32_t)((uint64_t)shadows[i].ticket & 0xFFFFFFFFu);
        if (shadows[i].state == 1 && !shadows[i].streaming && r->tickets[id].state == LS_DECODE)
            shadows[i].state = 2;
    }
    for (uint32_t slot = 0; slot < r->slots; slot++) {
        const struct ls_instance *x = &r->instances[slot];
        uint64_t prefill = 0, own = 0, prompt = 0, decode = 0, context = 0;
        for (uint32_t i = 0; i < shadow_count; i++) {
            const struct shadow *s = &shadows[i];
            if (s->slot != slot || s->tenant != tenants[slot]) continue;
            prefill += s->state == 1;
            own += s->state == 1 ? s->own : 0;
            prompt += s->state == 1 ? s->prompt : 0;
            decode += s->state == 2;
            context += s->state == 2 ? (uint64_t)s->prompt + s->output : 0;
        }
        if (!x->used) continue;
        CHECK(x->prefill_requests == prefill && x->prefill_own == own);
        CHECK(x->prefill_prompt == prompt);
        CHECK(x->decode_requests == decode && x->decode_context == context);
    }
    for (uint32_t i = 0; i < shadow_count; i++) open += shadows[i].state != 0;
    CHECK(r->counters.tickets_open == open);
}

static void route(struct ls_router *r, double now) {
    static char text[6000];
    struct ls_request request = {.prompt = text, .seed = "model", .streaming = below(4) > 0};
    memset(text, 'a' + (int)below(3), sizeof text);
    text[below(sizeof text)] = 'z';
    request.prompt_bytes = below(5) ? below(sizeof text) : 0;
    request.seed_bytes = below(6);
    request.prompt_tokens = below(2) ? below(5000) : 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++) r->avoid[slot] = below(8) == 0;
    int n = ls_router_prepare(r, &request, now);
    if (n == LS_ENONE) return;
    CHECK(n > 0);
    for (uint32_t i = 0; i < (uint32_t)n * LS_WIDTH; i++) CHECK(isfinite(r->rows[i]));
    uint32_t i = below((uint32_t)n);
    const struct ls_candidate *c = &r->candidates[i];
    CHECK(r->instances[c->slot].used && r->instances[c->slot].routable);
    CHECK(c->hit_tokens < r->prompt_tokens);
    float predicted = below(2) ? NAN : (float)ls_random(&fuzz_state);
    r->slo_ttft = below(2) ? 0 : (float)ls_random(&fuzz_state);
    r->slo_tpot = below(2) ? 0 : (float)ls_random(&fuzz_state) / 10;
    r->slo_told = (uint8_t)below(LS_SLOS);
    int64_t ticket = ls_router_commit(r, i, (enum ls_reason)below(LS_REASONS), predicted, 1);
    CHECK(ticket > 0 || r->counters.tickets_open == r->config.max_tickets);
    if (ticket == 0) return;
    uint32_t at = 0; /* a closed shadow's place, or a new one */
    while (at < shadow_count && shadows[at].state != 0) at++;
    shadow_count += at == shadow_count; /* at most max_tickets, which is less than MOST */
    shadows[at] = (struct shadow){
        ticket, c->slot, tenants[c->slot], r->prompt_tokens - c->hit_tokens, r->prompt_tokens,
        0,      1,       request.streaming};
}

static void observe(struct ls_router *r, double now) {
    uint64_t ignored = r->counters.observes_ignored;
    int64_t tokens = below(50) ? below(40) : (int64_t)below(9) * 1000000000000 - 1;
    enum ls_event event = (enum ls_event)below(LS_EVENTS);
    if (shadow_count == 0 || below(30) == 0) { /* nonsense */
        int64_t ticket = (int64_t)(ls_random(&fuzz_state) * 9e18) - (1ll << 50);
        if (below(2)) ticket = shadow_count ? shadows[0].ticket + (1ll << 33) : 0;
        CHECK(ls_router_observe(r, ticket, event, below(2) ? now : NAN, tokens, -1) == 0);
        CHECK(r->counters.observes_ignored == ignored + 1);
        return;
    }
    struct shadow *s = &shadows[below(shadow_count)];
    int counts = s->state != 0 && tokens >= 0 && tokens <= LS_TOKENS_MAX;
    if (event == LS_FIRST_TOKEN) counts = counts && s->state == 1 && s->streaming;
    if (event == LS_TOKENS || event == LS_USAGE) counts = counts && tokens > 0;
    int64_t cached = below(2) ? -1 : (int64_t)below(4000);
    CHECK(ls_router_observe(r, s->ticket, event, now, tokens, cached) == counts);
    CHECK(r->counters.observes_ignored == ignored + (counts ? 0 : 1));
    if (!counts) return;
    if (event == LS_FIRST_TOKEN) s->state = 2;
    if (event == LS_TOKENS) s->output += (uint32_t)tokens;
    if (event >= LS_DONE) s->state = 0;
}

static void change_fleet(struct ls_router *r) {
    uint32_t slot = below(SLOTS);
    struct ls_instance *x = &r->instances[slot];
    if (slot >= r->slots || !x->used) {
        int added = ls_router_add(r);
        CHECK(added >= 0 && added < SLOTS);
        tenants[added]++;
        r->instances[added].kv_tokens = below(2) ? below(20000) : 0;
    } else if (below(3) == 0) {
        ls_router_remove(r, slot);
        CHECK(ls_index_blocks(r->index, slot) == 0);
    } else {
        x->routable = below(3) > 0;
        x->prefix_caching = below(4) > 0;
        x->kv_tokens = below(20000);
    }
}

static void fuzz_router(void) {
    struct ls_config config = {.block_bytes = 16 + below(80),
                               .ring = 1 + below(9),
                               .max_instances = SLOTS,
                               .max_tickets = 1 + below(MOST / 2),
                               .max_samples = 1 + below(300),
                               .index_bytes = LS_INDEX_MIN_BYTES + below(100000),
                               .seed = fuzz_seed};
    for (int k = 1; k <= 15; k++) { /* 15 allocations: each may fail, and nothing leaks */
        failing = k;
        CHECK(ls_router_new(&config) == NULL && failing == 0);
    }
    struct ls_router *r = ls_router_new(&config);
    size_t most = LS_SAMPLE_HEADER + config.max_samples * sizeof(struct ls_sample);
    uint8_t *batch = malloc(most);
    CHECK(r != NULL && batch != NULL);
    shadow_count = 0;
    frozen = 1;
    double now = 1000;
    for (uint32_t step = 0; step < 6000; step++) {
        now += below(20) ? ls_random(&fuzz_state) * 0.05
                         : -ls_random(&fuzz_state); /* clocks may step back */
        uint32_t dice = below(100);
        if (dice < 30)
            route(r, now);
        else if (dice < 90)
            observe(r, now);
        else if (dice < 93)
            change_fleet(r);
        else if (dice < 98)
            ls_router_report(r, (int64_t)below(SLOTS + 4) - 2, now, below(9) ? below(99) : NAN,
                             below(9) ? below(99) : -1.0,
                             below(9) ? ls_random(&fuzz_state) * 2 : INFINITY);
        else {
            CHECK(ls_router_drain_bytes(r) <= most);
            ls_router_drain(r, batch);
            CHECK(ls_router_drain_bytes(r) == 0);
        }
        check_instances(r);
        if (step % 100 == 0) CHECK(ls_router_check(r) == 0);
    }
    for (uint32_t i = 0; i < shadow_count; i++) {
        if (shadows[i].state == 0) continue;
        CHECK(ls_router_observe(r, shadows[i].ticket, LS_DONE, now, 0, -1) == 1);
        shadows[i].state = 0;
    }
    check_instances(r);
    CHECK(r->counters.tickets_open == 0 && ls_router_check(r) == 0);
    uint64_t judged = 0; /* each request at most once, and it leaves a sample then */
    for (int told = 0; told < LS_SLOS; told++)
        judged += r->counters.slo[told][0] + r->counters.slo[told][1];
    CHECK(judged <= r->counters.samples);
    for (uint32_t slot = 0; slot < r->slots; slot++) ls_router_remove(r, slot);
    struct ls_index_stats stats;
    ls_index_stats(r->index, &stats);
    CHECK(stats.nodes == 0 && stats.holdings == 0);
    frozen = 0;
    free(batch);
    ls_router_free(r);
}

/* ---- Blobs: refused or loaded, and what is loaded never answers NaN ----------------------------- */

static uint8_t blob[400000];
static size_t blob_bytes;

static void put(const void *data, size_t bytes) {
    memcpy(blob + blob_bytes, data, bytes);
    blob_bytes += bytes;
}

static void put_floats(uint32_t n, double low, double high) {
    for (uint32_t i = 0; i < n; i++) {
        float value = (float)(low + (high - low) * ls_random(&fuzz_state));
        put(&value, sizeof value);
    }
}

static void make_blob(void) {
    uint32_t layers = below(LS_MAX_LAYERS + 1), dims[LS_MAX_LAYERS + 1] = {LS_WIDTH};
    for (uint32_t i = 1; i < layers; i++) dims[i] = 1 + below(below(2) ? 9 : LS_MAX_HIDDEN);
    if (layers) dims[layers] = 1;
    uint32_t head[] = {LS_BLOB_MAGIC, LS_BLOB_FORMAT}, rest[] = {7, LS_WIDTH, layers};
    uint64_t schema = ls_schema_hash();
    blob_bytes = 0, put(head, sizeof head), put(&schema, sizeof schema), put(rest, sizeof rest);
    if (layers) put(dims, (layers + 1) * sizeof *dims);
    put_floats(1, 0, 2);
    put_floats(LS_WIDTH, -1, 1);
    for (int i = 0; i < 2 && layers; i++) {
        put_floats(LS_WIDTH, -3, -1);
        put_floats(LS_WIDTH, 1, 3);
    }
    for (uint32_t i = 0; i < layers; i++) put_floats(dims[i + 1] * (dims[i] + 1), -1, 1);
    put_floats(2, -1, 1);
    put_floats(1, 0, 500);
    put_floats(LS_WIDTH, 0, below(2));
}

static void score(struct ls_model *model, uint32_t n) {
    float rows[9 * LS_WIDTH], seconds[9];
    uint8_t outside[9];
    for (uint32_t i = 0; i < n * LS_WIDTH; i++)
        rows[i] = (float)(4 * ls_random(&fuzz_state) - 2) * (below(20) ? 1.f : 1e30f);
    for (int simd = 0; simd < LS_SIMDS && ls_simd_has((enum ls_simd)simd); simd++) {
        model->simd = (enum ls_simd)simd;
        ls_model_score(model, rows, n, seconds, outside);
        for (uint32_t i = 0; i < n; i++) CHECK(seconds[i] >= 0 && seconds[i] <= 1e9f);
        for (uint32_t i = 0; i < n; i++)
            CHECK(ls_model_upper(model, rows + i * LS_WIDTH, seconds[i]) >= 0);
    }
    ls_model_tpot(model, rows, n, seconds);
    for (uint32_t i = 0; i < n; i++) CHECK(seconds[i] >= 1e-4f);
}

static void fuzz_blobs(struct ls_model *model) {
    for (uint32_t round = 0; round < 60; round++) {
        make_blob();
        CHECK(ls_model_load(model, blob, blob_bytes) == 0);
        CHECK(ls_model_load(model, blob, blob_bytes + 1) < 0);
        for (uint32_t k = 0; k < 40; k++) {
            size_t bytes = blob_bytes, at = below(2) ? below(64) : below((uint32_t)blob_bytes);
            if (below(3) == 0) bytes = below((uint32_t)bytes);
            uint8_t *cut = malloc(bytes); /* exact, so that reading past the end is seen */
            CHECK(cut != NULL || bytes == 0);
            memcpy(cut, blob, bytes);
            if (at < bytes) cut[at] ^= (uint8_t)below(256);
            frozen = 1;
            int error = ls_model_load(model, cut, bytes);
            CHECK(error == 0 || (error <= LS_EMAGIC && error >= LS_EVALUE));
            if (error == 0) score(model, 1 + below(9));
            frozen = 0;
            free(cut);
        }
    }
}

/* ---- Hashes: of any length and alignment, prefixes give prefixes -------------------------------- */

static void fuzz_hash(void) {
    struct ls_key key;
    uint64_t all[64], some[64];
    ls_key_init(&key, fuzz_seed);
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t bytes = below(1000), block = 16 + below(100), shorter = below(bytes + 1);
        uint8_t *text = malloc(bytes + 1); /* exact */
        CHECK(text != NULL);
        for (uint32_t i = 0; i < bytes; i++) text[i] = (uint8_t)below(256);
        uint32_t salt = below(bytes < 40 ? bytes + 1 : 40);
        uint32_t n = ls_hash_blocks(&key, text, salt, text, bytes, block, all, 64);
        uint32_t m = ls_hash_blocks(&key, text, salt, text, shorter, block, some, 64);
        CHECK(n == (bytes / block < 64 ? bytes / block : 64));
        CHECK(m <= n && memcmp(all, some, m * sizeof *all) == 0);
        if (n > 0) {
            uint32_t at = below(n * block);
            text[at] ^= (uint8_t)(1 + below(255));
            salt = salt && at < salt ? 0 : salt;
            ls_hash_blocks(&key, text, salt, text, bytes, block, some, 64);
            for (uint32_t i = at / block; i < n; i++) CHECK(all[i] != some[i]);
        }
        free(text);
    }
}

int main(int argc, char **argv) {
    fuzz_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    fuzz_state = fuzz_seed;
    fuzz_hash();
    fuzz_indexes();
    fuzz_router();
    fuzz_records();
    static struct ls_model model;
    fuzz_blobs(&model);
    return 0;
}
