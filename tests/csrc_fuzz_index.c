/* csrc_fuzz_index.c -- the prefix index against a table of who holds what. */
#include "csrc_fuzz.h"

#define SLOTS 7
#define TRIE 3000 /* distinct prefixes */
#define DEPTH 600
#define KEPT 40 /* inserts that may still be released or taken back */

static uint32_t parent[TRIE], depth[TRIE], kids[TRIE];
static uint64_t name[TRIE]; /* the chained hash that a prefix would have */
static uint8_t held[SLOTS][TRIE];
static uint32_t used[SLOTS][TRIE]; /* stamp of the last insert over it */

static struct kept {
    struct ls_path path;
    uint32_t slot, keep, n, way[DEPTH];
    uint64_t hashes[DEPTH];
} kept[KEPT];

/* A random tree of prefixes: long shared ways with forks, as conversations make. */
static void grow_trie(void) {
    for (uint32_t i = 1; i < TRIE; i++) {
        do parent[i] = below(24) ? i - 1 : below(i);
        while (depth[parent[i]] + 1 >= DEPTH);
        depth[i] = depth[parent[i]] + 1;
        kids[parent[i]]++;
        /* Few distinct upper halves: the table must survive clusters. */
        name[i] = (uint64_t)below(40) << 32 | i;
    }
}

static uint32_t random_prompt(uint64_t *hashes, uint32_t *path) {
    uint32_t at = below(TRIE), n = depth[at];
    for (uint32_t i = n; i > 0; i--, at = parent[at]) {
        path[i - 1] = at;
        hashes[i - 1] = name[at];
    }
    return n;
}

static uint32_t hit(const struct ls_index *ix, uint32_t slot, const uint64_t *hashes, uint32_t n) {
    struct ls_hit hits[SLOTS] = {0};
    ls_index_match(ix, hashes, n, hits);
    double age = ls_index_age(ix, slot, hits[slot].stamp, hits[slot].blocks ? 100 : 0);
    CHECK(age >= 0 && age <= 1);
    return hits[slot].blocks;
}

static void check_match(const struct ls_index *ix, int exact) {
    uint64_t hashes[DEPTH];
    uint32_t path[DEPTH], n = random_prompt(hashes, path);
    struct ls_hit hits[SLOTS] = {0}, fewer[SLOTS] = {0};
    uint32_t longest = ls_index_match(ix, hashes, n, hits), shorter = below(n + 1);
    ls_index_match(ix, hashes, shorter, fewer);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        uint32_t expected = 0;
        while (expected < n && held[slot][path[expected]]) expected++;
        CHECK(exact ? hits[slot].blocks == expected : hits[slot].blocks <= expected);
        CHECK(hits[slot].blocks <= longest);
        /* Who holds a prefix holds each shorter one. */
        uint32_t blocks = hits[slot].blocks;
        CHECK(fewer[slot].blocks == (blocks < shorter ? blocks : shorter));
    }
}

static void check_room(const struct ls_index *ix, size_t budget, uint32_t slot, uint64_t capacity) {
    struct ls_index_stats stats;
    ls_index_stats(ix, &stats);
    CHECK(stats.budget_bytes <= budget && stats.used_bytes <= stats.budget_bytes);
    CHECK(capacity == 0 || ls_index_blocks(ix, slot) <= capacity);
}

static void insert(struct ls_index *ix, uint32_t slot, uint64_t capacity) {
    struct kept *k = &kept[below(KEPT)]; /* what was kept there stays pinned for good */
    k->slot = slot;
    k->n = random_prompt(k->hashes, k->way);
    k->keep = hit(ix, slot, k->hashes, k->n);
    ls_index_insert(ix, slot, k->hashes, k->n, capacity);
    k->path = ls_index_path(ix);
    CHECK(k->path.blocks <= k->n);
    for (uint32_t i = 0; i < k->n; i++) {
        held[slot][k->way[i]] = 1;
        used[slot][k->way[i]] = k->path.stamp;
    }
    /* Runs are not split: at each fork up to LS_RUN - 1 blocks of another way may count. */
    uint64_t least = capacity == 0 || k->n < capacity ? k->n : capacity, forks = 0;
    for (uint32_t i = 0; i < k->n; i++) forks += kids[k->way[i]] > 1;
    struct ls_index_stats stats;
    ls_index_stats(ix, &stats);
    if (stats.max_nodes > TRIE && capacity == 0) /* else the path alone may exceed the budget */
        CHECK(hit(ix, slot, k->hashes, k->n) + forks * (LS_RUN - 1) >= least);
}

