/* shared_tier.h - a store of KV blocks that all workers of a cluster read and write (Mooncake Store, an
 * LMCache server, a parallel file system).
 *
 * Reads and writes have a bandwidth each, shared equally by the transfers in flight (fair_share.h), and a
 * latency to the first byte. A worker writes one prefix after the other, and reads each prefix that a request
 * needs on its own. Blocks can be found when their write is complete; the least recently written or read make
 * way for new ones, tails of prefixes first, but not those being read. A block is kept once, whoever has
 * written it. What does not fit is not kept. It survives its workers.
 *
 * Follows AISimulate's G3 (cluster_shared: write-through from host memory, equal shares among the transfers
 * that move, first-byte latency without bandwidth), without its second limit on each worker's own link.
 */
#ifndef WEIR_SHARED_TIER_H
#define WEIR_SHARED_TIER_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine_config.h"
#include "predictor/request.h"

struct shared_tier;

struct shared_tier_done {
    uint32_t client, slot; /* slot: of shared_tier_read */
    uint32_t transfer;     /* write: for tier_written */
    bool write;
};

struct shared_tier_stats {
    uint64_t read_blocks, written_blocks;
    uint32_t used_blocks; /* now, being written included */
};

/* num_shared_blocks, block_size, kv_bytes_per_token and shared_* of c count. NULL: out of memory. */
struct shared_tier *shared_tier_new(const struct engine_config *c);
void shared_tier_free(struct shared_tier *s);
/* Whether both would make the same store; then their workers can share one. */
bool shared_tier_same(const struct engine_config *a, const struct engine_config *b);

/* Leading blocks of q that are there, at most max. */
uint32_t shared_tier_lookup(const struct shared_tier *s, const struct request_spec *q,
                            uint32_t max);

/* Reads blocks from..n - 1 of q, which are there. Returns when that ends if nobody else comes or goes. */
int64_t shared_tier_read(struct shared_tier *s, int64_t now, uint32_t client, uint32_t slot,
                         const struct request_spec *q, uint32_t from, uint32_t n);

/* Writes what is not there of the first n blocks of q, as far as it fits. False: nothing to do. */
bool shared_tier_write(struct shared_tier *s, int64_t now, uint32_t client,
                       const struct request_spec *q, uint32_t n);
/* The write is complete and can be found. q names the blocks as at shared_tier_write. */
void shared_tier_commit(struct shared_tier *s, uint32_t transfer, const struct request_spec *q);

int64_t shared_tier_next_ps(const struct shared_tier *s); /* PS_NEVER: nothing moves */
/* Takes out a transfer that is complete by now; a write still has to be committed. */
bool shared_tier_pop(struct shared_tier *s, int64_t now, struct shared_tier_done *done);
/* Stops all transfers of a client. */
void shared_tier_cancel(struct shared_tier *s, int64_t now, uint32_t client);

void shared_tier_get_stats(const struct shared_tier *s, struct shared_tier_stats *out);
/* As block_store_validate. */
const char *shared_tier_validate(const struct shared_tier *s);

#endif
