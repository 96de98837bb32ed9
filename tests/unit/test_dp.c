/* Data-parallel ranks behind one worker: the barrier, who gets a request, what the worker shows of itself. Times
 * are computed by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <string.h>

#include "predictor/dp.h"
#include "predictor/engine_internal.h"
#include "predictor/hist.h"
#include "predictor/rng.h"
#include "predictor/units.h"

#define MS PS_PER_MS

/* A pass takes 10 ms + 1 ms a decoding request + 0.1 ms a prompt token. */
static struct engine_config config(enum sched_kind scheduler, uint32_t ranks)
{
    struct engine_config c;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 10, .d0_ms_per_req = 1, .p_ms_per_tok = 0.1};
    const char *why = NULL;
    engine_config_default(&c, scheduler);
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.block_size = 16;
    c.num_gpu_blocks = 101;
    c.dp_size = ranks;
    return c;
}

static void group_of(struct dp_group *g, enum sched_kind scheduler, uint32_t ranks)
{
    struct engine_config c = config(scheduler, ranks);
    assert_int_equal(dp_init(g, &c, 1), 0);
    assert_int_equal(g->n, ranks);
    for (uint32_t i = 0; i < ranks; i++)
        engine_want_first_tokens(g->ranks[i], true);
}

static uint32_t submit(struct dp_group *g, int64_t now, uint32_t rank, uint32_t handle,
                       uint32_t prompt, uint32_t output)
{
    struct request_spec s = {
        .uid = handle + 1, .prompt_tok = prompt, .output_tok = output, .max_tokens = output};
    uint32_t slot;
    dp_run(g, now);
    assert_int_equal(dp_submit(g, now, rank, &s, handle, 0, &slot), 0);
    return slot;
}

static struct engine_record done(const struct dp_group *g, uint32_t rank, uint32_t handle)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(g->ranks[rank], &n);
    for (uint32_t i = 0; i < n; i++) {
        if (ev[i].kind == ENGINE_EV_DONE && ev[i].handle == handle)
            return ev[i].record;
    }
    fail_msg("request %u is not done", handle);
    return (struct engine_record){0};
}

/* ---- the barrier */

static void the_slowest_rank_ends_the_pass(void **state)
{
    (void)state;
    struct dp_group g;
    struct engine_stats st;
    group_of(&g, SCHED_VLLM, 3);
    submit(&g, 0, 0, 0, 100, 3); /* by itself 20 ms, then 11 each */
    submit(&g, 0, 1, 1, 400, 2); /* 50 ms, 11 */
    dp_start(&g, 0, PS_NEVER);
    assert_int_equal(dp_next_ps(&g), 50 * MS);
    dp_run(&g, PS_LIMIT);
    struct engine_record a = done(&g, 0, 0), b = done(&g, 1, 1);
    assert_int_equal(a.first_token_ps, 50 * MS);
    assert_int_equal(b.first_token_ps, 50 * MS);
    assert_int_equal(b.end_ps, 61 * MS);
    assert_int_equal(a.second_token_ps, 61 * MS);
    assert_int_equal(a.end_ps, 72 * MS);
    dp_get_stats(&g, &st);
    assert_int_equal(st.passes, 3);
    assert_int_equal(st.busy_ps, 72 * MS);
    assert_int_equal(st.done, 2);
    assert_int_equal(st.output_tok, 5);
    dp_deinit(&g);
}

/* Who comes to an idle rank in the middle of a pass waits for its end, like everybody. */
static void an_idle_rank_waits_for_the_others(void **state)
{
    (void)state;
    struct dp_group g;
    group_of(&g, SCHED_VLLM, 2);
    submit(&g, 0, 0, 0, 400, 20);
    submit(&g, 20 * MS, 1, 1, 100, 1);
    dp_run(&g, PS_LIMIT);
    struct engine_record a = done(&g, 0, 0), b = done(&g, 1, 1);
    assert_int_equal(b.first_admit_ps, 50 * MS);
    assert_int_equal(b.first_token_ps, 70 * MS); /* slower than the decode pass of the other rank */
    assert_int_equal(a.second_token_ps, 70 * MS);
    assert_int_equal(a.end_ps, (70 + 18 * 11) * MS);
    dp_deinit(&g);
}

