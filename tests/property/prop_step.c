/* prop_step.c - step times of random models: a decode pass grows by exactly k*B; more work is never faster; a
 * table stays between the points around it; runs of passes are the same bits as one by one; scaled, everything
 * takes as many times as long.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predictor/rng.h"
#include "predictor/step.h"
#include "predictor/units.h"
#include "tests/support/prop.h"

#define RUN 40u

static struct step_params p;
static struct step_model m;

/* 0 now and then, else any magnitude from 10^-9 to 10^3, times `most`. */
static double random_ms(struct rng *r, double most)
{
    double v = rng_unit(r) * most;
    for (uint64_t i = rng_below(r, 7); i; i--)
        v /= 100;
    return rng_below(r, 6) ? v : 0;
}

static void random_linear(struct rng *r)
{
    p.w_ms = random_ms(r, 1000);
    p.d0_ms_per_req = random_ms(r, 10);
    p.k_ms_per_tok = random_ms(r, 0.1);
    p.p_ms_per_tok = random_ms(r, 1);
    p.q_ms_per_tok2 = random_ms(r, 0.001);
    p.prefill_floor_ms = rng_below(r, 2) ? p.w_ms : 0;
    if (rng_below(r, 2)) {
        p.moe_experts = 1 + (uint32_t)rng_below(r, 512);
        p.moe_active = 1 + (uint32_t)rng_below(r, p.moe_experts);
        p.moe_w_share = rng_unit(r);
    }
}

static uint32_t random_axis(struct rng *r, double *x)
{
    uint32_t n = 1 + (uint32_t)rng_below(r, rng_below(r, 2) ? 4 : STEP_TABLE_MAX);
    double v = (double)rng_below(r, 100);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = v;
        v += 1 + (double)rng_below(r, 5000);
    }
    return n;
}

/* Times that rise along every axis. */
static void random_table(struct rng *r)
{
    double up[STEP_TABLE_MAX], across[STEP_TABLE_MAX];
    p.n_prefill = random_axis(r, p.prefill_x);
    p.n_kv = random_axis(r, p.kv_x);
    p.n_ctx = random_axis(r, p.ctx_x);
    for (uint32_t i = 0; i < STEP_TABLE_MAX; i++) {
        p.prefill_y[i] = (i ? p.prefill_y[i - 1] : 1) + random_ms(r, 10);
        up[i] = (i ? up[i - 1] : 1) + random_ms(r, 10);
        across[i] = (i ? across[i - 1] : 1) + random_ms(r, 10);
    }
    for (uint32_t i = 0; i < p.n_kv; i++) {
        for (uint32_t j = 0; j < p.n_ctx; j++)
            p.itl_y[i * p.n_ctx + j] = up[i] + across[j];
    }
}

static void random_model(struct rng *r, enum step_form form)
{
    const char *why;
    memset(&p, 0, sizeof p);
    p.form = form;
    if (form == STEP_LINEAR)
        random_linear(r);
    if (form == STEP_TABLE)
        random_table(r);
    if (form == STEP_FIXED) {
        p.fixed_prefill_ms = random_ms(r, 100);
        p.fixed_decode_ms = random_ms(r, 100);
    }
    if (form == STEP_POLYNOMIAL) { /* rising up to u = 1 */
        p.pa = random_ms(r, 1e-4);
        p.pb = random_ms(r, 1);
        p.pc = random_ms(r, 100) - 1;
        p.da = random_ms(r, 100) - 50;
        p.db = random_ms(r, 100) + (p.da < 0 ? -2 * p.da : 0);
        p.dc = random_ms(r, 20) - 1;
    }
    if (rng_below(r, 3) == 0) {
        p.spec_gamma = 1 + (uint32_t)rng_below(r, STEP_SPEC_MAX);
        p.spec_draft_ms = random_ms(r, 1);
    }
    p.scale = rng_below(r, 2) ? 0 : 0.01 + rng_unit(r) * 10;
    if (step_model_init(&m, &p, &why))
        fail_msg("%s", why);
}

static struct step_batch random_batch(struct rng *r)
{
    struct step_batch b = {.total_kv_tok = 1 + rng_below(r, 5000000)};
    uint64_t kind = rng_below(r, 3);
    if (kind != 0) {
        b.decode_reqs = 1 + (uint32_t)rng_below(r, 400);
        b.decode_ctx_tok = b.decode_reqs * (1 + rng_below(r, 20000));
    }
    if (kind != 1) {
        b.prefill_reqs = 1 + (uint32_t)rng_below(r, 4);
        b.prefill_tok = 1 + rng_below(r, 20000);
        b.prefill_ctx_tok = rng_below(r, 100000);
        b.prefill_attn = b.prefill_tok * (2 * b.prefill_ctx_tok + b.prefill_tok);
    }
    b.active_kv_tok = b.decode_ctx_tok + b.prefill_tok + b.prefill_ctx_tok;
    return b;
}

static enum step_form form_of(uint64_t seed)
{
    return (enum step_form)(seed % 4);
}

