/* radix.c -- the prefix index (lodestar.h draws it).
 *
 * An insert walks the prompt from its root. At each step the next hash is one of three:
 *   1. the first of a known run: go there, compare, hold what agrees;
 *   2. unknown, and the walk stands at the end of a run with room: the run grows;
 *   3. unknown otherwise: a new node.
 * Cases 2 and 3 take all that remains of the prompt, node by node, since what follows an unknown
 * hash is unknown. The walk links each node behind the one before it, so that at every moment the
 * only node of the path that can be at the old end of the list is the last one: eviction stops
 * there.
 */
#include "lodestar.h"

#include <stdlib.h>
#include <string.h>

#define NIL 0u /* nodes[0] and holdings[0] are not used: zeroed memory is an empty index */

struct node {
    uint64_t run[LS_RUN];
    uint32_t length;
    uint32_t holders;      /* first holding */
    uint32_t newer, older; /* all nodes by recency */
};

struct holding {
    uint32_t node;
    uint32_t next;         /* of the same node */
    uint32_t newer, older; /* of the same slot by recency */
    uint16_t slot;
    uint16_t held; /* 1..length */
};

struct entry {    /* of the table; node NIL: free */
    uint32_t tag; /* upper half of the run's first hash; its low bits are the home position */
    uint32_t node;
};

struct shelf { /* what one slot holds */
    uint32_t newest, oldest;
    uint64_t blocks;
};

struct ls_index {
    struct entry *table;
    struct node *nodes;
    struct holding *holdings;
    struct shelf *shelves;
    uint32_t mask; /* table size - 1; at most half of it is used */
    uint32_t max_nodes, max_holdings, slots;
    uint32_t nodes_used, holdings_used;
    uint32_t free_node, free_holding;   /* lists through `older` */
    uint32_t fresh_node, fresh_holding; /* never used before: their memory is still untouched */
    uint32_t newest, oldest;
    uint64_t evictions;
    size_t budget;
};

#define HOLDINGS_PER_NODE 2 /* most prefixes have one holder, shared ones many */
#define NODE_BYTES (sizeof(struct node) + HOLDINGS_PER_NODE * sizeof(struct holding))

/* Nodes that fit beside a table of this size; the first of each pool is lost. */
static uint64_t nodes_beside(size_t budget, uint64_t table) {
    uint64_t bytes = table * sizeof(struct entry) + sizeof(struct node) + sizeof(struct holding);
    uint64_t fit = budget > bytes ? (budget - bytes) / NODE_BYTES : 0;
    return fit < table / 2 ? fit : table / 2;
}

struct ls_index *ls_index_new(size_t budget_bytes, uint32_t max_instances) {
    uint64_t table = 8;
    while (table < (1u << 30) &&
           nodes_beside(budget_bytes, table * 2) > nodes_beside(budget_bytes, table))
        table *= 2;
    uint64_t n = nodes_beside(budget_bytes, table);
    if (n == 0) return NULL;
    struct ls_index *ix = calloc(1, sizeof *ix);
    if (ix == NULL) return NULL;
    ix->mask = (uint32_t)(table - 1);
    ix->max_nodes = (uint32_t)n;
    ix->max_holdings = (uint32_t)(n * HOLDINGS_PER_NODE);
    ix->slots = max_instances;
    ix->fresh_node = ix->fresh_holding = 1;
    ix->budget = table * sizeof *ix->table + (n + 1) * sizeof *ix->nodes +
                 (n * HOLDINGS_PER_NODE + 1) * sizeof *ix->holdings;
    ix->table = calloc(table, sizeof *ix->table);
    ix->nodes = calloc(n + 1, sizeof *ix->nodes);
    ix->holdings = calloc(n * HOLDINGS_PER_NODE + 1, sizeof *ix->holdings);
    ix->shelves = calloc(max_instances, sizeof *ix->shelves);
    if (ix->table && ix->nodes && ix->holdings && ix->shelves) return ix;
    ls_index_free(ix);
    return NULL;
}

void ls_index_free(struct ls_index *ix) {
    if (ix == NULL) return;
    free(ix->table);
    free(ix->nodes);
    free(ix->holdings);
    free(ix->shelves);
    free(ix);
}

