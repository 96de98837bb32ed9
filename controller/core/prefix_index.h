/* prefix_index.h - which workers have which prefixes: (block name, worker) pairs, fast to update and to ask
 * for all workers at once.
 *
 * A name is a 64-bit hash of (chain key, depth, block size), so that workers with different block sizes can
 * share an index. Each pair counts references: cache events use 0 and 1, books of running requests more.
 * Asking walks down the request's blocks as long as any worker still matches; where the same number of
 * workers holds a block much deeper, everything between is taken as held (prefixes are evicted from their
 * ends), so that a long shared prompt costs a few probes.
 *
 * Memory: 16 bytes a name + 24 bytes a pair, grows with what is cached, never shrinks; with a limit per
 * worker, the least recently touched pairs go.
 */
#ifndef WEIR_PREFIX_INDEX_H
#define WEIR_PREFIX_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/error.h"

struct prefix_index;

/* max_entries: pairs kept per worker, 0 no limit. NULL: out of memory. */
struct prefix_index *prefix_index_new(uint32_t n_workers, uint32_t max_entries);
void prefix_index_free(struct prefix_index *x);

/* The name of block `depth` whose chain key is `key`. */
uint64_t prefix_name(uint64_t key, uint32_t depth, uint32_t block_tok);

/* The name of block `depth` (block_tok tokens, whole inside the prompt) of a request with keys[] of key_tok. */
uint64_t prefix_request_name(const uint64_t *keys, uint32_t key_tok, uint32_t depth,
                             uint32_t block_tok);

/* Adds one reference; a pair that is there becomes the most recent one. */
void prefix_index_add(struct prefix_index *x, uint64_t name, uint32_t worker);
/* The pair is there, with one reference; makes it the most recent one. */
void prefix_index_set(struct prefix_index *x, uint64_t name, uint32_t worker);
/* Takes one reference away; a pair without is gone. Unknown pairs are ignored. */
void prefix_index_drop(struct prefix_index *x, uint64_t name, uint32_t worker);
/* Forgets a worker. */
void prefix_index_forget(struct prefix_index *x, uint32_t worker);

bool prefix_index_has(const struct prefix_index *x, uint64_t name, uint32_t worker);

uint64_t prefix_index_pairs(const struct prefix_index *x, uint32_t worker);

/* blocks[w] = leading blocks of the request that w has, for all workers w with any; `touched` (room for
 * n_workers) receives those workers. blocks[] must be all 0 before; the caller zeroes it again through touched. n_blocks:
 * how many blocks to look at, at most. Returns how many were touched. */
uint32_t prefix_index_match(struct prefix_index *x, const uint64_t *keys, uint32_t key_tok,
                            uint32_t n_keys, uint32_t block_tok, uint32_t n_blocks,
                            uint32_t *blocks, uint32_t *touched);

#endif
