# The part of csrc/record.h that Cython uses; that header is the manual.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lodestar_fast.core.lodestar cimport ls_candidate, ls_reason, ls_router


cdef extern from "record.h" nogil:
    enum: LS_RECORD_ROWS
    enum: LS_RECORD_MARKS
    enum: LS_MARK_BLOCKS
    enum: LS_NO_ROW

    enum ls_objective:
        LS_TTFT, LS_TTFT_TPOT, LS_E2E

    struct ls_thought:
        const float *seconds
        const float *odds
        const double *scores
        const uint8_t *outside
        const float *linear
        int64_t fallback
        float margin
        const float *upper
        const float *tpot
        const float *late
        uint8_t objective, priced
        float answer, unsure

    struct ls_recorded:
        ls_candidate seen
        uint32_t epoch, outside
        float predicted, score, odds, upper, tpot, late, price
        float *x

    struct ls_outcome:
        uint64_t serial
        float ttft, e2e
        uint32_t prompt_tokens, cached_tokens, output_tokens
        uint16_t status
        uint8_t event, final

    struct ls_record:
        uint64_t serial
        double at
        ls_outcome outcome
        float slo_ttft, slo_tpot, predicted, margin, low, high, answer, unsure
        uint32_t version, prompt_tokens, prompt_bytes, total, n, marks
        uint8_t reason, streaming, chosen, fallback, best, hit, slo_told, objective, priced
        uint8_t learned
        float *linear
        ls_recorded *rows

    struct ls_records:
        uint32_t capacity, most_outcomes
        uint64_t made, ended
        ls_record *ring
        uint64_t *marks
        ls_outcome *outcomes

    ls_records *ls_records_new(uint32_t capacity, int marks) noexcept
    void ls_records_free(ls_records *records) noexcept
    ls_record *ls_record_keep(
        ls_router *r, const ls_thought *thought, uint32_t i, ls_reason reason, float predicted,
        int64_t ticket, uint32_t version) noexcept
    ls_record *ls_record_find(const ls_records *records, uint64_t serial) noexcept
    void ls_record_status(ls_records *records, uint64_t serial, uint16_t status) noexcept
