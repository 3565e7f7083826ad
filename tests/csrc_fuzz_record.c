/* csrc_fuzz_record.c -- the ring of decisions against a list of all that were ever made. */
#include "csrc_fuzz.h"

#include "record.h"

#define MOST_SLOTS 40 /* more than LS_RECORD_ROWS: some candidates must be left out */
#define STEPS 3000
#define LATE 64 /* outcomes among which record.c looks for the one a status belongs to */

/* What is known of a decision, by serial. */
static struct made {
    int64_t ticket;
    double dispatched;
    float predicted;
    int open, streaming, begun, ended; /* ended: place among the outcomes, from 1 */
    struct ls_outcome outcome;         /* as it is to be found */
    uint32_t usage, cached, output;
} made[STEPS + 1];

static uint64_t ended[STEPS + 1]; /* serials in the order of their ends */
static uint32_t endings;

static int same(float a, float b) {
    return isnan(a) ? isnan(b) : a == b;
}

static int same_outcome(const struct ls_outcome *a, const struct ls_outcome *b) {
    return a->serial == b->serial && same(a->ttft, b->ttft) && same(a->e2e, b->e2e) &&
           a->prompt_tokens == b->prompt_tokens && a->cached_tokens == b->cached_tokens &&
           a->output_tokens == b->output_tokens && a->status == b->status && a->event == b->event &&
           a->final == b->final;
}

static double worth(const struct ls_router *r, const struct ls_thought *t, uint32_t i) {
    return t->scores ? t->scores[i] : (double)r->candidates[i].expected;
}

/* The rows that are to be kept, the slow way: what is named, then again and again the best left. */
static uint32_t expected_rows(const struct ls_router *r, const struct ls_thought *t,
                              uint32_t chosen, uint32_t *rows) {
    uint32_t best = 0, hit = 0, n = 0, all = r->n < LS_RECORD_ROWS ? r->n : LS_RECORD_ROWS;
    uint8_t in[MOST_SLOTS] = {0};
    for (uint32_t i = 0; i < r->n; i++) {
        if (worth(r, t, i) < worth(r, t, best)) best = i;
        if (r->candidates[i].hit_tokens > r->candidates[hit].hit_tokens) hit = i;
    }
    int64_t named[] = {chosen, t->fallback, best, hit};
    for (uint32_t k = 0; k < 4 && r->n > LS_RECORD_ROWS; k++) {
        if (named[k] < 0 || in[named[k]]) continue;
        in[named[k]] = 1;
        rows[n++] = (uint32_t)named[k];
    }
    while (n < all) {
        uint32_t next = MOST_SLOTS;
        for (uint32_t i = 0; i < r->n; i++) {
            int better = next == MOST_SLOTS || worth(r, t, i) < worth(r, t, next);
            if (!in[i] && (r->n <= LS_RECORD_ROWS ? next == MOST_SLOTS : better)) next = i;
        }
        in[next] = 1;
        rows[n++] = next;
    }
    return n;
}

static void check_record(const struct ls_router *r, const struct ls_record *record,
                         const struct ls_thought *t, uint32_t chosen) {
    uint32_t rows[LS_RECORD_ROWS], n = expected_rows(r, t, chosen, rows);
    CHECK(record->n == n && record->total == r->n);
    for (uint32_t k = 0; k < n; k++) {
        const struct ls_recorded *row = &record->rows[k];
        const struct ls_candidate *c = &r->candidates[rows[k]];
        CHECK(row->seen.slot == c->slot && row->epoch == r->instances[c->slot].epoch);
        CHECK(same(row->predicted, t->seconds ? t->seconds[rows[k]] : NAN));
        CHECK(row->odds == t->odds[rows[k]]);
        CHECK(memcmp(row->x, r->rows + (size_t)rows[k] * LS_WIDTH, sizeof row->x) == 0);
    }
    CHECK(record->chosen < n && rows[record->chosen] == chosen);
    CHECK(t->fallback < 0 ? record->fallback == LS_NO_ROW
                          : rows[record->fallback] == (uint32_t)t->fallback);
    CHECK((record->best == LS_NO_ROW) == (t->scores == NULL));
    const uint64_t *marks = r->records->marks;
    uint32_t whole = r->blocks / LS_MARK_BLOCKS;
    CHECK(record->marks == (marks ? (whole < LS_RECORD_MARKS ? whole : LS_RECORD_MARKS) : 0));
    for (uint32_t k = 0; k < record->marks; k++) {
        uint64_t place = (record->serial - 1) % r->records->capacity * LS_RECORD_MARKS + k;
        CHECK(marks[place] == r->hashes[(k + 1) * LS_MARK_BLOCKS - 1]);
    }
}

