/* prop_kv.c - kv.c, which keeps runs of blocks, against a model that keeps every block by itself and does what
 * vLLM's block pool does, one block at a time:
 *
 *   - the free list: blocks without a name in front (last freed, first taken), then named ones in the order of
 *     eviction; a request's blocks are freed tail first; taking a named block evicts it;
 *   - a name may have copies; a lookup finds the oldest at each depth and stops at the first gap.
 *
 * After every operation the two agree on counts, on every named block with its holders, on the whole order of
 * eviction and on the log of changes; a kv_copy made at some moment goes through the same from there on.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/kv.h"
#include "predictor/rng.h"
#include "tests/support/kv_view.h"
#include "tests/support/prop.h"

#define MAX_BLOCKS 48
#define MAX_DEPTH 24
#define MAX_KEYS (2 * MAX_DEPTH * 16 + 2)
#define N_SPECS 10
#define N_HOLDS 7
#define N_OPS 260
#define CASES 1000

/* ---- the model */

struct block {
    uint64_t name; /* 0: none */
    uint32_t depth, ref, uses;
    uint64_t age;
};

struct list {
    uint32_t n, items[MAX_BLOCKS];
};

struct naive_hold {
    uint32_t n, named, blocks[MAX_BLOCKS];
};

struct naive {
    uint32_t n_blocks, block_size;
    bool caching, lfu;
    struct block blocks[MAX_BLOCKS];
    struct list unnamed, order[32]; /* free: a stack; eviction lists, first goes first */
    uint64_t ages;
    struct naive_hold holds[N_HOLDS];
    /* changes of the set of names since the last look */
    uint32_t n_log;
    struct {
        bool stored;
        uint64_t name;
        uint32_t depth;
    } log[4 * MAX_BLOCKS];
};

static void list_push(struct list *l, uint32_t v)
{
    assert_true(l->n < MAX_BLOCKS);
    l->items[l->n++] = v;
}

static void list_remove(struct list *l, uint32_t v)
{
    uint32_t i = 0;
    while (l->items[i] != v)
        assert_true(++i < l->n);
    l->n--;
    memmove(&l->items[i], &l->items[i + 1], (l->n - i) * sizeof *l->items);
}

/* As request.h puts it, worked out from tokens. */
static uint64_t name_of(const struct request_spec *s, uint32_t block_size, uint32_t depth)
{
    uint64_t end = (uint64_t)(depth + 1) * block_size, covered = (uint64_t)s->n_keys * s->key_tok;
    bool extended = s->n_keys && covered > (uint64_t)s->prompt_tok + s->key_tok - 1;
    if (!extended && covered > s->prompt_tok)
        covered = s->prompt_tok;
    if (end > covered)
        return request_generated_key(s->uid);
    return s->keys[(end + s->key_tok - 1) / s->key_tok - 1];
}

/* The oldest copy, or MAX_BLOCKS. */
static uint32_t oldest(const struct naive *m, uint64_t name, uint32_t depth)
{
    uint32_t best = MAX_BLOCKS;
    for (uint32_t i = 0; i < m->n_blocks; i++) {
        const struct block *b = &m->blocks[i];
        if (b->name == name && b->depth == depth &&
            (best == MAX_BLOCKS || b->age < m->blocks[best].age))
            best = i;
    }
    return best;
}

static void naive_log(struct naive *m, bool stored, uint64_t name, uint32_t depth)
{
    assert_true(m->n_log < 4 * MAX_BLOCKS);
    m->log[m->n_log].stored = stored;
    m->log[m->n_log].name = name;
    m->log[m->n_log++].depth = depth;
}

static struct list *order_list(struct naive *m, const struct block *b)
{
    uint32_t o = 0;
    for (uint32_t u = b->uses; m->lfu && u > 1; u /= 2)
        o++;
    return &m->order[o];
}

