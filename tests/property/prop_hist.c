/* prop_hist.c - the histogram against a sorted array of the same values; series = single adds; merge = union.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "predictor/hist.h"
#include "predictor/rng.h"
#include "tests/support/prop.h"

#define MAX_VALUES 6000u
#define MAX_WEIGHT 3u
#define MAX_SERIES 300u

struct model {
    int64_t value[MAX_VALUES];
    uint32_t n;
};

static struct model all;

/* Any magnitude up to `bits`, every one as likely. */
static int64_t random_value(struct rng *r, unsigned bits)
{
    return (int64_t)(rng_u64(r) >> (64 - 1 - rng_below(r, bits)));
}

static void model_add(int64_t v, uint64_t count)
{
    while (count--)
        all.value[all.n++] = v < 0 ? 0 : v;
}

/* Values that are near each other, mostly. */
static void random_run(struct rng *r, struct hist *h, struct hist *single, uint64_t n,
                       uint64_t weight)
{
    int64_t v[MAX_SERIES], near = random_value(r, 62), far = random_value(r, 62);
    uint64_t spread = 1 + (uint64_t)near / (1 + rng_below(r, 3000));
    for (uint64_t i = 0; i < n; i++) {
        v[i] = near / 2 + (int64_t)rng_below(r, spread) / 2;
        if (!rng_below(r, 100))
            v[i] = rng_below(r, 2) ? -far : far;
        hist_add(single, v[i], weight);
        model_add(v[i], weight);
    }
    hist_add_run(h, v, (uint32_t)n, weight);
}

/* One random call on h, on `single` by hist_add alone, and on the model. */
static void random_call(struct rng *r, struct hist *h, struct hist *single)
{
    uint64_t weight = rng_below(r, MAX_WEIGHT + 1), n = 1;
    unsigned bits = 1 + (unsigned)rng_below(r, 62);
    if (rng_below(r, 3)) {
        int64_t v = rng_below(r, 50) ? random_value(r, bits) : -random_value(r, bits);
        hist_add(h, v, weight);
        hist_add(single, v, weight);
        model_add(v, weight);
        return;
    }
    n = rng_below(r, 1 + rng_below(r, MAX_SERIES));
    if (rng_below(r, 2)) {
        random_run(r, h, single, n, weight);
        return;
    }
    int64_t first = random_value(r, bits < 54 ? bits : 54);
    int64_t step = rng_below(r, 10) ? random_value(r, bits < 54 ? bits : 54) : 0;
    hist_add_series(h, first, step, n, weight);
    for (uint64_t i = 0; i < n; i++) {
        hist_add(single, first + (int64_t)i * step, weight);
        model_add(first + (int64_t)i * step, weight);
    }
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void check_quantile(const struct hist *h, double q)
{
    int64_t want = all.value[(uint32_t)(q * (all.n - 1))], got = hist_quantile_ps(h, q);
    if (fabs((double)got - (double)want) > HIST_REL_ERROR * (double)want)
        fail_msg("quantile %.17g of %u: %lld, want %lld", q, all.n, (long long)got,
                 (long long)want);
}

/* Values well below the limit count, values well above do not. */
static void check_share(const struct hist *h, int64_t limit)
{
    double low = (double)limit * (1 - 2 * HIST_REL_ERROR),
           high = (double)limit * (1 + 2 * HIST_REL_ERROR);
    uint32_t at_least = 0, at_most = 0;
    for (uint32_t i = 0; i < all.n; i++) {
        at_least += (double)all.value[i] < low;
        at_most += (double)all.value[i] <= high;
    }
    double share = hist_share_below(h, limit);
    assert_true(share >= (double)at_least / all.n && share <= (double)at_most / all.n);
}

static void check_moments(const struct hist *h)
{
    __int128 sum = 0;
    for (uint32_t i = 0; i < all.n; i++)
        sum += all.value[i];
    assert_int_equal(hist_count(h), all.n);
    assert_int_equal(hist_min_ps(h), all.value[0]);
    assert_int_equal(hist_max_ps(h), all.value[all.n - 1]);
    assert_true(hist_mean_ps(h) == (double)sum / all.n);
    double mean = (double)sum / all.n, squares = 0;
    for (uint32_t i = 0; i < all.n; i++)
        squares += ((double)all.value[i] - mean) * ((double)all.value[i] - mean);
    double std = sqrt(squares / all.n);
    assert_true(fabs(hist_std_ps(h) - std) <= 1e-9 * std + 1e-15 * mean);
}

static void check_same(const struct hist *a, const struct hist *b)
{
    assert_int_equal(hist_count(a), hist_count(b));
    assert_true(hist_mean_ps(a) == hist_mean_ps(b));
    assert_true(hist_std_ps(a) == hist_std_ps(b));
    for (uint32_t i = 0; i <= 100; i++)
        assert_int_equal(hist_quantile_ps(a, i / 100.0), hist_quantile_ps(b, i / 100.0));
}

/* Three histograms share the calls and are merged in some order. */
static void against_sorted_array(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    struct hist *part[3], *single = hist_new();
    assert_non_null(single);
    for (int i = 0; i < 3; i++) {
        part[i] = hist_new();
        assert_non_null(part[i]);
        hist_add_series(part[i], random_value(&r, 50), 12345, 1000, 1);
        hist_clear(part[i]); /* as good as new */
    }
    all.n = 0;
    uint64_t calls = 1 + rng_below(&r, 80);
    for (uint64_t i = 0; i < calls && all.n + MAX_SERIES * MAX_WEIGHT < MAX_VALUES; i++)
        random_call(&r, part[rng_below(&r, 3)], single);
    uint64_t into = rng_below(&r, 3), from = (into + 1 + rng_below(&r, 2)) % 3;
    hist_merge(part[into], part[from]);
    hist_merge(part[into], part[3 - into - from]);
    struct hist *h = part[into];
    check_same(h, single);
    if (all.n) {
        qsort(all.value, all.n, sizeof all.value[0], by_value);
        check_moments(h);
        for (uint32_t i = 0; i <= 50; i++)
            check_quantile(h, i / 50.0);
        for (uint32_t i = 0; i < 8; i++) {
            check_quantile(h, rng_unit(&r));
            check_share(h, all.value[rng_below(&r, all.n)]);
            check_share(h, random_value(&r, 62));
        }
    }
    for (int i = 0; i < 3; i++)
        hist_free(part[i]);
    hist_free(single);
}

static void histogram_is_a_sorted_array(void **state)
{
    (void)state;
    prop_run("histogram_is_a_sorted_array", 150, against_sorted_array);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(histogram_is_a_sorted_array, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
