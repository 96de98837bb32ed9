/* The TensorRT-LLM scheduler (GUARANTEED_NO_EVICT): its rules one by one, and random loads against
 * an engine that takes every pass by itself. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/engine_internal.h"

/* ---- small engines */

static const struct step_params linear_step = {.form = STEP_LINEAR,
                                               .w_ms = 5,
                                               .d0_ms_per_req = 0.01,
                                               .k_ms_per_tok = 1e-4,
                                               .p_ms_per_tok = 0.02};

static struct engine_config small_config(uint32_t block_size, uint32_t blocks)
{
    struct engine_config c;
    const char *why = NULL;
    engine_config_default(&c, SCHED_TRTLLM);
    assert_int_equal(step_model_init(&c.step, &linear_step, &why), 0);
    c.block_size = block_size;
    c.num_gpu_blocks = blocks;
    return c;
}

static struct request_spec request(uint64_t uid, uint32_t prompt, uint32_t output,
                                   uint32_t max_tokens)
{
    return (struct request_spec){
        .uid = uid, .prompt_tok = prompt, .output_tok = output, .max_tokens = max_tokens};
}

static uint32_t submit(struct engine *e, const struct request_spec *s, unsigned flags)
{
    uint32_t slot;
    assert_int_equal(engine_submit(e, 0, s, (uint32_t)s->uid, flags, &slot), 0);
    return slot;
}

/* One pass; returns its number of items. */
static uint32_t step(struct engine *e, const struct engine_batch_item **batch)
{
    uint32_t n = engine_step_begin(e, 0, batch);
    engine_step_end(e, 0);
    assert_null(kv_validate(&e->kv));
    return n;
}

/* max_tokens is what counts, not what is there now or what will really come. */
static void enters_when_its_end_fits(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 30);
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    struct request_spec r[4] = {request(1, 40, 3, 20), request(2, 41, 3, 20), request(3, 4, 3, 3),
                                request(4, 4, 3, 3)};
    submit(e, &r[0], 0); /* 15 blocks at its end */
    submit(e, &r[1], 0); /* 16 */
    submit(e, &r[2], 0);
    assert_int_equal(step(e, &b), 1);
    assert_int_equal(step(e, &b), 1); /* first come, first served: 3 does not overtake */
    assert_true(e->waiting_blocked);
    assert_int_equal(step(e, &b), 1);
    assert_int_equal(e->stats.done, 1);
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[0].handle, 2);
    assert_int_equal(b[1].handle, 3);
    submit(e, &r[3], 0);
    assert_int_equal(step(e, &b), 3);
    engine_free(e);
}

static void prompts_are_cut_by_the_budget(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 100);
    c.max_num_batched_tokens = 32;
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    struct request_spec r[3] = {request(1, 20, 9, 9), request(2, 50, 9, 9), request(3, 8, 9, 9)};
    for (int i = 0; i < 3; i++)
        submit(e, &r[i], 0);
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[1].scheduled, 12);
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[0].scheduled, 1);
    assert_int_equal(b[1].scheduled, 31);
    assert_int_equal(step(e, &b), 3);
    assert_int_equal(b[1].scheduled, 7);
    assert_int_equal(b[2].scheduled, 8);
    engine_free(e);
}

static void whole_prompts_wait_for_the_budget(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 100);
    c.max_num_batched_tokens = 32;
    c.enable_chunked_prefill = false;
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    struct request_spec r[2] = {request(1, 20, 2, 2), request(2, 32, 2, 2)};
    submit(e, &r[0], 0);
    submit(e, &r[1], 0);
    assert_int_equal(step(e, &b), 1);
    assert_int_equal(step(e, &b), 1); /* 31 tokens are left */
    assert_int_equal(step(e, &b), 1);
    assert_int_equal(b[0].scheduled, 32);
    engine_free(e);
}

