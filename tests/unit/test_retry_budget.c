/* test_retry_budget.c - how many retries are allowed, and when more are. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "controller/core/retry_budget.h"
#include "predictor/rng.h"

static uint32_t take_all(struct retry_budget *b, int64_t now_ps)
{
    uint32_t n = 0;
    while (n < 10000 && retry_budget_take(b, now_ps))
        n++;
    return n;
}

static void test_off(void **unused)
{
    struct retry_budget b;
    (void)unused;
    retry_budget_init(&b, false, 0, 0);
    assert_int_equal(take_all(&b, 0), 10000);
}

static void test_share_and_floor(void **unused)
{
    struct retry_budget b;
    (void)unused;
    retry_budget_init(&b, true, 20, 0);
    assert_int_equal(take_all(&b, 0), 0);
    for (int i = 0; i < 99; i++)
        retry_budget_arrival(&b, 0);
    assert_int_equal(take_all(&b, 0), 19);
    retry_budget_arrival(&b, 0);
    assert_int_equal(take_all(&b, 0), 1);
    retry_budget_init(&b, true, 0, 3);
    assert_int_equal(take_all(&b, 0), 30);
    retry_budget_init(&b, true, 50, 1);
    for (int i = 0; i < 10; i++)
        retry_budget_arrival(&b, 0);
    assert_int_equal(take_all(&b, 0), 15);
}

/* What is older than ten seconds does not count. */
static void test_time(void **unused)
{
    struct retry_budget b;
    (void)unused;
    retry_budget_init(&b, true, 10, 1);
    assert_int_equal(take_all(&b, 0), 10);
    assert_int_equal(retry_budget_again_ps(&b), RETRY_SLOT_PS);
    assert_int_equal(take_all(&b, 10 * PS_PER_S - 1), 0);
    assert_int_equal(take_all(&b, 10 * PS_PER_S), 10);
    for (int i = 0; i < 50; i++)
        retry_budget_arrival(&b, 15 * PS_PER_S);
    assert_int_equal(take_all(&b, 15 * PS_PER_S), 5);
    assert_int_equal(take_all(&b, 20 * PS_PER_S), 10);
    assert_int_equal(take_all(&b, INT64_MAX - 1), 10); /* all forgotten */
}

/* The bound of the header, over the ten seconds before every retry. */
static void test_bound(void **unused)
{
    enum { SLOTS = 3000 };
    static uint32_t arrivals[SLOTS], retries[SLOTS];
    struct retry_budget b;
    struct rng rng;
    (void)unused;
    rng_init(&rng, 1);
    retry_budget_init(&b, true, 20, 2);
    for (int s = 0; s < SLOTS; s++) {
        if (s % 400 > 350) /* a pause */
            continue;
        for (uint64_t n = rng_below(&rng, 20); n; n--) {
            arrivals[s]++;
            retry_budget_arrival(&b, s * RETRY_SLOT_PS + (int64_t)rng_below(&rng, 3));
        }
        for (uint64_t n = rng_below(&rng, 20); n; n--)
            retries[s] += retry_budget_take(&b, s * RETRY_SLOT_PS + 5);
    }
    uint32_t most = 0;
    for (int s = 0; s + (int)RETRY_SLOTS <= SLOTS; s++) {
        uint32_t a = 0, r = 0;
        for (int i = s; i < s + (int)RETRY_SLOTS; i++) {
            a += arrivals[i];
            r += retries[i];
        }
        if (retries[s + (int)RETRY_SLOTS - 1])
            assert_true(r * 100 <= a * 20 + 2 * 10 * 100);
        most = r > most ? r : most;
    }
    assert_true(most > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_share_and_floor),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
