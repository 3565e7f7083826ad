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
#include "radix.h"

#include <stdlib.h>
#include <string.h>

#define HOLDINGS_PER_NODE 2 /* most prefixes have one holder, shared ones many */
#define NODE_BYTES (sizeof(struct node) + HOLDINGS_PER_NODE * sizeof(struct holding))

/* Nodes that fit beside a table of this size; the first of each pool is lost. */
static uint64_t nodes_beside(size_t budget, uint64_t table) {
    uint64_t bytes = table * sizeof(struct entry) + sizeof(struct node) + sizeof(struct holding);
    uint64_t fit = budget > bytes ? (budget - bytes) / NODE_BYTES : 0;
    return fit < table / 2 ? fit : table / 2;
}

struct ls_index *ls_index_new(size_t budget_bytes, uint32_t max_instances) {
    size_t pin_words = 1; /* a hundredth of the budget, at 64 inserts a word */
    while (pin_words * 2 * sizeof(uint64_t) <= budget_bytes / 100) pin_words *= 2;
    budget_bytes -= pin_words * sizeof(uint64_t);
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
    ix->pin_mask = (uint32_t)(pin_words * 64 - 1);
    ix->budget = pin_words * sizeof *ix->pinned + table * sizeof *ix->table +
                 (n + 1) * sizeof *ix->nodes + (n * HOLDINGS_PER_NODE + 1) * sizeof *ix->holdings;
    ix->table = calloc(table, sizeof *ix->table);
    ix->nodes = calloc(n + 1, sizeof *ix->nodes);
    ix->holdings = calloc(n * HOLDINGS_PER_NODE + 1, sizeof *ix->holdings);
    ix->shelves = calloc(max_instances, sizeof *ix->shelves);
    ix->pinned = calloc(pin_words, sizeof *ix->pinned);
    if (ix->pinned && ix->table && ix->nodes && ix->holdings && ix->shelves) return ix;
    ls_index_free(ix);
    return NULL;
}

