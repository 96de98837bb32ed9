/* prefix_index.h - which workers have which prefixes: blocks named by the prompt up to their end, fast to
 * update and to ask for all workers at once.
 *
 *   prompt     |---- key 0 ----|---- key 1 ----|---- key 2 ----|     keys: see request.h
 *   blocks     |0 |1 |2 |3 |4 |5 |6 |7 |8 |9 |10|11|
 *   spans      [0 . . 3]       [4 . . 7]       [8 . . 11]            neighbours with one key, 64 at most
 *
 *   span, block size -> the workers that have any of its blocks, each with a bit for each block
 *
 * Costs follow spans, not blocks: in a trace with a key for 512 tokens, 32 blocks of 16 tokens are one entry.
 * Where every block has a key of its own, a span is a block.
 *
 * Two ways to use one (do not mix them in one index):
 *   what is cached    set, change: a block is there or not; with a limit, the least recently set go
 *   what is in use    add, drop: blocks count the requests that use them, and are there while any does
 *
 * Asking walks down the request's spans as long as any worker still matches. Where the same number of
 * workers has a span much deeper, everything between is taken as theirs too (prefixes are evicted from
 * their ends), so that a long shared prompt costs a few probes.
 *
 * Memory: 64 to 128 bytes a span, + 16 to 32 for each worker that has it where these are several, + 16
 * each with a limit. Grows with what is there, never shrinks; like all growth after construction, it
 * aborts when the system has no memory (mem.h).
 */
#ifndef WEIR_PREFIX_INDEX_H
#define WEIR_PREFIX_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/error.h"

/* The blocks of a prompt, for one block size (both sizes in tokens, block_tok >= 1; key_tok 0 only without
 * keys). Keys are borrowed for the duration of a call. */
struct prefix_chain {
    const uint64_t *keys;
    uint32_t n_keys, key_tok, block_tok;
};

/* Whole blocks inside the prompt that the keys reach. */
static inline uint32_t prefix_chain_blocks(const struct prefix_chain *p, uint32_t prompt_tok)
{
    uint64_t reach_tok = (uint64_t)p->n_keys * p->key_tok;
    return (uint32_t)((reach_tok < prompt_tok ? reach_tok : prompt_tok) / p->block_tok);
}

struct prefix_index;

/* max_blocks: kept per worker, 0 no limit. n_workers: at most 16384. NULL: out of memory. */
struct prefix_index *prefix_index_new(uint32_t n_workers, uint32_t max_blocks);
void prefix_index_free(struct prefix_index *x);

/* In all of these, n_blocks is at most prefix_chain_blocks() of p. */

/* The first n_blocks are cached on worker, as the most recent ones; the end of the prompt ages first. */
void prefix_index_set(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                      uint32_t worker);
/* Blocks depth.. are cached there, or not any more (stored false); keys[i] is the key of block depth + i. */
void prefix_index_change(struct prefix_index *x, uint32_t worker, uint32_t block_tok, bool stored,
                         uint32_t depth, uint32_t n_blocks, const uint64_t *keys);

/* One more request uses the first n_blocks on worker. */
void prefix_index_add(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                      uint32_t worker);
/* One less, of those added with the same p and n_blocks and not forgotten since. */
void prefix_index_drop(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                       uint32_t worker);

/* Forgets everything of worker. Without a limit, this looks at every span that is there. */
void prefix_index_forget(struct prefix_index *x, uint32_t worker);

/* How many different blocks worker has. */
uint64_t prefix_index_blocks(const struct prefix_index *x, uint32_t worker);

/* blocks[w] = leading blocks of p, up to n_blocks, that w has, for all workers w with any; `touched` (room for
 * n_workers) receives those workers. blocks[] must be 0 for all workers that can match; the caller makes
 * it 0 again through touched. Returns how many were touched. Exact where every worker's blocks are
 * whole prefixes. */
uint32_t prefix_index_match(const struct prefix_index *x, const struct prefix_chain *p,
                            uint32_t n_blocks, uint32_t *blocks, uint32_t *touched);

#endif