static void naive_free(struct naive *m, uint32_t i)
{
    list_push(m->blocks[i].name ? order_list(m, &m->blocks[i]) : &m->unnamed, i);
}

static uint32_t naive_free_named(const struct naive *m)
{
    uint32_t n = 0;
    for (int o = 0; o < 32; o++)
        n += m->order[o].n;
    return n;
}

static uint32_t naive_evict(struct naive *m)
{
    int o = 0;
    while (!m->order[o].n)
        o++;
    uint32_t i = m->order[o].items[0];
    struct block *b = &m->blocks[i];
    uint64_t name = b->name;
    list_remove(&m->order[o], i);
    b->name = 0;
    if (oldest(m, name, b->depth) == MAX_BLOCKS)
        naive_log(m, false, name, b->depth);
    return i;
}

static struct kv_match naive_lookup(const struct naive *m, const struct request_spec *s,
                                    uint32_t max)
{
    struct kv_match r = {0, 0};
    for (; m->caching && r.blocks < max; r.blocks++) {
        uint32_t i = oldest(m, name_of(s, m->block_size, r.blocks), r.blocks);
        if (i == MAX_BLOCKS)
            break;
        r.free_blocks += !m->blocks[i].ref;
    }
    return r;
}

static void naive_use(struct naive *m, uint32_t i)
{
    struct block *b = &m->blocks[i];
    if (!b->ref++)
        list_remove(order_list(m, b), i);
    b->uses++;
}

static void naive_attach(struct naive *m, const struct request_spec *s, uint32_t n,
                         struct naive_hold *h)
{
    for (uint32_t d = 0; d < n; d++) {
        h->blocks[d] = oldest(m, name_of(s, m->block_size, d), d);
        naive_use(m, h->blocks[d]);
    }
    h->n = h->named = n;
}

static void naive_take(struct naive *m, struct naive_hold *h, uint32_t n)
{
    while (n--) {
        uint32_t i;
        if (m->unnamed.n) {
            i = m->unnamed.items[--m->unnamed.n];
        } else {
            i = naive_evict(m);
        }
        m->blocks[i] = (struct block){.ref = 1};
        h->blocks[h->n++] = i;
    }
}

static void naive_name(struct naive *m, const struct request_spec *s, struct naive_hold *h,
                       uint32_t named, bool shared)
{
    for (uint32_t d = h->named; m->caching && d < named; d++, h->named++) {
        uint64_t name = name_of(s, m->block_size, d);
        uint32_t i = h->blocks[d], other = oldest(m, name, d);
        if (other != MAX_BLOCKS && shared) {
            naive_use(m, other);
            m->blocks[i] = (struct block){0};
            list_push(&m->unnamed, i);
            h->blocks[d] = other;
            continue;
        }
        m->blocks[i] =
            (struct block){.name = name, .depth = d, .ref = 1, .uses = 1, .age = m->ages++};
        if (other == MAX_BLOCKS)
            naive_log(m, true, name, d);
    }
}

static void naive_release(struct naive *m, struct naive_hold *h)
{
    uint32_t uses = 0; /* lfu: a block counts at least as often as what hangs on it */
    while (h->n) {
        struct block *b = &m->blocks[h->blocks[--h->n]];
        if (m->lfu && b->name) {
            b->uses = b->uses > uses ? b->uses : uses;
            uses = b->uses;
        }
        if (!--b->ref)
            naive_free(m, h->blocks[h->n]);
    }
    h->named = 0;
}

static void naive_drop(struct naive *m)
{
    while (naive_free_named(m))
        list_push(&m->unnamed, naive_evict(m));
}

/* ---- one case: the model, the kv, and a copy of the kv from some moment on */

struct one_case {
    struct naive m;
    struct kv kv[2]; /* the second: a copy, live when copied */
    struct kv_hold holds[2][N_HOLDS];
    bool copied;
    uint32_t hold_spec[N_HOLDS];
    struct request_spec specs[N_SPECS];
    uint64_t keys[N_SPECS][MAX_KEYS];
};

