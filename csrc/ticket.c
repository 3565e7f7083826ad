/* ticket.c -- a dispatched request from commit to its final event, and the samples it leaves.
 *
 *   commit --> PREFILL --FIRST_TOKEN--> DECODE --DONE, FAILED, ABANDONED, TIMEOUT--> FREE
 *                 '------------- any final event (not streamed: the rule) ------------^
 *
 * Every counter of an instance is a sum over its open tickets, so what commit adds, exactly one of
 * these steps takes away. A ticket whose instance is gone (epoch) still runs its course and counts
 * nowhere.
 */
#include "record.h"

#include <math.h>
#include <string.h>

#define SLACK_BLOCKS 2.0   /* believed and found blocks differ in size and place by so much ... */
#define SLACK_SHARE 0.03   /* ... and bytes stand for more tokens here than there */
#define SHRINK_MOST 0.0625 /* of a capacity that one answer can take away ... */
#define GROW_MOST 0.0625   /* ... or add */
#define USAGE_DECAY 0.99   /* bytes per token: a memory of 100 answers */

_Static_assert(sizeof(struct ls_sample) % 8 == 0, "rows stay aligned");
_Static_assert(offsetof(struct ls_sample, ttft) == 8 + 4 * LS_WIDTH, "no holes");
_Static_assert(offsetof(struct ls_sample, event) == 8 + 4 * LS_WIDTH + 51, "no holes");

/* ---- Open and close -------------------------------------------------------------------------- */

/* The instance of a ticket, or NULL if it was removed meanwhile. */
static struct ls_instance *instance_of(struct ls_router *r, const struct ls_ticket *t) {
    struct ls_instance *x = &r->instances[t->slot];
    return x->used && x->epoch == t->epoch ? x : NULL;
}

static void enter_prefill(struct ls_router *r, struct ls_instance *x, uint32_t id) {
    struct ls_ticket *t = &r->tickets[id];
    x->prefill_requests++;
    x->prefill_own += t->own_tokens;
    x->prefill_work += t->work;
    x->prefill_prompt += t->prompt_tokens;
    uint32_t *oldest = t->streaming ? &x->oldest : &x->quiet_oldest;
    uint32_t *newest = t->streaming ? &x->newest : &x->quiet_newest;
    t->older = *newest;
    t->newer = 0;
    *(*newest ? &r->tickets[*newest].newer : oldest) = id;
    *newest = id;
}

static void leave_prefill(struct ls_router *r, struct ls_instance *x, struct ls_ticket *t) {
    x->prefill_requests--;
    x->prefill_own -= t->own_tokens;
    x->prefill_work -= t->work;
    x->prefill_prompt -= t->prompt_tokens;
    uint32_t *oldest = t->streaming ? &x->oldest : &x->quiet_oldest;
    uint32_t *newest = t->streaming ? &x->newest : &x->quiet_newest;
    *(t->older ? &r->tickets[t->older].newer : oldest) = t->newer;
    *(t->newer ? &r->tickets[t->newer].older : newest) = t->older;
}

static void enter_decode(struct ls_instance *x, struct ls_ticket *t) {
    x->decode_requests++;
    x->decode_context += (uint64_t)t->prompt_tokens + t->output_tokens;
    t->state = LS_DECODE;
}

/* The oldest request that is not streamed is believed to have its first token. */
static void ripen_oldest(struct ls_router *r, struct ls_instance *x) {
    struct ls_ticket *t = &r->tickets[x->quiet_oldest];
    leave_prefill(r, x, t);
    enter_decode(x, t);
}

void ls_router_ripen(struct ls_router *r, uint32_t slot) {
    struct ls_instance *x = &r->instances[slot];
    while (x->quiet_oldest) {
        const struct ls_ticket *t = &r->tickets[x->quiet_oldest];
        double expected = (double)(isnan(t->predicted) ? t->expected : t->predicted);
        if (r->now - t->dispatched <= expected) return;
        ripen_oldest(r, x);
    }
}

