/* block_store.c - see block_store.h. */
#include "predictor/block_store.h"

#include <assert.h>
#include <string.h>

int block_store_init(struct block_store *s, uint32_t block_size, uint32_t blocks)
{
    memset(s, 0, sizeof *s);
    int rc = kv_init(&s->kv, block_size, blocks, true, EVICT_LRU);
    if (!rc)
        rc = kv_init(&s->pending, block_size, ENGINE_MAX_BLOCKS, true, EVICT_LRU);
    return rc;
}

void block_store_deinit(struct block_store *s)
{
    kv_deinit(&s->kv);
    kv_deinit(&s->pending);
}

int block_store_reserve_as(struct block_store *dst, const struct block_store *src)
{
    return kv_reserve_as(&dst->kv, &src->kv) || kv_reserve_as(&dst->pending, &src->pending)
               ? WEIR_E_NOMEM
               : 0;
}

void block_store_copy(struct block_store *dst, const struct block_store *src)
{
    int rc = kv_copy(&dst->kv, &src->kv) | kv_copy(&dst->pending, &src->pending);
    assert(!rc);
    (void)rc;
}

uint32_t block_store_lookup(const struct block_store *s, const struct request_spec *q, uint32_t max)
{
    return kv_lookup(&s->kv, q, max).blocks;
}

static void ticket_init(struct block_ticket *t)
{
    *t = (struct block_ticket){0};
    kv_hold_init(&t->pin);
    kv_hold_init(&t->pending);
}

void block_store_pin(struct block_store *s, const struct request_spec *q, uint32_t n,
                     struct block_ticket *t)
{
    ticket_init(t);
    kv_attach(&s->kv, q, n, &t->pin);
}

/* Names that are announced are forgotten with the ticket: nothing of them stays behind. */
static void recall(struct block_store *s, struct block_ticket *t)
{
    kv_release(&s->pending, &t->pending);
    kv_drop_cache(&s->pending);
}

uint32_t block_store_begin(struct block_store *s, const struct request_spec *q, uint32_t n,
                           struct block_ticket *t, uint32_t *without)
{
    uint32_t there = kv_lookup(&s->kv, q, n).blocks, coming = kv_lookup(&s->pending, q, n).blocks;
    struct kv_hold space;
    ticket_init(t);
    kv_hold_init(&space);
    kv_attach(&s->kv, q, there, &t->pin);
    t->from = there > coming ? there : coming;
    t->space = kv_free_blocks(&s->kv);
    if (t->space > n - t->from)
        t->space = n - t->from;
    *without = n - t->from - t->space;
    if (!t->space) {
        kv_release(&s->kv, &t->pin);
        return 0;
    }
    kv_take(&s->kv, &space, t->space); /* without names: just a number */
    kv_attach(&s->pending, q, coming, &t->pending);
    kv_take(&s->pending, &t->pending, t->from + t->space - coming);
    kv_name_shared(&s->pending, q, &t->pending, t->from + t->space);
    return t->space;
}

uint32_t block_store_end(struct block_store *s, const struct request_spec *q,
                         struct block_ticket *t)
{
    recall(s, t);
    if (t->from > t->pin.n_blocks) { /* what was on its way before it */
        kv_release(&s->kv, &t->pin);
        uint32_t there = kv_lookup(&s->kv, q, t->from).blocks;
        kv_attach(&s->kv, q, there, &t->pin);
        if (there < t->from)
            return there;
    }
    t->pin.n_blocks += t->space;
    t->space = 0;
    kv_name_shared(&s->kv, q, &t->pin, t->pin.n_blocks);
    return t->pin.n_blocks;
}

void block_store_drop(struct block_store *s, struct block_ticket *t)
{
    recall(s, t);
    t->pin.n_blocks += t->space;
    t->space = 0;
    kv_release(&s->kv, &t->pin);
}

void block_store_clear(struct block_store *s)
{
    kv_drop_cache(&s->kv);
}

const char *block_store_validate(const struct block_store *s, bool unused)
{
    const char *why = kv_validate(&s->kv);
    if (!why)
        why = kv_validate(&s->pending);
    if (!why && unused && kv_free_blocks(&s->kv) != s->kv.usable)
        why = "blocks are in use without a ticket";
    if (!why && unused && s->pending.n_runs)
        why = "names are announced without a ticket";
    return why;
}
