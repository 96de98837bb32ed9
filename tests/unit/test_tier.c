/* The tiers below the GPU: blocks that are stored and found again, copies and their times, requests that wait
 * for their KV, and what is there at the limits. Times are computed by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "predictor/block_store.h"
#include "predictor/cluster.h"
#include "predictor/engine_internal.h"
#include "predictor/shared_tier.h"
#include "predictor/tier.h"
#include "predictor/units.h"

#define BLOCK 16u
#define MAX_BLOCKS 64u
#define MS PS_PER_MS

/* A prompt of whole blocks whose content is named by `family`: equal families share a prefix. */
struct prompt {
    struct request_spec spec;
    uint64_t keys[MAX_BLOCKS];
};

static void prompt_init(struct prompt *p, uint64_t uid, uint64_t family, uint32_t blocks,
                        uint32_t output_tok)
{
    for (uint32_t i = 0; i < blocks; i++)
        p->keys[i] = request_chain_key(i ? p->keys[i - 1] : family, i);
    p->spec = (struct request_spec){.uid = uid,
                                    .prompt_tok = blocks * BLOCK,
                                    .output_tok = output_tok,
                                    .max_tokens = output_tok,
                                    .keys = p->keys,
                                    .n_keys = blocks,
                                    .key_tok = BLOCK};
}

/* Takes all of a GPU of so many blocks, its last one not filled. */
static void filler_init(struct prompt *p, uint64_t uid, uint32_t blocks)
{
    prompt_init(p, uid, 1000 + uid, blocks, 1);
    p->spec.prompt_tok--;
}

/* A pass with prompt tokens takes 10 ms, one that only decodes 1 ms; a block is copied down in 1 ms and up in
 * 2 ms. */
static struct engine_config config(uint32_t gpu_blocks, uint32_t host_blocks)
{
    struct engine_config c;
    struct step_params p = {.form = STEP_FIXED, .fixed_prefill_ms = 10, .fixed_decode_ms = 1};
    const char *why = NULL;
    engine_config_default(&c, SCHED_VLLM);
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.block_size = BLOCK;
    c.num_gpu_blocks = gpu_blocks + 1; /* the null block */
    c.kv_bytes_per_token = 1000000;
    c.num_host_blocks = host_blocks;
    c.d2h_bandwidth_gb_s = 16;
    c.h2d_bandwidth_gb_s = 8;
    return c;
}

static struct engine *engine_of(uint32_t gpu_blocks, uint32_t host_blocks)
{
    struct engine_config c = config(gpu_blocks, host_blocks);
    struct engine *e = engine_new(&c, 1);
    assert_non_null(e);
    engine_want_first_tokens(e, true);
    return e;
}

static uint32_t submit(struct engine *e, int64_t now, const struct prompt *p)
{
    uint32_t slot;
    engine_run(e, now);
    assert_int_equal(engine_submit(e, now, &p->spec, (uint32_t)p->spec.uid, 0, &slot), 0);
    return slot;
}

/* The record of the request that was done; runs on for it. */
static struct engine_record done(struct engine *e, uint32_t handle)
{
    struct engine_record r = {.end_ps = -1};
    uint32_t n;
    engine_run(e, PS_LIMIT);
    const struct engine_event *ev = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++) {
        if (ev[i].kind == ENGINE_EV_DONE && ev[i].handle == handle)
            r = ev[i].record;
    }
    assert_true(r.end_ps >= 0);
    assert_null(kv_validate(&e->kv));
    assert_null(tiers_validate(e));
    return r;
}

static void assert_same_events(const struct engine *a, const struct engine *b)
{
    uint32_t n, m;
    const struct engine_event *x = engine_events(a, &n), *y = engine_events(b, &m);
    assert_int_equal(n, m);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(x[i].kind, y[i].kind);
        assert_int_equal(x[i].at_ps, y[i].at_ps);
        assert_int_equal(x[i].handle, y[i].handle);
        assert_int_equal(x[i].record.first_admit_ps, y[i].record.first_admit_ps);
        assert_int_equal(x[i].record.reused_all_tok, y[i].record.reused_all_tok);
        assert_int_equal(x[i].record.host_tok, y[i].record.host_tok);
        assert_int_equal(x[i].record.preemptions, y[i].record.preemptions);
    }
}

