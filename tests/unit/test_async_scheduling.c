/* Asynchronous scheduling (engine.c): what comes or finishes in a pass counts from the pass after the next
 * one; taking passes together changes nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "predictor/engine_internal.h"

#define REQUESTS 200

static struct engine_config config(bool async, uint32_t seqs, uint32_t blocks)
{
    struct engine_config c;
    struct step_params p = {.form = STEP_LINEAR, .w_ms = 10};
    const char *why = NULL;
    engine_config_default(&c, SCHED_VLLM);
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.async_scheduling = async;
    c.max_num_seqs = seqs;
    c.num_gpu_blocks = blocks;
    return c;
}

struct load {
    uint32_t n;
    int64_t at_ps[REQUESTS];
    struct request_spec spec[REQUESTS];
    struct engine_record record[REQUESTS];
};

static void add(struct load *l, double at_ms, uint32_t prompt, uint32_t output)
{
    uint32_t i = l->n++;
    l->at_ps[i] = ps_from_ms(at_ms);
    l->spec[i] = (struct request_spec){.uid = i + 1,
                                       .prompt_tok = prompt,
                                       .output_tok = output,
                                       .max_tokens = output,
                                       .arrival_ps = l->at_ps[i]};
}

static uint32_t take_events(struct engine *e, struct load *l)
{
    uint32_t n, done = 0;
    const struct engine_event *ev = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++) {
        if (ev[i].kind == ENGINE_EV_DONE) {
            l->record[ev[i].handle] = ev[i].record;
            done++;
        }
    }
    engine_clear_events(e);
    return done;
}

/* The whole load, all passes; the engine is left idle. */
static void play(struct engine *e, struct load *l)
{
    uint32_t next = 0, done = 0;
    while (done < l->n) {
        int64_t t = engine_next_ps(e), due = next < l->n ? l->at_ps[next] : PS_NEVER;
        t = due < t ? due : t;
        assert_true(t < PS_NEVER);
        engine_run(e, t);
        done += take_events(e, l);
        for (uint32_t slot; next < l->n && l->at_ps[next] <= t; next++)
            assert_int_equal(engine_submit(e, t, &l->spec[next], next, 0, &slot), 0);
        engine_start(e, t, next < l->n ? l->at_ps[next] : PS_NEVER);
    }
    assert_null(kv_validate(&e->kv));
}

static void play_new(const struct engine_config *c, struct load *l, bool stepping)
{
    struct engine *e = engine_new(c, 1);
    assert_non_null(e);
    engine_set_stepping(e, stepping);
    play(e, l);
    engine_free(e);
}

static double first_ms(const struct load *l, uint32_t i)
{
    return ms_from_ps(l->record[i].first_token_ps);
}

static void an_arrival_waits_one_pass_more(void **state)
{
    (void)state;
    for (int async = 0; async < 2; async++) {
        struct load l = {0};
        struct engine_config c = config(async, 8, 100);
        add(&l, 0, 5, 20);
        add(&l, 3, 5, 2);  /* during pass 1 */
        add(&l, 40, 5, 2); /* just as pass 4 ends */
        play_new(&c, &l, false);
        assert_true(first_ms(&l, 0) == 10); /* it was idle: no wait */
        assert_true(first_ms(&l, 1) == (async ? 30 : 20));
        assert_true(first_ms(&l, 2) == (async ? 60 : 50));
    }
}

static void a_seat_is_taken_one_pass_longer(void **state)
{
    (void)state;
    for (int async = 0; async < 2; async++) {
        struct load l = {0};
        struct engine_config c = config(async, 2, 100);
        add(&l, 0, 5, 2); /* done at 20 */
        add(&l, 0, 5, 9);
        add(&l, 0, 5, 2);
        play_new(&c, &l, false);
        assert_true(first_ms(&l, 2) == (async ? 40 : 30));
    }
}

/* So are blocks: 4 usable ones of 16 tokens, two requests of 2 each; the third needs 2. */
static void blocks_are_taken_one_pass_longer(void **state)
{
    (void)state;
    for (int async = 0; async < 2; async++) {
        struct load l = {0};
        struct engine_config c = config(async, 8, 5);
        c.enable_prefix_caching = false;
        add(&l, 0, 20, 2);
        add(&l, 0, 20, 9);
        add(&l, 0, 20, 2);
        play_new(&c, &l, false);
        assert_true(first_ms(&l, 2) == (async ? 40 : 30));
    }
}

/* Nobody else runs, so no pass is planned without the newcomer. */
static void an_empty_plan_is_made_again(void **state)
{
    (void)state;
    struct load l = {0};
    struct engine_config c = config(true, 1, 100);
    add(&l, 0, 5, 2);
    add(&l, 0, 5, 2);
    add(&l, 12, 5, 2);
    play_new(&c, &l, false);
    assert_true(first_ms(&l, 1) == 30);
    assert_true(first_ms(&l, 2) == 50);
}

static void random_load(struct load *l, struct rng *r)
{
    double at = 0;
    *l = (struct load){0};
    for (uint32_t i = 0; i < REQUESTS; i++) {
        at += rng_unit(r) * 60;
        add(l, at, 1 + (uint32_t)(rng_unit(r) * 150), 1 + (uint32_t)(rng_unit(r) * 40));
    }
}

