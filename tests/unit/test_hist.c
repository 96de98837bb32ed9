/* test_hist.c - the histogram's buckets, exact moments, quantiles and limits. */
#include "predictor/hist.c"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct hist *h, *g;

static int setup(void **state)
{
    (void)state;
    h = hist_new();
    g = hist_new();
    return !h || !g;
}

static int teardown(void **state)
{
    (void)state;
    hist_free(h);
    hist_free(g);
    return 0;
}

static void assert_close(int64_t got, int64_t want)
{
    double error = fabs((double)got - (double)want);
    if (error > HIST_REL_ERROR * (double)want)
        fail_msg("%lld is not within 0.1 %% of %lld", (long long)got, (long long)want);
}

static void assert_same(const struct hist *a, const struct hist *b)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->min, b->min);
    assert_int_equal(a->max, b->max);
    assert_true(a->sum == b->sum);
    assert_memory_equal(&a->squares, &b->squares, sizeof a->squares);
    for (uint32_t i = 0; i < N_BUCKETS; i++) {
        uint64_t x = a->octaves >> (i / SUB) & 1 ? bucket_count(a, i) : 0;
        uint64_t y = b->octaves >> (i / SUB) & 1 ? bucket_count(b, i) : 0;
        if (x != y)
            fail_msg("bucket %u: %llu and %llu", i, (unsigned long long)x, (unsigned long long)y);
    }
}

static void empty_one(void **state)
{
    (void)state;
    assert_int_equal(hist_count(h), 0);
    assert_int_equal(hist_min_ps(h), 0);
    assert_int_equal(hist_max_ps(h), 0);
    assert_int_equal(hist_quantile_ps(h, 0.5), 0);
    assert_true(hist_mean_ps(h) == 0);
    assert_true(hist_std_ps(h) == 0);
    assert_true(hist_share_below(h, 5) == 1);
    hist_free(NULL);
}

/* Neighbouring values are in the same bucket or in neighbouring ones, over the whole range, and a bucket's
 * middle is near all its values. */
static void buckets_cover_everything(void **state)
{
    (void)state;
    for (uint64_t v = 1; v <= (uint64_t)INT64_MAX - 1; v += 1 + (v >> 12)) {
        uint32_t i = bucket_of(v);
        assert_true(i < N_BUCKETS);
        assert_true(bucket_of(v - 1) == i || bucket_of(v - 1) == i - 1);
        assert_close(bucket_middle(i), (int64_t)v);
    }
    for (unsigned e = 0; e < 63; e++) {
        uint64_t v = UINT64_C(1) << e;
        assert_close(bucket_middle(bucket_of(v)), (int64_t)v);
        assert_close(bucket_middle(bucket_of(v - 1)), (int64_t)(v - 1));
    }
    assert_int_equal(bucket_of(INT64_MAX), N_BUCKETS - 1);
    assert_close(bucket_middle(N_BUCKETS - 1), INT64_MAX);
}

static void values_below_1024_are_exact(void **state)
{
    (void)state;
    for (int64_t v = 0; v < 1024; v++)
        hist_add(h, v, 1);
    for (uint32_t k = 0; k < 1024; k++)
        assert_int_equal(hist_quantile_ps(h, k / 1023.0 + 1e-9), k);
}

static void moments_are_exact(void **state)
{
    (void)state;
    hist_add(h, 3, 2);
    hist_add(h, 1000000007, 1);
    hist_add(h, -5, 1); /* counts as 0 */
    assert_int_equal(hist_count(h), 4);
    assert_int_equal(hist_min_ps(h), 0);
    assert_int_equal(hist_max_ps(h), 1000000007);
    assert_true(hist_mean_ps(h) == 1000000013 / 4.0);
    assert_true(h->sum == 1000000013);
    assert_int_equal(h->squares.w[0], 9 + 9 + UINT64_C(1000000014000000049));
}