/* ---- Table: linear probing, no tombstones ---------------------------------------------------- */

static uint32_t find(const struct ls_index *ix, uint64_t hash) {
    uint32_t tag = (uint32_t)(hash >> 32);
    for (uint32_t i = tag & ix->mask; ix->table[i].node != NIL; i = (i + 1) & ix->mask)
        if (ix->table[i].tag == tag && ix->nodes[ix->table[i].node].run[0] == hash)
            return ix->table[i].node;
    return NIL;
}

static void table_add(struct ls_index *ix, uint32_t node) {
    uint32_t tag = (uint32_t)(ix->nodes[node].run[0] >> 32);
    uint32_t i = tag & ix->mask;
    while (ix->table[i].node != NIL) i = (i + 1) & ix->mask;
    ix->table[i] = (struct entry){.tag = tag, .node = node};
}

/* Later entries of the cluster move up into the gap, unless that puts them before their home. */
static void table_remove(struct ls_index *ix, uint32_t node) {
    uint32_t gap = (uint32_t)(ix->nodes[node].run[0] >> 32) & ix->mask;
    while (ix->table[gap].node != node) gap = (gap + 1) & ix->mask;
    for (uint32_t i = (gap + 1) & ix->mask; ix->table[i].node != NIL; i = (i + 1) & ix->mask) {
        uint32_t home = ix->table[i].tag & ix->mask;
        if (((i - home) & ix->mask) >= ((i - gap) & ix->mask)) {
            ix->table[gap] = ix->table[i];
            gap = i;
        }
    }
    ix->table[gap] = (struct entry){0};
}

/* ---- Lists by recency ------------------------------------------------------------------------ */

static void node_unlink(struct ls_index *ix, uint32_t n) {
    struct node *node = &ix->nodes[n];
    *(node->newer ? &ix->nodes[node->newer].older : &ix->newest) = node->older;
    *(node->older ? &ix->nodes[node->older].newer : &ix->oldest) = node->newer;
}

/* Just older than `before`; NIL: the newest of all. */
static void node_link(struct ls_index *ix, uint32_t n, uint32_t before) {
    struct node *node = &ix->nodes[n];
    uint32_t *from = before ? &ix->nodes[before].older : &ix->newest;
    node->newer = before;
    node->older = *from;
    *(node->older ? &ix->nodes[node->older].newer : &ix->oldest) = n;
    *from = n;
}

static void holding_unlink(struct ls_index *ix, uint32_t h) {
    struct holding *holding = &ix->holdings[h];
    struct shelf *shelf = &ix->shelves[holding->slot];
    *(holding->newer ? &ix->holdings[holding->newer].older : &shelf->newest) = holding->older;
    *(holding->older ? &ix->holdings[holding->older].newer : &shelf->oldest) = holding->newer;
}

static void holding_link(struct ls_index *ix, uint32_t h, uint32_t before) {
    struct holding *holding = &ix->holdings[h];
    struct shelf *shelf = &ix->shelves[holding->slot];
    uint32_t *from = before ? &ix->holdings[before].older : &shelf->newest;
    holding->newer = before;
    holding->older = *from;
    *(holding->older ? &ix->holdings[holding->older].newer : &shelf->oldest) = h;
    *from = h;
}

/* ---- Eviction -------------------------------------------------------------------------------- */

static void node_free(struct ls_index *ix, uint32_t n) {
    table_remove(ix, n);
    node_unlink(ix, n);
    ix->nodes[n].older = ix->free_node;
    ix->free_node = n;
    ix->nodes_used--;
}

/* h leaves its slot and the pool; the caller takes it out of its node's list. */
static void holding_free(struct ls_index *ix, uint32_t h) {
    struct holding *holding = &ix->holdings[h];
    ix->shelves[holding->slot].blocks -= holding->held;
    holding_unlink(ix, h);
    holding->older = ix->free_holding;
    ix->free_holding = h;
    ix->holdings_used--;
}

static void holding_drop(struct ls_index *ix, uint32_t h) {
    uint32_t n = ix->holdings[h].node;
    uint32_t *link = &ix->nodes[n].holders;
    while (*link != h) link = &ix->holdings[*link].next;
    *link = ix->holdings[h].next;
    holding_free(ix, h);
    if (ix->nodes[n].holders == NIL) node_free(ix, n);
}