/* ---- one engine with host memory */

static void blocks_stay_on_the_gpu_until_they_are_copied(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a;
    prompt_init(&a, 1, 7, 4, 1);
    submit(e, 0, &a);
    engine_run(e, 10 * MS); /* the prompt, and its one token: done; copies end at 14 ms */
    assert_true(engine_empty(e));
    assert_int_equal(engine_free_blocks(e), 4);
    assert_int_equal(engine_next_ps(e), 14 * MS);
    engine_run(e, 14 * MS - 1);
    assert_int_equal(engine_free_blocks(e), 4);
    engine_run(e, 14 * MS);
    assert_int_equal(engine_free_blocks(e), 8);
    assert_int_equal(engine_next_ps(e), PS_NEVER);
    engine_free(e);
}

static void a_prefix_comes_back_from_host_memory(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a, b, c;
    struct engine_record r;
    struct engine_stats st;
    prompt_init(&a, 1, 7, 4, 1);
    filler_init(&b, 2, 8);
    prompt_init(&c, 3, 7, 5, 1); /* as the first, and one block more */
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    submit(e, 200 * MS, &c);
    r = done(e, 3);
    /* 4 blocks up in 8 ms, then a pass over the fifth */
    assert_int_equal(r.first_admit_ps, 208 * MS);
    assert_int_equal(r.first_token_ps, 218 * MS);
    assert_int_equal(r.reused_tok, 64);
    assert_int_equal(r.host_tok, 64);
    assert_int_equal(r.shared_tok, 0);
    engine_get_stats(e, &st);
    assert_int_equal(st.stored_tok, (4 + 7 + 1) * BLOCK);
    assert_int_equal(st.host_tok, 64);
    assert_int_equal(st.not_stored_tok, 0);
    engine_free(e);
}

/* What the GPU still has is not loaded, only what is behind it. */
static void the_lookup_goes_on_behind_the_gpus(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a, b, c;
    struct engine_record r;
    prompt_init(&a, 1, 7, 6, 1);
    prompt_init(&b, 2, 8, 4, 1); /* evicts the last two of the first */
    prompt_init(&c, 3, 7, 6, 1);
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    submit(e, 200 * MS, &c);
    r = done(e, 3);
    /* never the last token: 5 blocks at most, 4 on the GPU, 1 up in 2 ms */
    assert_int_equal(r.first_admit_ps, 202 * MS);
    assert_int_equal(r.reused_tok, 80);
    assert_int_equal(r.host_tok, 16);
    engine_free(e);
}

static void others_run_while_one_loads(void **state)
{
    (void)state;
    struct engine *e = engine_of(20, 100);
    struct prompt a, b, c, d;
    struct engine_record r;
    struct engine_load load;
    prompt_init(&a, 1, 7, 10, 1);
    filler_init(&b, 2, 20);
    prompt_init(&c, 3, 7, 11, 1);
    prompt_init(&d, 4, 9, 2, 30);
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    submit(e, 200 * MS, &c); /* loads 10 blocks: until 220 ms */
    submit(e, 200 * MS, &d); /* first token at 210 ms, then one each ms */
    engine_run(e, 205 * MS);
    engine_get_load(e, 205 * MS, &load);
    assert_int_equal(load.running, 1);
    assert_int_equal(load.waiting, 1);
    assert_int_equal(load.kv_used_blocks, 11 + 2);
    r = done(e, 3);
    assert_int_equal(r.first_admit_ps, 220 * MS);
    /* a pass with prompt and decoding: both parts, in the fixed form */
    assert_int_equal(r.first_token_ps, 231 * MS);
    engine_free(e);
}

