/* kv_view.c - see kv_view.h. */
#include "tests/support/kv_view.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <setjmp.h>

#include <cmocka.h>

int kv_view_compare(const void *a, const void *b)
{
    const struct kv_view_block *x = a, *y = b;
    if (x->name != y->name)
        return x->name < y->name ? -1 : 1;
    if (x->depth != y->depth)
        return x->depth < y->depth ? -1 : 1;
    if (x->ref != y->ref)
        return x->ref < y->ref ? -1 : 1;
    return (x->uses > y->uses) - (x->uses < y->uses);
}

static uint64_t name_at(const struct kv *kv, const struct kv_run *r, uint32_t depth)
{
    if (!r->key_tok)
        return r->key0;
    uint64_t first = ((uint64_t)(r->start + 1) * kv->block_size - 1) / r->key_tok;
    uint64_t k = ((uint64_t)(depth + 1) * kv->block_size - 1) / r->key_tok;
    return kv->keys[r->key_off + k - first];
}

uint32_t kv_view_named(const struct kv *kv, struct kv_view_block *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t b = 0; kv->buckets && b <= kv->bucket_mask; b++) {
        for (uint32_t i = kv->buckets[b].first; i != KV_NONE; i = kv->runs[i].chain) {
            const struct kv_run *r = &kv->runs[i];
            for (uint32_t d = r->start; d < r->start + r->len; d++) {
                assert_true(n < max);
                out[n++] = (struct kv_view_block){name_at(kv, r, d), d, r->ref, r->uses};
            }
        }
    }
    qsort(out, n, sizeof *out, kv_view_compare);
    return n;
}

uint32_t kv_view_order(const struct kv *kv, uint32_t o, struct kv_view_block *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = kv->head[o]; i != KV_NONE; i = kv->runs[i].next) {
        const struct kv_run *r = &kv->runs[i];
        for (uint32_t d = r->start + r->len; d-- > r->start;) {
            assert_true(n < max);
            out[n++] = (struct kv_view_block){name_at(kv, r, d), d, r->ref, r->uses};
        }
    }
    return n;
}
