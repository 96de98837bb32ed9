/* The fit: a recording made by the simulator gives its own coefficients back; the ledger's times are the engine's;
 * what is held out is not looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controller/replay/fit.h"
#include "controller/replay/fit_ledger.h"
#include "predictor/rng.h"

#define N 80

static struct fit_request requests[N];
static struct fit_times times[N];
static struct ledger_entry entries[N];

static struct fit_case small_case(uint32_t blocks, bool async, uint32_t dp)
{
    struct fit_case c = {.requests = requests, .n = N};
    engine_config_default(&c.worker.engine, SCHED_VLLM);
    c.worker.engine.num_gpu_blocks = blocks;
    c.worker.engine.max_num_seqs = 16;
    c.worker.engine.max_num_batched_tokens = 512;
    c.worker.engine.async_scheduling = async;
    c.worker.engine.dp_size = dp;
    return c;
}

static void random_requests(uint64_t seed, double gap_ms)
{
    struct rng r;
    double at = 0;
    rng_init(&r, seed);
    memset(requests, 0, sizeof requests);
    for (uint32_t i = 0; i < N; i++) {
        at += rng_unit(&r) * 2 * gap_ms;
        requests[i].spec = (struct request_spec){.uid = i + 1,
                                                 .prompt_tok = 50 + (uint32_t)rng_below(&r, 900),
                                                 .output_tok = 20 + (uint32_t)rng_below(&r, 80),
                                                 .arrival_ps = ps_from_ms(at)};
        requests[i].spec.max_tokens = requests[i].spec.output_tok;
    }
}

static const struct step_params truth = {.form = STEP_LINEAR,
                                         .w_ms = 12,
                                         .d0_ms_per_req = 0.3,
                                         .k_ms_per_tok = 4e-4,
                                         .p_ms_per_tok = 0.05,
                                         .q_ms_per_tok2 = 1e-5,
                                         .mix_ms_per_tok = 2e-4};

static void assert_same_times(const struct fit_times *a, const struct fit_times *b)
{
    assert_int_equal(a->first_token_ps, b->first_token_ps);
    assert_int_equal(a->last_token_ps, b->last_token_ps);
    assert_int_equal(a->preemptions, b->preemptions);
}

static void assert_same_step(const struct step_params *a, const struct step_params *b)
{
    double x[LEDGER_ITEMS], y[LEDGER_ITEMS];
    ledger_coefficients(a, x);
    ledger_coefficients(b, y);
    assert_memory_equal(x, y, sizeof x);
}

/* What the simulator says becomes what was measured. */
static void record(const struct fit_case *c, const struct step_params *step)
{
    assert_int_equal(fit_predict(c, step, times), 0);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(times[i].last_token_ps > 0);
        requests[i].first_token_ps = times[i].first_token_ps;
        requests[i].last_token_ps = times[i].last_token_ps;
        requests[i].use = true;
    }
}

/* The sums of work times coefficients are the times, and the times are those of the engine that takes its passes by
 * itself; short of blocks too. */
static void the_ledger_adds_up(void **state)
{
    (void)state;
    double c[LEDGER_ITEMS];
    uint32_t preemptions = 0;
    ledger_coefficients(&truth, c);
    for (int run = 0; run < 8; run++) {
        struct fit_case fc = small_case(run & 2 ? 150 : 4000, run & 1, 1);
        random_requests(10 + (uint64_t)run, run & 4 ? 30 : 150);
        assert_int_equal(fit_predict(&fc, &truth, times), 0);
        assert_int_equal(ledger_play(&fc, &truth, entries), 0);
        for (uint32_t i = 0; i < N; i++) {
            const struct ledger_entry *e = &entries[i];
            double wait = 0, decode = 0;
            assert_same_times(&e->times, &times[i]);
            for (int j = 0; j < LEDGER_ITEMS; j++) {
                wait += c[j] * e->wait[j];
                decode += c[j] * e->decode[j];
            }
            preemptions += e->times.preemptions;
            int64_t first = e->times.first_token_ps, arrival = requests[i].spec.arrival_ps;
            assert_true(fabs(wait - ms_from_ps(first - arrival)) < 1e-4);
            assert_true(fabs(decode - ms_from_ps(e->times.last_token_ps - first)) < 1e-4);
        }
    }
    assert_true(preemptions > 0);
}

static void finds_its_own_coefficients(void **state)
{
    (void)state;
    struct fit_case c = small_case(4000, true, 1);
    struct step_params step = {.form = STEP_LINEAR};
    struct fit_options options = {.unknowns = FIT_ALL};
    struct fit_result result;
    random_requests(3, 120);
    record(&c, &truth);
    assert_int_equal(fit_step(&c, &options, &step, &result), 0);
    assert_int_equal(result.used, N);
    assert_true(result.cost < 1e-4);
    assert_true(fabs(step.w_ms / truth.w_ms - 1) < 0.03);
    assert_true(fabs(step.k_ms_per_tok / truth.k_ms_per_tok - 1) < 0.2);
    assert_true(fabs(step.p_ms_per_tok / truth.p_ms_per_tok - 1) < 0.1);
}

/* The second half's times are nonsense, and nobody sees it. */
static void does_not_look_at_what_is_held_out(void **state)
{
    (void)state;
    struct fit_case c = small_case(4000, false, 1);
    struct step_params clean = {.form = STEP_LINEAR}, other = clean;
    struct fit_options options = {.unknowns = FIT_W | FIT_D0 | FIT_K | FIT_P};
    struct fit_result result;
    random_requests(4, 100);
    record(&c, &truth);
    for (uint32_t i = N / 2; i < N; i++)
        requests[i].use = false;
    assert_int_equal(fit_step(&c, &options, &clean, &result), 0);
    assert_int_equal(result.used, N / 2);
    for (uint32_t i = N / 2; i < N; i++)
        requests[i].last_token_ps = requests[i].first_token_ps = requests[i].spec.arrival_ps + 1;
    assert_int_equal(fit_step(&c, &options, &other, &result), 0);
    assert_same_step(&clean, &other);
}