static void nothing_counts_nothing(void **state)
{
    (void)state;
    hist_add(h, 7, 0);
    hist_add_series(h, 7, 1, 0, 1);
    hist_add_series(h, 7, 1, 10, 0);
    hist_merge(h, g);
    assert_same(h, g);
    assert_int_equal(hist_count(h), 0);
    hist_add(h, 9, 1);
    hist_merge(h, g);
    assert_int_equal(hist_min_ps(h), 9);
}

/* The spread of values that are large and nearly equal: n * sum(x^2) - sum(x)^2 must not cancel. */
static void spread_survives_a_large_mean(void **state)
{
    (void)state;
    int64_t base = INT64_C(1000000000000000000);
    hist_add(h, base - 1, 1);
    hist_add(h, base + 1, 1);
    assert_true(hist_std_ps(h) == 1);
    hist_add(g, base, UINT64_C(1) << 40);
    assert_true(hist_std_ps(g) == 0);
    hist_add(g, base + (INT64_C(1) << 20), UINT64_C(1) << 40);
    assert_true(hist_std_ps(g) == 524288);
}

/* All 190 bits: the largest value, as often as can be counted. */
static void largest_sums(void **state)
{
    (void)state;
    hist_add(h, INT64_MAX, UINT64_MAX - 1);
    hist_add(h, 0, 1);
    assert_int_equal(hist_count(h), UINT64_MAX);
    assert_int_equal(hist_quantile_ps(h, 0.5), hist_quantile_ps(h, 0.25));
    assert_close(hist_quantile_ps(h, 0.5), INT64_MAX);
    assert_true(fabs(hist_mean_ps(h) / 9.223372036854775807e18 - 1) < 1e-15);
    /* variance = (n - 1) v^2 / n^2 */
    double want = 9.223372036854775807e18 / 4294967296.0;
    assert_true(fabs(hist_std_ps(h) / want - 1) < 1e-9);
}

static void counts_beyond_32_bits(void **state)
{
    (void)state;
    uint64_t many = (UINT64_C(5) << 32) + 3;
    hist_add(h, 5000, many);
    for (int i = 0; i < 3; i++)
        hist_add(h, 5000, UINT32_MAX);
    hist_add(h, 6000, 1);
    assert_int_equal(bucket_count(h, bucket_of(5000)), many + 3 * (uint64_t)UINT32_MAX);
    assert_int_equal(bucket_count(h, bucket_of(6000)), 1);
    hist_merge(g, h);
    hist_merge(g, h);
    assert_int_equal(bucket_count(g, bucket_of(5000)), 2 * (many + 3 * (uint64_t)UINT32_MAX));
    hist_clear(h);
    hist_add(h, 5000, 1);
    assert_int_equal(bucket_count(h, bucket_of(5000)), 1);
    hist_add(h, 5000, UINT32_MAX); /* carries into what was used before the clear */
    assert_int_equal(bucket_count(h, bucket_of(5000)), UINT64_C(1) << 32);
}

static void quantiles_take_the_lower_rank(void **state)
{
    (void)state;
    for (int64_t v = 1; v <= 5; v++)
        hist_add(h, v * 100, 1);
    assert_int_equal(hist_quantile_ps(h, 0), 100);
    assert_int_equal(hist_quantile_ps(h, 0.24), 100);
    assert_int_equal(hist_quantile_ps(h, 0.25), 200);
    assert_int_equal(hist_quantile_ps(h, 0.5), 300);
    assert_int_equal(hist_quantile_ps(h, 0.99), 400);
    assert_int_equal(hist_quantile_ps(h, 1), 500);
    assert_int_equal(hist_quantile_ps(h, -1), 100);
    assert_int_equal(hist_quantile_ps(h, 2), 500);
}

/* A bucket's middle may lie outside of what was recorded. */
static void quantiles_stay_between_min_and_max(void **state)
{
    (void)state;
    hist_add(h, 123456789012, 3);
    assert_int_equal(hist_quantile_ps(h, 0.5), 123456789012);
    hist_add(h, 123456789013, 3);
    assert_in_range(hist_quantile_ps(h, 0.5), 123456789012, 123456789013);
}