static void alone_it_always_gets_on(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 25);
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    struct request_spec r[2] = {request(1, 90, 10, 1u << 20), request(2, 90, 10, 1u << 20)};
    submit(e, &r[0], 0);
    submit(e, &r[1], 0);
    for (int i = 0; i < 20; i++)
        assert_int_equal(step(e, &b), 1);
    assert_int_equal(e->stats.done, 2);
    assert_int_equal(kv_free_blocks(&e->kv), 25);
    engine_free(e);
}

/* Cached blocks in use cost nothing; cached blocks that nobody holds cost a free block each. */
static void cached_prefix_lowers_the_need(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 16);
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    uint64_t keys[10];
    for (uint32_t i = 0; i < 10; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, i);
    struct request_spec r[3];
    for (uint32_t i = 0; i < 3; i++) {
        r[i] = request(i + 1, 40, i ? 8 : 4, i ? 8 : 4);
        r[i].keys = keys;
        r[i].n_keys = 10;
        r[i].key_tok = 4;
    }
    submit(e, &r[0], 0); /* 11 blocks */
    submit(e, &r[1], 0); /* 12, of which 9 are there once the first pass is over */
    assert_int_equal(step(e, &b), 1);
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[1].computed, 36);
    submit(e, &r[2], 0);
    assert_int_equal(step(e, &b), 2); /* 3 more do not fit: 11 + 3 of 16 */
    step(e, &b);
    assert_int_equal(e->stats.done, 1);
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[1].handle, 3);
    assert_int_equal(b[1].computed, 36);
    for (int i = 0; i < 10; i++)
        step(e, &b);
    assert_int_equal(e->stats.done, 3);
    assert_int_equal(kv_free_blocks(&e->kv), 16);
    engine_free(e);
}

/* The order of two copies of a prefix: the older one is free and found first, the younger one is in
 * use. When decode evicts the older one, the waiting request needs less, and enters though nobody
 * left. Returns when. */
static int64_t enters_on_eviction(bool stepping)
{
    struct engine_config c = small_config(4, 42);
    struct engine *e = engine_new(&c, 1);
    uint64_t keys[2][10];
    for (uint32_t i = 0; i < 20; i++)
        keys[i / 10][i % 10] = request_chain_key(i % 10 ? keys[i / 10][i % 10 - 1] : 0, i);
    struct request_spec fill = request(1, 164, 4, 4), old = request(2, 40, 2, 2),
                        young = request(3, 40, 40, 40), other = request(4, 40, 4, 4),
                        grows = request(5, 4, 48, 48), waits = request(6, 40, 4, 4);
    old.keys = young.keys = waits.keys = keys[0];
    other.keys = keys[1];
    old.n_keys = young.n_keys = waits.n_keys = other.n_keys = 10;
    old.key_tok = young.key_tok = waits.key_tok = other.key_tok = 4;
    engine_set_stepping(e, stepping);
    submit(e, &fill, 0);
    engine_run(e, PS_PER_S);
    submit(e, &old, 0);
    submit(e, &young, 0);
    submit(e, &other, 0);
    while (e->stats.done < 3)
        engine_run(e, e->in_pass ? e->end_ps : e->end_ps + 1);
    submit(e, &grows, 0);
    uint32_t slot = submit(e, &waits, 0);
    int64_t admitted = -1;
    while (e->stats.done < 4 && e->seqs[slot].rec.first_admit_ps < 0)
        engine_run(e, e->in_pass ? e->end_ps : e->end_ps + 1);
    if (e->stats.done == 3)
        admitted = e->seqs[slot].rec.first_admit_ps;
    engine_free(e);
    return admitted;
}

static void eviction_of_a_copy_lets_in(void **state)
{
    (void)state;
    int64_t at_ps = enters_on_eviction(true);
    assert_true(at_ps > PS_PER_S);
    assert_int_equal(enters_on_eviction(false), at_ps);
}

