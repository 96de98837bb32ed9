/* One engine: what engine.h promises, with times that can be worked out by hand. Every step takes 10 ms, plus 1 ms for
 * each request that decodes, plus 1 us for each token it has.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <string.h>

#include "predictor/engine_internal.h"

#define MS PS_PER_MS
#define US PS_PER_US

static struct engine_config config(void)
{
    struct engine_config c;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 10, .d0_ms_per_req = 1, .k_ms_per_tok = 0.001};
    const char *why;
    engine_config_default(&c, SCHED_VLLM);
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.block_size = 4;
    c.num_gpu_blocks = 101;
    return c;
}

static struct engine *engine_of(struct engine_config c)
{
    struct engine *e = engine_new(&c, 1);
    assert_non_null(e);
    return e;
}

static struct request_spec request(uint64_t uid, uint32_t prompt, uint32_t output)
{
    return (struct request_spec){
        .uid = uid, .prompt_tok = prompt, .output_tok = output, .max_tokens = output};
}

static uint32_t submit(struct engine *e, int64_t now, uint32_t handle, uint32_t prompt,
                       uint32_t output, unsigned flags)
{
    uint32_t slot;
    struct request_spec s = request(handle, prompt, output);
    assert_int_equal(engine_submit(e, now, &s, handle, flags, &slot), 0);
    return slot;
}

/* The only event, which is then cleared. */
static struct engine_event only_event(struct engine *e)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 1);
    struct engine_event copy = ev[0];
    engine_clear_events(e);
    return copy;
}

static uint32_t n_events(const struct engine *e)
{
    uint32_t n;
    (void)engine_events(e, &n);
    return n;
}

/* ---- what is refused */

static void a_config_that_is_refused_makes_no_engine(void **state)
{
    (void)state;
    struct engine_config c = config();
    c.block_size = 0;
    assert_null(engine_new(&c, 1));
    engine_free(NULL);
}

static void submit_says_what_can_never_run(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    uint32_t slot;
    struct request_spec s = request(1, 0, 5);
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), WEIR_E_INVALID);
    s = request(1, 5, 0);
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), WEIR_E_INVALID);
    s = request(1, 5, 5);
    assert_int_equal(engine_submit(e, 0, &s, 1, ENGINE_PREFILL_ONLY | ENGINE_REMOTE_KV, &slot),
                     WEIR_E_INVALID);
    assert_int_equal(engine_submit(e, 0, &s, 1, ENGINE_RESERVE, &slot), WEIR_E_INVALID);
    s = request(1, 300, 101); /* 100 blocks of 4 */
    assert_false(engine_fits(e, &s));
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), WEIR_E_TOO_LARGE);
    s = request(1, 300, 100);
    assert_true(engine_fits(e, &s));
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), 0);
    engine_free(e);
}

static void max_model_len_cuts_the_answer(void **state)
{
    (void)state;
    struct engine_config c = config();
    c.max_model_len = 20;
    struct engine *e = engine_of(c);
    uint32_t slot;
    struct request_spec s = request(1, 20, 1);
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), WEIR_E_TOO_LARGE);
    s = request(1, 15, 1000000); /* more than the pool has, but it never gets there */
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), 0);
    engine_run(e, PS_PER_S);
    assert_int_equal(only_event(e).record.output_tok, 5);
    engine_free(e);
}

/* ---- time */

