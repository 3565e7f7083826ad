/* truth.c -- what corrects the prefix index when an engine's cache turns out to be otherwise.
 *
 * Insert believes that an instance holds what it was sent. Three things make that untrue:
 *
 *   answers take room too          spend      spacers: blocks on a shelf that belong to no node
 *   a request never got computed   withdraw   what its insert added is taken back
 *   the cache is smaller           outlive    all that was used no later than something that was
 *                                             found to be gone: caches give up the oldest first
 *
 * None of them needs the prompt again: an insert leaves a path, which names its last node, and from
 * there `parent` leads to the root. A node outlives those behind it, so the way is always whole.
 */
#include "radix.h"

#define SPACERS 64 /* of a full shelf: an answer's age is known to this part of the capacity */

#define STALE 8 /* of a capacity: by how much a shelf moves on before an order is renewed */

/* ---- Recency --------------------------------------------------------------------------------- */

static uint32_t holding_of(const struct ls_index *ix, uint32_t n, uint32_t slot) {
    uint32_t h = ix->nodes[n].holders;
    while (h != NIL && ix->holdings[h].slot != slot) h = ix->holdings[h].next;
    return h;
}

static int path_is_there(const struct ls_index *ix, const struct ls_path *path) {
    uint32_t n = path->node;
    return n != NIL && ix->nodes[n].holders != NIL && ix->nodes[n].run[0] == path->tail;
}

/* The way to a node becomes the slot's most recent, its root first. */
static void touch(struct ls_index *ix, uint32_t slot, uint32_t n) {
    for (; n != NIL; n = ix->nodes[n].parent) {
        uint32_t h = holding_of(ix, n, slot);
        if (h == NIL) continue; /* the far end has been given up */
        holding_unlink(ix, h);
        holding_link(ix, h, NIL);
    }
}

void ls_index_release(struct ls_index *ix, uint32_t slot, const struct ls_path *path,
                      uint64_t capacity) {
    if (path->node == NIL) return; /* nothing was pinned */
    pin(ix, path->stamp, 0);
    uint64_t since = ix->shelves[slot].turned - path->turned;
    if (capacity > 0 && since > capacity / STALE && path_is_there(ix, path))
        touch(ix, slot, path->node);
}

void ls_index_trim(struct ls_index *ix, uint32_t slot, uint64_t capacity) {
    struct shelf *shelf = &ix->shelves[slot];
    uint32_t spared = NIL; /* the first that was: met again, all are pinned */
    while (shelf->blocks > capacity) {
        uint32_t h = shelf->oldest;
        struct holding *holding = &ix->holdings[h];
        uint64_t excess = shelf->blocks - capacity;
        if (holding->node != NIL && h != spared && is_pinned(ix, holding->stamp)) {
            if (spared == NIL) spared = h;
            touch(ix, slot, holding->node);
        } else if (holding->held <= excess) {
            if (h == spared) spared = holding->newer; /* the next to be met */
            ls_holding_drop(ix, h);
        } else {
            holding->held = (uint16_t)(holding->held - excess);
            shelf->blocks = capacity;
            if (holding->node == NIL) shelf->spent -= excess;
        }
    }
}

/* ---- Spacers --------------------------------------------------------------------------------- */

static uint32_t spacer_new(struct ls_index *ix, uint32_t slot) {
    if (!ls_make_room(ix, NIL)) return NIL;
    uint32_t id = ix->free_holding;
    if (id != NIL)
        ix->free_holding = ix->holdings[id].older;
    else
        id = ix->fresh_holding++;
    ix->holdings[id] = (struct holding){.stamp = ix->path.stamp, .slot = (uint16_t)slot};
    ix->holdings_used++;
    holding_link(ix, id, NIL);
    ix->shelves[slot].spacer = id;
    return id;
}

void ls_index_spend(struct ls_index *ix, uint32_t slot, uint64_t blocks, uint64_t capacity) {
    struct shelf *shelf = &ix->shelves[slot];
    if (capacity / LS_RUN >= ix->max_holdings) return; /* the pool is smaller than the cache */
    if (blocks > capacity) blocks = capacity;
    while (blocks > 0) {
        uint64_t most = capacity / SPACERS + 1;
        if (most > UINT16_MAX) most = UINT16_MAX;
        uint32_t id = shelf->spacer;
        if (id == NIL || ix->holdings[id].held >= most) id = spacer_new(ix, slot);
        if (id == NIL) break;
        uint64_t n = most - ix->holdings[id].held;
        if (n > blocks) n = blocks;
        ix->holdings[id].held = (uint16_t)(ix->holdings[id].held + n);
        shelf->blocks += n;
        shelf->spent += n;
        shelf->turned += n;
        blocks -= n;
    }
    ls_index_trim(ix, slot, capacity);
}

