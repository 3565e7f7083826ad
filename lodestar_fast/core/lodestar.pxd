# The part of csrc/lodestar.h that Cython uses; that header is the manual.
# Only the modules of core/ may cimport from here.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<stdlib.h>" nogil:  # C11, not in libc.stdlib
    void *aligned_alloc(size_t alignment, size_t size) noexcept


cdef extern from "lodestar.h" nogil:
    enum: LS_WIDTH
    enum: LS_ENONE
    enum: LS_EMAGIC
    enum: LS_EFORMAT
    enum: LS_ESCHEMA
    enum: LS_ESIZE
    enum: LS_EVALUE
    enum: LS_MAX_INSTANCES
    enum: LS_MAX_BLOCKS
    enum: LS_MAX_TICKETS
    enum: LS_TOKENS_MAX
    enum: LS_INDEX_MIN_BYTES
    enum: LS_BOUNDS
    enum: LS_REASONS
    enum: LS_EVENTS
    enum: LS_UNKNOWN
    enum: LS_SIMDS
    enum: LS_SLOS
    enum: LS_SLO_UNKNOWN
    enum: LS_SLO_MISS
    enum: LS_SLO_MEET

    enum ls_reason:
        LS_LEARNED
        LS_GUARD
        LS_COLD
        LS_OUT_OF_RANGE
        LS_EXPLORE
        LS_HEURISTIC
        LS_ONLY_ONE
        LS_ERROR
        LS_SHADOW
        LS_CONTROL
        LS_DEMOTED
        LS_ABSURD

    enum ls_event:
        LS_FIRST_TOKEN
        LS_TOKENS
        LS_DONE
        LS_FAILED
        LS_ABANDONED
        LS_TIMEOUT

    double ls_random(uint64_t *state) noexcept

    struct ls_key:
        uint64_t *word

    uint32_t ls_hash_blocks(
        const ls_key *key, const void *seed, size_t seed_bytes, const void *data,
        size_t data_bytes, uint32_t block_bytes, uint64_t *out, uint32_t max) noexcept

    struct ls_index:
        pass

    struct ls_index_stats_t "ls_index_stats":
        size_t budget_bytes, used_bytes
        uint32_t nodes, holdings, max_nodes, max_holdings
        uint64_t evictions

    struct ls_hit:
        uint32_t blocks

    uint32_t ls_index_match(
        const ls_index *ix, const uint64_t *hashes, uint32_t n, ls_hit *hits) noexcept
    void ls_index_forget(ls_index *ix, uint32_t slot) noexcept
    uint64_t ls_index_blocks(const ls_index *ix, uint32_t slot) noexcept
    void ls_index_stats(const ls_index *ix, ls_index_stats_t *out) noexcept

    struct ls_snapshot_t "ls_snapshot":
        uint32_t node

    enum: LS_SNAPSHOT_ROOM
    ls_snapshot_t ls_snapshot_begin(const ls_index *ix) noexcept
    size_t ls_snapshot_slice(
        const ls_index *ix, ls_snapshot_t *at, uint8_t *out, size_t room) noexcept

    struct ls_restore:
        pass

    int ls_restore_new(const void *records, size_t bytes, ls_restore **out) noexcept
    void ls_restore_free(ls_restore *rs) noexcept
    uint32_t ls_restore_step(
        ls_restore *rs, ls_index *ix, const int32_t *slots, const uint64_t *capacities,
        uint32_t blocks) noexcept

    struct ls_ring:
        uint32_t length

    void ls_ring_init(ls_ring *ring, float *memory, uint32_t capacity) noexcept
    void ls_ring_push(ls_ring *ring, double value) noexcept
    double ls_ring_mean(const ls_ring *ring) noexcept
    double ls_ring_get(const ls_ring *ring, uint32_t newest) noexcept

    const double *ls_bounds

    struct ls_hist:
        uint64_t *count
        double sum

    struct ls_speed:
        double shrunk, at
        uint64_t labels

    struct ls_model:
        float *linear
        float *upper
        float answer
        uint32_t version
        uint8_t tells_tpot
        int simd

    const char *const *ls_simd_names
    int ls_simd_has(int simd) noexcept
    int ls_model_load(ls_model *model, const void *blob, size_t size) noexcept
    void ls_model_score(
        const ls_model *model, const float *rows, uint32_t n, float *seconds,
        uint8_t *outside) noexcept
    void ls_model_tpot(
        const ls_model *model, const float *rows, uint32_t n, float *seconds) noexcept
    float ls_model_upper(const ls_model *model, const float *row, float seconds) noexcept
    uint64_t ls_schema_hash() noexcept

    struct ls_feature_row:
        const char *name
        const char *unit
        const char *help
        double scale

    const ls_feature_row *ls_feature_table

    struct ls_candidate:
        uint32_t slot, hit_blocks, hit_tokens, waiting, inflight
        float own, queued, speed, occupancy, own_seconds, expected

    struct ls_pace:
        int64_t ms, tokens, promises, limits, slack, squares

    struct ls_instance:
        uint8_t used, routable, prefix_caching, reported
        uint32_t epoch
        uint64_t kv_tokens
        double learned_tokens
        uint64_t prefill_requests, prefill_own, prefill_prompt, decode_requests, decode_context
        ls_pace pace
        ls_speed speed
        ls_ring ttft, prefill_rate, inter_token
        double reported_at, running, waiting, kv_usage
        ls_hist ttft_hist
        double price
        uint64_t decisions
        uint64_t *finals

    struct ls_config:
        uint32_t block_bytes, ring, max_instances, max_tickets, max_samples
        size_t index_bytes
        uint64_t seed

    struct ls_request:
        const void *prompt
        const void *seed
        size_t prompt_bytes, seed_bytes
        uint32_t prompt_tokens, most_tokens
        int streaming

    struct ls_sample:
        double dispatched
        uint16_t slot
        uint32_t tenant
        float *x
        float ttft, predicted, reference
        uint8_t reason, event

    double LS_IDLE_SECONDS, LS_COLD_UPPER
    enum: LS_F_own_seconds
    enum: LS_F_queue_seconds
    enum: LS_SAMPLE_MAGIC
    enum: LS_SAMPLE_HEADER
    enum: LS_VERIFIED

    struct ls_counters:
        uint64_t *decisions
        uint64_t tickets_open, tickets_full, observes_ignored, reports_ignored
        uint64_t samples, samples_dropped
        uint64_t prefix_predicted_tokens, prefix_delivered_tokens
        ls_hist predicted, error
        uint64_t (*slo)[2]

    struct ls_router:
        ls_config config
        ls_key key
        uint64_t rng
        ls_index *index
        ls_instance *instances
        uint32_t slots
        ls_counters counters
        uint32_t prompt_tokens, blocks, n, known, waiting_samples
        uint64_t session
        uint32_t tenant
        double now
        float reference, slo_ttft, slo_tpot
        uint8_t slo_told, promised
        const ls_request *request
        size_t prompt_bytes
        ls_candidate *candidates
        float *rows
        uint64_t *hashes
        ls_hit *hits
        uint8_t *avoid
        float *ring_memory
        void *records  # record.pxd

    ls_router *ls_router_new(const ls_config *config) noexcept
    void ls_router_free(ls_router *r) noexcept
    int ls_router_add(ls_router *r) noexcept
    void ls_router_remove(ls_router *r, uint32_t slot) noexcept
    double ls_router_bytes_per_token(const ls_router *r) noexcept
    uint64_t ls_router_capacity(const ls_router *r, const ls_instance *x) noexcept
    int ls_router_prepare(ls_router *r, const ls_request *request, double now) noexcept
    uint64_t ls_router_prompt_key(const ls_router *r) noexcept
    int64_t ls_router_commit(
        ls_router *r, uint32_t i, ls_reason reason, float predicted,
        uint32_t weights_version) noexcept
    int ls_router_observe(
        ls_router *r, int64_t ticket, ls_event event, double now, int64_t tokens,
        int64_t cached) noexcept
    int ls_router_report(
        ls_router *r, int64_t slot, double now, double running, double waiting,
        double kv_usage) noexcept
    size_t ls_router_drain_bytes(const ls_router *r) noexcept
    void ls_router_drain(ls_router *r, uint8_t *out) noexcept
    int ls_router_check(const ls_router *r) noexcept