uint64_t ls_router_capacity(const struct ls_router *r, const struct ls_instance *x) {
    double tokens = x->learned_tokens > 0 ? x->learned_tokens : (double)x->kv_tokens;
    return (uint64_t)ceil(tokens * ls_router_bytes_per_token(r) / r->config.block_bytes);
}

/* The prompt's blocks are entered for the instance, behind what its answers took meanwhile. Not so
 * a prompt longer than the cache: it will be refused, and must not push out what is there. */
static struct ls_path remember(struct ls_router *r, struct ls_instance *x, uint32_t slot) {
    double per_token = ls_router_bytes_per_token(r) / r->config.block_bytes; /* blocks */
    uint64_t capacity = ls_router_capacity(r, x);
    if (x->kv_tokens > 0 && r->prompt_tokens > x->kv_tokens) return (struct ls_path){0};
    if (capacity > 0) {
        uint64_t answered = (uint64_t)(x->unplaced * per_token);
        ls_index_spend(r->index, slot, answered, capacity);
        x->unplaced -= (double)answered / per_token;
        if (r->blocks > 0) /* the last block, which is not whole */
            x->unplaced += ls_max(0, r->prompt_tokens - r->blocks / per_token);
    }
    ls_index_insert(r->index, slot, r->hashes, r->blocks, capacity);
    return ls_index_path(r->index);
}

int64_t ls_router_commit(struct ls_router *r, uint32_t i, enum ls_reason reason, float predicted,
                         uint32_t weights_version) {
    const struct ls_candidate *c = &r->candidates[i];
    struct ls_instance *x = &r->instances[c->slot];
    r->counters.decisions[reason]++;
    x->decisions++;
    if (!isnan(predicted)) ls_hist_add(&r->counters.predicted, (double)predicted);
    struct ls_path path = {0};
    if (x->prefix_caching) path = remember(r, x, c->slot);
    uint32_t id = r->free_ticket;
    if (id) {
        r->free_ticket = r->tickets[id].newer;
    } else if (r->fresh_ticket <= r->config.max_tickets) {
        id = r->fresh_ticket++;
    } else {
        r->counters.tickets_full++;
        ls_index_release(r->index, c->slot, &path, 0);
        return 0;
    }
    struct ls_ticket *t = &r->tickets[id];
    *t = (struct ls_ticket){
        .dispatched = r->now,
        .generation = (t->generation + 1) & 0x7FFFFFFF,
        .epoch = x->epoch,
        .prompt_tokens = r->prompt_tokens,
        .own_tokens = r->prompt_tokens - c->hit_tokens,
        .work = (uint64_t)(ls_work(r->prompt_tokens, r->prompt_tokens - c->hit_tokens) + 0.5),
        .hit_tokens = c->hit_tokens,
        .cached_tokens = LS_UNKNOWN,
        .weights_version = weights_version,
        .tenant = r->tenant,
        .prompt_bytes = r->prompt_bytes,
        .path = path,
        .hit_blocks = c->hit_blocks,
        .predicted = predicted,
        .expected = c->expected,
        .reference = r->reference,
        .propensity = NAN,
        .slo_ttft = r->slo_ttft,
        .slo_tpot = r->slo_tpot,
        .slo_told = r->slo_told,
        .slot = (uint16_t)c->slot,
        .state = LS_PREFILL,
        .reason = (uint8_t)reason,
        .streaming = r->streaming != 0,
    };
    memcpy(t->x, r->rows + (size_t)i * LS_WIDTH, sizeof t->x);
    enter_prefill(r, x, id);
    ls_pace_enter(&x->pace, t);
    r->counters.tickets_open++;
    return (int64_t)((uint64_t)t->generation << 32 | id);
}

