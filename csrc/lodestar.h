/* lodestar.h -- the decision core as a C library: the manual.
 *
 * It knows instances (serving engines) by slot, answers for a prompt what each of them would have
 * to compute, and keeps what the answer depends on: which prompt prefixes each instance holds, what
 * it was given and has not finished, how quick it is. It opens no file or socket, reads no clock
 * (time is an argument: double seconds on any one monotonic clock), holds no global state, and
 * allocates nothing after ls_router_new(). One thread owns a router.
 *
 *   prompt bytes --hash.c--> chained block hashes --radix.c--> hit blocks per instance --+
 *   events, reports --ticket.c--> counters, rings, speeds (ring.c, hist.c, ...) ---------+
 *                                                                                        v
 *        ls_router_prepare():  one row of features.h per instance that may be chosen  (router.c)
 *        a policy picks a row, perhaps by ls_model_score()                            (mlp.c)
 *        ls_router_commit():   its counters, its blocks and a ticket are entered      (ticket.c)
 *        ls_router_observe():  what became of it; measurements leave as samples       (ticket.c)
 *
 * Functions return 0 or a count, or a negative LS_E*; pointers are NULL on failure. Nothing prints.
 */
#ifndef LODESTAR_H
#define LODESTAR_H

#include <stddef.h>
#include <stdint.h>

#include "features.h"
#include "index.h"
#include "model.h"

enum ls_error {
    LS_ENONE = -1,      /* no instance may be chosen */
    LS_EFULL = -2,      /* no free slot */
    LS_EMAGIC = -3,     /* not a weight blob */
    LS_EFORMAT = -4,    /* a format this library does not know */
    LS_ESCHEMA = -5,    /* made for another table of features */
    LS_ESIZE = -6,      /* layer sizes or length do not fit */
    LS_EVALUE = -7,     /* a number in it is not finite, or bounds are crossed */
    LS_EINVARIANT = -8, /* ours: a state that cannot be */
    LS_ENOMEM = -9,
};

/* Caps, each with its reason. */
#define LS_MAX_INSTANCES 1024 /* feature rows of one decision stay inside an L2 cache */
#define LS_MAX_BLOCKS                                                                              \
    65536 /* 4 MiB of prompt at 64 bytes: a million tokens; the rest is not indexed */
#define LS_MAX_TICKETS (1 << 24)
#define LS_TOKENS_MAX 100000000 /* counts beyond are nonsense; sums of them cannot overflow */

static inline double ls_min(double a, double b) {
    return a < b ? a : b;
}
static inline double ls_max(double a, double b) {
    return a > b ? a : b;
}

/* ---- hash.c: what a prefix is called ------------------------------------------------------------
 *
 *   seed bytes      block 0         block 1         block 2     (a last partial block is none)
 *       |              |               |               |
 *      [h] ---------> [h] ----------> [h] ----------> [h]
 *                      = out[0]        = out[1]        = out[2]
 *
 * Each hash depends on all bytes before it, so equal hashes mean equal prefixes of the same seed.
 * The hash is keyed per router: without the key nobody can make two prompts collide on purpose.
 */
struct ls_key {
    uint64_t word[8];
};

void ls_key_init(struct ls_key *key, uint64_t seed);
/* Hashes of the whole blocks of data, at most max; block_bytes >= 16. Returns how many. */
uint32_t ls_hash_blocks(const struct ls_key *key, const void *seed, size_t seed_bytes,
                        const void *data, size_t data_bytes, uint32_t block_bytes, uint64_t *out,
                        uint32_t max);
/* Uniform in [0, 1); advances state (splitmix64). */
double ls_random(uint64_t *state);

/* ---- ring.c: the last few measurements ------------------------------------------------------- */
struct ls_ring {
    float *value;
    uint32_t capacity, length, next;
    double sum; /* of the values held; summed anew at each turn: rounding cannot add up */
};

void ls_ring_init(struct ls_ring *ring, float *memory, uint32_t capacity);
void ls_ring_push(struct ls_ring *ring, double value);
double ls_ring_mean(const struct ls_ring *ring);                 /* 0 if empty */
double ls_ring_get(const struct ls_ring *ring, uint32_t newest); /* 0 = the newest; 0.0 if none */

/* ---- hist.c: counts for Prometheus ----------------------------------------------------------- */
#define LS_BOUNDS 16
extern const double ls_bounds[LS_BOUNDS]; /* upper, inclusive, seconds */

