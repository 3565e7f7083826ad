/* record.c -- the ring of decisions (record.h). */
#include "record.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define STEP 0.02       /* of an end of the interval at a miss or hit, of a natural log */
#define LATE_STATUS 64  /* outcomes among which a status finds its own: it comes right after it */
#define LINE 64         /* bytes of the cache */
#define PAGE 4096       /* bytes, or a part of one */
#define FIRST_ERROR 0.7 /* ln 2: where the interval begins, either way */

/* Zeroed memory that is there: the first touch of a page costs most of a microsecond. */
static void *present(size_t n, size_t size) {
    volatile uint8_t *memory = calloc(n, size);
    for (size_t i = 0; memory && i < n * size; i += PAGE) memory[i] = 0;
    return (void *)memory;
}

struct ls_records *ls_records_new(uint32_t capacity, int marks) {
    struct ls_records *records = calloc(1, sizeof *records);
    if (records == NULL) return NULL;
    *records = (struct ls_records){.capacity = capacity, .low = -FIRST_ERROR, .high = FIRST_ERROR};
    records->most_outcomes = capacity < 1024 ? 1024 : capacity;
    records->ring = present(capacity, sizeof *records->ring);
    records->outcomes = present(records->most_outcomes, sizeof *records->outcomes);
    if (marks) records->marks = present((size_t)capacity * LS_RECORD_MARKS, sizeof *records->marks);
    if (records->ring && records->outcomes && (records->marks || !marks)) return records;
    ls_records_free(records);
    return NULL;
}

void ls_records_free(struct ls_records *records) {
    if (records == NULL) return;
    free(records->ring);
    free(records->outcomes);
    free(records->marks);
    free(records);
}

/* ---- Which candidates ------------------------------------------------------------------------ */

/* The order in which candidates are worth keeping: by score, else by plain physics. */
static double worth(const struct ls_router *r, const struct ls_thought *t, uint32_t i) {
    return t->scores ? t->scores[i] : (double)r->candidates[i].expected;
}

static void enter(uint32_t *kept, uint32_t *n, uint32_t i) {
    for (uint32_t k = 0; k < *n; k++)
        if (kept[k] == i) return;
    kept[(*n)++] = i;
}

/* Which rows are kept, in the order of the candidates; best and hit are told as candidates. */
static uint32_t select_rows(const struct ls_router *r, const struct ls_thought *t, uint32_t chosen,
                            uint32_t *kept, uint32_t *best, uint32_t *hit) {
    uint32_t n = 0;
    *best = *hit = 0;
    for (uint32_t i = 1; i < r->n; i++) {
        if (worth(r, t, i) < worth(r, t, *best)) *best = i;
        if (r->candidates[i].hit_tokens > r->candidates[*hit].hit_tokens) *hit = i;
    }
    if (r->n <= LS_RECORD_ROWS) {
        for (uint32_t i = 0; i < r->n; i++) kept[i] = i;
        return r->n;
    }
    enter(kept, &n, chosen);
    if (t->fallback >= 0) enter(kept, &n, (uint32_t)t->fallback);
    enter(kept, &n, *best);
    enter(kept, &n, *hit);
    uint32_t named = n;
    for (uint32_t i = 0; i < r->n; i++) { /* the rest by worth: an insertion sort of a dozen */
        uint32_t k = 0;
        while (k < named && kept[k] != i) k++;
        if (k < named) continue;
        if (n == LS_RECORD_ROWS && !(worth(r, t, i) < worth(r, t, kept[n - 1]))) continue;
        uint32_t at = n < LS_RECORD_ROWS ? n++ : n - 1;
        while (at > named && worth(r, t, i) < worth(r, t, kept[at - 1])) {
            kept[at] = kept[at - 1];
            at--;
        }
        kept[at] = i;
    }
    return n;
}

/* ---- Keep ------------------------------------------------------------------------------------ */

static void mark_prefix(const struct ls_router *r, struct ls_record *record, uint64_t *marks) {
    uint32_t n = r->blocks / LS_MARK_BLOCKS;
    if (n > LS_RECORD_MARKS) n = LS_RECORD_MARKS;
    for (uint32_t k = 0; k < n; k++) marks[k] = r->hashes[(k + 1) * LS_MARK_BLOCKS - 1];
    record->marks = n;
}

/* The ring is larger than the caches: have the next place at hand when it is written. */
static void expect(const struct ls_records *records, uint32_t rows) {
    const char *next = (const char *)&records->ring[records->made % records->capacity];
    size_t size = offsetof(struct ls_record, rows) + rows * sizeof(struct ls_recorded);
    for (size_t at = 0; at < size; at += LINE) __builtin_prefetch(next + at, 1);
}

