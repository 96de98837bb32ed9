/* Forecasts: what a request would see on a worker, what is learned from what it saw, and what the core tells of a decision. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "controller/core/core.h"
#include "controller/core/forecast.h"

#define MS PS_PER_MS

/* W 10 ms, 1 us a prompt token, nothing else: sums that can be done in the head. */
static struct step_model plain(void)
{
    struct step_params p = {.form = STEP_LINEAR, .w_ms = 10, .p_ms_per_tok = 0.001};
    struct step_model m;
    const char *why;
    assert_int_equal(step_model_init(&m, &p, &why), 0);
    return m;
}

static struct forecast *one(void)
{
    struct forecast *f = forecast_new(1);
    struct step_model m = plain();
    assert_non_null(f);
    forecast_set(f, 0, &m);
    return f;
}

static int64_t ttft(struct forecast *f, struct forecast_books b, uint32_t prompt, uint32_t cached)
{
    struct forecast_times t;
    forecast_ask(f, 0, &b, FORECAST_WHOLE, prompt, cached, &t);
    return t.ttft_ps;
}

static void near_ms(int64_t ps, double ms)
{
    assert_true((double)ps > (ms - 0.01) * (double)MS && (double)ps < (ms + 0.01) * (double)MS);
}

static void an_idle_worker_takes_one_step(void **state)
{
    struct forecast *f = one();
    (void)state;
    near_ms(ttft(f, (struct forecast_books){0}, 1000, 0), 11);
    near_ms(ttft(f, (struct forecast_books){0}, 1000, 600), 10.4);
    near_ms(ttft(f, (struct forecast_books){0}, 1000, 5000), 10.001); /* one is always computed */
    forecast_free(f);
}

static void work_ahead_and_chunks_count(void **state)
{
    struct forecast *f = one();
    struct forecast_books b = {
        .inflight = 2, .prefilling = 2, .prefill_tok = 6000, .chunk_tok = 2000};
    (void)state;
    /* 8,000 tokens in four steps of 12 ms, and half of the one that runs */
    near_ms(ttft(f, b, 2000, 0), 4 * 12 + 6);
    b.chunk_tok = 0; /* not known: FORECAST_CHUNK_TOK, so one step */
    near_ms(ttft(f, b, 2000, 0), 18 + 9);
    b.chunk_tok = FORECAST_MAX_CHUNK_TOK + 1;
    near_ms(ttft(f, b, 2000, 0), 18 + 9);
    /* only decoding ones: half of their step */
    b = (struct forecast_books){.inflight = 3, .inflight_tok = 3000};
    near_ms(ttft(f, b, 1000, 0), 11 + 5);
    forecast_free(f);
}

static void a_decode_leg_starts_with_a_step(void **state)
{
    struct forecast *f = one();
    struct forecast_books b = {.inflight = 3, .inflight_tok = 3000};
    struct forecast_times t;
    (void)state;
    forecast_ask(f, 0, &b, FORECAST_DECODE, 1000, 0, &t);
    near_ms(t.ttft_ps, 10);
    near_ms(t.tpot_ps, 10);
    forecast_free(f);
}

static void what_was_seen_corrects(void **state)
{
    struct forecast *f = one();
    (void)state;
    for (int i = 0; i < 500; i++) {
        forecast_learn_ttft(f, 0, 10 * MS, 15 * MS);
        forecast_learn_tpot(f, 0, 10 * MS, 8 * MS);
    }
    struct forecast_bias b = forecast_bias_of(f, 0);
    assert_true(b.ttft > 1.49 && b.ttft < 1.51 && b.tpot > 0.79 && b.tpot < 0.81);
    assert_int_equal(b.n_ttft, 500);
    near_ms(ttft(f, (struct forecast_books){0}, 1000, 0), 11 * b.ttft);
    forecast_free(f);
}

static void one_outlier_and_absurd_values_are_bounded(void **state)
{
    struct forecast *f = one();
    (void)state;
    forecast_learn_ttft(f, 0, 10 * MS, INT64_MAX);
    assert_true(forecast_bias_of(f, 0).ttft < 1 + FORECAST_MAX_BIAS / FORECAST_PRIOR);
    for (int i = 0; i < 1000; i++) {
        forecast_learn_ttft(f, 0, MS, INT64_MAX);
        forecast_learn_tpot(f, 0, INT64_MAX / 2, 1);
    }
    assert_true(forecast_bias_of(f, 0).ttft <= FORECAST_MAX_BIAS);
    assert_true(forecast_bias_of(f, 0).tpot >= 1 / FORECAST_MAX_BIAS);
    uint64_t n = forecast_bias_of(f, 0).n_ttft;
    forecast_learn_ttft(f, 0, 0, MS);
    forecast_learn_ttft(f, 0, MS, -1);
    assert_int_equal(forecast_bias_of(f, 0).n_ttft, n);
    forecast_free(f);
}

static void more_workers_start_generic(void **state)
{
    struct forecast *f = one();
    struct forecast_times t;
    (void)state;
    assert_int_equal(forecast_grow(f, 3), 0);
    assert_int_equal(forecast_grow(f, 2), 0); /* never fewer */
    forecast_ask(f, 2, &(struct forecast_books){0}, FORECAST_WHOLE, 1000, 0, &t);
    near_ms(t.ttft_ps, 6.4343 + 19.613);
    near_ms(ttft(f, (struct forecast_books){0}, 1000, 0), 11); /* the first is as it was */
    forecast_free(f);
}

