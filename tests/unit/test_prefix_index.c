/* test_prefix_index.c - the prefix index on cases worked out by hand: spans, all the ways in and out, many workers,
 * long prompts, the limit. Random cases: property/prop_prefix_index.c. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "controller/core/prefix_index.c" /* to see that room is used again */
#include "predictor/request.h"

#define N 8
#define LONG 4000 /* keys */

/* n keys of a prompt; those from `branch` on depend on `id`. */
static void chain(uint64_t *keys, uint32_t n, uint32_t branch, uint64_t id)
{
    for (uint32_t i = 0; i < n; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, i < branch ? i + 1 : id * 1000 + i);
}

static void assert_match(const struct prefix_index *x, const struct prefix_chain *p,
                         uint32_t n_blocks, uint32_t n, const uint32_t expect[N])
{
    uint32_t blocks[N] = {0}, touched[N];
    assert_int_equal(prefix_index_match(x, p, n_blocks, blocks, touched), n);
    assert_memory_equal(blocks, expect, sizeof blocks);
}
#define ASSERT_MATCH(x, p, n_blocks, n, ...)                                                       \
    assert_match(x, p, n_blocks, n, (uint32_t[N]){__VA_ARGS__})

static void test_blocks_of_a_chain(void **unused)
{
    struct prefix_chain p = {.n_keys = 3, .key_tok = 100, .block_tok = 30};
    (void)unused;
    assert_int_equal(prefix_chain_blocks(&p, 1000), 10); /* keys end at 300 */
    assert_int_equal(prefix_chain_blocks(&p, 299), 9);   /* the prompt at 299 */
    assert_int_equal(prefix_chain_blocks(&p, 29), 0);
    p.n_keys = 0;
    p.key_tok = 0;
    assert_int_equal(prefix_chain_blocks(&p, 1000), 0);
    p = (struct prefix_chain){.n_keys = UINT32_MAX, .key_tok = UINT32_MAX, .block_tok = 1};
    assert_int_equal(prefix_chain_blocks(&p, UINT32_MAX), UINT32_MAX);
}

static void test_set_and_match(void **unused)
{
    uint64_t a[8], b[8];
    struct prefix_index *x = prefix_index_new(N, 0);
    (void)unused;
    assert_non_null(x);
    chain(a, 8, 8, 0);
    chain(b, 8, 5, 7); /* parts from a after five keys, 20 blocks */
    struct prefix_chain pa = {a, 8, 64, 16}, pb = {b, 8, 64, 16};
    ASSERT_MATCH(x, &pa, 32, 0, 0);
    prefix_index_set(x, &pa, 32, 2);
    prefix_index_set(x, &pa, 10, 4); /* two whole keys and half of the third */
    prefix_index_set(x, &pb, 21, 5);
    ASSERT_MATCH(x, &pa, 32, 3, [2] = 32, [4] = 10, [5] = 20);
    ASSERT_MATCH(x, &pb, 32, 3, [2] = 20, [4] = 10, [5] = 21);
    ASSERT_MATCH(x, &pa, 3, 3, [2] = 3, [4] = 3, [5] = 3); /* no more than asked for */
    ASSERT_MATCH(x, &pa, 0, 0, 0);
    assert_int_equal(prefix_index_blocks(x, 2), 32);
    assert_int_equal(prefix_index_blocks(x, 5), 21);
    prefix_index_set(x, &pa, 32, 2); /* again: nothing new */
    assert_int_equal(prefix_index_blocks(x, 2), 32);
    pa.block_tok = 32; /* other blocks are other names */
    ASSERT_MATCH(x, &pa, 16, 0, 0);
    prefix_index_forget(x, 2);
    pa.block_tok = 16;
    ASSERT_MATCH(x, &pa, 32, 2, [4] = 10, [5] = 20);
    assert_int_equal(prefix_index_blocks(x, 2), 0);
    prefix_index_free(x);
}