/* A second request for blocks that are being loaded waits for them, and finds them on the GPU. */
static void blocks_are_not_loaded_twice(void **state)
{
    (void)state;
    struct engine *e = engine_of(20, 100);
    struct prompt a, b, c, d;
    struct engine_record r;
    struct engine_stats st;
    prompt_init(&a, 1, 7, 5, 1);
    filler_init(&b, 2, 20);
    prompt_init(&c, 3, 7, 6, 2);
    prompt_init(&d, 4, 7, 6, 2);
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    submit(e, 200 * MS, &c);
    submit(e, 201 * MS, &d);
    r = done(e, 4);
    assert_int_equal(r.first_admit_ps, 210 * MS); /* with the third request, in one pass */
    assert_int_equal(r.reused_tok, 80);
    assert_int_equal(r.host_tok, 0);
    engine_get_stats(e, &st);
    assert_int_equal(st.host_tok, 80);
    engine_free(e);
}

static void a_preemption_waits_for_its_copies(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a, b;
    prompt_init(&a, 1, 7, 3, 40);
    prompt_init(&b, 2, 8, 3, 40);
    submit(e, 0, &a);
    submit(e, 0, &b);
    /* 10 ms: both prompts are there, 3 + 3 blocks go down until 16 ms. Each takes its 4th block with the first
     * decode step, and its 5th with the 17th, which does not fit: at 10 + 16 = 26 ms the second one is
     * preempted. Its 4th block is copied until 27 ms; the step takes 1 ms from then on. */
    struct engine_record r = done(e, 1), s = done(e, 2);
    assert_int_equal(s.preemptions, 1);
    assert_int_equal(r.first_token_ps, 10 * MS);
    assert_int_equal(r.end_ps, (27 + 40 - 1 - 16) * MS);
    assert_int_equal(s.host_tok + (s.reused_all_tok - s.reused_tok), s.host_tok + s.reused_all_tok);
    engine_free(e);
}

static void an_aborted_load_ends_before_its_blocks_are_free(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a, b, c, d;
    prompt_init(&a, 1, 7, 4, 1);
    filler_init(&b, 2, 8);
    prompt_init(&c, 3, 7, 5, 1);
    prompt_init(&d, 4, 7, 5, 1);
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    uint32_t slot = submit(e, 200 * MS, &c);
    submit(e, 200 * MS, &d);
    engine_run(e, 201 * MS);
    engine_abort(e, 201 * MS, slot);
    engine_run(e, 207 * MS);
    assert_int_equal(engine_free_blocks(e), 3);
    struct engine_record r = done(e, 4); /* follows, and then loads for itself: until 216 ms */
    assert_int_equal(r.first_admit_ps, 216 * MS);
    assert_int_equal(r.host_tok, 64);
    engine_free(e);
}

static void lost(void *ctx, uint32_t handle)
{
    *(uint32_t *)ctx += handle;
}

static void a_dead_engine_has_nothing_left(void **state)
{
    (void)state;
    struct engine *e = engine_of(8, 100);
    struct prompt a, b, c;
    uint32_t sum = 0;
    prompt_init(&a, 1, 7, 4, 1);
    filler_init(&b, 2, 8);
    prompt_init(&c, 4, 7, 5, 1);
    submit(e, 0, &a);
    submit(e, 100 * MS, &b);
    submit(e, 111 * MS, &c); /* the copies of the second are under way, and hold the GPU */
    engine_run(e, 120 * MS);
    engine_kill(e, 121 * MS, lost, &sum);
    assert_int_equal(sum, 4);
    assert_int_equal(engine_free_blocks(e), 8);
    assert_int_equal(engine_next_ps(e), PS_NEVER);
    engine_clear_events(e);
    submit(e, 300 * MS, &a);
    struct engine_record r = done(e, 1);
    assert_int_equal(r.reused_tok, 0);
    assert_int_equal(r.first_token_ps, 310 * MS);
    engine_free(e);
}

static void a_copy_goes_on_like_its_original(void **state)
{
    (void)state;
    struct engine *e = engine_of(20, 30), *f = engine_of(8, 0), *g = engine_of(8, 5);
    struct prompt p[40];
    int64_t t = 0;
    for (uint32_t i = 0; i < 40; i++) {
        prompt_init(&p[i], i + 1, i % 7 + 1, 2 + i % 5, 3 + i % 9);
        submit(e, t += 7 * MS, &p[i]);
        if (i % 9 == 8) { /* in the middle of whatever goes on */
            assert_int_equal(engine_copy(f, e), 0);
            assert_int_equal(engine_copy(g, f), 0);
            engine_run(f, t + 50 * MS);
            engine_run(g, t + 50 * MS);
            assert_same_events(f, g);
            assert_null(tiers_validate(f));
        }
    }
    engine_clear_events(e);
    assert_int_equal(engine_copy(f, e), 0);
    engine_run(e, PS_LIMIT);
    engine_run(f, PS_LIMIT);
    assert_same_events(e, f);
    engine_free(e);
    engine_free(f);
    engine_free(g);
}

