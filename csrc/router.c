/* router.c -- instances, and the rows of features from which a policy chooses.
 *
 * A decision is prepare, pick, commit. prepare changes nothing that a later decision could see, but
 * for the speeds, which are renewed here when they are out of date.
 */
#include "lodestar.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHRINK_EVERY 0.02   /* seconds; more often would not change a decision */
#define FIRST_RATIO 4.0     /* bytes per token of English text before any usage was seen ... */
#define FIRST_TOKENS 2000.0 /* ... and the tokens it weighs as much as */
#define HEAD_PROGRESS 0.9   /* at most this much of the oldest request is believed computed */

struct ls_router *ls_router_new(const struct ls_config *config) {
    struct ls_router *r = calloc(1, sizeof *r);
    if (r == NULL) return NULL;
    size_t n = config->max_instances;
    r->config = *config;
    ls_key_init(&r->key, config->seed);
    r->rng = config->seed;
    ls_speed_pool_init(&r->pool);
    r->known_bytes = FIRST_RATIO * FIRST_TOKENS;
    r->known_tokens = FIRST_TOKENS;
    r->fresh_ticket = 1;
    r->index = ls_index_new(config->index_bytes, config->max_instances);
    r->instances = calloc(n, sizeof *r->instances);
    r->candidates = calloc(n, sizeof *r->candidates);
    r->rows = calloc(n * LS_WIDTH, sizeof *r->rows);
    r->hashes = calloc(LS_MAX_BLOCKS, sizeof *r->hashes);
    r->hits = calloc(n, sizeof *r->hits);
    r->avoid = calloc(n, sizeof *r->avoid);
    r->tickets = calloc((size_t)config->max_tickets + 1, sizeof *r->tickets);
    r->samples = calloc(config->max_samples, sizeof *r->samples);
    r->ring_memory = calloc(3 * n * config->ring, sizeof *r->ring_memory);
    if (r->index && r->instances && r->candidates && r->rows && r->hashes && r->hits && r->avoid &&
        r->tickets && r->samples && r->ring_memory)
        return r;
    ls_router_free(r);
    return NULL;
}

void ls_router_free(struct ls_router *r) {
    if (r == NULL) return;
    ls_index_free(r->index);
    free(r->instances);
    free(r->candidates);
    free(r->rows);
    free(r->hashes);
    free(r->hits);
    free(r->avoid);
    free(r->tickets);
    free(r->samples);
    free(r->ring_memory);
    free(r);
}

/* ---- Membership ------------------------------------------------------------------------------ */

int ls_router_add(struct ls_router *r) {
    uint32_t slot = 0;
    while (slot < r->config.max_instances && r->instances[slot].used) slot++;
    if (slot == r->config.max_instances) return LS_EFULL;
    struct ls_instance *x = &r->instances[slot];
    float *memory = r->ring_memory + (size_t)3 * slot * r->config.ring;
    *x = (struct ls_instance){.used = 1, .routable = 1, .prefix_caching = 1, .epoch = x->epoch + 1};
    ls_speed_init(&x->speed, &r->pool);
    ls_ring_init(&x->ttft, memory, r->config.ring);
    ls_ring_init(&x->prefill_rate, memory + r->config.ring, r->config.ring);
    ls_ring_init(&x->inter_token, memory + 2 * (size_t)r->config.ring, r->config.ring);
    if (slot >= r->slots) r->slots = slot + 1;
    return (int)slot;
}

void ls_router_remove(struct ls_router *r, uint32_t slot) {
    ls_index_forget(r->index, slot);
    r->instances[slot].used = 0;
    r->pool.dirty = 1;
}

double ls_router_bytes_per_token(const struct ls_router *r) {
    return ls_max(0.25, ls_min(64, r->known_bytes / r->known_tokens));
}

