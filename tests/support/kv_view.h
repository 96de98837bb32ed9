/* kv_view.h - the named blocks of a kv one by one, for tests that compare two of them or one with a model. */
#ifndef WEIR_TESTS_KV_VIEW_H
#define WEIR_TESTS_KV_VIEW_H

#include <stdint.h>

#include "predictor/kv.h"

struct kv_view_block {
    uint64_t name;
    uint32_t depth, ref, uses;
};

/* All named blocks, sorted. out has room for max; returns their number (fails the test beyond max). */
uint32_t kv_view_named(const struct kv *kv, struct kv_view_block *out, uint32_t max);

/* The free named blocks of eviction list o, in the order in which they go. */
uint32_t kv_view_order(const struct kv *kv, uint32_t o, struct kv_view_block *out, uint32_t max);

/* qsort's order of kv_view_named. */
int kv_view_compare(const void *a, const void *b);

#endif