static void a_request_takes_its_steps(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    assert_int_equal(engine_next_ps(e), PS_NEVER);
    submit(e, 5 * MS, 7, 8, 3, 0);
    assert_int_equal(engine_next_ps(e), PS_NEVER); /* nothing has begun */
    engine_start(e, 5 * MS, PS_NEVER);
    assert_int_equal(engine_next_ps(e), 15 * MS);
    engine_run(e, 15 * MS - 1);
    struct engine_load load;
    engine_get_load(e, 15 * MS - 1, &load);
    assert_int_equal(load.running, 1);
    assert_int_equal(load.kv_used_blocks, 2);
    assert_int_equal(load.kv_total_blocks, 100);
    engine_run(e, PS_PER_S);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.kind, ENGINE_EV_DONE);
    assert_int_equal(ev.handle, 7);
    assert_int_equal(ev.record.first_admit_ps, 5 * MS);
    assert_int_equal(ev.record.first_token_ps, 15 * MS);
    assert_int_equal(ev.record.second_token_ps, 26 * MS + 9 * US); /* it has 9 tokens then */
    assert_int_equal(ev.record.end_ps, 37 * MS + 19 * US);
    assert_int_equal(ev.at_ps, ev.record.end_ps);
    assert_int_equal(ev.record.output_tok, 3);
    assert_int_equal(ev.record.preemptions, 0);
    struct engine_stats st;
    engine_get_stats(e, &st);
    assert_int_equal(st.passes, 3);
    assert_int_equal(st.prompt_tok, 8);
    assert_int_equal(st.output_tok, 3);
    assert_int_equal(st.admitted, 1);
    assert_int_equal(st.done, 1);
    assert_int_equal(st.busy_ps, 32 * MS + 19 * US);
    assert_true(engine_empty(e));
    engine_free(e);
}

/* A hundred decode steps are one event, and exactly a hundred steps: 11 ms + (101 + ... + 200) us. */
static void many_decode_steps_are_one_event(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    submit(e, 0, 1, 100, 101, 0);
    engine_run(e, 10 * MS);
    engine_start(e, 10 * MS, PS_NEVER);
    int64_t end = 10 * MS + 100 * 11 * MS + 15050 * US;
    assert_int_equal(engine_next_ps(e), end);
    engine_run(e, end);
    assert_int_equal(only_event(e).at_ps, end);
    engine_free(e);
}

static void blocks_are_counted_in_the_middle_of_many_steps(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    struct engine_load load;
    submit(e, 0, 1, 100, 101, 0);
    engine_run(e, 10 * MS);
    engine_start(e, 10 * MS, PS_NEVER);
    engine_get_load(e, 10 * MS, &load);
    assert_int_equal(load.kv_used_blocks, 26); /* token 101 */
    engine_get_load(e, 10 * MS + 4 * 11 * MS, &load);
    assert_int_equal(load.kv_used_blocks, 26);
    engine_get_load(e, 10 * MS + 4 * 11 * MS + PS_PER_MS, &load); /* the fifth step has begun */
    assert_int_equal(load.kv_used_blocks, 27);
    engine_free(e);
}

static void who_comes_in_the_middle_waits_for_the_end_of_a_step(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    submit(e, 0, 1, 100, 101, 0);
    engine_run(e, 10 * MS);
    engine_start(e, 10 * MS, PS_NEVER);
    engine_run(e, 15 * MS);
    submit(e, 15 * MS, 2, 4, 1, 0);
    engine_start(e, 15 * MS, PS_NEVER); /* a step is under way: nothing begins */
    assert_int_equal(engine_next_ps(e), 21 * MS + 101 * US);
    engine_run(e, 40 * MS);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.handle, 2);
    assert_int_equal(ev.record.first_admit_ps, 21 * MS + 101 * US);
    assert_int_equal(ev.at_ps, 21 * MS + 101 * US + 11 * MS + 102 * US);
    engine_free(e);
}

/* More steps than are ever taken together (2^18). */
static void very_long_answers_end(void **state)
{
    (void)state;
    struct engine_config c = config();
    c.num_gpu_blocks = 200000;
    struct engine *e = engine_of(c);
    submit(e, 0, 1, 4, 300001, 0);
    engine_run(e, PS_LIMIT);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.record.output_tok, 300001);
    int64_t n = 300000, ctx = n * 5 + n * (n - 1) / 2;
    assert_int_equal(ev.at_ps, 10 * MS + n * 11 * MS + ctx * US);
    engine_free(e);
}

static void an_idle_engine_begins_when_it_is_asked(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    submit(e, 0, 1, 4, 1, 0);
    engine_run(e, PS_PER_S);
    engine_clear_events(e);
    submit(e, 2 * PS_PER_S, 2, 4, 1, 0); /* nobody ran it in between */
    engine_run(e, 3 * PS_PER_S);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.record.first_admit_ps, 2 * PS_PER_S);
    engine_free(e);
}