static void decide(struct ls_router *r, double now) {
    static char text[40000];
    static float seconds[MOST_SLOTS], odds[MOST_SLOTS], linear[LS_WIDTH];
    static double scores[MOST_SLOTS];
    static uint8_t outside[MOST_SLOTS];
    memset(text, 'a' + (int)below(3), sizeof text);
    struct ls_request request = {.prompt = text, .seed = "", .streaming = below(4) > 0};
    request.prompt_bytes = below(9) ? below(2000) : below(sizeof text);
    for (uint32_t slot = 0; slot < r->slots; slot++) r->avoid[slot] = below(8) == 0;
    if (ls_router_prepare(r, &request, now) < 0) return;
    for (uint32_t i = 0; i < r->n; i++) { /* few values: many are equal */
        seconds[i] = (float)below(9);
        scores[i] = below(9);
        odds[i] = (float)ls_random(&fuzz_state);
        outside[i] = (uint8_t)below(2);
    }
    int model = below(3) > 0;
    struct ls_thought thought = {.odds = odds, .fallback = (int64_t)below(r->n + 1) - 1};
    if (model) thought.seconds = seconds, thought.scores = scores, thought.outside = outside;
    if (model && below(2)) thought.linear = linear;
    uint32_t chosen = below(r->n);
    float predicted = model ? seconds[chosen] : NAN;
    enum ls_reason reason = (enum ls_reason)below(LS_REASONS);
    int64_t ticket = ls_router_commit(r, chosen, reason, predicted, 3);
    struct ls_record *record = ls_record_keep(r, &thought, chosen, reason, predicted, ticket, 3);
    uint64_t serial = record->serial;
    CHECK(serial == r->records->made && record == ls_record_find(r->records, serial));
    check_record(r, record, &thought, chosen);
    made[serial] = (struct made){.ticket = ticket,
                                 .dispatched = now,
                                 .predicted = predicted,
                                 .open = ticket > 0,
                                 .streaming = request.streaming,
                                 .cached = LS_UNKNOWN,
                                 .outcome = record->outcome};
    CHECK(record->outcome.serial == serial && record->outcome.event == LS_EVENTS);
}

static void happen(struct ls_router *r, double now) {
    struct ls_records *records = r->records;
    if (records->made == 0) return;
    uint64_t serial = 1 + below((uint32_t)records->made);
    struct made *m = &made[serial];
    enum ls_event event = (enum ls_event)below(LS_EVENTS);
    uint32_t tokens = below(40), cached = below(60);
    int tells = event == LS_USAGE && below(2), was = m->open;
    uint64_t errors = records->errors, queued = records->ended;
    if (!ls_router_observe(r, m->ticket, event, now, tokens, tells ? (int64_t)cached : -1)) return;
    CHECK(was);
    if (event == LS_TOKENS) m->output += tokens;
    if (event == LS_USAGE) m->usage = tokens;
    if (tells && m->cached == LS_UNKNOWN) m->cached = cached < tokens ? cached : tokens;
    if (event == LS_TOKENS || event == LS_USAGE) return;
    int final = event >= LS_DONE;
    if (final && tokens > 0) m->output = tokens;
    float since = (float)ls_max(0, now - m->dispatched);
    if (event == LS_FIRST_TOKEN) m->begun = 1, m->outcome.ttft = since;
    CHECK(records->errors == errors + (event == LS_FIRST_TOKEN && !isnan(m->predicted)));
    CHECK(isfinite(records->low) && isfinite(records->high));
    m->outcome = (struct ls_outcome){.serial = serial,
                                     .ttft = m->begun ? m->outcome.ttft : NAN,
                                     .e2e = final ? since : NAN,
                                     .prompt_tokens = m->usage,
                                     .cached_tokens = m->cached,
                                     .output_tokens = m->output,
                                     .event = (uint8_t)event,
                                     .final = (uint8_t) final};
    CHECK(records->ended == queued + (uint64_t) final);
    if (!final) return;
    m->open = 0;
    ended[endings++] = serial;
    m->ended = (int)endings;
    CHECK(same_outcome(&records->outcomes[queued % records->most_outcomes], &m->outcome));
}

static void tell_status(struct ls_records *records) {
    uint64_t serial = below(2) && endings ? ended[endings - 1] : below((uint32_t)records->made + 9);
    uint16_t status = (uint16_t)(200 + below(400));
    ls_record_status(records, serial, status);
    if (serial == 0 || serial > records->made) return;
    made[serial].outcome.status = status;
    if (made[serial].ended && endings - (uint32_t)made[serial].ended < LATE) {
        uint64_t place = ((uint64_t)made[serial].ended - 1) % records->most_outcomes;
        CHECK(records->outcomes[place].status == status);
    }
}

static void check_ring(const struct ls_records *records) {
    CHECK(ls_record_find(records, 0) == NULL && !ls_record_find(records, records->made + 1));
    for (uint64_t serial = 1; serial <= records->made; serial++) {
        const struct ls_record *record = ls_record_find(records, serial);
        CHECK((record == NULL) == (serial + records->capacity <= records->made));
        if (record) CHECK(same_outcome(&record->outcome, &made[serial].outcome));
    }
}

void fuzz_records(void) {
    uint32_t capacity = 1 + below(below(2) ? 5 : 200), slots = 1 + below(MOST_SLOTS);
    int marks = below(2) == 0;
    struct ls_config config = {.block_bytes = 16 + below(80),
                               .ring = 3,
                               .max_instances = MOST_SLOTS,
                               .max_tickets = 1 + below(200),
                               .max_samples = 5,
                               .index_bytes = 50000,
                               .seed = fuzz_seed};
    for (int k = 1; k <= 3 + marks; k++) { /* each allocation may fail, and nothing leaks */
        failing = k;
        CHECK(ls_records_new(capacity, marks) == NULL && failing == 0);
    }
    struct ls_router *r = ls_router_new(&config);
    CHECK(r != NULL);
    r->records = ls_records_new(capacity, marks);
    CHECK(r->records != NULL);
    memset(made, 0, sizeof made);
    endings = 0;
    frozen = 1;
    double now = 1000;
    for (uint32_t step = 0; step < STEPS; step++) {
        now += ls_random(&fuzz_state) * 0.05;
        uint32_t dice = below(100);
        if (dice < 3 && r->slots < slots)
            CHECK(ls_router_add(r) >= 0);
        else if (dice < 30)
            decide(r, now);
        else if (dice < 90)
            happen(r, now);
        else
            tell_status(r->records);
        if (step % 100 == 99) check_ring(r->records);
    }
    frozen = 0;
    ls_records_free(r->records);
    ls_router_free(r);
}