/* Decode passes of two ranks of different size, taken together: each takes what the larger one needs, until that
 * one has become the smaller. */
static void passes_taken_together_follow_the_slowest(void **state)
{
    (void)state;
    struct dp_group g;
    struct hist *itl = hist_new();
    group_of(&g, SCHED_VLLM, 2);
    for (uint32_t i = 0; i < 2; i++)
        engine_set_itl(g.ranks[i], itl);
    submit(&g, 0, 0, 0, 10, 100);
    submit(&g, 0, 0, 1, 10, 30);
    submit(&g, 0, 0, 2, 10, 30);
    submit(&g, 0, 1, 3, 10, 60);
    submit(&g, 0, 1, 4, 10, 60);
    dp_run(&g, PS_LIMIT);
    /* 13 ms, 29 passes of 13 ms (3 requests), 30 of 12 ms (2 in rank 1), 40 of 11 ms */
    assert_int_equal(done(&g, 0, 1).end_ps, (13 + 29 * 13) * MS);
    assert_int_equal(done(&g, 1, 3).end_ps, (13 + 29 * 13 + 30 * 12) * MS);
    assert_int_equal(done(&g, 0, 0).end_ps, (13 + 29 * 13 + 30 * 12 + 40 * 11) * MS);
    assert_int_equal(hist_count(itl), 99 + 29 + 29 + 59 + 59);
    assert_int_equal(hist_min_ps(itl), 11 * MS);
    assert_int_equal(hist_max_ps(itl), 13 * MS);
    hist_free(itl);
    dp_deinit(&g);
}

/* ---- who gets a request */

static void vllm_counts_those_who_wait_fourfold(void **state)
{
    (void)state;
    struct dp_group g;
    group_of(&g, SCHED_VLLM, 3);
    assert_int_equal(dp_choose(&g), 0);
    assert_int_equal(dp_choose(&g), 0); /* nothing has changed */
    submit(&g, 0, 0, 0, 10, 50);
    assert_int_equal(dp_choose(&g), 1);
    submit(&g, 0, 1, 1, 10, 50);
    assert_int_equal(dp_choose(&g), 2);
    submit(&g, 0, 2, 2, 10, 50);
    submit(&g, 0, 2, 3, 10, 50);
    submit(&g, 0, 0, 4, 10, 50);
    dp_run(&g, 20 * MS); /* rank 0 and 2 run two, rank 1 one */
    assert_int_equal(dp_choose(&g), 1);
    submit(&g, 20 * MS, 1, 5, 10, 50); /* 4 + 1 against 2 and 2 */
    assert_int_equal(dp_choose(&g), 0);
    dp_deinit(&g);
}

static void trtllm_counts_requests(void **state)
{
    (void)state;
    struct dp_group g;
    group_of(&g, SCHED_TRTLLM, 2);
    submit(&g, 0, 0, 0, 10, 50);
    submit(&g, 0, 0, 1, 10, 50);
    dp_run(&g, 20 * MS);
    submit(&g, 20 * MS, 1, 2, 10, 50);
    assert_int_equal(dp_choose(&g), 1); /* one who waits against two that run */
    dp_deinit(&g);
}

static void sglang_goes_round(void **state)
{
    (void)state;
    struct dp_group g;
    group_of(&g, SCHED_SGLANG, 3);
    for (uint32_t i = 0; i < 7; i++)
        assert_int_equal(dp_choose(&g), i % 3);
    dp_deinit(&g);
}

/* ---- what the worker shows */

static void load_is_that_of_all_ranks(void **state)
{
    (void)state;
    struct dp_group g;
    struct engine_load load;
    group_of(&g, SCHED_VLLM, 3);
    submit(&g, 0, 0, 0, 32, 50);
    submit(&g, 0, 2, 1, 64, 50);
    dp_run(&g, 20 * MS);
    submit(&g, 20 * MS, 2, 2, 64, 50);
    dp_get_load(&g, 20 * MS, &load);
    assert_int_equal(load.running, 2);
    assert_int_equal(load.waiting, 1);
    assert_int_equal(load.kv_total_blocks, 300);
    assert_int_equal(load.kv_used_blocks, 3 + 5);
    assert_false(dp_empty(&g));
    dp_deinit(&g);
}