/* ---- the tier by itself */

static void what_has_no_room_is_counted(void **state)
{
    (void)state;
    struct engine_config c = config(8, 5);
    struct tier t;
    struct prompt a, b;
    struct kv_hold gpu;
    assert_int_equal(tier_init(&t, &c), 0);
    prompt_init(&a, 1, 7, 4, 1);
    prompt_init(&b, 2, 8, 6, 1);
    uint64_t first = tier_store(&t, 0, &a.spec, 4);
    assert_int_equal(tier_job_due_ps(&t, first), 4 * MS);
    assert_int_equal(tier_store(&t, 0, &a.spec, 4), TIER_NO_JOB); /* on its way */
    uint64_t second = tier_store(&t, 1 * MS, &b.spec, 6); /* the first's place is not to be had */
    assert_int_equal(tier_job_due_ps(&t, second), 5 * MS);
    assert_int_equal(t.stats.stored_blocks, 5);
    assert_int_equal(t.stats.skipped_blocks, 5);
    assert_int_equal(tier_host_blocks(&t, &a.spec, 4), 0); /* not yet */
    assert_true(tier_complete(&t, 4 * MS, &gpu));
    assert_false(tier_complete(&t, 4 * MS, &gpu));
    assert_int_equal(tier_host_blocks(&t, &a.spec, 4), 4);
    assert_true(tier_complete(&t, 5 * MS, &gpu));
    assert_int_equal(tier_host_blocks(&t, &b.spec, 6), 1);
    assert_int_equal(tier_next_ps(&t), PS_NEVER);
    /* now the oldest make way, tail first */
    assert_int_not_equal(tier_store(&t, 10 * MS, &b.spec, 3), TIER_NO_JOB);
    assert_int_equal(tier_host_blocks(&t, &a.spec, 4), 2);
    assert_null(block_store_validate(&t.host, t.first == t.end));
    tier_deinit(&t);
}

static void jobs_have_a_limit(void **state)
{
    (void)state;
    struct engine_config c = config(8, 1000000);
    struct tier t;
    struct prompt p;
    struct kv_hold gpu;
    assert_int_equal(tier_init(&t, &c), 0);
    for (uint32_t i = 0; i < TIER_MAX_JOBS; i++) {
        prompt_init(&p, i + 1, i + 1, 1, 1);
        assert_int_not_equal(tier_store(&t, 0, &p.spec, 1), TIER_NO_JOB);
    }
    prompt_init(&p, 1, 1000000, 3, 1);
    assert_int_equal(tier_store(&t, 0, &p.spec, 3), TIER_NO_JOB);
    assert_int_equal(t.stats.skipped_blocks, 3);
    assert_int_equal(t.host.kv.usable - kv_free_blocks(&t.host.kv), TIER_MAX_JOBS);
    assert_true(tier_complete(&t, 1 * MS, &gpu));
    assert_int_not_equal(tier_store(&t, 1 * MS, &p.spec, 3), TIER_NO_JOB);
    while (tier_complete(&t, PS_LIMIT, &gpu))
        ;
    assert_int_equal(kv_free_blocks(&t.host.kv), t.host.kv.usable);
    assert_null(block_store_validate(&t.host, t.first == t.end));
    tier_deinit(&t);
}