/* ---- Taking back ----------------------------------------------------------------------------- */

void ls_index_withdraw(struct ls_index *ix, uint32_t slot, const struct ls_path *path,
                       uint32_t keep) {
    uint32_t n = path->node, end = path->blocks; /* the path leaves node n before block `end` */
    if (!path_is_there(ix, path)) return;
    while (n != NIL && end > keep) {
        uint32_t start = ix->nodes[n].start, parent = ix->nodes[n].parent;
        uint32_t h = holding_of(ix, n, slot);
        /* Used by another one since: that one is about to compute it, and all before it. */
        if (h != NIL && ix->holdings[h].stamp != path->stamp) return;
        if (h != NIL && start >= keep) {
            ls_holding_drop(ix, h);
        } else if (h != NIL && start + ix->holdings[h].held > keep) {
            ix->shelves[slot].blocks -= start + ix->holdings[h].held - keep;
            ix->holdings[h].held = (uint16_t)(keep - start);
        }
        end = start;
        n = parent;
    }
}

void ls_index_outlive(struct ls_index *ix, uint32_t slot, uint32_t stamp) {
    struct shelf *shelf = &ix->shelves[slot];
    while (shelf->oldest != NIL && (int32_t)(ix->holdings[shelf->oldest].stamp - stamp) <= 0)
        ls_holding_drop(ix, shelf->oldest);
}

/* ---- Self-check ------------------------------------------------------------------------------ */

/* Whether a slot that holds part of a node holds all that lies before it. */
static int way_held(const struct ls_index *ix, const struct node *node, uint32_t slot) {
    if (node->parent == NIL) return node->start == 0;
    const struct node *parent = &ix->nodes[node->parent];
    uint32_t h = holding_of(ix, node->parent, slot);
    return h != NIL && parent->start < node->start &&
           parent->start + ix->holdings[h].held >= node->start;
}

int ls_index_check(const struct ls_index *ix) {
    uint64_t nodes = 0, holdings = 0, shelved = 0, spacers = 0, entries = 0;
    uint32_t newer = NIL;
    for (uint32_t n = ix->newest; n != NIL; newer = n, n = ix->nodes[n].older) {
        const struct node *node = &ix->nodes[n];
        if (node->newer != newer || node->length == 0 || node->length > LS_RUN)
            return LS_EINVARIANT;
        if (ls_index_find(ix, node->run[0]) != n || node->holders == NIL) return LS_EINVARIANT;
        uint32_t sharers = 0;
        for (uint32_t h = node->holders; h != NIL; h = ix->holdings[h].next, holdings++) {
            const struct holding *holding = &ix->holdings[h];
            if (++sharers > node->sharers || holding->node != n || holding->slot >= ix->slots)
                return LS_EINVARIANT;
            if (holding->held == 0 || holding->held > node->length) return LS_EINVARIANT;
            if (!way_held(ix, node, holding->slot)) return LS_EINVARIANT;
        }
        if (sharers != node->sharers) return LS_EINVARIANT;
        if (++nodes > ix->nodes_used) return LS_EINVARIANT;
    }
    if (newer != ix->oldest) return LS_EINVARIANT;
    for (uint32_t slot = 0; slot < ix->slots; slot++) {
        const struct shelf *shelf = &ix->shelves[slot];
        uint64_t blocks = 0, spent = 0;
        int grows = 0;
        newer = NIL;
        for (uint32_t h = shelf->newest; h != NIL; newer = h, h = ix->holdings[h].older) {
            const struct holding *holding = &ix->holdings[h];
            if (holding->newer != newer || holding->slot != slot || holding->held == 0)
                return LS_EINVARIANT;
            blocks += holding->held;
            spent += holding->node == NIL ? holding->held : 0;
            spacers += holding->node == NIL;
            grows += h == shelf->spacer;
            if (++shelved > ix->holdings_used) return LS_EINVARIANT;
        }
        if (newer != shelf->oldest || blocks != shelf->blocks || spent != shelf->spent)
            return LS_EINVARIANT;
        if (grows != (shelf->spacer != NIL)) return LS_EINVARIANT;
    }
    for (uint32_t i = 0; i <= ix->mask; i++) entries += ix->table[i].node != NIL;
    int fits = nodes == ix->nodes_used && entries == nodes && nodes <= ix->max_nodes;
    fits &= holdings + spacers == ix->holdings_used && shelved == ix->holdings_used;
    fits &= ix->holdings_used <= ix->max_holdings;
    return fits ? 0 : LS_EINVARIANT;
}