static void evict_oldest(struct ls_index *ix) {
    uint32_t n = ix->oldest;
    for (uint32_t h = ix->nodes[n].holders, next; h != NIL; h = next) {
        next = ix->holdings[h].next;
        holding_free(ix, h);
    }
    ix->evictions += ix->nodes[n].length;
    node_free(ix, n);
}

/* Room for one more node and holding, without giving up `keep`, the end of the path so far. */
static int make_room(struct ls_index *ix, uint32_t keep) {
    while (ix->nodes_used == ix->max_nodes || ix->holdings_used == ix->max_holdings) {
        if (ix->oldest == keep || ix->oldest == NIL) return 0;
        evict_oldest(ix);
    }
    return 1;
}

static void trim(struct ls_index *ix, struct shelf *shelf, uint64_t capacity) {
    while (shelf->blocks > capacity) {
        struct holding *holding = &ix->holdings[shelf->oldest];
        uint64_t excess = shelf->blocks - capacity;
        if (holding->held <= excess) {
            holding_drop(ix, shelf->oldest);
        } else {
            holding->held = (uint16_t)(holding->held - excess);
            shelf->blocks = capacity;
        }
    }
}

/* ---- The operations -------------------------------------------------------------------------- */

static uint32_t node_new(struct ls_index *ix, const uint64_t *hashes, uint32_t n, uint32_t before) {
    uint32_t id = ix->free_node;
    if (id != NIL)
        ix->free_node = ix->nodes[id].older;
    else
        id = ix->fresh_node++;
    struct node *node = &ix->nodes[id];
    node->length = n < LS_RUN ? n : LS_RUN;
    node->holders = NIL;
    memcpy(node->run, hashes, node->length * sizeof *hashes);
    ix->nodes_used++;
    table_add(ix, id);
    node_link(ix, id, before);
    return id;
}

static uint32_t holding_new(struct ls_index *ix, uint32_t n, uint32_t slot, uint32_t before) {
    uint32_t id = ix->free_holding;
    if (id != NIL)
        ix->free_holding = ix->holdings[id].older;
    else
        id = ix->fresh_holding++;
    ix->holdings[id] =
        (struct holding){.node = n, .next = ix->nodes[n].holders, .slot = (uint16_t)slot};
    ix->nodes[n].holders = id;
    ix->holdings_used++;
    holding_link(ix, id, before);
    return id;
}

/* How far a run and the next hashes agree; at least 1 after find(). */
static uint32_t agree(const struct node *node, const uint64_t *hashes, uint32_t n) {
    uint32_t end = n < node->length ? n : node->length, i = 1;
    while (i < end && node->run[i] == hashes[i]) i++;
    return i;
}

uint32_t ls_index_match(const struct ls_index *ix, const uint64_t *hashes, uint32_t n,
                        uint32_t *hits) {
    uint32_t pos = 0;
    while (pos < n) {
        uint32_t id = find(ix, hashes[pos]);
        if (id == NIL) break;
        const struct node *node = &ix->nodes[id];
        uint32_t same = agree(node, hashes + pos, n - pos);
        /* By the invariant a holder here has held the whole way: the deepest node has the last
         * word. */
        for (uint32_t h = node->holders; h != NIL; h = ix->holdings[h].next) {
            uint32_t held = ix->holdings[h].held;
            hits[ix->holdings[h].slot] = pos + (held < same ? held : same);
        }
        pos += same;
    }
    return pos;
}