static uint32_t pick(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

/* Contents from a small alphabet of keys, so that prefixes coincide by themselves. */
static void make_specs(struct one_case *c, struct rng *r, uint32_t key_tok)
{
    uint32_t bs = c->m.block_size, max_tok = pick(r, 1, MAX_DEPTH) * bs, letters = pick(r, 1, 3);
    for (uint32_t i = 0; i < N_SPECS; i++) {
        struct request_spec *s = &c->specs[i];
        s->uid = i + 1;
        s->prompt_tok = pick(r, 1, max_tok);
        s->output_tok = pick(r, 1, max_tok);
        s->key_tok = key_tok;
        uint32_t whole = (s->prompt_tok + key_tok - 1) / key_tok, kind = pick(r, 0, 4);
        s->n_keys = kind == 0   ? pick(r, 0, whole) /* the rest of the prompt is its own */
                    : kind == 1 ? whole + pick(r, 0, (s->output_tok + key_tok - 1) / key_tok)
                                : whole;
        assert_true(s->n_keys <= MAX_KEYS);
        for (uint32_t k = 0; k < s->n_keys; k++) {
            uint32_t id = pick(r, 1, letters);
            if (k + 1 == whole && s->prompt_tok % key_tok && s->n_keys == whole)
                id += 100 * (s->prompt_tok % key_tok); /* a cut range is a content of its own */
            c->keys[i][k] = request_chain_key(k ? c->keys[i][k - 1] : 0, id);
        }
        s->keys = s->n_keys ? c->keys[i] : NULL;
        if (!s->n_keys)
            s->key_tok = 0;
    }
}

static void make_case(struct one_case *c, struct rng *r)
{
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
    uint32_t bs = sizes[pick(r, 0, 9)], key_tok = pick(r, 0, 2) ? sizes[pick(r, 0, 9)] : bs;
    memset(c, 0, sizeof *c);
    c->m.block_size = bs;
    c->m.n_blocks = pick(r, 1, 4) == 1 ? pick(r, 1, 8) : pick(r, 8, MAX_BLOCKS);
    c->m.caching = pick(r, 0, 19) != 0;
    c->m.lfu = pick(r, 0, 2) == 0;
    for (uint32_t i = 0; i < c->m.n_blocks; i++)
        list_push(&c->m.unnamed, i);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(
            kv_init(&c->kv[k], bs, c->m.n_blocks, c->m.caching, c->m.lfu ? EVICT_LFU : EVICT_LRU),
            0);
    }
    c->kv[0].log_on = true;
    for (int i = 0; i < N_HOLDS; i++)
        kv_hold_init(&c->holds[0][i]);
    make_specs(c, r, key_tok);
}

/* ---- comparing */

static uint32_t named_in_model(const struct naive *m, struct kv_view_block *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_blocks; i++) {
        const struct block *b = &m->blocks[i];
        if (b->name)
            out[n++] = (struct kv_view_block){b->name, b->depth, b->ref, b->uses};
    }
    qsort(out, n, sizeof *out, kv_view_compare);
    return n;
}

static void compare_names(const struct naive *m, const struct kv *kv)
{
    struct kv_view_block a[MAX_BLOCKS], b[MAX_BLOCKS];
    uint32_t n = named_in_model(m, a);
    assert_int_equal(kv_view_named(kv, b, MAX_BLOCKS), n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(a[i].name, b[i].name);
        assert_int_equal(a[i].depth, b[i].depth);
        assert_int_equal(a[i].ref, b[i].ref);
        if (m->lfu)
            assert_int_equal(a[i].uses, b[i].uses);
    }
}