static void decode_run(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    random_model(&r, form_of(seed));
    struct step_batch b = random_batch(&r);
    if (!b.decode_reqs)
        return;
    b.prefill_reqs = 0;
    uint64_t grow = rng_below(&r, 2) ? b.decode_reqs : rng_below(&r, 5) * 512;
    int64_t ps[RUN], last = 0;
    step_decode_run(&m, &b, grow, RUN, ps);
    for (uint32_t i = 0; i < RUN; i++) {
        int64_t t = step_time_ps(&m, &b);
        assert_int_equal(t, ps[i]);
        if (i && m.linear_decode && last > 1 && t < STEP_MAX_PS) /* else cut to these */
            assert_int_equal(t - last, m.k_ps * (int64_t)b.decode_reqs);
        last = t;
        b.decode_ctx_tok += b.decode_reqs;
        b.active_kv_tok += grow;
    }
}

/* A little more of everything. The table's mean context falls where only requests are added. */
static void more_work(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    random_model(&r, form_of(seed));
    struct step_batch b = random_batch(&r);
    int64_t t = step_time_ps(&m, &b);
    assert_true(t >= 1 && t <= STEP_MAX_PS);
    for (int i = 0; i < 20; i++) {
        uint64_t mean = b.decode_reqs ? b.decode_ctx_tok / b.decode_reqs + 1 : 100;
        uint32_t more = (uint32_t)rng_below(&r, 3);
        uint64_t tok = b.prefill_reqs ? rng_below(&r, 300) : 0;
        b.decode_ctx_tok += b.decode_reqs * rng_below(&r, 20) + more * (mean + 20);
        b.decode_reqs += more;
        b.prefill_tok += tok;
        b.prefill_attn += tok * 500;
        b.active_kv_tok += rng_below(&r, 1000);
        int64_t longer = step_time_ps(&m, &b);
        if (longer < t && !(m.form == STEP_TABLE && more))
            fail_msg("%lld ps, with more to do %lld", (long long)t, (long long)longer);
        t = longer;
    }
}

static void inside_cells(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    random_model(&r, STEP_TABLE);
    double ps_per_ms = (p.scale == 0 ? 1 : p.scale) * 1e9;
    for (uint32_t i = 0; i + 1 < p.n_prefill; i++) {
        double x = p.prefill_x[i] + floor(rng_unit(&r) * (p.prefill_x[i + 1] - p.prefill_x[i]));
        double t = (double)step_prefill_ps(&m, 1, (uint64_t)x, 0);
        assert_true(t >= p.prefill_y[i] * ps_per_ms - 1 && t <= p.prefill_y[i + 1] * ps_per_ms + 1);
    }
    int64_t draft = step_decode_ps(&m, 1, (uint64_t)p.kv_x[0], (uint64_t)p.ctx_x[0], 0) -
                    (int64_t)(p.itl_y[0] * ps_per_ms + 0.5);
    assert_int_equal(llabs(draft - m.draft_ps) <= 1, 1);
    for (uint32_t i = 0; i + 1 < p.n_kv; i++) {
        for (uint32_t j = 0; j + 1 < p.n_ctx; j++) {
            double x = p.kv_x[i] + floor(rng_unit(&r) * (p.kv_x[i + 1] - p.kv_x[i]));
            double y = p.ctx_x[j] + floor(rng_unit(&r) * (p.ctx_x[j + 1] - p.ctx_x[j]));
            const double *c = &p.itl_y[i * p.n_ctx + j];
            double t =
                (double)(step_decode_ps(&m, 3, (uint64_t)x, 3 * (uint64_t)y, 0) - m.draft_ps);
            assert_true(t >= c[0] * ps_per_ms - 1 && t <= c[p.n_ctx + 1] * ps_per_ms + 1);
        }
    }
}

static void scaled(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    random_model(&r, form_of(seed));
    struct step_batch b = random_batch(&r);
    double once = (double)step_time_ps(&m, &b), by = 0.1 + rng_unit(&r) * 20;
    const char *why;
    p.scale = (p.scale == 0 ? 1 : p.scale) * by;
    assert_int_equal(step_model_init(&m, &p, &why), 0);
    double then = (double)step_time_ps(&m, &b), limit = (double)STEP_MAX_PS, want = once * by;
    want = want < limit ? want : limit;
    /* coefficients are rounded: k and d0 to a ps, p to 2^-10, q to 2^-20; a pass is 1 ps at least */
    double rounding = 2 + (double)b.decode_ctx_tok + (double)b.decode_reqs * (1 + STEP_SPEC_MAX) +
                      (double)b.prefill_tok / 1024 + (double)b.prefill_attn / 1048576;
    if (once < limit && fabs(then - want) > (1 + by) * rounding + 1e-9 * then)
        fail_msg("%.17g ps, %.17g times that is %.17g", once, by, then);
}

#define PROPERTY(name, cases, one)                                                                 \
    static void name(void **state)                                                                 \
    {                                                                                              \
        (void)state;                                                                               \
        prop_run(#name, cases, one);                                                               \
    }

PROPERTY(runs_are_single_passes, 2000, decode_run)
PROPERTY(more_work_is_not_faster, 2000, more_work)
PROPERTY(tables_stay_between_points, 200, inside_cells)
PROPERTY(scale_scales, 2000, scaled)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(runs_are_single_passes, prop_teardown),
        cmocka_unit_test_teardown(more_work_is_not_faster, prop_teardown),
        cmocka_unit_test_teardown(tables_stay_between_points, prop_teardown),
        cmocka_unit_test_teardown(scale_scales, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