void ls_index_free(struct ls_index *ix) {
    if (ix == NULL) return;
    free(ix->table);
    free(ix->nodes);
    free(ix->holdings);
    free(ix->shelves);
    free(ix->pinned);
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

/* ---- Eviction -------------------------------------------------------------------------------- */

static void node_free(struct ls_index *ix, uint32_t n) {
    table_remove(ix, n);
    node_unlink(ix, n);
    ix->nodes[n].holders = NIL; /* what remembers it can see that it is gone */
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

void ls_holding_drop(struct ls_index *ix, uint32_t h) {
    uint32_t n = ix->holdings[h].node;
    if (n == NIL) {
        struct shelf *shelf = &ix->shelves[ix->holdings[h].slot];
        shelf->spent -= ix->holdings[h].held;
        if (shelf->spacer == h) shelf->spacer = NIL;
        holding_free(ix, h);
        return;
    }
    uint32_t *link = &ix->nodes[n].holders;
    while (*link != h) link = &ix->holdings[*link].next;
    *link = ix->holdings[h].next;
    ix->nodes[n].sharers--;
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

int ls_make_room(struct ls_index *ix, uint32_t keep) {
    while (ix->nodes_used == ix->max_nodes || ix->holdings_used == ix->max_holdings) {
        if (ix->oldest == keep || ix->oldest == NIL) return 0;
        evict_oldest(ix);
    }
    return 1;
}

/* ---- The operations -------------------------------------------------------------------------- */

static uint32_t node_new(struct ls_index *ix, const uint64_t *hashes, uint32_t n, uint32_t start,
                         uint32_t before) {
    uint32_t id = ix->free_node;
    if (id != NIL)
        ix->free_node = ix->nodes[id].older;
    else
        id = ix->fresh_node++;
    struct node *node = &ix->nodes[id];
    node->length = (uint16_t)(n < LS_RUN ? n : LS_RUN);
    node->start = (uint16_t)start;
    node->parent = before;
    node->holders = NIL;
    node->sharers = 0;
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
    ix->nodes[n].sharers++;
    ix->holdings_used++;
    holding_link(ix, id, before);
    return id;
}

uint32_t ls_index_find(const struct ls_index *ix, uint64_t hash) {
    return find(ix, hash);
}

/* How far a run and the next hashes agree; at least 1 after find(). Where the last ones agree, all
 * before them do: a hash names its whole prefix. */
static uint32_t agree(const struct node *node, const uint64_t *hashes, uint32_t n) {
    uint32_t end = n < node->length ? n : node->length, i = 1;
    if (node->run[end - 1] == hashes[end - 1]) return end;
    while (node->run[i] == hashes[i]) i++;
    return i;
}

/* The holders of the deepest known node hold the whole way, so from there back to the root only
 * nodes with more holders have something to add: the lists are read where they grow. */
uint32_t ls_index_match(const struct ls_index *ix, const uint64_t *hashes, uint32_t n,
                        struct ls_hit *hits) {
    uint32_t known = 0, deepest = NIL, root = NIL, counted = 0;
    for (uint32_t id; known < n && (id = find(ix, hashes[known])) != NIL; deepest = id) {
        if (root == NIL) root = id;
        known += agree(&ix->nodes[id], hashes + known, n - known);
    }
    if (root == NIL) return 0;
    for (uint32_t id = deepest, end = known; counted < ix->nodes[root].sharers;) {
        const struct node *node = &ix->nodes[id];
        for (uint32_t h = node->sharers > counted ? node->holders : NIL; h != NIL;
             h = ix->holdings[h].next) {
            const struct holding *holding = &ix->holdings[h];
            struct ls_hit *hit = &hits[holding->slot];
            uint32_t reach = node->start + holding->held;
            if (hit->blocks == 0) *hit = (struct ls_hit){reach < end ? reach : end, holding->stamp};
        }
        counted = node->sharers;
        end = node->start;
        id = node->parent;
    }
    return known;
}

void ls_index_insert(struct ls_index *ix, uint32_t slot, const uint64_t *hashes, uint32_t n,
                     uint64_t capacity) {
    struct shelf *shelf = &ix->shelves[slot];
    uint32_t last = NIL, last_holding = NIL; /* where the walk stands */
    uint32_t next_holding = NIL;             /* that of the next node, if all is as it was left */
    int at_end = 0;                          /* of that run */
    ix->path = (struct ls_path){.stamp = ix->path.stamp + 1};
    for (uint32_t pos = 0, same; pos < n; pos += same) {
        uint32_t id = find(ix, hashes[pos]), h = next_holding;
        if (id == NIL && at_end && ix->nodes[last].length < LS_RUN) {
            struct node *node = &ix->nodes[last];
            uint32_t room = LS_RUN - node->length;
            same = n - pos < room ? n - pos : room;
            memcpy(node->run + node->length, hashes + pos, same * sizeof *hashes);
            node->length = (uint16_t)(node->length + same);
            ix->holdings[last_holding].held = (uint16_t)node->length;
            shelf->blocks += same;
            shelf->turned += same;
            ix->path.blocks = pos + same;
            continue;
        }
        /* Two ways to one hash: cannot be, unless a snapshot was made up. */
        if (id != NIL && (ix->nodes[id].parent != last || ix->nodes[id].start != pos)) break;
        if (id != NIL) {
            node_unlink(ix, id);
            node_link(ix, id, last);
            if (h == NIL || ix->holdings[h].node != id) { /* not the one behind the last */
                h = ix->nodes[id].holders;
                while (h != NIL && ix->holdings[h].slot != slot) h = ix->holdings[h].next;
            }
        } else {
            h = NIL;
        }
        if (h != NIL) {
            next_holding = ix->holdings[h].older;
            holding_unlink(ix, h);
            holding_link(ix, h, last_holding);
            ix->path.before = ix->holdings[h].stamp;
        } else {
            if (!ls_make_room(ix, id != NIL ? id : last)) break;
            if (id == NIL) id = node_new(ix, hashes + pos, n - pos, pos, last);
            h = holding_new(ix, id, slot, last_holding);
            next_holding = NIL;
        }
        same = agree(&ix->nodes[id], hashes + pos, n - pos);
        struct holding *holding = &ix->holdings[h];
        if (holding->held < same) {
            shelf->blocks += same - holding->held;
            shelf->turned += same - holding->held;
            holding->held = (uint16_t)same;
        }
        holding->stamp = ix->path.stamp;
        at_end = same == ix->nodes[id].length;
        ix->path.node = last = id;
        ix->path.blocks = pos + same;
        last_holding = h;
    }
    if (last != NIL) {
        ix->path.tail = ix->nodes[last].run[0];
        ix->path.turned = shelf->turned;
        pin(ix, ix->path.stamp, 1);
    }
    if (capacity) ls_index_trim(ix, slot, capacity);
}

struct ls_path ls_index_path(const struct ls_index *ix) {
    return ix->path;
}

void ls_index_forget(struct ls_index *ix, uint32_t slot) {
    while (ix->shelves[slot].oldest != NIL) ls_holding_drop(ix, ix->shelves[slot].oldest);
}

/* Where its stamp stands between now and the oldest on the shelf, times how full the shelf is. */
double ls_index_age(const struct ls_index *ix, uint32_t slot, uint32_t stamp, double capacity) {
    const struct shelf *shelf = &ix->shelves[slot];
    if (!(capacity > 0) || stamp == ix->path.stamp) return 0;
    double since = ix->path.stamp - stamp;
    double oldest = ix->path.stamp - ix->holdings[shelf->oldest].stamp;
    return ls_min(1, since * (double)shelf->blocks / (ls_max(oldest, since) * capacity));
}

uint64_t ls_index_blocks(const struct ls_index *ix, uint32_t slot) {
    return ix->shelves[slot].blocks - ix->shelves[slot].spent;
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