/* However many prefixes come by, memory stays that of the blocks there are. */
static void memory_is_that_of_its_blocks(void **state)
{
    (void)state;
    struct engine_config c = config(8, 50);
    struct tier t;
    struct prompt p;
    struct kv_hold gpu;
    uint32_t runs = 0, keys = 0, pending = 0;
    assert_int_equal(tier_init(&t, &c), 0);
    for (uint32_t i = 0; i < 20000; i++) {
        prompt_init(&p, i + 1, i % 7 ? i + 1 : 3, 1 + i % 20, 1);
        (void)tier_store(&t, i * MS, &p.spec, 1 + i % 20);
        while (tier_complete(&t, i * MS, &gpu))
            ;
        if (i == 2000) {
            runs = t.host.kv.runs_cap;
            keys = t.host.kv.keys_cap + t.keys_cap + t.jobs_cap;
            pending = t.host.pending.runs_cap + t.host.pending.keys_cap;
        }
    }
    assert_int_equal(t.host.kv.runs_cap, runs);
    assert_int_equal(t.host.kv.keys_cap + t.keys_cap + t.jobs_cap, keys);
    assert_int_equal(t.host.pending.runs_cap + t.host.pending.keys_cap, pending);
    assert_true(runs <= 64);
    while (tier_complete(&t, PS_LIMIT, &gpu))
        ;
    assert_null(block_store_validate(&t.host, true));
    tier_deinit(&t);
}

/* Names of blocks on their way take no more than their limit. */
static void names_have_a_limit(void **state)
{
    (void)state;
    struct engine_config c = config(8, 1000000);
    struct tier t;
    uint32_t n = TIER_MAX_KEYS / 4 + 1;
    uint64_t *keys = malloc(n * sizeof *keys);
    struct request_spec s = {
        .prompt_tok = n * BLOCK, .output_tok = 1, .keys = keys, .n_keys = n, .key_tok = BLOCK};
    assert_non_null(keys);
    assert_int_equal(tier_init(&t, &c), 0);
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < n; k++)
            keys[k] = request_chain_key(k ? keys[k - 1] : i + 1, k);
        s.uid = i + 1;
        uint64_t job = tier_store(&t, 0, &s, 1000); /* of many names, few blocks */
        assert_int_equal(job != TIER_NO_JOB, i < 3);
    }
    assert_true(t.keys_cap <= 2 * TIER_MAX_KEYS);
    tier_deinit(&t);
    free(keys);
}

/* Two copies of one prefix, the second begun while the first is on its way, bring each block once. */
static void a_longer_copy_carries_only_the_rest(void **state)
{
    (void)state;
    struct block_store s;
    struct block_ticket t, u;
    struct prompt a, b;
    uint32_t without;
    assert_int_equal(block_store_init(&s, BLOCK, 10), 0);
    prompt_init(&a, 1, 7, 4, 1);
    prompt_init(&b, 2, 7, 7, 1);
    assert_int_equal(block_store_begin(&s, &a.spec, 4, &t, &without), 4);
    assert_int_equal(block_store_begin(&s, &b.spec, 7, &u, &without), 3);
    assert_int_equal(kv_free_blocks(&s.kv), 3);
    assert_int_equal(block_store_end(&s, &a.spec, &t), 4);
    block_store_drop(&s, &t);
    assert_int_equal(block_store_end(&s, &b.spec, &u), 7);
    block_store_drop(&s, &u);
    assert_int_equal(block_store_lookup(&s, &b.spec, 7), 7);
    assert_null(block_store_validate(&s, true));
    /* the first never comes: nothing to put the rest behind */
    prompt_init(&a, 3, 9, 2, 1);
    prompt_init(&b, 4, 9, 5, 1);
    assert_int_equal(block_store_begin(&s, &a.spec, 2, &t, &without), 2);
    assert_int_equal(block_store_begin(&s, &b.spec, 5, &u, &without), 3);
    block_store_drop(&s, &t);
    assert_int_equal(block_store_end(&s, &b.spec, &u), 0);
    block_store_drop(&s, &u);
    assert_int_equal(kv_free_blocks(&s.kv), 10);
    assert_int_equal(block_store_lookup(&s, &b.spec, 5), 0);
    assert_null(block_store_validate(&s, true));
    block_store_deinit(&s);
}

/* ---- the store that workers share */

static void finish(struct cluster *c, uint32_t handle, struct engine_record *r)
{
    int64_t t;
    struct cluster_event ev;
    r->end_ps = -1;
    while ((t = cluster_next_ps(c)) != PS_NEVER) {
        cluster_advance(c, t);
        while (cluster_poll(c, &ev)) {
            if (ev.kind == CLUSTER_EV_DONE && ev.handle == handle)
                *r = ev.record;
        }
        cluster_start(c, t);
    }
    assert_true(r->end_ps >= 0);
    assert_null(shared_tier_validate(cluster_shared(c)));
}

