/* Histograms of fixed buckets: every value falls into one, bounds belong to the bucket below, quantiles lie within theirs. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "controller/serve/buckets.h"

static void bounds_rise(void **state)
{
    (void)state;
    for (int k = 0; k < BUCKETS_KINDS; k++) {
        for (int i = 1; i < BUCKETS_BOUNDS; i++)
            assert_true(buckets_bounds[k][i] > buckets_bounds[k][i - 1]);
    }
}

static void values_fall_into_their_buckets(void **state)
{
    (void)state;
    for (enum buckets_kind k = 0; k < BUCKETS_KINDS; k++) {
        struct buckets b = {.sum = 0};
        uint64_t sum = 0;
        for (int i = 0; i < BUCKETS_BOUNDS; i++) {
            buckets_add(&b, k, buckets_bounds[k][i]);
            assert_int_equal(b.n[i], 1);
            buckets_add(&b, k, buckets_bounds[k][i] + 1);
            sum += 2 * buckets_bounds[k][i] + 1;
            assert_int_equal(b.n[i + 1], 1);
            b.n[i + 1] = 0;
        }
        assert_int_equal(b.sum, sum);
        assert_int_equal(buckets_count(&b), BUCKETS_BOUNDS);
    }
}

static void quantiles_lie_within(void **state)
{
    struct buckets b = {.sum = 0};
    (void)state;
    assert_int_equal(buckets_quantile(&b, BUCKETS_LATENCY, 0.5), 0);
    for (int i = 0; i < 100; i++)
        buckets_add(&b, BUCKETS_LATENCY, i < 90 ? 40000000 : 4000000000); /* 40 ms, 4 s */
    uint64_t p50 = buckets_quantile(&b, BUCKETS_LATENCY, 0.5),
             p99 = buckets_quantile(&b, BUCKETS_LATENCY, 0.99);
    assert_true(p50 > 25000000 && p50 <= 50000000);
    assert_true(p99 > 2500000000 && p99 <= 5000000000);
    buckets_add(&b, BUCKETS_LATENCY,
                UINT64_MAX / 2); /* above all bounds: the last of them is all that is known */
    assert_int_equal(buckets_quantile(&b, BUCKETS_LATENCY, 1),
                     buckets_bounds[BUCKETS_LATENCY][BUCKETS_BOUNDS - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_rise),
        cmocka_unit_test(values_fall_into_their_buckets),
        cmocka_unit_test(quantiles_lie_within),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
