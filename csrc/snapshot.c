/* snapshot.c -- the prefix index as bytes, and back (index.h draws the record).
 *
 * Restoring is inserting: each holding names the way to it, and the ways are inserted in the order
 * of their last use, so that all that an insert guarantees holds here too, whatever the bytes say.
 * What one insert was the last to use lies on one way, so most of it comes with its far end.
 */
#include "radix.h"

#include <stdlib.h>
#include <string.h>

#define HEAD 24 /* bytes of a record before its run */
#define SHARE 8 /* bytes of a holder */

struct claim {
    uint64_t record; /* where it begins */
    int32_t order;
    uint32_t start, end; /* of the blocks held */
    uint16_t slot;
};

struct ls_restore {
    const uint8_t *data;
    uint64_t *table; /* by first hash: where a record begins, and 1 */
    uint64_t mask;
    struct claim *claims;
    uint32_t n, next;
    uint32_t reached; /* of the use at hand, the way to here is in */
    uint64_t *hashes; /* the way that is being inserted */
};

static uint16_t u16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint32_t u32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint64_t u64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* ---- Out ------------------------------------------------------------------------------------- */

struct ls_snapshot ls_snapshot_begin(const struct ls_index *ix) {
    return (struct ls_snapshot){.node = 1, .stamp = ix->path.stamp};
}

static size_t put(const struct ls_index *ix, const struct node *node, uint32_t stamp,
                  uint8_t *out) {
    uint64_t before[2] = {0, 0};
    if (node->parent != NIL) {
        const struct node *parent = &ix->nodes[node->parent];
        before[0] = parent->run[0];
        before[1] = parent->run[node->start - 1 - parent->start];
    }
    uint8_t *p = out;
    memcpy(p, before, sizeof before);
    memcpy(p + 16, &node->start, sizeof node->start);
    memcpy(p + 18, &node->length, sizeof node->length);
    memcpy(p + 20, &node->sharers, sizeof node->sharers);
    memcpy(p + HEAD, node->run, node->length * sizeof *node->run);
    p += HEAD + node->length * sizeof *node->run;
    for (uint32_t h = node->holders; h != NIL; h = ix->holdings[h].next, p += SHARE) {
        const struct holding *holding = &ix->holdings[h];
        int32_t order = (int32_t)(holding->stamp - stamp);
        memcpy(p, &order, sizeof order);
        memcpy(p + 4, &holding->slot, sizeof holding->slot);
        memcpy(p + 6, &holding->held, sizeof holding->held);
    }
    return (size_t)(p - out);
}

size_t ls_snapshot_slice(const struct ls_index *ix, struct ls_snapshot *at, uint8_t *out,
                         size_t room) {
    size_t bytes = 0;
    for (size_t looks = room / HEAD; looks > 0; looks--, at->node++) {
        if (at->node >= ix->fresh_node) {
            at->node = NIL;
            break;
        }
        const struct node *node = &ix->nodes[at->node];
        if (node->holders == NIL) continue;
        size_t size = HEAD + node->length * sizeof *node->run + node->sharers * (size_t)SHARE;
        if (size > room - bytes) break;
        bytes += put(ix, node, at->stamp, out + bytes);
    }
    return bytes;
}

/* ---- In -------------------------------------------------------------------------------------- */

/* Bytes of the record, or 0 if it is malformed. */
static size_t record_size(const uint8_t *p, size_t left) {
    if (left < HEAD) return 0;
    uint32_t start = u16(p + 16), length = u16(p + 18), holders = u32(p + 20);
    if (length == 0 || length > LS_RUN || start + length > LS_MAX_BLOCKS) return 0;
    if (holders == 0 || holders > LS_MAX_INSTANCES) return 0;
    size_t run = HEAD + length * sizeof(uint64_t), size = run + holders * (size_t)SHARE;
    if (size > left) return 0;
    for (p += run; holders > 0; holders--, p += SHARE)
        if (u16(p + 4) >= LS_MAX_INSTANCES || u16(p + 6) == 0 || u16(p + 6) > length) return 0;
    return size;
}

/* The oldest use first; of one use the far end first. */
static int by_use(const void *a, const void *b) {
    const struct claim *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    if (x->slot != y->slot) return x->slot < y->slot ? -1 : 1;
    return x->start > y->start ? -1 : x->start < y->start;
}