/* Blocks that are larger than keys, and sizes that do not divide each other. */
static void test_odd_sizes(void **unused)
{
    uint64_t a[40];
    (void)unused;
    chain(a, 40, 40, 0);
    for (uint32_t key_tok = 1; key_tok < 40; key_tok += 6) {
        for (uint32_t block_tok = 1; block_tok < 50; block_tok += 7) {
            struct prefix_index *x = prefix_index_new(N, 0);
            assert_non_null(x);
            struct prefix_chain p = {a, 40, key_tok, block_tok};
            uint32_t n = prefix_chain_blocks(&p, UINT32_MAX);
            prefix_index_set(x, &p, n, 0);
            prefix_index_add(x, &p, n / 2, 1);
            ASSERT_MATCH(x, &p, n, 2u - (n / 2 == 0) - (n == 0), n, n / 2);
            prefix_index_drop(x, &p, n / 2, 1);
            assert_int_equal(prefix_index_blocks(x, 1), 0);
            assert_int_equal(prefix_index_blocks(x, 0), n);
            prefix_index_free(x);
        }
    }
}

/* As engines tell it: a key for each block, in any pieces. */
static void test_changes(void **unused)
{
    uint64_t a[8], names[32];
    struct prefix_index *x = prefix_index_new(N, 0);
    (void)unused;
    assert_non_null(x);
    chain(a, 8, 8, 0);
    for (uint32_t d = 0; d < 32; d++)
        names[d] = a[d / 4];
    struct prefix_chain p = {a, 8, 64, 16};
    prefix_index_change(x, 1, 16, true, 0, 3, names);
    ASSERT_MATCH(x, &p, 32, 1, [1] = 3);
    prefix_index_change(x, 1, 16, true, 3, 20, names + 3);
    ASSERT_MATCH(x, &p, 32, 1, [1] = 23);
    prefix_index_change(x, 1, 16, false, 18, 5, names + 18);
    ASSERT_MATCH(x, &p, 32, 1, [1] = 18);
    prefix_index_change(x, 1, 16, false, 18, 5, names + 18); /* gone already */
    prefix_index_change(x, 2, 16, false, 0, 5, names);       /* never there */
    prefix_index_change(x, 1, 16, true, 0, 0, NULL);
    assert_int_equal(prefix_index_blocks(x, 1), 18);
    prefix_index_change(x, 1, 16, false, 0, 2, names); /* the beginning: nothing leads any more */
    ASSERT_MATCH(x, &p, 32, 0, 0);
    assert_int_equal(prefix_index_blocks(x, 1), 16);
    prefix_index_free(x);
}

/* Requests that use different parts of a span: the distinct blocks, whichever leaves first. */
static void test_in_use(void **unused)
{
    uint64_t a[4];
    struct prefix_index *x = prefix_index_new(N, 0);
    (void)unused;
    assert_non_null(x);
    chain(a, 4, 4, 0);
    struct prefix_chain p = {a, 4, 512, 16}; /* spans of 32 */
    prefix_index_add(x, &p, 40, 0);
    prefix_index_add(x, &p, 40, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 40);
    prefix_index_add(x, &p, 50, 0); /* 18 blocks of the second span, where the others have 8 */
    prefix_index_add(x, &p, 33, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 50);
    ASSERT_MATCH(x, &p, 64, 1, 50);
    prefix_index_drop(x, &p, 50, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 40);
    prefix_index_drop(x, &p, 40, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 40);
    prefix_index_drop(x, &p, 40, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 33);
    prefix_index_drop(x, &p, 33, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 0);
    ASSERT_MATCH(x, &p, 64, 0, 0);
    prefix_index_drop(x, &p, 33, 0); /* nothing there: nothing happens */
    prefix_index_add(x, &p, 1, 0);   /* what is freed is used again, empty */
    prefix_index_add(x, &p, 2, 0);
    prefix_index_forget(x, 0);
    prefix_index_add(x, &p, 2, 0);
    prefix_index_add(x, &p, 1, 0);
    prefix_index_drop(x, &p, 2, 0);
    assert_int_equal(prefix_index_blocks(x, 0), 1);
    assert_int_equal(x->tallies_used, 1); /* one at a time, and so one in all */
    prefix_index_free(x);
}

/* A prompt of 4,000 spans on several workers, to different depths: answers are exact wherever the search jumps. */
static void test_long_prompt(void **unused)
{
    static uint64_t a[LONG];
    struct prefix_index *x = prefix_index_new(N, 0);
    (void)unused;
    assert_non_null(x);
    chain(a, LONG, LONG, 0);
    struct prefix_chain p = {a, LONG, 16, 16};
    for (uint32_t i = 0; i < 60; i++) {
        uint32_t expect[N] = {0}, n = 1 + i % N;
        for (uint32_t w = 0; w < n; w++) {
            expect[w] = (i * 131 + w * w * 97) % LONG + 1;
            prefix_index_set(x, &p, expect[w], w);
        }
        assert_match(x, &p, LONG, n, expect);
        for (uint32_t w = 0; w < n; w++)
            prefix_index_forget(x, w);
    }
    prefix_index_free(x);
}