void ls_index_insert(struct ls_index *ix, uint32_t slot, const uint64_t *hashes, uint32_t n,
                     uint64_t capacity) {
    struct shelf *shelf = &ix->shelves[slot];
    uint32_t last = NIL, last_holding = NIL; /* where the walk stands */
    int at_end = 0;                          /* of that run */
    for (uint32_t pos = 0, same; pos < n; pos += same) {
        uint32_t id = find(ix, hashes[pos]), h = NIL;
        if (id == NIL && at_end && ix->nodes[last].length < LS_RUN) {
            struct node *node = &ix->nodes[last];
            uint32_t room = LS_RUN - node->length;
            same = n - pos < room ? n - pos : room;
            memcpy(node->run + node->length, hashes + pos, same * sizeof *hashes);
            node->length += same;
            ix->holdings[last_holding].held = (uint16_t)node->length;
            shelf->blocks += same;
            continue;
        }
        if (id != NIL) {
            node_unlink(ix, id);
            node_link(ix, id, last);
            h = ix->nodes[id].holders;
            while (h != NIL && ix->holdings[h].slot != slot) h = ix->holdings[h].next;
        }
        if (h != NIL) {
            holding_unlink(ix, h);
            holding_link(ix, h, last_holding);
        } else {
            if (!make_room(ix, id != NIL ? id : last)) break;
            if (id == NIL) id = node_new(ix, hashes + pos, n - pos, last);
            h = holding_new(ix, id, slot, last_holding);
        }
        same = agree(&ix->nodes[id], hashes + pos, n - pos);
        struct holding *holding = &ix->holdings[h];
        if (holding->held < same) {
            shelf->blocks += same - holding->held;
            holding->held = (uint16_t)same;
        }
        at_end = same == ix->nodes[id].length;
        last = id;
        last_holding = h;
    }
    if (capacity) trim(ix, shelf, capacity);
}

void ls_index_forget(struct ls_index *ix, uint32_t slot) {
    while (ix->shelves[slot].oldest != NIL) holding_drop(ix, ix->shelves[slot].oldest);
}

uint64_t ls_index_blocks(const struct ls_index *ix, uint32_t slot) {
    return ix->shelves[slot].blocks;
}

void ls_index_stats(const struct ls_index *ix, struct ls_index_stats *out) {
    *out = (struct ls_index_stats){
        .budget_bytes = ix->budget,
        .used_bytes = ((size_t)ix->mask + 1) * sizeof *ix->table +
                      ix->nodes_used * sizeof *ix->nodes + ix->holdings_used * sizeof *ix->holdings,
        .nodes = ix->nodes_used,
        .holdings = ix->holdings_used,
        .max_nodes = ix->max_nodes,
        .max_holdings = ix->max_holdings,
        .evictions = ix->evictions,
    };
}

int ls_index_check(const struct ls_index *ix) {
    uint64_t nodes = 0, holdings = 0, shelved = 0, entries = 0;
    uint32_t newer = NIL;
    for (uint32_t n = ix->newest; n != NIL; newer = n, n = ix->nodes[n].older) {
        const struct node *node = &ix->nodes[n];
        if (node->newer != newer || node->length == 0 || node->length > LS_RUN)
            return LS_EINVARIANT;
        if (find(ix, node->run[0]) != n || node->holders == NIL) return LS_EINVARIANT;
        for (uint32_t h = node->holders; h != NIL; h = ix->holdings[h].next, holdings++) {
            const struct holding *holding = &ix->holdings[h];
            if (holding->node != n || holding->slot >= ix->slots) return LS_EINVARIANT;
            if (holding->held == 0 || holding->held > node->length) return LS_EINVARIANT;
        }
        if (++nodes > ix->nodes_used) return LS_EINVARIANT;
    }
    if (newer != ix->oldest) return LS_EINVARIANT;
    for (uint32_t slot = 0; slot < ix->slots; slot++) {
        uint64_t blocks = 0;
        newer = NIL;
        for (uint32_t h = ix->shelves[slot].newest; h != NIL;
             newer = h, h = ix->holdings[h].older) {
            if (ix->holdings[h].newer != newer || ix->holdings[h].slot != slot)
                return LS_EINVARIANT;
            blocks += ix->holdings[h].held;
            if (++shelved > ix->holdings_used) return LS_EINVARIANT;
        }
        if (newer != ix->shelves[slot].oldest || blocks != ix->shelves[slot].blocks)
            return LS_EINVARIANT;
    }
    for (uint32_t i = 0; i <= ix->mask; i++) entries += ix->table[i].node != NIL;
    int fits = nodes == ix->nodes_used && entries == nodes && nodes <= ix->max_nodes;
    fits &= holdings == ix->holdings_used && shelved == holdings && holdings <= ix->max_holdings;
    return fits ? 0 : LS_EINVARIANT;
}