static void slow_counts_from_the_next_step_on(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    submit(e, 0, 1, 100, 4, 0);
    engine_run(e, 15 * MS); /* in the second step, which ends at 21.101 */
    engine_set_slow(e, 15 * MS, 2);
    engine_run(e, 30 * MS);
    engine_set_slow(e, 30 * MS, 1);
    engine_run(e, PS_PER_S);
    int64_t second = 21 * MS + 101 * US, third = second + 2 * (11 * MS + 102 * US);
    assert_int_equal(only_event(e).at_ps, third + 11 * MS + 103 * US);
    engine_free(e);
}

/* ---- events */

static void first_tokens_are_told_if_wanted(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    submit(e, 0, 1, 4, 2, 0);
    engine_run(e, 10 * MS);
    assert_int_equal(n_events(e), 0);
    engine_run(e, PS_PER_S);
    engine_clear_events(e);
    engine_want_first_tokens(e, true);
    submit(e, PS_PER_S, 2, 4, 2, 0);
    engine_run(e, PS_PER_S + 10 * MS);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.kind, ENGINE_EV_FIRST_TOKEN);
    assert_int_equal(ev.at_ps, PS_PER_S + 10 * MS);
    assert_int_equal(ev.record.end_ps, -1); /* not yet */
    engine_free(e);
}

static void gaps_go_to_the_histogram(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    struct hist *h = hist_new();
    engine_set_itl(e, h);
    submit(e, 0, 1, 8, 5, 0);
    engine_run(e, PS_PER_S);
    assert_int_equal(hist_count(h), 4);
    assert_int_equal(hist_min_ps(h), 11 * MS + 9 * US);
    assert_int_equal(hist_max_ps(h), 11 * MS + 12 * US);
    engine_set_itl(e, NULL);
    submit(e, PS_PER_S, 2, 8, 5, 0);
    engine_run(e, 2 * PS_PER_S);
    assert_int_equal(hist_count(h), 4);
    hist_free(h);
    engine_free(e);
}

/* A step that verifies drafts may yield several tokens: none, then all of them, for the same time. */
static void accepted_drafts_come_at_once(void **state)
{
    (void)state;
    struct engine_config c = config();
    struct step_params p = {.form = STEP_FIXED,
                            .fixed_prefill_ms = 5,
                            .fixed_decode_ms = 10,
                            .spec_gamma = 3,
                            .spec_accept = {1, 1, 1}};
    const char *why;
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    struct engine *e = engine_of(c);
    struct hist *h = hist_new();
    engine_set_itl(e, h);
    submit(e, 0, 1, 8, 8, 0);
    engine_run(e, PS_PER_S);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.record.second_token_ps, 15 * MS);
    assert_int_equal(ev.at_ps, 25 * MS); /* 1 + 4 + 3: never more than asked for */
    assert_int_equal(hist_count(h), 7);
    assert_int_equal(hist_min_ps(h), 0);
    hist_free(h);
    engine_free(e);
}

/* ---- aborts, and death */

static void an_abort_leaves_no_trace(void **state)
{
    (void)state;
    struct engine_config c = config();
    c.max_num_seqs = 2;
    struct engine *e = engine_of(c);
    uint32_t running = submit(e, 0, 1, 8, 50, 0);
    submit(e, 0, 2, 8, 50, 0);
    uint32_t waiting = submit(e, 0, 3, 8, 50, 0);
    engine_start(e, 0, PS_NEVER);
    engine_run(e, 30 * MS);
    engine_abort(e, 30 * MS, waiting);
    engine_abort(e, 30 * MS, running); /* at the end of the step that it is in */
    struct engine_load load;
    engine_get_load(e, 30 * MS, &load);
    assert_int_equal(load.waiting, 0);
    assert_int_equal(load.running, 2);
    engine_run(e, 40 * MS);
    engine_get_load(e, 40 * MS, &load);
    assert_int_equal(load.running, 1);
    engine_run(e, 2 * PS_PER_S);
    assert_int_equal(only_event(e).handle, 2);
    assert_int_equal(engine_free_blocks(e), 100);
    uint32_t held = submit(e, 2 * PS_PER_S, 4, 8, 5, ENGINE_PREFILL_ONLY);
    engine_run(e, 3 * PS_PER_S);
    engine_clear_events(e);
    assert_int_equal(engine_free_blocks(e), 98);
    engine_abort(e, 3 * PS_PER_S, held);
    assert_int_equal(engine_free_blocks(e), 100);
    assert_true(engine_empty(e));
    engine_free(e);
}