/* What the insert added goes; what was there, or is used by a later insert, stays. */
static void withdraw(struct ls_index *ix, int exact) {
    struct kept *k = &kept[below(KEPT)];
    uint32_t before = hit(ix, k->slot, k->hashes, k->n), last = k->keep, later = 0;
    for (uint32_t i = k->keep; i < k->n; i++) {
        if (used[k->slot][k->way[i]] != k->path.stamp) last = i + 1;
        later |= used[k->slot][k->way[i]] != k->path.stamp;
    }
    ls_index_withdraw(ix, k->slot, &k->path, k->keep);
    uint32_t after = hit(ix, k->slot, k->hashes, k->n);
    CHECK(after <= before);
    if (exact && k->path.node != 0) {
        CHECK(after >= (last < before ? last : before));
        for (uint32_t i = after; i < k->n; i++) held[k->slot][k->way[i]] = 0;
        if (!later && before > k->keep) CHECK(after < k->keep + LS_RUN);
    }
    ls_index_release(ix, k->slot, &k->path, 0);
    k->path = (struct ls_path){0};
}

static void release(struct ls_index *ix, uint64_t capacity) {
    struct kept *k = &kept[below(KEPT)];
    uint32_t before = hit(ix, k->slot, k->hashes, k->n);
    ls_index_release(ix, k->slot, &k->path, capacity);
    CHECK(hit(ix, k->slot, k->hashes, k->n) == before);
}

static void outlive(struct ls_index *ix) {
    uint32_t slot = below(SLOTS), stamp = kept[below(KEPT)].path.stamp;
    uint64_t blocks = ls_index_blocks(ix, slot);
    ls_index_outlive(ix, slot, stamp);
    CHECK(ls_index_blocks(ix, slot) <= blocks);
}

static void forget(struct ls_index *ix, uint32_t slot) {
    ls_index_forget(ix, slot);
    memset(held[slot], 0, sizeof held[slot]);
    CHECK(ls_index_blocks(ix, slot) == 0);
}

/* ---- Snapshots ------------------------------------------------------------------------------- */

static uint8_t bytes[8 << 20];

/* moving: the index goes on while it is written. */
static size_t take_snapshot(struct ls_index *ix, int moving, uint64_t capacity) {
    struct ls_snapshot at = ls_snapshot_begin(ix);
    size_t size = 0;
    while (at.node != 0) {
        size_t room = LS_SNAPSHOT_ROOM + below(LS_SNAPSHOT_ROOM);
        CHECK(size + room <= sizeof bytes);
        size += ls_snapshot_slice(ix, &at, bytes + size, room);
        for (uint32_t i = moving ? below(4) : 0; i > 0; i--) insert(ix, below(SLOTS), capacity);
    }
    return size;
}

/* Restores exactly `size` bytes, so that reading past the end is seen; NULL if they are refused. */
static struct ls_index *restore(size_t budget, size_t size, int32_t *slots, uint64_t capacity) {
    static uint64_t capacities[LS_MAX_INSTANCES];
    for (uint32_t i = 0; i < LS_MAX_INSTANCES; i++) capacities[i] = capacity;
    frozen = 0;
    uint8_t *exact = malloc(size + 1);
    CHECK(exact != NULL);
    memcpy(exact, bytes, size);
    struct ls_restore *rs = NULL;
    int error = ls_restore_new(exact, size, &rs);
    struct ls_index *ix = error ? NULL : ls_index_new(budget, SLOTS);
    CHECK(error == (ix ? 0 : LS_EVALUE));
    frozen = 1;
    uint32_t blocks = 1 + below(500);
    while (ix && ls_restore_step(rs, ix, slots, capacities, blocks) > 0)
        if (below(40) == 0) CHECK(ls_index_check(ix) == 0);
    frozen = 0;
    ls_restore_free(rs);
    free(exact);
    frozen = 1;
    CHECK(ix == NULL || ls_index_check(ix) == 0);
    return ix;
}

