/* prop_prefix_index.c - the prefix index against a table of single blocks: random prompts that share
 * beginnings, block and key sizes that do and do not divide each other, several block sizes in one index.
 *
 * Matches are compared wherever all workers hold whole prefixes of the prompt asked for (elsewhere the
 * index may take a gap for filled, see prefix_index.h).
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "controller/core/prefix_index.h"
#include "predictor/request.h"
#include "predictor/rng.h"
#include "tests/support/prop.h"

#define MAX_WORKERS 40
#define MAX_KEYS 24
#define N_PROMPTS 12
#define N_SIZES 3
#define N_USES 40
#define N_OPS 300
#define MAX_SEEN 65536 /* slots of the naive table */

struct prompt {
    uint64_t keys[MAX_KEYS];
    uint32_t n_keys, tok;
};

/* One block of one size that was ever named. */
struct block {
    uint64_t key;
    uint32_t depth, block_tok;  /* 0: empty slot */
    uint16_t refs[MAX_WORKERS]; /* cached: 0 or 1 */
};

struct use {
    uint32_t prompt, n_blocks, worker, size; /* n_blocks 0: free */
};

struct bed {
    struct rng rng;
    struct prefix_index *x;
    uint32_t n_workers, key_tok, sizes[N_SIZES];
    uint32_t size_of[MAX_WORKERS]; /* block size of a worker */
    struct prompt prompts[N_PROMPTS];
    struct block *seen; /* a hash table */
    uint32_t n_seen;
    uint64_t n_held[MAX_WORKERS]; /* blocks with refs */
    struct use uses[N_USES];
};

static struct {
    uint64_t compared, skipped, deepest;
} totals;

static uint32_t below(struct bed *b, uint32_t n)
{
    return (uint32_t)rng_below(&b->rng, n);
}

/* Prompts of one case branch off each other; the last key may cover less than the others. */
static void make_prompts(struct bed *b)
{
    uint32_t most = b->key_tok < 100 ? MAX_KEYS : 5;
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        struct prompt *p = &b->prompts[i];
        const struct prompt *from = i ? &b->prompts[below(b, i)] : p;
        uint32_t shared = i ? below(b, from->n_keys + 1) : 0;
        p->n_keys = shared + below(b, most - shared + 1);
        p->n_keys = p->n_keys ? p->n_keys : 1;
        shared = shared < p->n_keys ? shared : p->n_keys;
        for (uint32_t k = 0; k < p->n_keys; k++)
            p->keys[k] = k < shared ? from->keys[k]
                                    : request_chain_key(k ? p->keys[k - 1] : 0, rng_u64(&b->rng));
        /* shorter than its keys reach, or longer */
        p->tok = 1 + below(b, p->n_keys * b->key_tok + b->key_tok);
    }
}

static struct prefix_chain chain(const struct bed *b, const struct prompt *p, uint32_t size)
{
    return (struct prefix_chain){
        .keys = p->keys, .n_keys = p->n_keys, .key_tok = b->key_tok, .block_tok = size};
}

/* As request.h has it. */
static uint64_t key_of_block(const struct bed *b, const struct prompt *p, uint32_t depth,
                             uint32_t size)
{
    uint32_t end = (depth + 1) * size;
    return p->keys[(end + b->key_tok - 1) / b->key_tok - 1];
}

static struct block *block_of(struct bed *b, uint64_t key, uint32_t depth, uint32_t size)
{
    uint64_t i = rng_mix64(key ^ ((uint64_t)depth << 32 | size));
    struct block *k;
    for (;; i++) {
        k = &b->seen[i % MAX_SEEN];
        if (!k->block_tok)
            break;
        if (k->key == key && k->depth == depth && k->block_tok == size)
            return k;
    }
    assert_true(++b->n_seen < MAX_SEEN / 2);
    *k = (struct block){.key = key, .depth = depth, .block_tok = size};
    return k;
}

static struct block *prompt_block(struct bed *b, const struct prompt *p, uint32_t depth,
                                  uint32_t size)
{
    return block_of(b, key_of_block(b, p, depth, size), depth, size);
}

static void set_refs(struct bed *b, struct block *k, uint32_t w, uint32_t refs)
{
    b->n_held[w] += (refs > 0);
    b->n_held[w] -= (k->refs[w] > 0);
    k->refs[w] = (uint16_t)refs;
}

/* ---- checks */