static void count_lost(void *ctx, uint32_t handle)
{
    *(uint32_t *)ctx |= 1u << handle;
}

static void whoever_dies_forgets_all(void **state)
{
    (void)state;
    struct engine *e = engine_of(config());
    uint32_t lost = 0;
    submit(e, 0, 1, 8, 5, ENGINE_PREFILL_ONLY);
    engine_run(e, 10 * MS);
    engine_clear_events(e);
    uint32_t gone = submit(e, 10 * MS, 2, 8, 50, 0);
    submit(e, 10 * MS, 3, 8, 50, 0);
    submit(e, 10 * MS, 5, 8, 50, ENGINE_REMOTE_KV | ENGINE_RESERVE);
    engine_start(e, 10 * MS, PS_NEVER);
    engine_run(e, 50 * MS);
    submit(e, 50 * MS, 4, 8, 50, 0);
    engine_abort(e, 50 * MS, gone); /* still in the step, but its client has left */
    engine_clear_events(e);
    engine_kill(e, 50 * MS, count_lost, &lost);
    assert_int_equal(lost, 1u << 1 | 1u << 3 | 1u << 4 | 1u << 5);
    assert_int_equal(n_events(e), 0);
    assert_true(engine_empty(e));
    assert_int_equal(engine_next_ps(e), PS_NEVER);
    assert_int_equal(engine_free_blocks(e), 100);
    assert_int_equal(e->kv.free_named, 0);
    submit(e, 60 * MS, 6, 8, 1, 0); /* and begins anew */
    engine_run(e, PS_PER_S);
    assert_int_equal(only_event(e).at_ps, 70 * MS);
    engine_free(e);
}

/* An abort, and then the end, in the middle of steps that are taken together: those that had ended count for all. */
static void what_had_happened_before_death_counts(void **state)
{
    (void)state;
    struct engine_stats st[2];
    uint64_t gaps[2];
    for (int stepping = 0; stepping < 2; stepping++) {
        struct engine *e = engine_of(config());
        struct hist *h = hist_new();
        uint32_t lost = 0;
        engine_set_itl(e, h);
        engine_set_stepping(e, stepping);
        uint32_t gone = submit(e, 0, 1, 8, 50, 0);
        submit(e, 0, 2, 8, 50, 0);
        engine_run(e, 10 * MS);
        engine_start(e, 10 * MS, PS_NEVER);
        engine_run(e, 50 * MS); /* in the fourth decode step, of 12 ms each */
        engine_abort(e, 50 * MS, gone);
        engine_start(e, 50 * MS, PS_NEVER);
        engine_run(e, 51 * MS);
        engine_kill(e, 51 * MS, count_lost, &lost);
        assert_int_equal(lost, 1u << 2);
        engine_get_stats(e, &st[stepping]);
        gaps[stepping] = hist_count(h);
        hist_free(h);
        engine_free(e);
    }
    assert_int_equal(st[0].passes, 4);
    assert_int_equal(st[0].output_tok, 8);
    assert_int_equal(gaps[0], 6);
    assert_memory_equal(&st[0], &st[1], sizeof st[0]);
    assert_int_equal(gaps[0], gaps[1]);
}

/* ---- copies */