static void discard(struct ls_index *ix) {
    frozen = 0;
    ls_index_free(ix);
    frozen = 1;
}

static void fuzz_snapshot(struct ls_index *ix, size_t budget, uint64_t capacity, int exact) {
    uint64_t hashes[DEPTH];
    uint32_t path[DEPTH];
    int32_t slots[LS_MAX_INSTANCES];
    for (int32_t i = 0; i < LS_MAX_INSTANCES; i++) slots[i] = i < SLOTS && below(6) ? i : -1;
    size_t size = take_snapshot(ix, !exact, capacity);
    struct ls_index *again = restore(budget, size, slots, capacity);
    CHECK(again != NULL);
    for (uint32_t round = 0; round < 50; round++) {
        uint32_t n = random_prompt(hashes, path);
        for (uint32_t slot = 0; slot < SLOTS; slot++) {
            uint32_t here = hit(ix, slot, hashes, n), there = hit(again, slot, hashes, n), ever = 0;
            while (ever < n && held[slot][path[ever]]) ever++;
            CHECK(there <= ever && (slots[slot] >= 0 || there == 0));
            if (exact && slots[slot] >= 0) CHECK(there == here);
        }
    }
    discard(again);
    for (uint32_t round = 0; round < 6; round++) { /* what comes back of damaged bytes is sound */
        for (uint32_t i = below(4); i > 0 && size > 0; i--) {
            uint32_t at = below((uint32_t)size), from = below((uint32_t)size) & ~7u;
            if (below(2))
                bytes[at] ^= (uint8_t)(1u << below(8));
            else if (size >= 8 && from + 8 <= size) /* a hash in another's place */
                memmove(bytes + (at + 8 <= size ? at & ~7u : 0), bytes + from, 8);
        }
        again = restore(budget, below(3) ? size : below((uint32_t)size + 1), slots, capacity);
        if (again) discard(again);
    }
}

/* Ample: neither budget nor capacity bind, so the table and the index agree exactly. Else the index
 * holds less, never more. */
static void fuzz_index(size_t budget, uint64_t capacity, int ample) {
    memset(held, 0, sizeof held);
    memset(used, 0, sizeof used);
    memset(kept, 0, sizeof kept);
    struct ls_index *ix = ls_index_new(budget, SLOTS);
    CHECK(ix != NULL);
    frozen = 1;
    for (uint32_t step = 0; step < 3000; step++) {
        uint32_t slot = below(SLOTS), dice = below(200);
        if (dice == 0)
            forget(ix, slot);
        else if (dice < 20)
            withdraw(ix, ample);
        else if (dice < 70)
            release(ix, capacity);
        else if (dice < 90 && capacity > 0)
            ls_index_spend(ix, slot, below(60), capacity);
        else if (dice < 95 && !ample)
            outlive(ix);
        else
            insert(ix, slot, capacity);
        check_room(ix, budget, slot, capacity);
        check_match(ix, ample);
        if (step % 50 == 0) CHECK(ls_index_check(ix) == 0);
        if (step % 1000 == 999) fuzz_snapshot(ix, budget, capacity, ample);
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) ls_index_forget(ix, slot);
    struct ls_index_stats stats;
    ls_index_stats(ix, &stats);
    CHECK(stats.nodes == 0 && stats.holdings == 0 && ls_index_check(ix) == 0);
    frozen = 0;
    ls_index_free(ix);
}

void fuzz_indexes(void) {
    grow_trie();
    fuzz_index(8 << 20, 0, 1);
    fuzz_index(8 << 20, 40 + below(200), 0);
    fuzz_index(LS_INDEX_MIN_BYTES + below(4000), 0, 0);
    fuzz_index(20000 + below(20000), 100, 0);
}