static void check_counts(struct bed *b)
{
    for (uint32_t w = 0; w < b->n_workers; w++)
        assert_int_equal(prefix_index_blocks(b->x, w), b->n_held[w]);
}

static void check_match(struct bed *b, const struct prompt *p, uint32_t size)
{
    struct prefix_chain c = chain(b, p, size);
    uint32_t all = prefix_chain_blocks(&c, p->tok), n_blocks = below(b, all + 1);
    uint32_t expect[MAX_WORKERS] = {0}, got[MAX_WORKERS] = {0}, touched[MAX_WORKERS];
    uint32_t n_expect = 0;
    n_blocks = below(b, 3) ? all : n_blocks;
    bool whole = true;
    for (uint32_t w = 0; w < b->n_workers; w++) {
        bool gap = false;
        if (b->size_of[w] != size)
            continue;
        for (uint32_t d = 0; d < p->n_keys * b->key_tok / size; d++) {
            bool has = prompt_block(b, p, d, size)->refs[w] > 0;
            whole = whole && !(gap && has);
            gap = gap || !has;
            expect[w] += !gap && d < n_blocks;
        }
        n_expect += expect[w] > 0;
        totals.deepest = expect[w] > totals.deepest ? expect[w] : totals.deepest;
    }
    uint32_t n = prefix_index_match(b->x, &c, n_blocks, got, touched);
    assert_true(n <= b->n_workers);
    if (whole) {
        assert_int_equal(n, n_expect);
        assert_memory_equal(got, expect, sizeof got);
        totals.compared++;
    } else {
        totals.skipped++;
    }
    for (uint32_t i = 0; i < n; i++) {
        assert_in_range(got[touched[i]], 1, n_blocks);
        got[touched[i]] = 0;
    }
    for (uint32_t w = 0; w < b->n_workers; w++)
        assert_int_equal(got[w], 0); /* touched was complete, and without repeats */
}

static void check(struct bed *b)
{
    check_counts(b);
    for (int i = 0; i < 3; i++)
        check_match(b, &b->prompts[below(b, N_PROMPTS)], b->sizes[below(b, N_SIZES)]);
}

/* ---- a case */

static void lay(struct bed *b, uint64_t seed)
{
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 16, 30, 64};
    memset(b, 0, sizeof *b);
    rng_init(&b->rng, seed);
    b->n_workers = 1 + below(b, MAX_WORKERS);
    b->key_tok = sizes[below(b, 10)];
    if (below(b, 4) == 0)
        b->key_tok = 100 + below(b, 100); /* spans of 64 blocks */
    for (int i = 0; i < N_SIZES; i++)
        b->sizes[i] = sizes[below(b, 10)];
    for (uint32_t w = 0; w < b->n_workers; w++)
        b->size_of[w] = b->sizes[below(b, below(b, 2) ? N_SIZES : 1)];
    make_prompts(b);
    b->seen = calloc(MAX_SEEN, sizeof *b->seen);
    assert_non_null(b->seen);
}

static void forget(struct bed *b, uint32_t w)
{
    prefix_index_forget(b->x, w);
    for (uint32_t i = 0; b->n_held[w] && i < MAX_SEEN; i++)
        set_refs(b, &b->seen[i], w, 0);
    for (uint32_t i = 0; i < N_USES; i++) {
        if (b->uses[i].worker == w)
            b->uses[i].n_blocks = 0;
    }
}

/* Blocks [from, end) of the prompt are there or not, told with a key for each as engines do. */
static void tell(struct bed *b, const struct prompt *p, uint32_t w, bool stored, uint32_t from,
                 uint32_t end)
{
    uint64_t keys[MAX_KEYS * 512];
    uint32_t n = 0;
    for (uint32_t d = from; d < end; d++) {
        keys[n++] = key_of_block(b, p, d, b->size_of[w]);
        set_refs(b, prompt_block(b, p, d, b->size_of[w]), w, stored);
    }
    prefix_index_change(b->x, w, b->size_of[w], stored, from, n, keys);
}