static void shares(void **state)
{
    (void)state;
    hist_add(h, 100, 1);
    hist_add(h, 200, 2);
    hist_add(h, INT64_C(1) << 50, 1);
    assert_true(hist_share_below(h, 99) == 0);
    assert_true(hist_share_below(h, -1) == 0);
    assert_true(hist_share_below(h, 100) == 0.25);
    assert_true(hist_share_below(h, 199) == 0.25);
    assert_true(hist_share_below(h, 200) == 0.75);
    assert_true(hist_share_below(h, INT64_C(1) << 49) == 0.75);
    assert_true(hist_share_below(h, INT64_C(1) << 50) == 1);
    assert_true(hist_share_below(h, INT64_MAX) == 1);
}

static void series_is_many_adds(void **state)
{
    (void)state;
    hist_add_series(h, 1000, 37, 100000, 3); /* 1 ns .. 3.7 us: 12 octaves */
    for (int64_t i = 0; i < 100000; i++)
        hist_add(g, 1000 + 37 * i, 3);
    assert_same(h, g);
    hist_add_series(h, 777777, 0, 12345, 1);
    hist_add(g, 777777, 12345);
    assert_same(h, g);
    hist_add_series(h, 0, INT64_MAX / 4, 5,
                    3); /* fewer values than octaves, squares beyond 2^128 */
    for (int64_t i = 0; i < 5; i++)
        hist_add(g, INT64_MAX / 4 * i, 3);
    assert_same(h, g);
}

/* Longer than one chunk of the closed sums, against the sum of two halves. */
static void long_series(void **state)
{
    (void)state;
    int64_t n = 3 * (int64_t)SERIES_CHUNK + 12345, cut = 1234567, step = 100003;
    hist_add_series(h, 5000000000, step, (uint64_t)n, 7);
    hist_add_series(g, 5000000000, step, (uint64_t)cut, 7);
    hist_add_series(g, 5000000000 + cut * step, step, (uint64_t)(n - cut), 7);
    assert_same(h, g);
    assert_int_equal(hist_max_ps(h), 5000000000 + (n - 1) * step);
    hist_clear(g);
    hist_add_series(g, 0, 1, UINT64_C(1) << 40, 1); /* at once: 2^40 values, 16,000 buckets */
    assert_int_equal(hist_count(g), UINT64_C(1) << 40);
    assert_close(hist_quantile_ps(g, 0.25), INT64_C(1) << 38);
}

static void merge_is_union(void **state)
{
    (void)state;
    struct hist *all = hist_new();
    assert_non_null(all);
    for (int64_t i = 1; i < 5000; i++) {
        int64_t v = i * i * i * 977;
        hist_add(i % 3 ? h : g, v, (uint64_t)i);
        hist_add(all, v, (uint64_t)i);
    }
    hist_merge(h, g);
    assert_same(h, all);
    hist_clear(h);
    hist_merge(h, all); /* into an empty one */
    assert_same(h, all);
    hist_free(all);
}

static void cleared_is_new(void **state)
{
    (void)state;
    hist_add_series(h, 1, 1000003, 100000, 9);
    hist_clear(h);
    assert_same(h, g);
    hist_add(h, 42, 1);
    hist_add(g, 42, 1);
    assert_same(h, g);
}

int main(void)
{
#define UNIT(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        UNIT(empty_one),
        UNIT(buckets_cover_everything),
        UNIT(values_below_1024_are_exact),
        UNIT(moments_are_exact),
        UNIT(nothing_counts_nothing),
        UNIT(spread_survives_a_large_mean),
        UNIT(largest_sums),
        UNIT(counts_beyond_32_bits),
        UNIT(quantiles_take_the_lower_rank),
        UNIT(quantiles_stay_between_min_and_max),
        UNIT(shares),
        UNIT(series_is_many_adds),
        UNIT(long_series),
        UNIT(merge_is_union),
        UNIT(cleared_is_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
