/* radix.h -- the insides of the prefix index, for radix.c, truth.c and snapshot.c only. */
#ifndef LODESTAR_RADIX_H
#define LODESTAR_RADIX_H

#include "lodestar.h"

#define NIL 0u /* nodes[0] and holdings[0] are not used: zeroed memory is an empty index */

struct node {
    uint64_t run[LS_RUN];
    uint16_t length;
    uint16_t start;        /* place of its first block in the prompts that pass here */
    uint32_t parent;       /* the node that the way comes from, NIL at the root */
    uint32_t holders;      /* first holding */
    uint32_t newer, older; /* all nodes by recency */
    uint32_t sharers;      /* how many hold something of it */
};

struct holding {
    uint32_t node;         /* NIL: a spacer, room that no prompt has a name for (truth.c) */
    uint32_t next;         /* of the same node */
    uint32_t newer, older; /* of the same slot by recency */
    uint32_t stamp;        /* of the insert that used it last */
    uint16_t slot;
    uint16_t held; /* 1..length */
};

struct entry {    /* of the table; node NIL: free */
    uint32_t tag; /* upper half of the run's first hash; its low bits are the home position */
    uint32_t node;
};

struct shelf { /* what one slot holds */
    uint32_t newest, oldest;
    uint32_t spacer; /* the one that still grows, or NIL */
    uint64_t blocks; /* with spacers */
    uint64_t spent;  /* in spacers */
    uint64_t turned; /* blocks ever entered: how far the shelf has moved on */
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
    struct ls_path path; /* of the last insert; its stamp counts inserts */
    uint64_t *pinned;    /* bit stamp & pin_mask: that insert's request still runs */
    uint32_t pin_mask;
    uint64_t evictions;
    size_t budget;
};

/* ---- Lists by recency ------------------------------------------------------------------------ */

static inline void node_unlink(struct ls_index *ix, uint32_t n) {
    struct node *node = &ix->nodes[n];
    *(node->newer ? &ix->nodes[node->newer].older : &ix->newest) = node->older;
    *(node->older ? &ix->nodes[node->older].newer : &ix->oldest) = node->newer;
}

/* Just older than `before`; NIL: the newest of all. */
static inline void node_link(struct ls_index *ix, uint32_t n, uint32_t before) {
    struct node *node = &ix->nodes[n];
    uint32_t *from = before ? &ix->nodes[before].older : &ix->newest;
    node->newer = before;
    node->older = *from;
    *(node->older ? &ix->nodes[node->older].newer : &ix->oldest) = n;
    *from = n;
}

static inline void holding_unlink(struct ls_index *ix, uint32_t h) {
    struct holding *holding = &ix->holdings[h];
    struct shelf *shelf = &ix->shelves[holding->slot];
    *(holding->newer ? &ix->holdings[holding->newer].older : &shelf->newest) = holding->older;
    *(holding->older ? &ix->holdings[holding->older].newer : &shelf->oldest) = holding->newer;
}

static inline void holding_link(struct ls_index *ix, uint32_t h, uint32_t before) {
    struct holding *holding = &ix->holdings[h];
    struct shelf *shelf = &ix->shelves[holding->slot];
    uint32_t *from = before ? &ix->holdings[before].older : &shelf->newest;
    holding->newer = before;
    holding->older = *from;
    *(holding->older ? &ix->holdings[holding->older].newer : &shelf->oldest) = h;
    *from = h;
}

static inline void pin(struct ls_index *ix, uint32_t stamp, int on) {
    uint64_t bit = 1ull << (stamp & 63), *word = &ix->pinned[(stamp & ix->pin_mask) >> 6];
    *word = on ? *word | bit : *word & ~bit;
}

static inline int is_pinned(const struct ls_index *ix, uint32_t stamp) {
    return ix->pinned[(stamp & ix->pin_mask) >> 6] >> (stamp & 63) & 1;
}

/* ---- radix.c --------------------------------------------------------------------------------- */

/* The node that begins with this hash, or NIL. */
uint32_t ls_index_find(const struct ls_index *ix, uint64_t hash);
/* A holding or spacer goes; its node too if nobody else holds it. */
void ls_holding_drop(struct ls_index *ix, uint32_t h);
/* Room for one more node and holding, without giving up node `keep`. Returns 0 if there is none. */
int ls_make_room(struct ls_index *ix, uint32_t keep);
/* ---- truth.c --------------------------------------------------------------------------------- */

/* Give up a slot's oldest blocks until it has no more than that; what is pinned last. */
void ls_index_trim(struct ls_index *ix, uint32_t slot, uint64_t capacity);

#endif