/* Every free named block, in the order in which it would go. */
static void compare_order(const struct naive *m, const struct kv *kv)
{
    struct kv_view_block view[MAX_BLOCKS];
    for (uint32_t o = 0; o < 32; o++) {
        assert_int_equal(kv_view_order(kv, o, view, MAX_BLOCKS), m->order[o].n);
        for (uint32_t i = 0; i < m->order[o].n; i++) {
            const struct block *b = &m->blocks[m->order[o].items[i]];
            assert_int_equal(view[i].name, b->name);
            assert_int_equal(view[i].depth, b->depth);
        }
    }
}

static void compare_log(struct naive *m, struct kv *kv)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < kv->log_used; i++) {
        const struct kv_log_entry *l = &kv->log[i];
        for (uint32_t k = 0; k < l->n_blocks; k++, n++) {
            uint32_t at = l->stored ? k : l->n_blocks - 1 - k; /* the tail goes first */
            assert_true(n < m->n_log);
            assert_int_equal(l->stored, m->log[n].stored);
            assert_int_equal(l->depth + at, m->log[n].depth);
            assert_int_equal(kv->log_names[l->name_off + at], m->log[n].name);
        }
    }
    assert_int_equal(n, m->n_log);
    kv->log_used = kv->log_names_used = m->n_log = 0;
}

static void compare(struct one_case *c)
{
    for (int k = 0; k < (c->copied ? 2 : 1); k++) {
        const struct kv *kv = &c->kv[k];
        const char *why = kv_validate(kv);
        if (why)
            fail_msg("kv_validate: %s", why);
        assert_int_equal(kv->free_unnamed, c->m.unnamed.n);
        assert_int_equal(kv->free_named, naive_free_named(&c->m));
        assert_int_equal(kv_free_blocks(kv), c->m.unnamed.n + naive_free_named(&c->m));
        compare_names(&c->m, kv);
        compare_order(&c->m, kv);
        for (int h = 0; h < N_HOLDS; h++) {
            assert_int_equal(c->holds[k][h].n_blocks, c->m.holds[h].n);
            assert_int_equal(c->holds[k][h].n_named, c->m.holds[h].named);
        }
    }
    compare_log(&c->m, &c->kv[0]);
}

/* ---- operations */

#define EACH_KV(k) for (int k = 0; k < (c->copied ? 2 : 1); k++)

static uint32_t full_blocks(const struct one_case *c, const struct request_spec *s)
{
    return (s->prompt_tok + s->output_tok - 1) / c->m.block_size;
}

static void look(struct one_case *c, const struct request_spec *s, uint32_t max)
{
    struct kv_match want = naive_lookup(&c->m, s, max);
    EACH_KV(k)
    {
        struct kv_match got = kv_lookup(&c->kv[k], s, max);
        assert_int_equal(got.blocks, want.blocks);
        assert_int_equal(got.free_blocks, want.free_blocks);
    }
}

static void op_begin(struct one_case *c, struct rng *r, uint32_t h)
{
    uint32_t spec = pick(r, 0, N_SPECS - 1);
    const struct request_spec *s = &c->specs[spec];
    uint32_t max = pick(r, 0, full_blocks(c, s)), found = naive_lookup(&c->m, s, max).blocks;
    look(c, s, max);
    uint32_t n = pick(r, 0, 4) ? found : pick(r, 0, found);
    c->hold_spec[h] = spec;
    naive_attach(&c->m, s, n, &c->m.holds[h]);
    EACH_KV(k) kv_attach(&c->kv[k], s, n, &c->holds[k][h]);
}

static void op_take(struct one_case *c, struct rng *r, uint32_t h)
{
    struct naive_hold *nh = &c->m.holds[h];
    uint32_t room = c->m.unnamed.n + naive_free_named(&c->m);
    uint32_t want = full_blocks(c, &c->specs[c->hold_spec[h]]) + 1;
    if (!room || nh->n >= want)
        return;
    uint32_t n = pick(r, 1, want - nh->n);
    n = n < room ? n : room;
    naive_take(&c->m, nh, n);
    EACH_KV(k) kv_take(&c->kv[k], &c->holds[k][h], n);
}