static void a_copy_goes_on_without_its_original(void **state)
{
    (void)state;
    struct engine_config small = config();
    small.scheduler = SCHED_SGLANG;
    small.num_gpu_blocks = 10;
    struct engine *e = engine_of(config()), *copy = engine_of(small);
    submit(copy, 0, 9, 4, 3, 0); /* has a life of its own, which ends here */
    engine_run(copy, 15 * MS);
    submit(e, 0, 1, 100, 101, 0);
    submit(e, 0, 2, 100, 51, 0);
    engine_run(e, 200 * MS);
    for (int i = 0; i < 3; i++) { /* again and again into the same one, as the what-if does */
        assert_int_equal(engine_copy(copy, e), 0);
        assert_int_equal(n_events(copy), 0);
        submit(copy, 200 * MS, 3, 4, 1, 0);
        engine_run(copy, 10 * PS_PER_S);
        uint32_t n;
        const struct engine_event *ev = engine_events(copy, &n);
        assert_int_equal(n, 3);
        assert_int_equal(ev[0].handle, 3);
        assert_true(engine_empty(copy));
    }
    struct engine_load load;
    engine_get_load(e, 200 * MS, &load);
    assert_int_equal(load.running, 2);
    assert_int_equal(load.waiting, 0);
    engine_free(e);
    engine_run(copy, 20 * PS_PER_S);
    assert_int_equal(engine_config_of(copy)->num_gpu_blocks, 101);
    engine_free(copy);
}

/* ---- the cache */

static void record_change(void *ctx, const struct engine_cache_change *c)
{
    int *sum = ctx;
    *sum += c->stored ? (int)c->n_blocks : -(int)c->n_blocks;
}

static void cached_tokens_and_changes_are_told(void **state)
{
    (void)state;
    uint64_t keys[4];
    struct engine *e = engine_of(config());
    int stored = 0;
    for (int i = 0; i < 4; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, (uint64_t)i);
    struct request_spec s = request(1, 16, 6);
    s.keys = keys;
    s.n_keys = 4;
    s.key_tok = 4;
    engine_drain_cache_log(e, record_change, &stored);
    engine_log_cache(e, true);
    uint32_t slot;
    assert_int_equal(engine_cached_tok(e, 0, &s), 0);
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), 0);
    engine_run(e, PS_PER_S);
    assert_int_equal(engine_cached_tok(e, PS_PER_S, &s), 16);
    s.prompt_tok = 15; /* the last block is not all its own */
    assert_int_equal(engine_cached_tok(e, PS_PER_S, &s), 12);
    engine_drain_cache_log(e, record_change, &stored);
    assert_int_equal(stored, 5); /* one that was generated */
    engine_drain_cache_log(e, record_change, &stored);
    assert_int_equal(stored, 5); /* told once */
    engine_clear_events(e);
    submit(e, PS_PER_S, 2, 392, 8, 0); /* needs all blocks there are */
    engine_run(e, 2 * PS_PER_S);
    engine_drain_cache_log(e, record_change, &stored);
    assert_int_equal(stored, 99); /* its own: the last token's KV never came */
    engine_free(e);
}

/* What a prompt would find also changes in the middle of steps that are taken together. */
static void cached_tokens_are_those_of_now(void **state)
{
    (void)state;
    uint64_t key = request_chain_key(0, 1);
    struct engine *e = engine_of(config());
    struct request_spec s = request(1, 4, 1);
    uint32_t slot;
    s.keys = &key;
    s.n_keys = 1;
    s.key_tok = 4;
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), 0);
    engine_run(e, 10 * MS);
    submit(e, 10 * MS, 2, 388, 12,
           0); /* 97 blocks, then three more: the last of all is the cached one */
    engine_run(e, 20 * MS);
    engine_start(e, 20 * MS, PS_NEVER);
    struct engine_load load;
    int64_t now = 20 * MS;
    bool was = true, is = true;
    for (; now < 200 * MS; now += MS) {
        engine_get_load(e, now, &load);
        is = engine_cached_tok(e, now, &s) > 0;
        assert_true(was || !is);
        if (was && !is)
            assert_int_equal(load.kv_used_blocks, 100);
        was = is;
    }
    assert_false(is);
    engine_free(e);
}