/* ---- what the core tells */

static struct core *core_of(uint32_t n, uint32_t tell, const struct step_model *m)
{
    struct core_worker_config w[16];
    const char *why;
    for (uint32_t i = 0; i < n; i++)
        w[i] = (struct core_worker_config){.role = ROLE_BOTH,
                                           .block_size = 16,
                                           .num_gpu_blocks = 1000,
                                           .max_num_seqs = 64,
                                           .max_num_batched_tokens = 8192,
                                           .up = true,
                                           .steps = m};
    struct core_config c = {.policy = "least_loaded",
                            .seed = 1,
                            .n_workers = n,
                            .workers = w,
                            .queue_max_requests = 10,
                            .queue_timeout_ps = PS_PER_S,
                            .max_requests = 64,
                            .tell = tell};
    struct core *core = core_new(&c, &why);
    assert_non_null(core);
    return core;
}

static struct core_command arrive(struct core *c, uint32_t handle, int64_t now, bool streamed)
{
    struct core_request q = {
        .prompt_tok = 1000, .slo_ttft_ps = PS_NEVER, .slo_tpot_ps = PS_NEVER, .streamed = streamed};
    struct core_event ev = {.kind = CORE_EV_ARRIVAL, .now_ps = now, .request = handle, .req = &q};
    struct core_command cmd;
    assert_int_equal(core_event(c, &ev), 0);
    assert_true(core_next(c, &cmd));
    return cmd;
}

static void event(struct core *c, enum core_event_kind kind, uint32_t handle, uint32_t worker,
                  int64_t now, uint32_t n)
{
    struct core_event ev = {
        .kind = kind, .now_ps = now, .request = handle, .worker = worker, .n = n};
    assert_int_equal(core_event(c, &ev), 0);
}

static void decisions_are_told(void **state)
{
    struct step_model m = plain();
    struct core *c = core_of(12, CORE_MAX_TOLD, &m);
    (void)state;
    assert_true(core_needs(c) & 1u << CORE_EV_FIRST_TOKEN);
    struct core_command cmd = arrive(c, 0, 0, true);
    const struct core_told *told = core_told(c, &cmd);
    assert_non_null(told);
    assert_int_equal(told->n_candidates, 12);
    assert_int_equal(told->n, CORE_MAX_TOLD);
    assert_int_equal(told->candidates[0].worker, cmd.worker);
    near_ms(told->candidates[0].ttft_ps, 11);
    uint32_t busy = cmd.worker;
    cmd = arrive(c, 1, 0, true);
    told = core_told(c, &cmd);
    for (uint32_t i = 0; i < told->n; i++)
        assert_int_not_equal(told->candidates[i].worker, busy); /* eleven have less work ahead */
    core_free(c);
}

static void the_core_learns_from_streams_only(void **state)
{
    struct step_model m = plain();
    struct core *c = core_of(1, 1, &m);
    (void)state;
    arrive(c, 0, 0, false);
    event(c, CORE_EV_FIRST_TOKEN, 0, 0, 50 * MS, 0);
    event(c, CORE_EV_DONE, 0, 0, 50 * MS, 10);
    assert_int_equal(core_belief_of(c, 0).bias.n_ttft, 0);
    arrive(c, 0, 100 * MS, true);
    event(c, CORE_EV_FIRST_TOKEN, 0, 0, 122 * MS, 0);
    event(c, CORE_EV_DONE, 0, 0, 222 * MS, 11);
    struct core_belief b = core_belief_of(c, 0);
    assert_int_equal(b.bias.n_ttft, 1);
    assert_int_equal(b.bias.n_tpot, 1);
    /* twice as long as foreseen, once, against FORECAST_PRIOR as foreseen */
    assert_true(b.bias.ttft > 1.19 && b.bias.ttft < 1.23);
    assert_true(b.bias.tpot > 0.99 && b.bias.tpot < 1.01);
    near_ms(b.ttft_ps, 11 * b.bias.ttft);
    core_free(c);
}

static void nothing_is_told_unless_asked_for(void **state)
{
    struct core *c = core_of(2, 0, NULL);
    (void)state;
    struct core_command cmd = arrive(c, 0, 0, true);
    assert_null(core_told(c, &cmd));
    assert_true(core_belief_of(c, 0).books.inflight + core_belief_of(c, 1).books.inflight == 1);
    core_free(c);
    const char *why;
    struct core_worker_config w = {.block_size = 16, .up = true};
    struct core_config k = {.policy = "least_loaded",
                            .n_workers = 1,
                            .workers = &w,
                            .max_requests = 1,
                            .queue_timeout_ps = 1,
                            .tell = CORE_MAX_TOLD + 1};
    assert_null(core_new(&k, &why));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_worker_takes_one_step),
        cmocka_unit_test(work_ahead_and_chunks_count),
        cmocka_unit_test(a_decode_leg_starts_with_a_step),
        cmocka_unit_test(what_was_seen_corrects),
        cmocka_unit_test(one_outlier_and_absurd_values_are_bounded),
        cmocka_unit_test(more_workers_start_generic),
        cmocka_unit_test(decisions_are_told),
        cmocka_unit_test(the_core_learns_from_streams_only),
        cmocka_unit_test(nothing_is_told_unless_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
