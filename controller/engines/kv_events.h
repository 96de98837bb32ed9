/* kv_events.h - what engines publish of their prefix caches: batches of msgpack, decoded without I/O.
 *
 *   batch    [ts, [event...], dp_rank]                           or the same as a map
 *   event    ["BlockStored", hashes, parent, token_ids, block_size, lora_id, medium, lora_name, extra_keys, group_idx, ...]
 *            ["BlockRemoved", hashes, medium, group_idx]  ["AllBlocksCleared"]                    trailing ones may lack
 *            {"type": "BlockStored", "block_hashes": ..., ...}                                    in any order
 *
 * Source: vLLM vllm/distributed/kv_events.py (arrays until June 2026, maps since), SGLang
 * python/sglang/srt/disaggregation/kv_events.py (arrays, the first five or six fields), and what vLLM 0.32 was seen to
 * send. Fields and events that are not known are passed over. Tokens are read by libmpack, which allocates nothing.
 *
 * Hashes are names and no more: an integer (signed or not) counts by its 64 bits, bytes by their xxh3-64.
 */
#ifndef WEIR_KV_EVENTS_H
#define WEIR_KV_EVENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"

#define KV_EVENTS_MAX_BYTES (64u << 20) /* of a batch: a larger one is refused */
#define KV_EVENTS_MAX_EXTRA 2u          /* texts of a block's extra keys that are kept */

enum kv_event_kind { KV_STORED, KV_REMOVED, KV_CLEARED };

/* Not terminated; s NULL: not given. */
struct kv_text {
    const char *s;
    size_t len;
};

/* What a block's name depends on beside its tokens: LoRA, cache salt, images. */
struct kv_extra {
    uint32_t
        n; /* all of them; text has the first ones. Other than texts: n is above KV_EVENTS_MAX_EXTRA */
    struct kv_text text[KV_EVENTS_MAX_EXTRA];
};

struct kv_event {
    enum kv_event_kind kind;
    const uint64_t *hashes;
    uint32_t n_hashes;
    bool has_parent;
    uint64_t parent;
    const uint32_t *tokens;
    uint32_t n_tokens;
    bool odd_tokens; /* some are no token ids (pairs, as SGLang's speculative caches have them) */
    uint32_t block_size;
    bool has_lora_id;
    struct kv_text lora_name, medium;
    uint32_t group; /* of layers, in hybrid models; 0 where there is one */
    const struct kv_extra *extra;
    uint32_t n_extra; /* one a block, or 0 */
};

/* Pointers in ev are good during the call. */
typedef void (*kv_event_fn)(void *ctx, const struct kv_event *ev);

/* Scratch memory; zero is empty. unknown: events of a kind that is not known, passed over. */
struct kv_decoder {
    uint64_t *hashes;
    uint32_t *tokens;
    struct kv_extra *extra;
    uint32_t hashes_cap, tokens_cap, extra_cap;
    uint64_t unknown;
};
void kv_decoder_deinit(struct kv_decoder *d);

/* fn for each event of a batch, in order. 0; WEIR_E_INPUT: no batch, broken off or larger than KV_EVENTS_MAX_BYTES; events
 * before the fault have been told. */
WEIR_NODISCARD int kv_events_decode(struct kv_decoder *d, const void *data, size_t n,
                                    kv_event_fn fn, void *ctx);

#endif