struct ls_hist {
    uint64_t count[LS_BOUNDS + 1]; /* not cumulative; the last is above all bounds */
    double sum;
};

void ls_hist_add(struct ls_hist *hist, double seconds);

/* ---- speed.c: seconds per token of work, for each instance --------------------------------------
 *
 * What counts are tokens of work. A token also attends to all before it, which costs the linear
 * layers once more for every PAIR_TOKENS of them: the layers take 2 parameters operations a token,
 * attention 4 layers width a pair, so parameters / (2 layers width): 27,000 in a Llama of 8B,
 * 52,000 of 70B. Measured coefficients (sim/gpus.py: c / a) give 21,000 to 32,000 with 8B, a V100
 * 11,000. Without it a speed would depend on the lengths it was measured at.
 */
#define LS_PAIR_TOKENS 3e4

/* Work, in tokens of a short prompt, of the last `own` tokens of a prompt. */
static inline double ls_work(double prompt, double own) {
    return own + own * (prompt - own / 2) / LS_PAIR_TOKENS;
}

/* From the intervals between first tokens; those of one instant (one iteration) count together.
 *     num = d num + interval      den = d den + tokens of work + 150         speed = num / den
 * Few labels make a noisy ratio, and the quickest by noise would draw every request. So the log
 * of each is shrunk toward the mean over instances, the more the less is known of it, and the less
 * the instances differ among each other.
 */
struct ls_speed {
    double num, den, count;  /* decayed sums; count of labels */
    double since, at;        /* the first-token instants before the last one, and the last one */
    double interval, tokens; /* of the last one */
    uint64_t labels;
    double shrunk; /* what everyone uses */
};

struct ls_speed_pool {
    double square, count; /* of the log residuals of all instances, decayed */
    double typical;       /* mean speed; what an instance without labels is believed to have */
    double shrunk_at;
    int dirty;
};

void ls_speed_pool_init(struct ls_speed_pool *pool);
void ls_speed_init(struct ls_speed *speed, const struct ls_speed_pool *pool);
/* A first token at `at` of a request dispatched at `start` with `tokens` of work. */
void ls_speed_note(struct ls_speed *speed, struct ls_speed_pool *pool, double at, double start,
                   double tokens);
/* Renew `shrunk` of n speeds that lie `stride` bytes apart; those with used[i * stride] == 0 are
 * not there. */
void ls_speed_shrink(struct ls_speed_pool *pool, struct ls_speed *first, const uint8_t *used,
                     uint32_t n, size_t stride);

/* ---- pace.c: the answers under way ---------------------------------------------------------------
 *
 * How quick they are, and how far those that ask for a time between tokens (a promise) are ahead of
 * it. Sums over an instance's tickets, in whole numbers: what is added is taken away again to the
 * last bit.
 */
struct ls_pace {
    int64_t ms, tokens; /* from first to last token of those that stream, and the tokens after it */
    int64_t promises;   /* requests, those without first token too */
    int64_t limits;     /* what they ask for, microseconds */
    int64_t slack;      /* milliseconds; below 0: late */
    int64_t squares;    /* of the slacks */
};

struct ls_ticket;
void ls_pace_enter(struct ls_pace *sum, struct ls_ticket *t);
void ls_pace_update(struct ls_pace *sum, struct ls_ticket *t); /* after it had tokens */
void ls_pace_leave(struct ls_pace *sum, const struct ls_ticket *t);

/* ---- the router ------------------------------------------------------------------------------ */
enum ls_reason {
    LS_LEARNED,
    LS_GUARD,
    LS_COLD,
    LS_OUT_OF_RANGE,
    LS_EXPLORE,
    LS_HEURISTIC,
    LS_ONLY_ONE,
    LS_ERROR,
    LS_SHADOW,
    LS_CONTROL,
    LS_DEMOTED,
    LS_ABSURD,
    LS_REASONS
};
enum ls_event {
    LS_FIRST_TOKEN,
    LS_TOKENS,
    LS_USAGE,
    LS_DONE,
    LS_FAILED,
    LS_ABANDONED,
    LS_TIMEOUT,
    LS_EVENTS
};

/* Whether an SLO will be kept, as predicted. */
enum ls_slo { LS_SLO_UNKNOWN, LS_SLO_MISS, LS_SLO_MEET, LS_SLOS };