static void remote_kv_computes_one_token(void **state)
{
    (void)state;
    struct engine_config c = small_config(4, 100);
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *b;
    struct request_spec r[2] = {request(1, 41, 3, 3), request(2, 30, 9, 400)};
    submit(e, &r[0], ENGINE_REMOTE_KV);
    uint32_t slot = submit(e, &r[1], ENGINE_PREFILL_ONLY); /* asks for no room to generate */
    assert_int_equal(step(e, &b), 2);
    assert_int_equal(b[0].computed, 40);
    assert_int_equal(b[0].scheduled, 1);
    assert_int_equal(b[1].scheduled, 30);
    assert_int_equal(e->n_held, 1);
    assert_int_equal(kv_free_blocks(&e->kv), 100 - 11 - 8);
    engine_release(e, 0, slot);
    step(e, &b);
    step(e, &b);
    assert_int_equal(e->stats.done, 1);
    assert_int_equal(kv_free_blocks(&e->kv), 100);
    engine_free(e);
}

/* ---- what differs between schedulers in the random loads below */

#ifndef N_LOADS /* more for a long run */
#define N_LOADS 1000
#endif

static uint32_t between(struct rng *r, uint32_t lo, uint32_t hi);

static void random_config(struct rng *r, struct engine_config *c)
{
    static const uint32_t sizes[] = {1, 4, 16};
    uint32_t bs = sizes[between(r, 0, 2)];
    *c = small_config(bs, between(r, 160, 1200) / bs + 1);
    c->enable_prefix_caching = between(r, 0, 4) > 0;
    c->enable_chunked_prefill = between(r, 0, 4) > 0;
    c->eviction = between(r, 0, 3) ? EVICT_LRU : EVICT_LFU;
    c->max_num_seqs = between(r, 1, 24);
    c->max_num_batched_tokens = between(r, 0, 1) ? between(r, 1, 64) : between(r, 64, 400);
    c->max_model_len = between(r, 0, 1) ? 0 : between(r, 130, 400);
    struct step_params p = linear_step;
    const char *why;
    uint32_t kind = between(r, 0, 9);
    if (kind < 2) /* no closed form */
        p = (struct step_params){.form = STEP_FIXED, .fixed_prefill_ms = 20, .fixed_decode_ms = 6};
    if (kind ==
        2) { /* speculation: nothing is skipped, but blocks are taken and lost in another way */
        p.spec_gamma = 2;
        p.spec_accept[0] = p.spec_accept[1] = 0.5;
    }
    assert_int_equal(step_model_init(&c->step, &p, &why), 0);
}

static void check_totals(uint64_t preemptions, uint64_t reused_tok);

/* ---- random loads, on an engine that skips and one that steps */

#define N_REQUESTS 60
#define MAX_KEYS 24

enum fate { FATE_NEW, FATE_IN, FATE_HELD, FATE_OUT };

struct op {
    int64_t at_ps;
    uint32_t request;
    bool abort;
};

struct load {
    struct engine_config c;
    struct request_spec spec[N_REQUESTS];
    uint64_t keys[N_REQUESTS][MAX_KEYS];
    unsigned flags[N_REQUESTS];
    struct op ops[2 * N_REQUESTS];
    uint32_t n_ops;
};

struct side {
    struct engine *e;
    uint32_t slot[N_REQUESTS];
    enum fate fate[N_REQUESTS];
    struct engine_event log[3 * N_REQUESTS];
    uint32_t n_log, n_held;
};

