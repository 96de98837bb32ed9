/* request.h - what an engine has to know of a request, and nothing else.
 *
 * Prefix identity: keys[i] is a 64-bit hash of everything in the prompt up to and including tokens
 * [i*key_tok, (i+1)*key_tok); the last key may cover a partial range that ends with the prompt. Equal
 * keys at equal depth mean equal prefixes (a chain, as in Mooncake's hash_ids once they are chained
 * by the loader). Engine blocks of any size are named from them: block b of block_size tokens has the
 * name (keys[ceil((b+1)*block_size/key_tok) - 1], b). A block that holds generated tokens is named by
 * the request's uid, unless keys reach beyond the prompt (n_keys*key_tok > prompt_tok + key_tok - 1):
 * then those keys name them (a session whose next turn is known to repeat this answer).
 */
#ifndef WEIR_REQUEST_H
#define WEIR_REQUEST_H

#include <stdint.h>

struct request_spec {
    uint64_t uid;         /* unique in one simulation; also the name of generated blocks */
    uint32_t prompt_tok;  /* >= 1 */
    uint32_t output_tok;  /* >= 1: what the request will really generate (the plant's secret) */
    uint32_t max_tokens;  /* caller's limit, >= output_tok; schedulers that reserve use this one */
    int32_t priority;     /* smaller runs first under the priority policy (vLLM's meaning) */
    int64_t arrival_ps;   /* ranks equal priorities */
    const uint64_t *keys; /* borrowed until the request has left the engine; NULL if n_keys is 0 */
    uint32_t n_keys;
    uint32_t key_tok; /* tokens a key covers; 0 only if n_keys is 0 */
};

/* Next key of a chain: parent is 0 for the first. id is the content's own name (a Mooncake hash_id,
 * a hash of tokens). */
uint64_t request_chain_key(uint64_t parent, uint64_t id);

/* The name of every block that holds tokens generated for request uid (told apart by depth). */
uint64_t request_generated_key(uint64_t uid);

#endif