/* What a row of features is computed from: one request on one instance, plain units. */
struct ls_view {
    double prompt, own, hit; /* tokens; own = prompt - hit */
    double hit_age;          /* 0: just used; 1: the next that the cache gives up */
    double speed;            /* seconds per token of work */
    double queued;           /* uncached tokens dispatched before and not computed yet */
    double work, ahead;      /* own and queued, as work (ls_work) */
    double prefill, decode;  /* requests */
    double context;          /* tokens */
    double occupancy, overdue, inter_token;
    double reported_running, reported_waiting, reported_kv_usage, report_age;
};

#define LS_IDLE_SECONDS 0.02 /* to a first token with nothing to compute, before a model knows */

/* An instance that may be chosen; row i of the matrix belongs to candidate i. */
struct ls_candidate {
    uint32_t slot, hit_blocks, hit_tokens, waiting, inflight;
    float own, queued, speed, occupancy;
    float own_seconds; /* to compute the own tokens, with their attention */
    float expected;    /* TTFT by plain physics, seconds */
};

struct ls_instance {
    uint8_t used, routable, prefix_caching, reported;
    uint32_t epoch; /* counts the slot's tenants: a ticket of an earlier one counts nowhere */
    uint64_t kv_tokens;
    /* Exact: sums over its open tickets (ls_router_check). */
    uint64_t prefill_requests, prefill_own, prefill_work, prefill_prompt;
    uint64_t decode_requests, decode_context;
    struct ls_pace pace;
    uint32_t oldest, newest; /* streamed tickets without first token, in order of dispatch */
    uint32_t quiet_oldest,
        quiet_newest;      /* those that are not streamed, while believed in prefill */
    double learned_tokens; /* what its cache holds by what answers said; 0: as it reports itself */
    double unplaced; /* answered tokens that take room in the cache and not yet on the shelf */
    struct ls_speed speed;
    struct ls_ring ttft, prefill_rate, inter_token; /* seconds, tokens per second, seconds */
    double reported_at, running, waiting, kv_usage;
    struct ls_hist ttft_hist;
    double price;                          /* of an hour, in whatever unit; 0: nobody said */
    uint64_t decisions, finals[LS_EVENTS]; /* finals: by event, DONE to TIMEOUT */
};

/* A sample row: the ring's element and the wire format (little endian, padding at the end only). */
struct ls_sample {
    double dispatched;
    float x[LS_WIDTH];
    float ttft, e2e, tpot, predicted; /* NaN where not known */
    float propensity; /* with which this instance was chosen; known where decisions are kept */
    float reference;  /* TTFT by plain physics of what the fallback would choose, or NaN */
    uint32_t prompt_tokens, output_tokens, cached_tokens, hit_tokens, weights_version;
    uint32_t tenant; /* who asked: an odd hash, under the router's key; 0: nobody says */
    uint16_t slot;
    uint8_t reason, event;
};
#define LS_UNKNOWN 0xFFFFFFFFu /* cached_tokens that nobody told */
#define LS_VERIFIED 2u         /* a tenant: the operator, whom no client can pass for */
#define LS_SAMPLE_MAGIC 0x4C53534Du
#define LS_SAMPLE_FORMAT 2u
#define LS_SAMPLE_HEADER 24 /* u32 magic, u32 format, u64 schema, u32 rows, u32 row bytes */

struct ls_config {
    uint32_t block_bytes, ring, max_instances, max_tickets, max_samples;
    size_t index_bytes;
    uint64_t seed;
};

struct ls_request {
    const void *prompt, *seed;
    size_t prompt_bytes, seed_bytes;
    uint32_t prompt_tokens; /* 0: estimated from the bytes */
    uint32_t most_tokens;   /* of the answer; 0: nobody said */
    int streaming;          /* else no first token will be seen */
};

struct ls_counters {
    uint64_t decisions[LS_REASONS];
    uint64_t tickets_open, tickets_full, observes_ignored, reports_ignored;
    uint64_t samples, samples_dropped;
    uint64_t prefix_predicted_tokens, prefix_delivered_tokens; /* of requests with known usage */
    struct ls_hist predicted, error; /* predicted TTFT; |predicted - measured| */
    uint64_t slo[LS_SLOS][2]; /* requests with an SLO that ended: by what was told, kept or not */
};