static uint32_t between(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

/* Prompts of a few groups that begin alike; one in eight knows the keys of its answer, too. */
static void random_request(struct rng *r, struct load *l, uint32_t i)
{
    struct request_spec *s = &l->spec[i];
    uint32_t group = between(r, 1, 3), same = between(r, 0, 8);
    *s = request(i + 1, between(r, 1, 120), between(r, 1, between(r, 0, 3) ? 20 : 150), 0);
    s->max_tokens = s->output_tok + between(r, 0, between(r, 0, 9) ? 50 : 100000);
    s->key_tok = 16;
    s->n_keys = (s->prompt_tok + 15) / 16;
    if (!between(r, 0, 7)) {
        s->n_keys += between(r, 1, 4);
        same = MAX_KEYS;
    }
    for (uint32_t k = 0; k < s->n_keys; k++)
        l->keys[i][k] = request_chain_key(k ? l->keys[i][k - 1] : 0, k < same ? group : 1000 + i);
    s->keys = l->keys[i];
    uint32_t f = between(r, 0, 19);
    l->flags[i] = f == 0 ? ENGINE_PREFILL_ONLY : f == 1 ? ENGINE_REMOTE_KV : 0;
}

static int by_time(const void *a, const void *b)
{
    const struct op *x = a, *y = b;
    if (x->at_ps != y->at_ps)
        return x->at_ps < y->at_ps ? -1 : 1;
    return x->request != y->request ? (x->request < y->request ? -1 : 1) : x->abort - y->abort;
}

static void random_load(struct rng *r, struct load *l)
{
    random_config(r, &l->c);
    int64_t at = 0, gap_us = between(r, 0, 3) ? between(r, 1000, 40000) : 1;
    l->n_ops = 0;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        random_request(r, l, i);
        at += between(r, 0, 3) ? between(r, 0, (uint32_t)gap_us) * PS_PER_US : 0;
        l->ops[l->n_ops++] = (struct op){at, i, false};
        if (!between(r, 0, 7))
            l->ops[l->n_ops++] = (struct op){at + between(r, 0, 900) * PS_PER_MS, i, true};
    }
    qsort(l->ops, l->n_ops, sizeof l->ops[0], by_time);
}

/* Every block is free, in a named run that is held, or with one request. */
static void check_blocks(const struct engine *e)
{
    const struct kv *kv = &e->kv;
    assert_null(kv_validate(kv));
    uint64_t n = kv_free_blocks(kv);
    for (uint32_t b = 0; kv->buckets && b <= kv->bucket_mask; b++) {
        for (uint32_t i = kv->buckets[b].first; i != KV_NONE; i = kv->runs[i].chain)
            n += kv->runs[i].ref ? kv->runs[i].len : 0;
    }
    for (uint32_t i = 0; i < e->seqs_used; i++) {
        const struct seq *q = &e->seqs[i];
        if (q->state == SEQ_RUNNING || q->state == SEQ_HELD)
            n += q->hold.n_blocks - q->hold.n_named;
    }
    assert_int_equal(n, kv->usable);
}

static void collect(struct side *s)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(s->e, &n);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(s->n_log < 3 * N_REQUESTS);
        s->log[s->n_log++] = ev[i];
        if (ev[i].kind == ENGINE_EV_FIRST_TOKEN)
            continue;
        bool done = ev[i].kind == ENGINE_EV_DONE;
        assert_int_equal(s->fate[ev[i].handle], FATE_IN);
        s->fate[ev[i].handle] = done ? FATE_OUT : FATE_HELD;
        s->n_held += !done;
    }
    engine_clear_events(s->e);
}

static void apply(struct side *s, const struct load *l, const struct op *op)
{
    uint32_t i = op->request;
    if (!op->abort) {
        int rc = engine_submit(s->e, op->at_ps, &l->spec[i], i, l->flags[i], &s->slot[i]);
        assert_true(rc == 0 || rc == WEIR_E_TOO_LARGE);
        s->fate[i] = rc ? FATE_OUT : FATE_IN;
    } else if (s->fate[i] == FATE_IN || s->fate[i] == FATE_HELD) {
        s->n_held -= s->fate[i] == FATE_HELD;
        engine_abort(s->e, op->at_ps, s->slot[i]);
        s->fate[i] = FATE_OUT;
    }
}

static void release_held(struct side *s, int64_t now)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        if (s->fate[i] == FATE_HELD) {
            engine_release(s->e, now, s->slot[i]);
            s->fate[i] = FATE_OUT;
        }
    }
    s->n_held = 0;
}

/* Skips that were seen at random moments: all, and those with requests waiting. */
static uint32_t skips_seen, skips_waiting;