int ls_router_report(struct ls_router *r, int64_t slot, double now, double running, double waiting,
                     double kv_usage) {
    int sane = slot >= 0 && slot < r->slots && r->instances[slot].used && isfinite(now) &&
               running >= 0 && running <= LS_TOKENS_MAX && waiting >= 0 &&
               waiting <= LS_TOKENS_MAX && kv_usage >= 0 &&
               kv_usage <= LS_TOKENS_MAX; /* comparisons refuse NaN */
    if (!sane) {
        r->counters.reports_ignored++;
        return 0;
    }
    struct ls_instance *x = &r->instances[slot];
    x->reported = 1;
    x->reported_at = now;
    x->running = running;
    x->waiting = waiting;
    x->kv_usage = ls_min(kv_usage, 1);
    return 1;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* What is ahead, in uncached tokens and as work: what was dispatched, less what has probably been
 * computed of the oldest. */
static void look_ahead(const struct ls_router *r, const struct ls_instance *x, struct ls_view *v) {
    v->queued = (double)x->prefill_own;
    v->ahead = (double)x->prefill_work;
    if (!x->oldest) return;
    const struct ls_ticket *head = &r->tickets[x->oldest];
    double since = ls_max(x->speed.at, head->dispatched), work = (double)head->work;
    double share = ls_min((r->now - since) / x->speed.shrunk / work, HEAD_PROGRESS);
    v->queued -= ls_max(share, 0) * head->own_tokens;
    v->ahead -= ls_max(share, 0) * work;
}

/* How far the longest-waiting streamed request is beyond what was expected of it, seconds. */
static double overdue(const struct ls_router *r, const struct ls_instance *x) {
    if (!x->oldest) return 0;
    const struct ls_ticket *head = &r->tickets[x->oldest];
    double expected = (double)(isnan(head->predicted) ? head->expected : head->predicted);
    return ls_max(0, r->now - head->dispatched - expected);
}

static void fill_row(const struct ls_view *v, float *row) {
#define FILL_ROW(name, unit, scale, expression, help)                                              \
    row[LS_F_##name] = (float)((expression) * (scale));
    LS_FEATURES(FILL_ROW)
#undef FILL_ROW
}

static double hit_age(const struct ls_router *r, const struct ls_instance *x, uint32_t slot) {
    double tokens = x->learned_tokens > 0 ? x->learned_tokens : (double)x->kv_tokens;
    return ls_index_age(r->index, slot, r->hits[slot].stamp, tokens * r->blocks_per_token);
}

static void fill_candidate(struct ls_router *r, uint32_t slot, struct ls_candidate *c, float *row) {
    const struct ls_instance *x = &r->instances[slot];
    double prompt = r->prompt_tokens, capacity = (double)x->kv_tokens;
    uint32_t hit = 0;
    if (r->hits[slot].blocks > 0) {
        double share =
            (double)r->hits[slot].blocks * r->config.block_bytes / (double)r->prompt_bytes;
        hit = (uint32_t)(share * prompt + 1e-6);
        if (hit >= r->prompt_tokens) hit = r->prompt_tokens - 1; /* engines compute one at least */
    }
    double in_cache = (double)(x->decode_context + x->prefill_prompt) + prompt;
    struct ls_view v = {
        .prompt = prompt,
        .own = prompt - hit,
        .hit = hit,
        .hit_age = hit ? hit_age(r, x, slot) : 0,
        .speed = x->speed.shrunk,
        .work = ls_work(prompt, prompt - hit),
        .prefill = (double)x->prefill_requests,
        .decode = (double)x->decode_requests,
        .context = (double)x->decode_context,
        .occupancy = capacity > 0 ? in_cache / capacity : 0,
        .overdue = overdue(r, x),
        .inter_token = ls_ring_mean(&x->inter_token),
        .reported_running = x->running,
        .reported_waiting = x->waiting,
        .reported_kv_usage = x->kv_usage,
        .report_age = x->reported ? ls_max(0, ls_min(1, r->now - x->reported_at)) : 1,
    };
    look_ahead(r, x, &v);
    fill_row(&v, row);
    *c = (struct ls_candidate){
        .slot = slot,
        .hit_blocks = r->hits[slot].blocks,
        .hit_tokens = hit,
        .waiting = (uint32_t)x->prefill_requests,
        .inflight = (uint32_t)(x->prefill_requests + x->decode_requests),
        .own = (float)v.own,
        .queued = (float)v.queued,
        .speed = (float)v.speed,
        .occupancy = (float)v.occupancy,
        .own_seconds = (float)(v.speed * v.work),
        .expected = (float)(LS_IDLE_SECONDS + v.speed * (v.work + v.ahead)),
    };
}

static void renew_speeds(struct ls_router *r) {
    double age = r->now - r->pool.shrunk_at;
    if (!r->pool.dirty || (age >= 0 && age < SHRINK_EVERY)) return;
    ls_speed_shrink(&r->pool, &r->instances->speed, &r->instances->used, r->slots,
                    sizeof *r->instances);
    r->pool.shrunk_at = r->now;
}

int ls_router_prepare(struct ls_router *r, const struct ls_request *request, double now) {
    r->now = now;
    r->request = request;
    r->reference = NAN;
    r->streaming = request->streaming;
    r->prompt_bytes = request->prompt_bytes;
    double tokens = request->prompt_tokens, bytes_per_token = ls_router_bytes_per_token(r);
    if (tokens < 1) tokens = (double)request->prompt_bytes / bytes_per_token;
    r->blocks_per_token = bytes_per_token / r->config.block_bytes;
    r->prompt_tokens = (uint32_t)ls_max(1, ls_min(tokens + 0.5, LS_TOKENS_MAX));
    r->blocks =
        ls_hash_blocks(&r->key, request->seed, request->seed_bytes, request->prompt,
                       request->prompt_bytes, r->config.block_bytes, r->hashes, LS_MAX_BLOCKS);
    memset(r->hits, 0, r->slots * sizeof *r->hits);
    r->known = ls_index_match(r->index, r->hashes, r->blocks, r->hits);
    renew_speeds(r);
    r->n = 0;
    for (uint32_t slot = 0; slot < r->slots; slot++) {
        const struct ls_instance *x = &r->instances[slot];
        if (!x->used || !x->routable || r->avoid[slot]) continue;
        if (x->quiet_oldest) ls_router_ripen(r, slot);
        fill_candidate(r, slot, &r->candidates[r->n], r->rows + (size_t)r->n * LS_WIDTH);
        r->n++;
    }
    memset(r->avoid, 0, r->config.max_instances);
    return r->n > 0 ? (int)r->n : LS_ENONE;
}

uint64_t ls_router_prompt_key(const struct ls_router *r) {
    uint64_t ends[2] = {r->blocks ? r->hashes[r->blocks - 1] : 0, r->blocks}, key;
    size_t whole = (size_t)r->blocks * r->config.block_bytes, rest = r->prompt_bytes - whole;
    if (rest > r->config.block_bytes) rest = r->config.block_bytes; /* beyond LS_MAX_BLOCKS */
    const uint8_t *tail = rest ? (const uint8_t *)r->request->prompt + whole : NULL;
    ls_hash_blocks(&r->key, tail, rest, ends, sizeof ends, sizeof ends, &key, 1);
    return key;
}

/* ---- Self-check ------------------------------------------------------------------------------ */

int ls_router_check(const struct ls_router *r) {
    uint64_t open = 0, linked = 0, in_line = 0;
    for (uint32_t slot = 0; slot < r->slots; slot++) {
        const struct ls_instance *x = &r->instances[slot];
        if (!x->used) continue;
        uint64_t prefill = 0, own = 0, work = 0, prompt = 0, decode = 0, context = 0;
        struct ls_pace pace = {0};
        for (uint32_t i = 1; i < r->fresh_ticket; i++) {
            struct ls_ticket copy = r->tickets[i], *t = &copy;
            if (t->state == LS_FREE || t->slot != slot || t->epoch != x->epoch) continue;
            ls_pace_enter(&pace, t);
            ls_pace_update(&pace, t);
            if (t->state == LS_PREFILL) {
                prefill++;
                own += t->own_tokens;
                work += t->work;
                prompt += t->prompt_tokens;
                in_line++;
            } else {
                decode++;
                context += (uint64_t)t->prompt_tokens + t->output_tokens;
            }
        }
        if (prefill != x->prefill_requests || own != x->prefill_own || prompt != x->prefill_prompt)
            return LS_EINVARIANT;
        if (work != x->prefill_work) return LS_EINVARIANT;
        if (memcmp(&pace, &x->pace, sizeof pace) != 0) return LS_EINVARIANT;
        if (decode != x->decode_requests || context != x->decode_context) return LS_EINVARIANT;
        for (int streaming = 0; streaming < 2; streaming++) {
            uint32_t older = 0, newest = streaming ? x->newest : x->quiet_newest;
            for (uint32_t i = streaming ? x->oldest : x->quiet_oldest; i;
                 older = i, i = r->tickets[i].newer) {
                const struct ls_ticket *t = &r->tickets[i];
                if (t->older != older || t->state != LS_PREFILL || t->streaming != streaming)
                    return LS_EINVARIANT;
                if (++linked > r->config.max_tickets) return LS_EINVARIANT;
            }
            if (older != newest) return LS_EINVARIANT;
        }
    }
    for (uint32_t i = 1; i < r->fresh_ticket; i++) open += r->tickets[i].state != LS_FREE;
    if (open != r->counters.tickets_open || linked != in_line) return LS_EINVARIANT;
    return ls_index_check(r->index);
}