/* A prefix on every worker of a large fleet, and its arrays of holders growing and shrinking. */
static void test_many_workers(void **unused)
{
    enum { MANY = 16384 }; /* CORE_MAX_WORKERS */
    uint64_t a[2];
    struct prefix_index *x = prefix_index_new(MANY, 0);
    uint32_t *blocks = calloc(MANY, sizeof *blocks), *touched = calloc(MANY, sizeof *touched);
    (void)unused;
    assert_non_null(x);
    assert_non_null(blocks);
    assert_non_null(touched);
    chain(a, 2, 2, 0);
    struct prefix_chain p = {a, 2, 16, 16};
    for (uint32_t i = 0; i < MANY; i++) /* in no order */
        prefix_index_set(x, &p, 1 + i % 2, i * 4099 % MANY);
    assert_int_equal(prefix_index_match(x, &p, 2, blocks, touched), MANY);
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(blocks[i * 4099 % MANY], 1 + i % 2);
    for (uint32_t i = 0; i < MANY - 1; i++)
        prefix_index_change(x, i * 513 % MANY, 16, false, 0, 1, a);
    memset(blocks, 0, MANY * sizeof *blocks);
    assert_int_equal(prefix_index_match(x, &p, 1, blocks, touched), 1);
    assert_int_equal(blocks[(MANY - 1) * 513 % MANY], 1);
    for (uint32_t i = 0; i <= x->mask; i++) /* the first block's array has shrunk */
        assert_true(!x->table[i].n || x->table[i].n > 1 || x->table[i].size_class <= 1);
    prefix_index_free(x);
    free(blocks);
    free(touched);
}

static void test_limit(void **unused)
{
    uint64_t a[4], b[4], c[4];
    struct prefix_index *x = prefix_index_new(N, 20);
    (void)unused;
    assert_non_null(x);
    chain(a, 4, 1, 1);
    chain(b, 4, 1, 2);
    chain(c, 4, 0, 3);
    struct prefix_chain pa = {a, 4, 64, 16}, pb = {b, 4, 64, 16}, pc = {c, 4, 64, 16};
    prefix_index_set(x, &pa, 12, 0);
    prefix_index_set(x, &pb, 12, 0); /* 4 shared: 20 in all */
    ASSERT_MATCH(x, &pa, 16, 1, 12);
    ASSERT_MATCH(x, &pb, 16, 1, 12);
    prefix_index_set(x, &pc, 3, 0); /* three must go: the end of a, which is oldest */
    assert_int_equal(prefix_index_blocks(x, 0), 20);
    ASSERT_MATCH(x, &pa, 16, 1, 9);
    ASSERT_MATCH(x, &pb, 16, 1, 12);
    prefix_index_set(x, &pa, 9, 0); /* touched: now b's end is oldest */
    prefix_index_set(x, &pc, 6, 0);
    ASSERT_MATCH(x, &pa, 16, 1, 9);
    ASSERT_MATCH(x, &pb, 16, 1, 9);
    prefix_index_set(x, &pc, 16, 0);
    prefix_index_set(x, &pc, 16, 1); /* each worker has its own limit */
    assert_int_equal(prefix_index_blocks(x, 0), 20);
    ASSERT_MATCH(x, &pc, 16, 2, 16, 16);
    prefix_index_forget(x, 0);
    ASSERT_MATCH(x, &pc, 16, 1, [1] = 16);
    prefix_index_free(x);

    x = prefix_index_new(1, 5); /* one prompt that is larger than the limit: its beginning stays */
    assert_non_null(x);
    prefix_index_set(x, &pa, 16, 0);
    ASSERT_MATCH(x, &pa, 16, 1, 5);
    prefix_index_free(x);
}

static void test_empty(void **unused)
{
    (void)unused;
    prefix_index_free(NULL);
    struct prefix_index *x = prefix_index_new(0, 0);
    assert_non_null(x);
    prefix_index_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_of_a_chain),
        cmocka_unit_test(test_set_and_match),
        cmocka_unit_test(test_odd_sizes),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_in_use),
        cmocka_unit_test(test_long_prompt),
        cmocka_unit_test(test_many_workers),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
