/* kv_blocks.h - one engine's cached blocks, from its KV events, told to the decision core under weir's own names. No I/O.
 *
 *   engine   hash -> parent hash, token ids            chain of blocks of any size
 *   weir     key of each OPENAI_CHUNK_TOK ids          what a prompt given as token ids is named by (openai_request.h)
 *   core     (key, depth)                              blocks of the size that the core reckons with
 *
 * An event names a block's tokens and its parent, so its keys follow from the parent's: whatever hash the engine uses, and
 * whatever seed, the same ids have the same keys here. That is what can be told, and no more:
 *   - prompts sent as text have keys by bytes, and no tokenizer is in the path: their blocks are followed (and counted)
 *     but match no prompt by text. What is known of those is guessed from what was sent where (core.h, guess_cache);
 *   - a chunk counts as cached from when its last token is until the block with its last token goes;
 *   - blocks whose parent was never heard of, with images or an adapter without a name, of other tiers than the GPU's or other groups of
 *     layers than the first, of a size that neither divides OPENAI_CHUNK_TOK nor is a multiple of it: counted only.
 */
#ifndef WEIR_KV_BLOCKS_H
#define WEIR_KV_BLOCKS_H

#include "controller/core/core.h"
#include "controller/engines/kv_events.h"

#define KV_BLOCKS_MAX (1u << 20) /* keys of one engine's blocks; further blocks are counted only */

struct kv_blocks;

typedef void (*kv_tell_fn)(void *ctx, const struct core_cache_event *ev);

/* Blocks that events named, by what became of them. */
struct kv_blocks_stats {
    uint64_t stored, removed; /* followed */
    uint64_t cleared;         /* times all went */
    uint64_t orphans;         /* parent not known */
    uint64_t nameless;        /* images, an adapter without a name, no token ids */
    uint64_t elsewhere;       /* another tier, or group of layers */
    uint64_t unfit;           /* of a size that has no keys */
    uint64_t beyond;          /* KV_BLOCKS_MAX */
    uint64_t strangers;       /* removed, but not known */
    uint32_t blocks;          /* known now */
};

/* block_tok: the core's for this worker. model: the name that requests of the base model carry. NULL: out of memory. */
struct kv_blocks *kv_blocks_new(uint32_t block_tok, const char *model, kv_tell_fn tell, void *ctx);
void kv_blocks_free(struct kv_blocks *b);

void kv_blocks_event(struct kv_blocks *b, const struct kv_event *ev);
/* All is gone, or not to be believed any more; tells the core so. */
void kv_blocks_clear(struct kv_blocks *b);
/* Everything that is known, once more: for a core that has forgotten it. */
void kv_blocks_tell_all(struct kv_blocks *b);

const struct kv_blocks_stats *kv_blocks_stats(const struct kv_blocks *b);

#endif