static void enter(struct ls_restore *rs, uint64_t at, size_t size) {
    const uint8_t *p = rs->data + at;
    uint32_t length = u16(p + 18);
    uint64_t i = u64(p + HEAD) >> 32 & rs->mask;
    while (rs->table[i] != 0) i = (i + 1) & rs->mask;
    rs->table[i] = at + 1;
    for (size_t h = HEAD + length * sizeof(uint64_t); h < size; h += SHARE) {
        uint32_t start = u16(p + 16);
        rs->claims[rs->n++] = (struct claim){.record = at,
                                             .order = (int32_t)u32(p + h),
                                             .start = start,
                                             .end = start + u16(p + h + 6),
                                             .slot = u16(p + h + 4)};
    }
}

int ls_restore_new(const void *records, size_t bytes, struct ls_restore **out) {
    const uint8_t *data = records;
    uint64_t nodes = 0, claims = 0, table = 8;
    for (size_t at = 0, size; at < bytes; at += size, nodes++) {
        size = record_size(data + at, bytes - at);
        if (size == 0) return LS_EVALUE;
        claims += u32(data + at + 20);
    }
    if (claims > UINT32_MAX) return LS_EVALUE;
    while (table < nodes * 2) table *= 2;
    struct ls_restore *rs = calloc(1, sizeof *rs);
    if (rs == NULL) return LS_ENOMEM;
    rs->data = data;
    rs->mask = table - 1;
    rs->table = calloc(table, sizeof *rs->table);
    rs->claims = calloc(claims + 1, sizeof *rs->claims);
    rs->hashes = calloc(LS_MAX_BLOCKS, sizeof *rs->hashes);
    if (rs->table == NULL || rs->claims == NULL || rs->hashes == NULL) {
        ls_restore_free(rs);
        return LS_ENOMEM;
    }
    for (size_t at = 0, size; at < bytes; at += size) {
        size = record_size(data + at, bytes - at);
        enter(rs, at, size);
    }
    qsort(rs->claims, rs->n, sizeof *rs->claims, by_use);
    *out = rs;
    return 0;
}

void ls_restore_free(struct ls_restore *rs) {
    if (rs == NULL) return;
    free(rs->table);
    free(rs->claims);
    free(rs->hashes);
    free(rs);
}

/* The record of the node from which the way leads to this one, or NULL. */
static const uint8_t *parent_of(const struct ls_restore *rs, const uint8_t *record) {
    uint64_t first = u64(record), before = u64(record + 8);
    uint32_t start = u16(record + 16);
    for (uint64_t i = first >> 32 & rs->mask; rs->table[i] != 0; i = (i + 1) & rs->mask) {
        const uint8_t *p = rs->data + rs->table[i] - 1;
        uint32_t begin = u16(p + 16), length = u16(p + 18);
        if (u64(p + HEAD) != first || begin >= start || begin + length < start) continue;
        if (u64(p + HEAD + (start - 1 - begin) * sizeof(uint64_t)) == before) return p;
    }
    return NULL;
}

/* The hashes from the root to the claim's end; 0 if the way was cut. */
static uint32_t find_way(struct ls_restore *rs, const struct claim *claim) {
    uint32_t end = claim->end;
    const uint8_t *p = rs->data + claim->record;
    for (; p != NULL; p = parent_of(rs, p)) {
        uint32_t start = u16(p + 16);
        memcpy(rs->hashes + start, p + HEAD, (end - start) * sizeof *rs->hashes);
        if (start == 0) return claim->end;
        end = start;
    }
    return 0;
}

uint32_t ls_restore_step(struct ls_restore *rs, struct ls_index *ix, const int32_t *slots,
                         const uint64_t *capacities, uint32_t blocks) {
    for (uint64_t spent = 0; rs->next < rs->n && spent < blocks; rs->next++, spent++) {
        const struct claim *claim = &rs->claims[rs->next], *last = rs->next ? claim - 1 : NULL;
        int same = last && last->order == claim->order && last->slot == claim->slot;
        int covered = same && claim->end <= rs->reached;
        int32_t slot = slots[claim->slot];
        uint32_t n = slot < 0 || covered ? 0 : find_way(rs, claim);
        if (n > 0) {
            ls_index_insert(ix, (uint32_t)slot, rs->hashes, n, capacities[claim->slot]);
            struct ls_path path = ls_index_path(ix);
            ls_index_release(ix, (uint32_t)slot, &path, 0);
            spent += n;
        }
        if (n > 0 || covered)
            rs->reached = claim->start; /* the way to it is in */
        else if (!same)
            rs->reached = 0;
    }
    uint32_t left = rs->n - rs->next;
    if (left == 0) rs->next = 0;
    return left;
}