static void count(void *ctx, uint32_t handle)
{
    (void)handle;
    ++*(uint32_t *)ctx;
}

static void a_dead_group_loses_all(void **state)
{
    (void)state;
    struct dp_group g;
    struct engine_stats st;
    uint32_t n = 0;
    group_of(&g, SCHED_VLLM, 2);
    submit(&g, 0, 0, 0, 10, 500);
    submit(&g, 0, 1, 1, 10, 500);
    dp_run(&g, 11 * MS); /* then passes of 11 ms, taken together */
    dp_start(&g, 11 * MS, PS_NEVER);
    dp_kill(&g, (11 + 5 * 11 + 4) * MS, count, &n);
    assert_int_equal(n, 2);
    assert_true(dp_empty(&g));
    assert_int_equal(dp_next_ps(&g), PS_NEVER);
    dp_get_stats(&g, &st);
    assert_int_equal(st.passes, 1 + 5);
    assert_int_equal(st.output_tok, 2 * (1 + 5));
    assert_int_equal(st.busy_ps, 66 * MS);
    dp_deinit(&g);
}

static void a_slow_worker_is_slow_from_the_next_pass_on(void **state)
{
    (void)state;
    struct dp_group g;
    group_of(&g, SCHED_VLLM, 2);
    submit(&g, 0, 0, 0, 10, 11);
    submit(&g, 0, 1, 1, 10, 11);
    dp_run(&g, 11 * MS);
    dp_start(&g, 11 * MS, PS_NEVER);
    dp_set_slow(&g, 40 * MS, 2); /* in the third pass of 11 ms */
    dp_run(&g, PS_LIMIT);
    assert_int_equal(done(&g, 0, 0).end_ps, (11 + 3 * 11 + 7 * 22) * MS);
    dp_deinit(&g);
}

static void copies_need_as_many_ranks(void **state)
{
    (void)state;
    struct dp_group a, b, c;
    group_of(&a, SCHED_VLLM, 2);
    group_of(&b, SCHED_VLLM, 2);
    group_of(&c, SCHED_VLLM, 3);
    submit(&a, 0, 0, 0, 10, 200);
    submit(&a, 0, 1, 1, 10, 300);
    dp_run(&a, 15 * MS);
    dp_start(&a, 15 * MS, PS_NEVER);
    assert_int_equal(dp_copy(&c, &a), WEIR_E_INVALID);
    assert_int_equal(dp_copy(&b, &a), 0);
    dp_run(&b, PS_LIMIT);
    dp_run(&a, PS_LIMIT);
    assert_int_equal(done(&b, 1, 1).end_ps, done(&a, 1, 1).end_ps);
    assert_int_equal(done(&b, 0, 0).end_ps, (11 + 199 * 11) * MS);
    dp_deinit(&a);
    dp_deinit(&b);
    dp_deinit(&c);
}

static void bad_limits_are_refused(void **state)
{
    (void)state;
    struct dp_group g;
    struct engine_config c = config(SCHED_VLLM, 0);
    assert_int_equal(dp_init(&g, &c, 1), WEIR_E_INVALID);
    dp_deinit(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_slowest_rank_ends_the_pass),
        cmocka_unit_test(an_idle_rank_waits_for_the_others),
        cmocka_unit_test(passes_taken_together_follow_the_slowest),
        cmocka_unit_test(vllm_counts_those_who_wait_fourfold),
        cmocka_unit_test(trtllm_counts_requests),
        cmocka_unit_test(sglang_goes_round),
        cmocka_unit_test(load_is_that_of_all_ranks),
        cmocka_unit_test(a_dead_group_loses_all),
        cmocka_unit_test(a_slow_worker_is_slow_from_the_next_pass_on),
        cmocka_unit_test(copies_need_as_many_ranks),
        cmocka_unit_test(bad_limits_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
