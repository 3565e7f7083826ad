/* record.h -- decisions as they were made, and what became of them: a ring of the last ones.
 *
 *   keep      after commit: the candidates with their rows, what the policy thought of each, why
 *   observe   through the ticket's serial: first token, what was cached, the end
 *   newest    to be read; a record is overwritten when the ring has turned
 *
 * Outcomes are also queued by themselves, since a long answer ends after its record was taken away
 * or overwritten. All memory is sized once; a ring of 0 is none, and nothing is paid for it.
 */
#ifndef LS_RECORD_H
#define LS_RECORD_H

#include "lodestar.h"

#define LS_RECORD_ROWS 16   /* candidates kept of a decision; of more the ones that mattered */
#define LS_RECORD_MARKS 256 /* prefix marks of a decision: 16,000 tokens at 64-byte blocks */
#define LS_MARK_BLOCKS 4    /* blocks from one mark to the next: 64 tokens */
#define LS_NO_ROW 0xFFu

/* What a policy makes small. */
enum ls_objective { LS_TTFT, LS_TTFT_TPOT, LS_E2E };

/* What a policy thought, by candidate; NULL or NaN where it thought nothing. */
struct ls_thought {
    const float *seconds, *odds; /* predicted TTFT; probability of being chosen, NaN: not known */
    const double *scores;        /* what a model's choice is the least of: seconds with costs */
    const uint8_t *outside;      /* out of the range of training */
    const float *linear;         /* LS_WIDTH coefficients of the physical part */
    int64_t fallback;            /* the candidate that the heuristic would take; -1: none */
    float margin;                /* by which the best score must be better than the fallback's */
    const float *upper, *tpot;   /* of requests that want more than an early first token */
    const float *late;           /* of requests with an SLO: others that miss theirs for it */
    uint8_t objective;           /* ls_objective, of what no SLO goes before */
    uint8_t priced;              /* prices count */
    float answer;                /* tokens expected of it; 0: not known, or not asked */
    float unsure;                /* the log factor that moving a whole prefix must be worth */
};

struct ls_recorded {
    struct ls_candidate seen;
    uint32_t epoch;                                         /* of the slot's tenant */
    float predicted, score, odds, upper, tpot, late, price; /* price: NaN where it does not count */
    uint32_t outside;
    float x[LS_WIDTH];
};

struct ls_outcome {
    uint64_t serial;
    float ttft, e2e;        /* seconds; NaN: not known */
    uint32_t prompt_tokens; /* as the engine counts; 0: not told */
    uint32_t cached_tokens; /* LS_UNKNOWN: not told */
    uint32_t output_tokens;
    uint16_t status; /* of the answer to the client; 0: not told */
    uint8_t event;   /* the last one: LS_EVENTS: none yet */
    uint8_t final;
};

struct ls_record {
    uint64_t serial; /* from 1 */
    double at;       /* seconds on the router's clock */
    struct ls_outcome outcome;
    float slo_ttft, slo_tpot;           /* asked for, seconds; 0: nothing */
    float predicted, margin, low, high; /* low, high: of the log error, NaN: not known yet */
    float answer, unsure;               /* as ls_thought */
    uint32_t version, prompt_tokens, prompt_bytes, total, n, marks;
    uint8_t reason, streaming, chosen, fallback, best, hit; /* rows, or LS_NO_ROW */
    uint8_t slo_told, objective, priced;
    uint8_t learned; /* a model was asked: linear, predicted and score mean something */
    float linear[LS_WIDTH];
    struct ls_recorded rows[LS_RECORD_ROWS];
};

/* Interval of log(measured / predicted) that holds 90 % of them in the long run, whatever their
 * distribution: each miss moves its end outward, each hit a little inward (Gibbs and Candes 2021).
 */
#define LS_COVERAGE 0.9
#define LS_ERRORS_LEAST 32 /* before that nothing is known */

struct ls_records {
    uint32_t capacity, most_outcomes;
    uint64_t made; /* serial of the newest */
    struct ls_record *ring;
    uint64_t *marks;             /* LS_RECORD_MARKS for each record; NULL: not wanted */
    struct ls_outcome *outcomes; /* a ring too; ended: how many were ever put in */
    uint64_t ended;
    double low, high;
    uint64_t errors;
};

struct ls_records *ls_records_new(uint32_t capacity, int marks); /* NULL if memory is short */
void ls_records_free(struct ls_records *records);

/* Keep the decision just committed to candidate i. Returns the record, to be completed. */
struct ls_record *ls_record_keep(struct ls_router *r, const struct ls_thought *thought, uint32_t i,
                                 enum ls_reason reason, float predicted, int64_t ticket,
                                 uint32_t version);

/* The record of a serial, or NULL if it was overwritten. */
struct ls_record *ls_record_find(const struct ls_records *records, uint64_t serial);

/* From ls_router_observe(): an event of a ticket whose decision was recorded. */
void ls_record_observe(struct ls_router *r, const struct ls_ticket *t, enum ls_event event,
                       double now);

/* The status that the client got, after the final event. */
void ls_record_status(struct ls_records *records, uint64_t serial, uint16_t status);

#endif