struct ls_record *ls_record_keep(struct ls_router *r, const struct ls_thought *t, uint32_t chosen,
                                 enum ls_reason reason, float predicted, int64_t ticket,
                                 uint32_t version) {
    struct ls_records *records = r->records;
    uint32_t kept[LS_RECORD_ROWS], best, hit, place = (uint32_t)(records->made % records->capacity);
    uint64_t serial = ++records->made;
    struct ls_record *record = &records->ring[place];
    record->serial = serial;
    record->at = r->now;
    record->outcome = (struct ls_outcome){
        .serial = serial, .ttft = NAN, .e2e = NAN, .cached_tokens = LS_UNKNOWN, .event = LS_EVENTS};
    record->predicted = predicted;
    record->version = version;
    record->prompt_tokens = r->prompt_tokens;
    record->prompt_bytes = (uint32_t)r->prompt_bytes;
    record->total = r->n;
    record->marks = 0;
    record->reason = (uint8_t)reason;
    record->streaming = r->streaming != 0;
    record->margin = t->margin;
    record->slo_ttft = r->slo_ttft;
    record->slo_tpot = r->slo_tpot;
    record->slo_told = r->slo_told;
    record->objective = t->objective;
    record->priced = t->priced;
    record->answer = t->answer;
    record->unsure = t->unsure;
    int known = records->errors >= LS_ERRORS_LEAST;
    record->low = known ? (float)records->low : NAN;
    record->high = known ? (float)records->high : NAN;
    record->learned = t->seconds != NULL;
    if (t->linear) memcpy(record->linear, t->linear, sizeof record->linear);
    record->n = select_rows(r, t, chosen, kept, &best, &hit);
    record->chosen = record->fallback = record->best = record->hit = LS_NO_ROW;
    for (uint32_t k = 0; k < record->n; k++) {
        uint32_t i = kept[k];
        struct ls_recorded *to = &record->rows[k];
        to->seen = r->candidates[i];
        to->epoch = r->instances[to->seen.slot].epoch;
        to->predicted = t->seconds ? t->seconds[i] : NAN;
        to->score = t->scores ? (float)t->scores[i] : NAN;
        to->odds = t->odds[i];
        to->upper = t->upper ? t->upper[i] : NAN;
        to->tpot = t->tpot ? t->tpot[i] : NAN;
        to->late = t->late ? t->late[i] : NAN;
        to->price = t->priced ? (float)r->instances[to->seen.slot].price : NAN;
        to->outside = t->outside ? t->outside[i] : 0;
        memcpy(to->x, r->rows + (size_t)i * LS_WIDTH, sizeof to->x);
        if (i == chosen) record->chosen = (uint8_t)k;
        if (t->fallback == (int64_t)i) record->fallback = (uint8_t)k;
        if (i == best && t->scores) record->best = (uint8_t)k;
        if (i == hit && r->candidates[hit].hit_tokens > 0) record->hit = (uint8_t)k;
    }
    if (records->marks) mark_prefix(r, record, records->marks + (size_t)place * LS_RECORD_MARKS);
    if (ticket > 0) {
        struct ls_ticket *open = &r->tickets[(uint64_t)ticket & 0xFFFFFFFFu];
        open->record = serial;
        open->propensity = t->odds[chosen];
    }
    expect(records, record->n);
    return record;
}

struct ls_record *ls_record_find(const struct ls_records *records, uint64_t serial) {
    if (serial == 0 || serial > records->made) return NULL;
    struct ls_record *record = &records->ring[(serial - 1) % records->capacity];
    return record->serial == serial ? record : NULL;
}

/* ---- What became of it ----------------------------------------------------------------------- */

static void note_error(struct ls_records *records, double error) {
    double tail = (1 - LS_COVERAGE) / 2;
    records->high += STEP * ((error > records->high) - tail);
    records->low -= STEP * ((error < records->low) - tail);
    records->errors++;
}

void ls_record_observe(struct ls_router *r, const struct ls_ticket *t, enum ls_event event,
                       double now) {
    struct ls_records *records = r->records;
    int final = event >= LS_DONE;
    int begun = t->streaming && t->state == LS_DECODE; /* the others showed no first token */
    double ttft = begun ? ls_max(0, t->first_token - t->dispatched) : NAN;
    if (event == LS_FIRST_TOKEN && !isnan(t->predicted))
        note_error(records, log(ls_max(ttft, 1e-4) / (double)t->predicted));
    struct ls_record *record = ls_record_find(records, t->record);
    struct ls_outcome *queued = NULL;
    if (final) queued = &records->outcomes[records->ended++ % records->most_outcomes];
    if (record == NULL && queued == NULL) return;
    struct ls_outcome outcome = {
        .serial = t->record,
        .ttft = (float)ttft,
        .e2e = final ? (float)ls_max(0, now - t->dispatched) : NAN,
        .prompt_tokens = t->usage_tokens,
        .cached_tokens = t->cached_tokens,
        .output_tokens = t->output_tokens,
        .event = (uint8_t)event,
        .final = (uint8_t) final,
    };
    if (record) record->outcome = outcome;
    if (queued) *queued = outcome;
}

void ls_record_status(struct ls_records *records, uint64_t serial, uint16_t status) {
    struct ls_record *record = ls_record_find(records, serial);
    if (record) record->outcome.status = status;
    uint64_t n = records->ended < LATE_STATUS ? records->ended : LATE_STATUS;
    for (uint64_t k = 1; k <= n; k++) {
        struct ls_outcome *outcome =
            &records->outcomes[(records->ended - k) % records->most_outcomes];
        if (outcome->serial != serial) continue;
        outcome->status = status;
        return;
    }
}