static void ticket_close(struct ls_router *r, uint32_t id) {
    r->tickets[id].state = LS_FREE;
    r->tickets[id].newer = r->free_ticket;
    r->free_ticket = id;
    r->counters.tickets_open--;
}

/* ---- Samples --------------------------------------------------------------------------------- */

static void add_sample(struct ls_router *r, const struct ls_ticket *t, enum ls_event event,
                       float ttft, float e2e, float tpot) {
    uint32_t at = r->first_sample + r->waiting_samples;
    if (r->waiting_samples < r->config.max_samples) {
        r->waiting_samples++;
    } else { /* full: the oldest gives way */
        r->first_sample = (r->first_sample + 1) % r->config.max_samples;
        r->counters.samples_dropped++;
    }
    struct ls_sample *s = &r->samples[at % r->config.max_samples];
    memset(s, 0, sizeof *s); /* the padding leaves the process */
    s->dispatched = t->dispatched;
    memcpy(s->x, t->x, sizeof s->x);
    s->ttft = ttft;
    s->e2e = e2e;
    s->tpot = tpot;
    s->predicted = t->predicted;
    s->propensity = t->propensity;
    s->reference = t->reference;
    s->prompt_tokens = t->usage_tokens ? t->usage_tokens : t->prompt_tokens;
    s->output_tokens = t->output_tokens;
    s->cached_tokens = t->cached_tokens;
    s->hit_tokens = t->hit_tokens;
    s->weights_version = t->weights_version;
    s->tenant = t->tenant;
    s->slot = t->slot;
    s->reason = t->reason;
    s->event = (uint8_t)event;
    r->counters.samples++;
}

size_t ls_router_drain_bytes(const struct ls_router *r) {
    if (r->waiting_samples == 0) return 0;
    return LS_SAMPLE_HEADER + r->waiting_samples * sizeof(struct ls_sample);
}

void ls_router_drain(struct ls_router *r, uint8_t *out) {
    if (r->waiting_samples == 0) return;
    uint32_t head[2] = {LS_SAMPLE_MAGIC, LS_SAMPLE_FORMAT};
    uint64_t schema = ls_schema_hash();
    uint32_t rows[2] = {r->waiting_samples, sizeof(struct ls_sample)};
    memcpy(out, head, sizeof head);
    memcpy(out + 8, &schema, sizeof schema);
    memcpy(out + 16, rows, sizeof rows);
    uint32_t behind = r->config.max_samples - r->first_sample; /* rows before the ring turns */
    uint32_t n = r->waiting_samples < behind ? r->waiting_samples : behind;
    out += LS_SAMPLE_HEADER;
    memcpy(out, r->samples + r->first_sample, n * sizeof *r->samples);
    memcpy(out + n * sizeof *r->samples, r->samples, (r->waiting_samples - n) * sizeof *r->samples);
    r->first_sample = r->waiting_samples = 0;
}

/* ---- Events ---------------------------------------------------------------------------------- */

static int first_token(struct ls_router *r, struct ls_ticket *t, double now) {
    if (t->state != LS_PREFILL || !t->streaming) return 0;
    struct ls_instance *x = instance_of(r, t);
    double ttft = ls_max(0, now - t->dispatched);
    t->first_token = t->last_token = now;
    if (x) {
        leave_prefill(r, x, t);
        enter_decode(x, t);
        /* Engines begin prompts in order: what came before it and is not streamed has begun. */
        while (x->quiet_oldest && r->tickets[x->quiet_oldest].dispatched <= t->dispatched)
            ripen_oldest(r, x);
        ls_speed_note(&x->speed, &r->pool, now, t->dispatched, (double)t->work);
        ls_ring_push(&x->ttft, ttft);
        if (x->speed.interval > 0)
            ls_ring_push(&x->prefill_rate, x->speed.tokens / x->speed.interval);
        ls_hist_add(&x->ttft_hist, ttft);
    }
    t->state = LS_DECODE; /* also if the instance is gone */
    if (x) ls_pace_update(&x->pace, t);
    if (!isnan(t->predicted)) ls_hist_add(&r->counters.error, fabs((double)t->predicted - ttft));
    add_sample(r, t, LS_FIRST_TOKEN, (float)ttft, NAN, NAN);
    if (t->record) ls_record_observe(r, t, LS_FIRST_TOKEN, now);
    return 1;
}