static void keeps_what_is_not_searched(void **state)
{
    (void)state;
    struct fit_case c = small_case(4000, false, 1);
    struct step_params step = truth;
    struct fit_options options = {.unknowns = FIT_W};
    struct fit_result result;
    random_requests(5, 100);
    record(&c, &truth);
    step.w_ms = 1;
    assert_int_equal(fit_step(&c, &options, &step, &result), 0);
    assert_true(fabs(step.w_ms - truth.w_ms) < 0.05);
    step.w_ms = truth.w_ms;
    assert_same_step(&step, &truth);
}

/* All requests are alike and run alone: W, d0 and k cannot be told apart, so the prior says. */
static void a_prior_decides_what_the_data_do_not(void **state)
{
    (void)state;
    struct fit_case c = small_case(4000, false, 1);
    struct step_params step = {.form = STEP_LINEAR}, prior = {.form = STEP_LINEAR};
    struct fit_options options = {.unknowns = FIT_W | FIT_K | FIT_P, .prior = &prior};
    struct fit_result result;
    random_requests(6, 100);
    for (uint32_t i = 0; i < N; i++) {
        requests[i].spec.arrival_ps = ps_from_ms(5000.0 * i);
        requests[i].spec.prompt_tok = 400;
        requests[i].spec.output_tok = requests[i].spec.max_tokens = 100;
    }
    record(&c, &truth);
    prior.w_ms = 8;
    prior.k_ms_per_tok = 9.5e-3;
    assert_int_equal(fit_step(&c, &options, &step, &result), 0);
    assert_true(fabs(step.w_ms - 8) < 0.5);
    assert_true(result.cost < 1e-2);
}

/* Two ranks in step, each with its own seats: about twice the load at the same pace; experts by all their tokens. */
static void ranks_wait_for_each_other(void **state)
{
    (void)state;
    struct fit_case one = small_case(4000, false, 1), two = small_case(4000, false, 2);
    struct step_params step = truth;
    step.moe_experts = 64;
    step.moe_active = 4;
    step.moe_w_share = 0.5;
    random_requests(7, 15);
    assert_int_equal(fit_predict(&one, &step, times), 0);
    int64_t alone = 0, shared = 0;
    for (uint32_t i = 0; i < N; i++)
        alone = times[i].last_token_ps > alone ? times[i].last_token_ps : alone;
    assert_int_equal(fit_predict(&two, &step, times), 0);
    for (uint32_t i = 0; i < N; i++)
        shared = times[i].last_token_ps > shared ? times[i].last_token_ps : shared;
    assert_true(shared < alone);
    assert_true((double)shared > 0.5 * (double)alone);
    assert_int_equal(ledger_play(&two, &step, entries), 0);
    for (uint32_t i = 0; i < N; i++)
        assert_same_times(&entries[i].times, &times[i]);
}

static void refuses(void **state)
{
    (void)state;
    struct fit_case c = small_case(4000, false, 1);
    struct step_params step = {.form = STEP_LINEAR};
    struct fit_options options = {.unknowns = FIT_ALL};
    struct fit_result result;
    random_requests(8, 100);
    assert_int_equal(fit_step(&c, &options, &step, &result), WEIR_E_INVALID); /* nothing to use */
    record(&c, &truth);
    requests[3].spec.arrival_ps = requests[2].spec.arrival_ps - 1;
    assert_int_equal(fit_step(&c, &options, &step, &result), WEIR_E_INVALID);
    random_requests(8, 100);
    record(&c, &truth);
    step.form = STEP_FIXED;
    assert_int_equal(fit_step(&c, &options, &step, &result), WEIR_E_INVALID);
    step = truth;
    step.prefill_floor_ms = 1;
    assert_int_equal(ledger_play(&c, &step, entries), WEIR_E_INVALID);
    step = truth;
    step.w_ms = -1;
    assert_int_equal(fit_predict(&c, &step, times), WEIR_E_INVALID);
    c.worker.engine.max_num_seqs = 0;
    assert_int_equal(fit_predict(&c, &truth, times), WEIR_E_INVALID);
}

/* A request that can never fit is left without times, by both. */
static void too_large_ones_have_no_times(void **state)
{
    (void)state;
    struct fit_case c = small_case(40, false, 1);
    random_requests(9, 100);
    for (uint32_t i = 0; i < N; i++)
        requests[i].spec.prompt_tok = 100;
    requests[5].spec.prompt_tok = 5000;
    assert_int_equal(fit_predict(&c, &truth, times), 0);
    assert_int_equal(ledger_play(&c, &truth, entries), 0);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(times[i].last_token_ps < 0, i == 5);
        assert_same_times(&entries[i].times, &times[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ledger_adds_up),
        cmocka_unit_test(finds_its_own_coefficients),
        cmocka_unit_test(does_not_look_at_what_is_held_out),
        cmocka_unit_test(keeps_what_is_not_searched),
        cmocka_unit_test(a_prior_decides_what_the_data_do_not),
        cmocka_unit_test(ranks_wait_for_each_other),
        cmocka_unit_test(refuses),
        cmocka_unit_test(too_large_ones_have_no_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