static void op_name(struct one_case *c, struct rng *r, uint32_t h, bool shared)
{
    struct naive_hold *nh = &c->m.holds[h];
    const struct request_spec *s = &c->specs[c->hold_spec[h]];
    uint32_t full = full_blocks(c, s), to = nh->n < full ? nh->n : full;
    if (to <= nh->named)
        return;
    to = pick(r, nh->named + 1, to);
    naive_name(&c->m, s, nh, to, shared);
    EACH_KV(k)(shared ? kv_name_shared : kv_name)(&c->kv[k], s, &c->holds[k][h], to);
}

static void op_release(struct one_case *c, uint32_t h)
{
    naive_release(&c->m, &c->m.holds[h]);
    EACH_KV(k) kv_release(&c->kv[k], &c->holds[k][h]);
}

static void op_copy(struct one_case *c)
{
    assert_int_equal(kv_copy(&c->kv[1], &c->kv[0]), 0);
    memcpy(c->holds[1], c->holds[0], sizeof c->holds[0]);
    c->copied = true;
}

/* Blocks seen in each way in all cases: a test that never evicts shows nothing. */
static struct {
    uint64_t evicted, copies, shared, hits, splits;
} totals;

static void count(const struct one_case *c)
{
    for (uint32_t i = 0; i < c->m.n_log; i++)
        totals.evicted += !c->m.log[i].stored;
    for (uint32_t i = 0; i < c->m.n_blocks; i++) {
        const struct block *b = &c->m.blocks[i];
        totals.copies += b->name && oldest(&c->m, b->name, b->depth) != i;
        totals.shared += b->ref > 1;
    }
}

static void random_case(uint64_t seed)
{
    static struct one_case c;
    struct rng r;
    rng_init(&r, seed);
    make_case(&c, &r);
    bool mixed = pick(&r, 0, 3) == 0, sharing = pick(&r, 0, 1);
    for (int op = 0; op < N_OPS; op++) {
        uint32_t h = pick(&r, 0, N_HOLDS - 1), what = pick(&r, 0, 99);
        bool held = c.m.holds[h].n > 0;
        if (what < 2) {
            op_copy(&c);
        } else if (what < 3) {
            naive_drop(&c.m);
            for (int k = 0; k < (c.copied ? 2 : 1); k++)
                kv_drop_cache(&c.kv[k]);
        } else if (what < 26 && held) {
            op_release(&c, h);
        } else if (!held) {
            op_begin(&c, &r, h);
            op_take(&c, &r, h);
        } else if (what < 56) {
            op_take(&c, &r, h);
        } else {
            op_name(&c, &r, h, mixed ? pick(&r, 0, 1) : sharing);
        }
        count(&c);
        compare(&c);
        const struct request_spec *s = &c.specs[pick(&r, 0, N_SPECS - 1)];
        look(&c, s, full_blocks(&c, s));
        totals.hits += naive_lookup(&c.m, s, MAX_DEPTH * 2).blocks;
    }
    for (uint32_t h = 0; h < N_HOLDS; h++)
        op_release(&c, h);
    compare(&c);
    assert_int_equal(kv_free_blocks(&c.kv[0]), c.m.n_blocks);
    kv_deinit(&c.kv[0]);
    kv_deinit(&c.kv[1]);
}

static void runs_are_as_good_as_blocks(void **state)
{
    (void)state;
    prop_run("prop_kv", CASES, random_case);
    printf("evicted %llu; after each operation, summed: copies %llu, blocks of several requests "
           "%llu, hits %llu\n",
           (unsigned long long)totals.evicted, (unsigned long long)totals.copies,
           (unsigned long long)totals.shared, (unsigned long long)totals.hits);
    if (prop_single())
        return;
    assert_true(totals.evicted > 20000);
    assert_true(totals.copies > 10000);
    assert_true(totals.shared > 10000);
    assert_true(totals.hits > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(runs_are_as_good_as_blocks, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