static void play(struct side *s, const struct load *l)
{
    for (uint32_t k = 0; k < l->n_ops;) {
        int64_t now = l->ops[k].at_ps;
        engine_run(s->e, now);
        collect(s);
        check_blocks(s->e);
        for (; k < l->n_ops && l->ops[k].at_ps == now; k++)
            apply(s, l, &l->ops[k]);
        if (k % 4 == 0)
            release_held(s, now);
        engine_start(s->e, now, PS_NEVER);
        if (s->e->in_pass && s->e->skipping) {
            skips_seen++;
            skips_waiting += s->e->waiting.n > 0;
        }
    }
    int64_t now = l->ops[l->n_ops - 1].at_ps;
    for (uint32_t k = 0; k < 100; k++) {
        now += 100 * PS_PER_S;
        engine_run(s->e, now);
        collect(s);
        check_blocks(s->e);
        release_held(s, now);
        engine_start(s->e, now, PS_NEVER);
    }
}

/* Plays l; everything must have left, and all blocks with it. */
static struct side *play_new(const struct load *l, bool stepping)
{
    struct side *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->e = engine_new(&l->c, 7);
    assert_non_null(s->e);
    engine_set_stepping(s->e, stepping);
    engine_want_first_tokens(s->e, true);
    play(s, l);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_int_equal(s->fate[i], FATE_OUT);
    assert_int_equal(s->e->n_running, 0);
    assert_int_equal(s->e->waiting.n, 0);
    assert_int_equal(kv_free_blocks(&s->e->kv), s->e->kv.usable);
    return s;
}

static void compare(const struct side *a, const struct side *b)
{
    struct engine_stats x, y;
    engine_get_stats(a->e, &x);
    engine_get_stats(b->e, &y);
    assert_memory_equal(&x, &y, sizeof x);
    assert_int_equal(a->n_log, b->n_log);
    for (uint32_t i = 0; i < a->n_log; i++) {
        const struct engine_event *p = &a->log[i], *q = &b->log[i];
        assert_int_equal(p->kind, q->kind);
        assert_int_equal(p->at_ps, q->at_ps);
        assert_int_equal(p->handle, q->handle);
        assert_int_equal(p->slot, q->slot);
        assert_memory_equal(&p->record, &q->record, sizeof p->record);
    }
}

static uint64_t last_seed;

static int print_seed(void **state)
{
    (void)state;
    printf("last seed: %llu\n", (unsigned long long)last_seed);
    return 0;
}

static void skipping_changes_nothing(void **state)
{
    (void)state;
    uint64_t preemptions = 0, reused_tok = 0;
    skips_seen = skips_waiting = 0;
    struct load *l = calloc(1, sizeof *l);
    assert_non_null(l);
    for (uint64_t seed = 1; seed <= N_LOADS; seed++) {
        struct rng r;
        rng_init(&r, seed);
        random_load(&r, l);
        last_seed = seed;
        struct side *fast = play_new(l, false), *slow = play_new(l, true);
        compare(fast, slow);
        preemptions += fast->e->stats.preemptions;
        reused_tok += fast->e->stats.reused_tok;
        engine_free(fast->e);
        engine_free(slow->e);
        free(fast);
        free(slow);
    }
    free(l);
    printf("preemptions %llu, reused %llu tokens, skips seen %u, with requests waiting %u\n",
           (unsigned long long)preemptions, (unsigned long long)reused_tok, skips_seen,
           skips_waiting);
    check_totals(preemptions, reused_tok);
}

static void check_totals(uint64_t preemptions, uint64_t reused_tok)
{
    assert_int_equal(preemptions, 0);
    assert_true(reused_tok > 10000);
    assert_true(skips_seen > 100);
    assert_true(skips_waiting > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enters_when_its_end_fits),
        cmocka_unit_test(prompts_are_cut_by_the_budget),
        cmocka_unit_test(whole_prompts_wait_for_the_budget),
        cmocka_unit_test(alone_it_always_gets_on),
        cmocka_unit_test(cached_prefix_lowers_the_need),
        cmocka_unit_test(eviction_of_a_copy_lets_in),
        cmocka_unit_test(remote_kv_computes_one_token),
        cmocka_unit_test_teardown(skipping_changes_nothing, print_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