static void send(struct cluster *c, int64_t now, uint32_t worker, const struct prompt *p)
{
    int64_t t;
    struct cluster_event ev;
    while ((t = cluster_next_ps(c)) <= now) {
        cluster_advance(c, t);
        while (cluster_poll(c, &ev))
            ;
        cluster_start(c, t);
    }
    cluster_advance(c, now);
    assert_int_equal(cluster_submit(c, now, worker, &p->spec, (uint32_t)p->spec.uid, false), 0);
    cluster_start(c, now);
}

/* First byte after 5 ms, 1 ms a block to read, 2 ms to write. */
static struct cluster *cluster_of(uint32_t workers, uint32_t host, uint32_t shared)
{
    struct worker_config w[4] = {0};
    struct cluster_options o = {.kv_lease_ps = PS_NEVER, .lazy = true};
    for (uint32_t i = 0; i < workers; i++) {
        w[i].engine = config(40, host);
        w[i].engine.num_shared_blocks = shared;
        w[i].engine.shared_first_byte_ms = 5;
        w[i].engine.shared_read_gb_s = 16;
        w[i].engine.shared_write_gb_s = 8;
        w[i].starts_up = true;
    }
    struct cluster *c = cluster_new(w, workers, &o);
    assert_non_null(c);
    return c;
}

static void one_worker_reads_what_another_wrote(void **state)
{
    (void)state;
    struct cluster *c = cluster_of(2, 100, 100);
    struct prompt a, b, d;
    struct engine_record r;
    struct shared_tier_stats st;
    prompt_init(&a, 0, 7, 6, 1);
    prompt_init(&b, 1, 7, 7, 1);
    prompt_init(&d, 2, 7, 7, 1);
    send(c, 0, 0, &a); /* 10 ms: computed; 16: in host memory; 16 + 12 + 5 = 33: written */
    send(c, 32 * MS, 1, &d);
    send(c, 100 * MS, 1, &b);
    finish(c, 1, &r);
    /* on worker 1's GPU by then: it came too early and computed it all */
    assert_int_equal(r.shared_tok, 0);
    assert_int_equal(r.reused_tok, 96);
    shared_tier_get_stats(cluster_shared(c), &st);
    assert_int_equal(st.read_blocks, 0);
    assert_int_equal(st.written_blocks, 7);
    assert_int_equal(st.used_blocks, 7);
    cluster_free(c);

    c = cluster_of(2, 100, 100);
    send(c, 0, 0, &a);
    send(c, 33 * MS, 1, &b);
    finish(c, 1, &r);
    /* read 5 + 6 ms, up 12 ms, a pass over the rest */
    assert_int_equal(r.shared_tok, 96);
    assert_int_equal(r.host_tok, 0);
    assert_int_equal(r.first_admit_ps, (33 + 11 + 12) * MS);
    assert_int_equal(r.first_token_ps, (33 + 11 + 12 + 10) * MS);
    shared_tier_get_stats(cluster_shared(c), &st);
    assert_int_equal(st.read_blocks, 6);
    assert_int_equal(st.written_blocks, 7);
    cluster_free(c);
}

static void readers_share_the_bandwidth(void **state)
{
    (void)state;
    struct cluster *c = cluster_of(3, 0, 100); /* without host memory */
    struct prompt a, b, d;
    struct engine_record r;
    prompt_init(&a, 0, 7, 6, 1);
    prompt_init(&b, 1, 7, 7, 1);
    prompt_init(&d, 2, 7, 7, 1);
    send(c, 0, 0, &a);
    send(c, 100 * MS, 1, &b);
    send(c, 100 * MS, 2, &d);
    finish(c, 2, &r);
    assert_int_equal(r.shared_tok, 96);
    assert_int_equal(r.first_admit_ps, (100 + 5 + 2 * 6 + 12) * MS);
    cluster_free(c);
}