static void cached_case(uint64_t seed)
{
    struct bed b;
    lay(&b, seed);
    b.x = prefix_index_new(b.n_workers, 0);
    assert_non_null(b.x);
    for (int op = 0; op < N_OPS; op++) {
        const struct prompt *p = &b.prompts[below(&b, N_PROMPTS)];
        uint32_t w = below(&b, b.n_workers);
        struct prefix_chain c = chain(&b, p, b.size_of[w]);
        uint32_t n = prefix_chain_blocks(&c, p->tok), from = below(&b, n + 1);
        if (below(&b, 60) == 0) {
            forget(&b, w);
        } else if (below(&b, 3) == 0) {
            n = from;
            for (uint32_t d = 0; d < n; d++)
                set_refs(&b, prompt_block(&b, p, d, c.block_tok), w, 1);
            prefix_index_set(b.x, &c, n, w);
        } else if (below(&b, 3) == 0) {
            tell(&b, p, w, false, from, n);
        } else {
            uint32_t begin = 0; /* nearly always what is missing, as an engine would store it */
            while (begin < n && prompt_block(&b, p, begin, c.block_tok)->refs[w])
                begin++;
            tell(&b, p, w, true, below(&b, 30) ? begin : from, n);
        }
        if (op % 4 == 0)
            check(&b);
    }
    prefix_index_free(b.x);
    free(b.seen);
}

static void used_case(uint64_t seed)
{
    struct bed b;
    lay(&b, seed);
    b.x = prefix_index_new(b.n_workers, 0);
    assert_non_null(b.x);
    for (int op = 0; op < N_OPS; op++) {
        struct use *u = &b.uses[below(&b, N_USES)];
        if (below(&b, 80) == 0)
            forget(&b, below(&b, b.n_workers));
        bool add = u->n_blocks == 0;
        if (add) {
            u->prompt = below(&b, N_PROMPTS);
            u->worker = below(&b, b.n_workers);
        }
        struct prefix_chain c = chain(&b, &b.prompts[u->prompt], b.size_of[u->worker]);
        if (add)
            u->n_blocks = below(&b, prefix_chain_blocks(&c, b.prompts[u->prompt].tok) + 1);
        for (uint32_t d = 0; d < u->n_blocks; d++) {
            struct block *k = prompt_block(&b, &b.prompts[u->prompt], d, c.block_tok);
            set_refs(&b, k, u->worker, k->refs[u->worker] + (add ? 1u : UINT32_MAX));
        }
        if (add) {
            prefix_index_add(b.x, &c, u->n_blocks, u->worker);
        } else {
            prefix_index_drop(b.x, &c, u->n_blocks, u->worker);
            u->n_blocks = 0;
        }
        if (op % 4 == 0)
            check(&b);
    }
    prefix_index_free(b.x);
    free(b.seen);
}

/* With a limit: never more than that, and what was set last is there as far as the limit goes. */
static void limited_case(uint64_t seed)
{
    struct bed b;
    lay(&b, seed);
    uint32_t limit = 1 + below(&b, 200);
    b.x = prefix_index_new(b.n_workers, limit);
    assert_non_null(b.x);
    for (int op = 0; op < N_OPS; op++) {
        const struct prompt *p = &b.prompts[below(&b, N_PROMPTS)];
        uint32_t w = below(&b, b.n_workers), got[MAX_WORKERS] = {0}, touched[MAX_WORKERS];
        struct prefix_chain c = chain(&b, p, b.size_of[w]);
        uint32_t n = prefix_chain_blocks(&c, p->tok);
        uint64_t before = prefix_index_blocks(b.x, w);
        prefix_index_set(b.x, &c, n, w);
        (void)prefix_index_match(b.x, &c, n, got, touched);
        assert_true(got[w] >= (n < limit ? n : limit));
        uint64_t after = prefix_index_blocks(b.x, w);
        assert_true(after <= limit && after >= (n < limit ? n : limit) && after <= before + n);
        assert_true(after >= (before < limit ? before : limit));
    }
    prefix_index_free(b.x);
    free(b.seen);
}

static void test_cached(void **state)
{
    (void)state;
    prop_run("what is cached", 60, cached_case);
    if (prop_single())
        return;
    assert_true(totals.compared > 3 * totals.skipped);
    assert_true(totals.deepest > 64);
}

static void test_used(void **state)
{
    (void)state;
    totals.compared = totals.skipped = totals.deepest = 0;
    prop_run("what is in use", 60, used_case);
    assert_int_equal(totals.skipped, 0); /* requests use whole prefixes */
}

static void test_limited(void **state)
{
    (void)state;
    prop_run("with a limit", 200, limited_case);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_cached, prop_teardown),
        cmocka_unit_test_teardown(test_used, prop_teardown),
        cmocka_unit_test_teardown(test_limited, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
