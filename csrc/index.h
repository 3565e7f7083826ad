/* index.h -- the prefix index, a part of lodestar.h: who is believed to hold which prefix. */
#ifndef LS_INDEX_H
#define LS_INDEX_H

#include <stddef.h>
#include <stdint.h>

/* ---- radix.c: who holds which prefix ------------------------------------------------------------
 *
 * A radix tree over block hashes. As a block's hash names its whole prefix, the tree needs no
 * pointers between nodes: a node is a run of at most LS_RUN consecutive hashes, found in one hash
 * table by the first of them. A walk is: look up, compare the run, look up the hash where it ended.
 *
 *   three prompts          nodes (runs)                table
 *   a b c d e f            (a b c d e f)               a -> node 1
 *   a b c x y              (x y)                       x -> node 2
 *   a b c x y z w          extends it: (x y z w)
 *
 * A run is never split: a prompt that leaves a run in its middle goes on in a node of its own, and
 * the run's rest stays where it is. A hash lies in at most one run, since a run or node is only
 * begun or extended with hashes whose look-up failed, and what follows an unknown hash is unknown.
 *
 * A *holding* says that an instance holds the first `held` blocks of a run. Holdings are in two
 * lists: of their node, and of their instance by recency. Nodes are in one list by recency. An
 * insert puts the path's root first and each next node behind it, so what is newer than a node
 * includes its ancestors, and the old end is always a leaf. Hence the invariant:
 *
 *      who holds anything of a node holds the way to it from the root.
 *
 * Memory is a hard budget: two pools and the table are carved out of it once. When a pool is empty
 * the node at the old end goes, with all who hold it: bounded work, at most one node per node made.
 */
#define LS_RUN 16 /* 1 KiB of prompt at 64-byte blocks; a node fills two or three cache lines */

struct ls_index;

struct ls_index_stats {
    size_t budget_bytes; /* tables and pools together, never more than asked for */
    size_t used_bytes;   /* of nodes and holdings in use, and the table */
    uint32_t nodes, holdings, max_nodes, max_holdings;
    uint64_t evictions; /* blocks given up for want of room */
};

#define LS_INDEX_MIN_BYTES 4096
struct ls_index *ls_index_new(size_t budget_bytes, uint32_t max_instances);
void ls_index_free(struct ls_index *ix);

struct ls_hit {
    uint32_t blocks; /* of the prompt that a slot holds */
    uint32_t stamp;  /* of the insert that used the far end of them last */
};

/* For each holder of a prefix, hits[slot] says what of it is held; other entries are left alone
 * (pass zeros). Returns the longest known prefix in blocks. Changes nothing. */
uint32_t ls_index_match(const struct ls_index *ix, const uint64_t *hashes, uint32_t n,
                        struct ls_hit *hits);

/* How near a hit of the slot is to being given up: 0 for one that was just used, or a slot without
 * limit; 1 for the next to go. capacity: as for the insert. */
double ls_index_age(const struct ls_index *ix, uint32_t slot, uint32_t stamp, double capacity);

/* slot now holds these blocks; they become its most recent. capacity in blocks, 0 = no limit of its
 * own: the oldest blocks beyond it are given up. If the path alone exceeds the budget or the
 * capacity, its far end is not entered. */
void ls_index_insert(struct ls_index *ix, uint32_t slot, const uint64_t *hashes, uint32_t n,
                     uint64_t capacity);

/* Where an insert went, so that it can be taken back without the prompt. */
struct ls_path {
    uint64_t tail;   /* first hash of its last node: tells whether that node is still the same */
    uint32_t node;   /* 0: the path is empty */
    uint32_t blocks; /* entered */
    uint32_t stamp;  /* of the insert; stamps count inserts, and turn after 2^32 */
    uint32_t before; /* stamp that the oldest part of it had which slot already held; 0: none */
    uint64_t turned; /* blocks that the slot had ever been given by then */
};
struct ls_path ls_index_path(const struct ls_index *ix); /* of the last insert */
void ls_index_forget(struct ls_index *ix, uint32_t slot);
uint64_t ls_index_blocks(const struct ls_index *ix, uint32_t slot); /* held by slot */
void ls_index_stats(const struct ls_index *ix, struct ls_index_stats *out);
int ls_index_check(const struct ls_index *ix); /* slow: every link; 0 or LS_EINVARIANT */

/* ---- truth.c: corrections of the index ----------------------------------------------------------
 * The insert's request has ended, and its blocks may be given up. Until then they are the last to
 * go; and if the slot has moved on far since, they are now its most recent. capacity: as for the
 * insert. */
void ls_index_release(struct ls_index *ix, uint32_t slot, const struct ls_path *path,
                      uint64_t capacity);

/* An answer of that many blocks takes room beside the prompts. */
void ls_index_spend(struct ls_index *ix, uint32_t slot, uint64_t blocks, uint64_t capacity);

/* The insert is taken back but for its first `keep` blocks, which were there before; what another
 * insert has used since stays. */
void ls_index_withdraw(struct ls_index *ix, uint32_t slot, const struct ls_path *path,
                       uint32_t keep);

/* What was not used after the insert of that stamp is gone. */
void ls_index_outlive(struct ls_index *ix, uint32_t slot, uint32_t stamp);

/* ---- snapshot.c: the index as bytes, so that a restart does not forget ---------------------------
 *
 * Taken in slices, between which the index goes on changing; each node is written as it is when its
 * turn comes. That does no harm: a hash names its whole prefix, so what a record says of hashes is
 * true for ever, and a record whose way to the root was cut meanwhile is not restored.
 *
 *   record   u64 first hash of the node before   u64 the hash before run[0]     (0 at the root)
 *            u16 start   u16 length   u32 holders   u64 run[length]
 *            holders times: i32 order   u16 slot   u16 held
 *
 * order: of the last use, of any origin. To restore is to insert what was in use, the oldest first.
 * What answers took (spacers), and what runs, is not in it.
 */
struct ls_snapshot {
    uint32_t node, stamp;
};
#define LS_SNAPSHOT_ROOM 16384 /* at least: a node with 1,024 holders fits */

struct ls_snapshot ls_snapshot_begin(const struct ls_index *ix);
/* The next records, as many as fit into `room` bytes. Returns their bytes, which may be none; when
 * all is written at->node is 0. */
size_t ls_snapshot_slice(const struct ls_index *ix, struct ls_snapshot *at, uint8_t *out,
                         size_t room);

struct ls_restore;
/* Reads the records, which must stay where they are until it is freed. Returns 0, LS_EVALUE if they
 * are malformed, or LS_ENOMEM. Allocates, sorts; touches no index. */
int ls_restore_new(const void *records, size_t bytes, struct ls_restore **out);
void ls_restore_free(struct ls_restore *rs);
/* Insert some more: at least one prompt, and no further one past so many blocks. slots[s]: the slot
 * which s of the snapshot is now, or negative: passed over; capacities[s]: in blocks, for the
 * insert; LS_MAX_INSTANCES each. Returns how much is left to look at; 0: the next call begins anew. */
uint32_t ls_restore_step(struct ls_restore *rs, struct ls_index *ix, const int32_t *slots,
                         const uint64_t *capacities, uint32_t blocks);

#endif
