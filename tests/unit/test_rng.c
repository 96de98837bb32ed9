/* Seeded randomness: known numbers, ranges, and that streams do not depend on each other. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "predictor/rng.h"

/* splitmix64 of 0, 1, ...: the reference's first outputs for state 0 (prng.di.unimi.it/splitmix64.c). */
static void mix_is_splitmix64(void **state)
{
    (void)state;
    assert_int_equal(rng_mix64(0), UINT64_C(0xe220a8397b1dcdaf));
    assert_int_equal(rng_mix64(UINT64_C(0x9e3779b97f4a7c15)), UINT64_C(0x6e789e6aa1b965f4));
    assert_int_equal(rng_mix64(UINT64_C(0x3c6ef372fe94f82a)), UINT64_C(0x06c45d188009454f));
}

/* xoshiro256** as its reference gives it for the state {1, 2, 3, 4}. */
static void numbers_are_xoshiro(void **state)
{
    (void)state;
    struct rng r = {.s = {1, 2, 3, 4}};
    static const uint64_t want[] = {
        UINT64_C(11520),
        UINT64_C(0),
        UINT64_C(1509978240),
        UINT64_C(1215971899390074240),
    };
    for (unsigned i = 0; i < sizeof want / sizeof *want; i++)
        assert_int_equal(rng_u64(&r), want[i]);
}

/* What every replay depends on: these numbers must never change. */
static void same_seed_same_numbers(void **state)
{
    (void)state;
    struct rng a, b, c;
    rng_init(&a, 42);
    rng_init(&b, 42);
    rng_init(&c, 43);
    unsigned same = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = rng_u64(&a);
        assert_int_equal(x, rng_u64(&b));
        same += x == rng_u64(&c);
    }
    assert_int_equal(same, 0);
    rng_init(&a, 0); /* no state of zeros */
    assert_true(rng_u64(&a) | rng_u64(&a));
}

static void below_stays_below(void **state)
{
    (void)state;
    struct rng r;
    unsigned seen[7] = {0};
    rng_init(&r, 1);
    for (int i = 0; i < 7000; i++)
        seen[rng_below(&r, 7)]++;
    for (int i = 0; i < 7; i++)
        assert_true(seen[i] > 850 && seen[i] < 1150);
    for (int i = 0; i < 100; i++)
        assert_int_equal(rng_below(&r, 1), 0);
    assert_true(rng_below(&r, UINT64_MAX) < UINT64_MAX);
}

static void unit_is_from_zero_to_below_one(void **state)
{
    (void)state;
    struct rng r;
    double sum = 0;
    rng_init(&r, 1);
    for (int i = 0; i < 10000; i++) {
        double u = rng_unit(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(sum > 4900 && sum < 5100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mix_is_splitmix64),
        cmocka_unit_test(numbers_are_xoshiro),
        cmocka_unit_test(same_seed_same_numbers),
        cmocka_unit_test(below_stays_below),
        cmocka_unit_test(unit_is_from_zero_to_below_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