/* A dispatched request. Its id is generation << 32 | index: an id of the past fits no ticket. */
struct ls_ticket {
    double dispatched, first_token, last_token;
    uint32_t generation, epoch;
    uint32_t older, newer; /* streamed tickets of the instance without first token; free list */
    uint32_t prompt_tokens, own_tokens, hit_tokens, output_tokens, cached_tokens, usage_tokens;
    uint64_t work; /* of its own tokens */
    uint32_t weights_version, tenant;
    uint32_t hit_blocks;
    struct ls_path path; /* its blocks in the index */
    uint64_t record;     /* serial of its decision's record; 0: none */
    size_t prompt_bytes;
    float predicted, expected, reference, slo_ttft, slo_tpot;
    float propensity; /* with which its instance was chosen; NaN: not known */
    uint16_t slot;
    uint8_t slo_told; /* ls_slo */
    uint8_t state, reason, streaming;
    int32_t paced_ms, slack_ms; /* what it is of its instance's struct ls_pace */
    uint32_t paced_tokens;
    float x[LS_WIDTH]; /* the row that the decision used: what the learner gets */
};
enum ls_ticket_state { LS_FREE, LS_PREFILL, LS_DECODE };

struct ls_router {
    struct ls_config config;
    struct ls_key key;
    uint64_t rng;
    struct ls_index *index;
    struct ls_instance *instances;
    uint32_t slots; /* one more than the highest slot ever used */
    struct ls_speed_pool pool;
    double known_bytes, known_tokens; /* decayed sums from usage: bytes per token */
    struct ls_counters counters;

    /* Of the decision being made: filled by prepare, read by the policy, used by commit. */
    double now;
    const struct ls_request *request; /* until commit */
    uint32_t prompt_tokens, blocks, n;
    uint32_t known; /* blocks of the prompt that were seen before, on whatever instance */
    size_t prompt_bytes;
    double blocks_per_token;
    int streaming;
    uint64_t session; /* the caller's name for whom the request belongs to, hashed; 0: none */
    uint32_t tenant;  /* likewise for who asked: no one may teach the learner too much */
    float reference;  /* for the sample; a policy may set it, NaN before */
    float slo_ttft, slo_tpot; /* what the request asks for, seconds; 0: nothing */
    uint8_t promised;         /* it asked itself: the SLO is not only the router's default */
    uint8_t slo_told;         /* ls_slo: what was predicted of the choice */
    struct ls_candidate *candidates;
    float *rows; /* n rows of LS_WIDTH */
    uint64_t *hashes;
    struct ls_hit *hits; /* by slot */
    uint8_t *avoid;      /* by slot: set by the caller, cleared by prepare */

    struct ls_ticket *tickets; /* [0] is not used: a link of 0 is none */
    uint32_t free_ticket, fresh_ticket;

    struct ls_sample *samples; /* a ring: the oldest is overwritten, and counted */
    uint32_t first_sample, waiting_samples;
    float *ring_memory;
    struct ls_records *records; /* record.h; the caller's, NULL: decisions are not kept */
};

/* NULL if memory is short. The caller has checked the sizes against the caps above. */
struct ls_router *ls_router_new(const struct ls_config *config);
void ls_router_free(struct ls_router *r);

int ls_router_add(struct ls_router *r); /* a slot, or LS_EFULL */
void ls_router_remove(struct ls_router *r, uint32_t slot);
double ls_router_bytes_per_token(const struct ls_router *r);
/* Blocks that an instance's cache holds; 0: not known. */
uint64_t ls_router_capacity(const struct ls_router *r, const struct ls_instance *x);

/* Fill candidates and rows. Returns n >= 1, or LS_ENONE. */
int ls_router_prepare(struct ls_router *r, const struct ls_request *request, double now);

/* Hash of the whole prompt of the decision being made, the partial last block included. */
uint64_t ls_router_prompt_key(const struct ls_router *r);

/* Dispatch to candidate i of the last prepare. Returns the ticket, or 0 if the table is full (the
 * request is then not tracked). predicted: seconds, NaN if no model was asked. */
int64_t ls_router_commit(struct ls_router *r, uint32_t i, enum ls_reason reason, float predicted,
                         uint32_t weights_version);

/* Returns 1, or 0 if ignored: no such open ticket, or an event that cannot follow. */
int ls_router_observe(struct ls_router *r, int64_t ticket, enum ls_event event, double now,
                      int64_t tokens, int64_t cached);
/* Requests that are not streamed show no first token: those whose time is up count as decoding. */
void ls_router_ripen(struct ls_router *r, uint32_t slot);
int ls_router_report(struct ls_router *r, int64_t slot, double now, double running, double waiting,
                     double kv_usage);

size_t ls_router_drain_bytes(const struct ls_router *r); /* 0 if there are no samples */
void ls_router_drain(struct ls_router *r, uint8_t *out);

int ls_router_check(const struct ls_router *r); /* slow: counters against tickets, and the index */

#endif