static struct engine_config tight_config(struct rng *r)
{
    struct engine_config c =
        config(true, 2 + (uint32_t)(rng_unit(r) * 12), 14 + (uint32_t)(rng_unit(r) * 40));
    struct step_params p = {.form = STEP_LINEAR,
                            .w_ms = 5,
                            .d0_ms_per_req = 0.1,
                            .k_ms_per_tok = 1e-3,
                            .p_ms_per_tok = 0.05};
    const char *why = NULL;
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.max_num_batched_tokens = 64;
    return c;
}

static void passes_taken_together_are_the_same(void **state)
{
    static struct load l, stepped;
    struct rng r;
    uint32_t preemptions = 0;
    (void)state;
    rng_init(&r, 11);
    for (int run = 0; run < 20; run++) {
        struct engine_config c = tight_config(&r);
        random_load(&l, &r);
        stepped = l;
        play_new(&c, &l, false);
        play_new(&c, &stepped, true);
        assert_memory_equal(l.record, stepped.record, sizeof l.record);
        for (uint32_t i = 0; i < REQUESTS; i++)
            preemptions += l.record[i].preemptions;
    }
    assert_true(preemptions > 0);
}

static void a_clone_goes_on_the_same(void **state)
{
    static struct load l, rest;
    struct rng r;
    (void)state;
    rng_init(&r, 12);
    struct engine_config c = tight_config(&r);
    random_load(&l, &r);
    struct engine *e = engine_new(&c, 1), *copy = engine_new(&c, 1);
    assert_true(e && copy);
    uint32_t next = 0;
    for (uint32_t slot; next < 100; next++) {
        engine_run(e, l.at_ps[next]);
        assert_int_equal(engine_submit(e, l.at_ps[next], &l.spec[next], next, 0, &slot), 0);
        engine_start(e, l.at_ps[next], PS_NEVER);
    }
    rest = l;
    (void)take_events(e, &l);
    assert_int_equal(engine_copy(copy, e), 0);
    engine_run(e, l.at_ps[REQUESTS - 1]);
    engine_run(copy, l.at_ps[REQUESTS - 1]);
    assert_int_equal(take_events(e, &l), take_events(copy, &rest));
    for (uint32_t i = 0; i < REQUESTS; i++) {
        if (rest.record[i].end_ps)
            assert_memory_equal(&l.record[i], &rest.record[i], sizeof l.record[i]);
    }
    engine_free(copy);
    engine_free(e);
}

static void count_lost(void *ctx, uint32_t handle)
{
    *(uint32_t *)ctx |= 1u << handle;
}

static void leaving_and_arriving_requests_can_be_taken_away(void **state)
{
    (void)state;
    struct load l = {0};
    struct engine_config c = config(true, 8, 100);
    struct engine *e = engine_new(&c, 1);
    struct engine_load load;
    uint32_t slot[4], lost = 0;
    add(&l, 0, 5, 2);
    add(&l, 0, 5, 9);
    add(&l, 0, 5, 9);
    add(&l, 0, 5, 9);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(engine_submit(e, 0, &l.spec[i], i, 0, &slot[i]), 0);
    engine_start(e, 0, PS_NEVER);
    engine_run(e, ps_from_ms(25)); /* request 0 has left in pass 2 */
    assert_int_equal(take_events(e, &l), 1);
    for (uint32_t i = 2; i < 4; i++)
        assert_int_equal(engine_submit(e, ps_from_ms(25), &l.spec[i], i, 0, &slot[i]), 0);
    engine_get_load(e, ps_from_ms(25), &load);
    assert_int_equal(load.waiting, 2);
    engine_abort(e, ps_from_ms(25), slot[2]);
    engine_get_load(e, ps_from_ms(25), &load);
    assert_int_equal(load.waiting, 1);
    engine_kill(e, ps_from_ms(25), count_lost, &lost);
    assert_int_equal(lost, 1u << 1 | 1u << 3);
    engine_get_load(e, ps_from_ms(25), &load);
    assert_int_equal(load.waiting + load.running + load.kv_used_blocks, 0);
    assert_null(kv_validate(&e->kv));
    engine_free(e);
}

static void belongs_to_vllm(void **state)
{
    (void)state;
    struct engine_config c;
    const char *why = NULL;
    engine_config_default(&c, SCHED_TRTLLM);
    c.async_scheduling = true;
    assert_int_equal(engine_config_check(&c, &why), WEIR_E_INVALID);
    assert_non_null(strstr(why, "async_scheduling"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_arrival_waits_one_pass_more),
        cmocka_unit_test(a_seat_is_taken_one_pass_longer),
        cmocka_unit_test(blocks_are_taken_one_pass_longer),
        cmocka_unit_test(an_empty_plan_is_made_again),
        cmocka_unit_test(passes_taken_together_are_the_same),
        cmocka_unit_test(a_clone_goes_on_the_same),
        cmocka_unit_test(leaving_and_arriving_requests_can_be_taken_away),
        cmocka_unit_test(belongs_to_vllm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