/* The total of output tokens is now this; the instance's context grows with it while decoding. */
static void set_output(struct ls_router *r, struct ls_ticket *t, uint32_t total) {
    struct ls_instance *x = instance_of(r, t);
    if (x) {
        x->unplaced += ls_max(0, (double)total - t->output_tokens);
        if (t->state == LS_DECODE)
            x->decode_context += (uint64_t)total - t->output_tokens; /* wraps back if it shrinks */
    }
    t->output_tokens = total;
}

static int more_tokens(struct ls_router *r, struct ls_ticket *t, double now, uint32_t tokens) {
    if (tokens == 0 || tokens > LS_TOKENS_MAX - t->output_tokens) return 0;
    struct ls_instance *x = instance_of(r, t);
    if (t->state == LS_DECODE) {
        /* What comes with the first token, or is not streamed, says nothing of an iteration. */
        if (x && t->streaming && now > t->last_token)
            ls_ring_push(&x->inter_token, (now - t->last_token) / tokens);
        t->last_token = now;
    }
    set_output(r, t, t->output_tokens + tokens);
    if (x) ls_pace_update(&x->pace, t);
    return 1;
}

/* An answer says how much of the prompt was cached, and that is not what was believed when it was
 * dispatched. The prompt itself is there by now: it was computed. But a cache gives up the oldest
 * first: what was used no later than a part that was gone is gone too. And the cache is smaller
 * than thought, or larger: in sum, what is believed shall be what is found. */
static void learn_capacity(struct ls_router *r, struct ls_instance *x, const struct ls_ticket *t,
                           double believed, double found) {
    double off = found - believed, size = (double)r->config.block_bytes;
    double per_block = size / ls_router_bytes_per_token(r);
    if (fabs(off) <= ls_max(SLACK_BLOCKS * per_block, SLACK_SHARE * t->usage_tokens)) return;
    double now = x->learned_tokens > 0 ? x->learned_tokens : (double)x->kv_tokens;
    if (off < 0) {
        if (t->path.before) ls_index_outlive(r->index, t->slot, t->path.before);
        if (now <= 0) /* nobody told: at most what it was given since */
            now = ls_max(1, (double)ls_index_blocks(r->index, t->slot)) * per_block;
        now -= ls_min(-off, now * SHRINK_MOST);
        x->learned_tokens = ls_max(now, (double)t->usage_tokens);
    } else if (x->learned_tokens > 0) {
        x->learned_tokens = now + ls_min(off, now * GROW_MOST);
    }
    if (x->kv_tokens > 0 && x->learned_tokens >= (double)x->kv_tokens) x->learned_tokens = 0;
}

static int usage(struct ls_router *r, struct ls_ticket *t, uint32_t tokens, int64_t cached) {
    if (tokens == 0) return 0;
    if (t->usage_tokens == 0 && t->prompt_bytes > 0) {
        r->known_bytes = USAGE_DECAY * r->known_bytes + (double)t->prompt_bytes;
        r->known_tokens = USAGE_DECAY * r->known_tokens + tokens;
    }
    if (cached >= 0 && t->cached_tokens == LS_UNKNOWN) {
        t->cached_tokens = cached < tokens ? (uint32_t)cached : tokens;
        r->counters.prefix_predicted_tokens += t->hit_tokens;
        r->counters.prefix_delivered_tokens += t->cached_tokens;
    }
    struct ls_instance *x = instance_of(r, t);
    int first = t->usage_tokens == 0 && t->cached_tokens != LS_UNKNOWN;
    t->usage_tokens = tokens;
    if (x && first && x->prefix_caching)
        learn_capacity(r, x, t, (double)t->hit_tokens / t->prompt_tokens * tokens,
                       (double)t->cached_tokens);
    return 1;
}

