/* block_store.h - a place for KV blocks below the GPU: least recently used ones make way, tails of prefixes
 * first. Host memory (tier.h) and the store that workers share (shared_tier.h) are such places.
 *
 * A copy into it has a beginning, when its space is taken, and an end, from which on its blocks can be found.
 * What is on its way already is not copied a second time. Prefixes are kept from their first block on (kv.h).
 *
 * Plain data with indices; a clone is a few memcpy.
 */
#ifndef WEIR_BLOCK_STORE_H
#define WEIR_BLOCK_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/kv.h"

struct block_store {
    struct kv kv;      /* what is there */
    struct kv pending; /* names of what is on its way; takes no space */
};

/* A copy under way, or blocks in use. Zero-initialise nothing: block_store_begin and _pin fill it. */
struct block_ticket {
    struct kv_hold pin;     /* blocks that are there, and stay */
    struct kv_hold pending; /* names announced */
    uint32_t from;  /* the copy's first block: those before are there, or on their way before it */
    uint32_t space; /* blocks taken for it */
};

/* 0 or WEIR_E_NOMEM; the arguments are those of an engine's limits. */
WEIR_NODISCARD int block_store_init(struct block_store *s, uint32_t block_size, uint32_t blocks);
void block_store_deinit(struct block_store *s);
/* dst, initialised or zero, becomes as src; block_store_reserve_as, which keeps what dst has, made room for it. */
void block_store_copy(struct block_store *dst, const struct block_store *src);
WEIR_NODISCARD int block_store_reserve_as(struct block_store *dst, const struct block_store *src);

/* Leading blocks of q that are there, at most max. */
uint32_t block_store_lookup(const struct block_store *s, const struct request_spec *q,
                            uint32_t max);

/* The first n blocks of q, which are there, stay until the ticket is dropped, and count as used then. */
void block_store_pin(struct block_store *s, const struct request_spec *q, uint32_t n,
                     struct block_ticket *t);

/* Takes space for those of the first n blocks of q that are not there or on their way, as far as it goes without
 * what is in use. Returns how many have to be copied; 0: the ticket needs no drop. *without: blocks that
 * had no room. */
uint32_t block_store_begin(struct block_store *s, const struct request_spec *q, uint32_t n,
                           struct block_ticket *t, uint32_t *without);

/* The copy is complete: its blocks can be found from now on, and stay until the ticket is dropped. Nothing is
 * kept if blocks before them did not arrive. q names them as at block_store_begin. Returns the blocks of the
 * prefix that are there now. */
uint32_t block_store_end(struct block_store *s, const struct request_spec *q,
                         struct block_ticket *t);

/* Gives up a ticket, whether its copy ended or not. */
void block_store_drop(struct block_store *s, struct block_ticket *t);

/* Forgets everything; no ticket is out. */
void block_store_clear(struct block_store *s);

/* As kv_validate; unused: no ticket is out. */
const char *block_store_validate(const struct block_store *s, bool unused);

#endif
