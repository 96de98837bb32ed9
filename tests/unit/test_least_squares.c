/* Least squares with bounds: known minima, bounds that hold, outliers that do not bend a line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "controller/replay/least_squares.h"

static const double width = 1e-4;

static struct lsq_problem problem(lsq_residuals f, void *ctx, uint32_t n, uint32_t m)
{
    struct lsq_problem p = {.residuals = f,
                            .ctx = ctx,
                            .n_unknowns = n,
                            .n_residuals = m,
                            .outlier = 1e6,
                            .widths = &width,
                            .n_widths = 1,
                            .max_iterations = 200};
    for (uint32_t j = 0; j < n; j++) {
        p.low[j] = -1e9;
        p.high[j] = 1e9;
        p.scale[j] = 1;
    }
    return p;
}

static int rosenbrock(void *ctx, const double *x, double *r)
{
    (void)ctx;
    r[0] = 10 * (x[1] - x[0] * x[0]);
    r[1] = 1 - x[0];
    return 0;
}

static void finds_a_curved_valley(void **state)
{
    (void)state;
    struct lsq_problem p = problem(rosenbrock, NULL, 2, 2);
    struct lsq_result out;
    double x[2] = {-1.2, 1};
    assert_int_equal(lsq_minimise(&p, x, &out), 0);
    assert_true(fabs(x[0] - 1) < 1e-3 && fabs(x[1] - 1) < 1e-3);
    assert_true(out.cost < 1e-6 && out.evaluations > 3);
}

static void keeps_to_the_bounds(void **state)
{
    (void)state;
    struct lsq_problem p = problem(rosenbrock, NULL, 2, 2);
    struct lsq_result out;
    double x[2] = {-3, 4}; /* outside: clamped first */
    p.high[0] = 0.5;
    p.low[0] = -1;
    assert_int_equal(lsq_minimise(&p, x, &out), 0);
    assert_true(x[0] <= 0.5 && fabs(x[0] - 0.5) < 1e-6);
    assert_true(fabs(x[1] - 0.25) < 1e-3);
}

#define POINTS 40
struct line {
    double y[POINTS];
};

static int line_residuals(void *ctx, const double *x, double *r)
{
    const struct line *l = ctx;
    for (int i = 0; i < POINTS; i++)
        r[i] = x[0] + x[1] * i - l->y[i];
    return 0;
}

static void outliers_count_less(void **state)
{
    (void)state;
    struct line l;
    struct lsq_problem p = problem(line_residuals, &l, 2, POINTS);
    struct lsq_result out;
    double x[2] = {0, 0}, plain[2] = {0, 0};
    for (int i = 0; i < POINTS; i++)
        l.y[i] = 3 + 2 * i + (i % 10 == 9 ? 500 : 0);
    assert_int_equal(lsq_minimise(&p, plain, &out), 0);
    p.outlier = 0.01;
    assert_int_equal(lsq_minimise(&p, x, &out), 0);
    assert_true(fabs(x[0] - 3) < 0.1 && fabs(x[1] - 2) < 0.01);
    assert_true(fabs(plain[0] - 3) > 1);
}

/* A residual that is flat but for steps: differences see nothing, the pattern does. */
static int stairs(void *ctx, const double *x, double *r)
{
    (void)ctx;
    r[0] = fabs(floor(x[0] * 20) / 20 - 2);
    return 0;
}

static void the_pattern_crosses_steps(void **state)
{
    (void)state;
    struct lsq_problem p = problem(stairs, NULL, 1, 1);
    struct lsq_result out;
    double x = 1.01;
    assert_int_equal(lsq_minimise(&p, &x, &out), 0);
    assert_true(fabs(x - 1.01) < 1e-12);
    p.pattern_rounds = 40;
    assert_int_equal(lsq_minimise(&p, &x, &out), 0);
    assert_true(fabs(x - 2) < 0.06 && out.cost < 1e-6);
}

static int fails_third(void *ctx, const double *x, double *r)
{
    r[0] = x[0];
    return ++*(int *)ctx == 3 ? WEIR_E_NOMEM : 0;
}

static void passes_errors_on(void **state)
{
    (void)state;
    int calls = 0;
    struct lsq_problem p = problem(fails_third, &calls, 1, 1);
    struct lsq_result out;
    double x = 5;
    assert_int_equal(lsq_minimise(&p, &x, &out), WEIR_E_NOMEM);
    p.n_unknowns = LSQ_MAX_UNKNOWNS + 1;
    assert_int_equal(lsq_minimise(&p, &x, &out), WEIR_E_INVALID);
    p = problem(rosenbrock, NULL, 2, 0);
    assert_int_equal(lsq_minimise(&p, &x, &out), WEIR_E_INVALID);
    p = problem(rosenbrock, NULL, 2, 2);
    p.low[1] = 2e9;
    assert_int_equal(lsq_minimise(&p, &x, &out), WEIR_E_INVALID);
    p = problem(rosenbrock, NULL, 2, 2);
    p.scale[0] = NAN;
    assert_int_equal(lsq_minimise(&p, &x, &out), WEIR_E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_a_curved_valley), cmocka_unit_test(keeps_to_the_bounds),
        cmocka_unit_test(outliers_count_less),   cmocka_unit_test(the_pattern_crosses_steps),
        cmocka_unit_test(passes_errors_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