/* Whether an ended request's SLO was kept, if it had one and anybody saw: what is not streamed
 * shows no first token; a try that failed is followed by another or told as failed; who leaves
 * before the time is over has not been let down. */
static void judge_slo(struct ls_router *r, const struct ls_ticket *t, enum ls_event event,
                      double now, float tpot) {
    if (!(t->slo_ttft > 0 || t->slo_tpot > 0) || !t->streaming || event == LS_FAILED) return;
    double first = t->state == LS_DECODE ? t->first_token : now;
    int late = t->slo_ttft > 0 && first - t->dispatched > (double)t->slo_ttft;
    int slow = t->slo_tpot > 0 && tpot > t->slo_tpot;
    if (event == LS_DONE || event == LS_TIMEOUT || late || slow)
        r->counters.slo[t->slo_told][event == LS_DONE && !late && !slow]++;
}

static int finish(struct ls_router *r, uint32_t id, enum ls_event event, double now,
                  uint32_t tokens) {
    struct ls_ticket *t = &r->tickets[id];
    struct ls_instance *x = instance_of(r, t);
    double e2e = ls_max(0, now - t->dispatched);
    float ttft = NAN, tpot = NAN;
    if (x) ls_pace_leave(&x->pace, t);
    if (tokens > 0) set_output(r, t, tokens);
    if (t->state == LS_DECODE) {
        if (t->output_tokens > 1 && t->streaming)
            tpot = (float)(ls_max(0, now - t->first_token) / (t->output_tokens - 1));
        if (x) {
            x->decode_requests--;
            x->decode_context -= (uint64_t)t->prompt_tokens + t->output_tokens;
        }
    } else if (x) {
        leave_prefill(r, x, t);
    }
    /* Censored: at least this long. What is not streamed may have begun long ago. */
    if (event != LS_DONE && t->streaming && t->state == LS_PREFILL) ttft = (float)e2e;
    int never = t->state == LS_PREFILL && (event == LS_FAILED || event == LS_ABANDONED);
    if (x && never) ls_index_withdraw(r->index, t->slot, &t->path, t->hit_blocks);
    ls_index_release(r->index, t->slot, &t->path, x ? ls_router_capacity(r, x) : 0);
    if (x) x->finals[event]++;
    judge_slo(r, t, event, now, tpot);
    if (t->record) ls_record_observe(r, t, event, now);
    add_sample(r, t, event, ttft, (float)e2e, tpot);
    ticket_close(r, id);
    return 1;
}

int ls_router_observe(struct ls_router *r, int64_t ticket, enum ls_event event, double now,
                      int64_t tokens, int64_t cached) {
    uint32_t id = (uint32_t)((uint64_t)ticket & 0xFFFFFFFFu);
    int done = 0;
    if (ticket > 0 && id > 0 && id < r->fresh_ticket && isfinite(now) && tokens >= 0 &&
        tokens <= LS_TOKENS_MAX) {
        struct ls_ticket *t = &r->tickets[id];
        if (t->state != LS_FREE && t->generation == (uint64_t)ticket >> 32) {
            uint32_t n = (uint32_t)tokens;
            switch (event) {
            case LS_FIRST_TOKEN:
                done = first_token(r, t, now);
                break;
            case LS_TOKENS:
                done = more_tokens(r, t, now, n);
                break;
            case LS_USAGE:
                done = usage(r, t, n, cached);
                break;
            case LS_DONE:
            case LS_FAILED:
            case LS_ABANDONED:
            case LS_TIMEOUT:
                done = finish(r, id, event, now, n);
                break;
            case LS_EVENTS:
                break;
            }
        }
    }
    if (!done) r->counters.observes_ignored++;
    return done;
}
