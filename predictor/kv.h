/* kv.h - the KV cache of one engine: reference-counted blocks, prefix reuse, eviction.
 *
 * Blocks are kept as *runs*: consecutive blocks of one content path that always share one reference
 * count and one place in the eviction order. A run is split when somebody uses only its head. Costs
 * therefore follow the number of distinct prefixes in use, not blocks: a 100k-token prompt of 6,250
 * blocks is usually two or three runs.
 *
 *   content      sys prompt | user A turn 1 | turn 2
 *   runs         [0 ..... 7)[7 ........ 19)[19 .. 31)         request 1 holds all three
 *                           [7 .. 12)                         request 2 holds the first and its own
 *
 * What is reproduced exactly (vLLM 0.32; data: recorded scheduler steps):
 *   - a block is named by (chain key, depth); blocks that hold generated tokens by the request's uid;
 *   - two requests that compute the same block at once make two copies; lookups find the older one;
 *   - the free list is: blocks without a name first (last freed first), then named ones, least
 *     recently freed first; a request's blocks are freed tail first; taking a named block evicts it.
 * Eviction policies (enum evict_kind) choose the list that a freed run goes to: kv_evict_ops in kv.c.
 *
 * No I/O, no clock; the struct is plain data with indices instead of pointers, so that a clone is a
 * few memcpy. Arrays grow (amortised) with live requests and cached runs, never beyond one run a block;
 * when the system has no memory for that growth, the process aborts (mem.h).
 */
#ifndef WEIR_KV_H
#define WEIR_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine_config.h"
#include "predictor/request.h"

#define KV_NONE UINT32_MAX

/* A run of blocks [start, start + len). */
struct kv_run {
    uint64_t key0; /* name of block `start`; hashed with start */
    uint32_t start, len;
    uint32_t ref;        /* requests that hold it */
    uint32_t prev, next; /* eviction list, when ref == 0 */
    uint32_t chain;      /* next run in the same hash bucket; copies in order of age */
    uint32_t upper;      /* the run split off above this one (see kv_release) */
    uint32_t key_off;    /* its names in the key pool: one per key the blocks span */
    uint32_t n_keys;
    uint32_t key_tok;   /* tokens a name covers; 0: generated blocks, one name for all */
    uint32_t key_class; /* size class in the key pool */
    uint32_t uses;      /* lfu: times it was found or made, or what hangs on it was */
};

/* One link of a request's path, deepest first. */
struct kv_piece {
    uint32_t run, start; /* start when it was attached: the run may have been split above since */
    uint32_t up;         /* next piece towards the root, or free list */
};

/* What one request holds. Zero + kv_hold_init. */
struct kv_hold {
    uint32_t tail;     /* deepest piece, KV_NONE */
    uint32_t n_blocks; /* blocks held */
    uint32_t n_named;  /* of these, in pieces (a prefix) */
};

/* A change of the set of named blocks, for caches of caches. names points into the kv's log. */
struct kv_log_entry {
    bool stored;
    uint32_t depth, n_blocks;
    uint32_t name_off; /* into kv.log_names, one per block */
};

/* Runs whose names fall into one place of the index. */
struct kv_bucket {
    uint32_t first; /* KV_NONE: empty */
    uint32_t
        tags; /* a bit for each run's hash, also of some that have left: most lookups of what is not there end here */
};

struct kv {
    uint32_t block_size, usable; /* usable: blocks that requests can have */
    bool caching;
    enum evict_kind evict;

    uint32_t free_unnamed; /* free blocks without a name */
    uint32_t free_named;   /* blocks in the eviction list */

    struct kv_run *runs;
    uint32_t runs_used, runs_cap, runs_free; /* free list through chain */
    struct kv_bucket *buckets;
    uint32_t bucket_mask, n_runs;
    struct kv_piece *pieces;
    uint32_t pieces_used, pieces_cap, pieces_free;
    uint64_t *keys; /* key pool, allocated in power-of-two pieces */
    uint32_t keys_used, keys_cap;
    uint32_t key_free[28];

    uint32_t head[32],
        tail[32]; /* eviction lists, head goes first: lru uses one, lfu one per log2(uses) */

    bool log_on;
    struct kv_log_entry *log;
    uint64_t *log_names;
    uint32_t log_used, log_cap, log_names_used, log_names_cap;
};

/* 0, WEIR_E_NOMEM or WEIR_E_INVALID (usable 0 or > ENGINE_MAX_BLOCKS, block_size 0). */
WEIR_NODISCARD int kv_init(struct kv *kv, uint32_t block_size, uint32_t usable_blocks, bool caching,
                           enum evict_kind evict);
void kv_deinit(struct kv *kv);

/* Makes dst (initialised by kv_init, or a former copy) equal to src. The log is not copied. 0 or
 * WEIR_E_NOMEM, then dst is as before. */
WEIR_NODISCARD int kv_copy(struct kv *dst, const struct kv *src);
/* Makes room in dst for that; then kv_copy does not fail. 0 or WEIR_E_NOMEM; dst keeps what it has. */
WEIR_NODISCARD int kv_reserve_as(struct kv *dst, const struct kv *src);

static inline uint32_t kv_free_blocks(const struct kv *kv)
{
    return kv->free_unnamed + kv->free_named;
}

void kv_hold_init(struct kv_hold *h);

/* What a lookup found. */
struct kv_match {
    uint32_t blocks; /* leading blocks that are cached */
    uint32_t
        free_blocks; /* of these, in the eviction list now (taking them costs a free block each) */
};

/* Longest chain of cached blocks at the head of s, at most max_blocks. Changes nothing. */
struct kv_match kv_lookup(const struct kv *kv, const struct request_spec *s, uint32_t max_blocks);

/* Whether block `block` has the same content, and all above it, in both. */
bool kv_same_block(const struct kv *kv, const struct request_spec *a, const struct request_spec *b,
                   uint32_t block);

/* Takes the first `blocks` blocks of s that kv_lookup found into hold (which is empty). */
void kv_attach(struct kv *kv, const struct request_spec *s, uint32_t blocks, struct kv_hold *hold);

/* Takes n free blocks into hold (n <= kv_free_blocks), evicting as needed. */
void kv_take(struct kv *kv, struct kv_hold *hold, uint32_t n);

/* The blocks of hold up to `named` (>= n_named, <= n_blocks) are full now: gives them their names, so that
 * later lookups find them. */
void kv_name(struct kv *kv, const struct request_spec *s, struct kv_hold *hold, uint32_t named);

/* The peer simulator's cache (dynosim, sglang's radix tree): a block that is named already is shared instead of
 * kept twice; the copy goes back to the free blocks. */
void kv_name_shared(struct kv *kv, const struct request_spec *s, struct kv_hold *hold,
                    uint32_t named);

/* Gives everything back, tail first. */
void kv_release(struct kv *kv, struct kv_hold *hold);

/* Forgets every named block that nobody holds (engine restart, reset_prefix_cache). */
void kv_drop_cache(struct kv *kv);

/* Internal consistency, for tests: counts every block once, order lists, hash chains. Returns NULL when
 * sound, else static text naming what is broken. */
const char *kv_validate(const struct kv *kv);

#endif