static void release_in_the_middle(bool stepping, uint32_t *cached_tok)
{
    uint64_t key = request_chain_key(0, 1);
    struct engine_config c = config();
    c.num_gpu_blocks = 9;
    struct engine *e = engine_of(c);
    struct request_spec s = request(1, 4, 1);
    uint32_t slot;
    engine_set_stepping(e, stepping);
    s.keys = &key;
    s.n_keys = 1;
    s.key_tok = 4;
    assert_int_equal(engine_submit(e, 0, &s, 1, 0, &slot), 0);
    engine_run(e, 10 * MS);
    uint32_t held =
        submit(e, 10 * MS, 2, 17, 1, ENGINE_PREFILL_ONLY); /* five blocks, one not full */
    engine_run(e, 20 * MS);
    submit(e, 20 * MS, 3, 8, 4, 0); /* its third block is the cached one, from its first step on */
    engine_run(e, 30 * MS);
    engine_start(e, 30 * MS, PS_NEVER);
    engine_run(e, 35 * MS);
    engine_release(e, 35 * MS, held); /* there would be another one now */
    engine_start(e, 35 * MS, PS_NEVER);
    engine_run(e, PS_PER_S);
    *cached_tok = engine_cached_tok(e, PS_PER_S, &s);
    engine_free(e);
}

/* A step takes its blocks when it begins: not those that somebody gives back while it runs. */
static void blocks_given_back_come_too_late(void **state)
{
    (void)state;
    uint32_t stepped, fast;
    release_in_the_middle(true, &stepped);
    release_in_the_middle(false, &fast);
    assert_int_equal(stepped, 0);
    assert_int_equal(fast, stepped);
}

/* A session: what one request generates is what another one that waits begins with. */
static void follow_an_answer(bool stepping, int64_t *admit_ps)
{
    uint64_t keys[16];
    struct engine_config c = config();
    c.num_gpu_blocks = 13; /* it fits when all that the first one holds is full, and so shared */
    struct engine *e = engine_of(c);
    uint32_t slot, n;
    engine_set_stepping(e, stepping);
    for (int i = 0; i < 16; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, (uint64_t)i);
    struct request_spec first = request(1, 4, 41), second = request(2, 45, 1);
    first.keys = second.keys = keys;
    first.n_keys = 11;
    second.n_keys = 11;
    first.key_tok = second.key_tok = 4;
    assert_int_equal(engine_submit(e, 0, &first, 1, 0, &slot), 0);
    engine_run(e, 10 * MS);
    assert_int_equal(engine_submit(e, 10 * MS, &second, 2, 0, &slot), 0);
    engine_start(e, 10 * MS, PS_NEVER);
    engine_run(e, PS_PER_S);
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 2);
    for (uint32_t i = 0; i < 2; i++) {
        if (ev[i].handle == 2)
            *admit_ps = ev[i].record.first_admit_ps;
    }
    engine_free(e);
}

static void who_waits_may_begin_with_an_answer_in_the_making(void **state)
{
    (void)state;
    int64_t stepped, fast;
    follow_an_answer(true, &stepped);
    follow_an_answer(false, &fast);
    assert_int_equal(stepped, fast);
    assert_true(stepped < 460 * MS); /* before the first one is through */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_config_that_is_refused_makes_no_engine),
        cmocka_unit_test(submit_says_what_can_never_run),
        cmocka_unit_test(max_model_len_cuts_the_answer),
        cmocka_unit_test(a_request_takes_its_steps),
        cmocka_unit_test(many_decode_steps_are_one_event),
        cmocka_unit_test(blocks_are_counted_in_the_middle_of_many_steps),
        cmocka_unit_test(who_comes_in_the_middle_waits_for_the_end_of_a_step),
        cmocka_unit_test(very_long_answers_end),
        cmocka_unit_test(an_idle_engine_begins_when_it_is_asked),
        cmocka_unit_test(slow_counts_from_the_next_step_on),
        cmocka_unit_test(first_tokens_are_told_if_wanted),
        cmocka_unit_test(gaps_go_to_the_histogram),
        cmocka_unit_test(accepted_drafts_come_at_once),
        cmocka_unit_test(an_abort_leaves_no_trace),
        cmocka_unit_test(whoever_dies_forgets_all),
        cmocka_unit_test(what_had_happened_before_death_counts),
        cmocka_unit_test(a_copy_goes_on_without_its_original),
        cmocka_unit_test(cached_tokens_and_changes_are_told),
        cmocka_unit_test(cached_tokens_are_those_of_now),
        cmocka_unit_test(blocks_given_back_come_too_late),
        cmocka_unit_test(who_waits_may_begin_with_an_answer_in_the_making),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