/* Its content survives the workers; a worker that dies while it writes leaves nothing half there. */
static void the_store_outlives_its_workers(void **state)
{
    (void)state;
    struct fault down[] = {{.at_ps = 60 * MS, .kind = FAULT_DOWN, .worker = 0},
                           {.at_ps = 120 * MS, .kind = FAULT_UP, .worker = 0},
                           {.at_ps = 225 * MS, .kind = FAULT_DOWN, .worker = 0}};
    struct cluster *c = cluster_of(2, 100, 100);
    struct prompt a, b, d, f;
    struct engine_record r;
    struct shared_tier_stats st;
    assert_int_equal(cluster_add_faults(c, down, 3), 0);
    prompt_init(&a, 0, 7, 6, 1);
    prompt_init(&b, 1, 7, 7, 1);
    prompt_init(&d, 2, 9, 6, 1);
    prompt_init(&f, 3, 9, 6, 1);
    send(c, 0, 0, &a);
    send(c, 130 * MS, 0, &b); /* finds the prefix in the store */
    send(c, 200 * MS, 0,
         &d); /* 210 computed, 216 in host memory, being written when it dies at 225 */
    send(c, 300 * MS, 1, &f);
    finish(c, 3, &r);
    assert_int_equal(r.reused_tok, 0);
    shared_tier_get_stats(cluster_shared(c), &st);
    assert_int_equal(st.read_blocks, 6);
    assert_int_equal(st.used_blocks, 6 + 1 + 6);
    cluster_free(c);
}

static void the_store_never_grows_beyond_its_size(void **state)
{
    (void)state;
    struct cluster *c = cluster_of(2, 100, 9);
    struct prompt p[20];
    struct engine_record r;
    struct shared_tier_stats st;
    for (uint32_t i = 0; i < 20; i++) {
        prompt_init(&p[i], i, i + 1, 4, 1);
        send(c, i * 5 * MS, i % 2, &p[i]);
        shared_tier_get_stats(cluster_shared(c), &st);
        assert_true(st.used_blocks <= 9);
    }
    finish(c, 19, &r);
    shared_tier_get_stats(cluster_shared(c), &st);
    assert_int_equal(st.used_blocks, 9);
    cluster_free(c);
}

static void workers_must_agree_on_the_store(void **state)
{
    (void)state;
    struct worker_config w[2] = {0};
    struct cluster_options o = {.kv_lease_ps = PS_NEVER};
    for (uint32_t i = 0; i < 2; i++) {
        w[i].engine = config(40, 0);
        w[i].engine.num_shared_blocks = 10;
    }
    struct cluster *c = cluster_new(w, 2, &o);
    assert_non_null(c);
    cluster_free(c);
    w[1].engine.shared_read_gb_s += 1;
    assert_null(cluster_new(w, 2, &o));
    w[1].engine.num_shared_blocks = 0; /* not its store, then */
    c = cluster_new(w, 2, &o);
    assert_non_null(c);
    cluster_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_stay_on_the_gpu_until_they_are_copied),
        cmocka_unit_test(a_prefix_comes_back_from_host_memory),
        cmocka_unit_test(the_lookup_goes_on_behind_the_gpus),
        cmocka_unit_test(others_run_while_one_loads),
        cmocka_unit_test(blocks_are_not_loaded_twice),
        cmocka_unit_test(a_preemption_waits_for_its_copies),
        cmocka_unit_test(an_aborted_load_ends_before_its_blocks_are_free),
        cmocka_unit_test(a_dead_engine_has_nothing_left),
        cmocka_unit_test(a_copy_goes_on_like_its_original),
        cmocka_unit_test(what_has_no_room_is_counted),
        cmocka_unit_test(jobs_have_a_limit),
        cmocka_unit_test(memory_is_that_of_its_blocks),
        cmocka_unit_test(names_have_a_limit),
        cmocka_unit_test(a_longer_copy_carries_only_the_rest),
        cmocka_unit_test(one_worker_reads_what_another_wrote),
        cmocka_unit_test(readers_share_the_bandwidth),
        cmocka_unit_test(the_store_outlives_its_workers),
        cmocka_unit_test(the_store_never_grows_beyond_its_size),
        cmocka_unit_test(workers_must_agree_on_the_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
