/* test_fair_share.c - one link, worked out by hand. 1 GB/s is a byte in 1000 ps. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "predictor/fair_share.h"
#include "predictor/units.h"

static struct fair_share s;

static void start(double gb_s, int64_t latency_ps)
{
    assert_int_equal(fair_share_init(&s, gb_s, latency_ps), 0);
}

static void expect_next(int64_t at_ps, uint32_t handle)
{
    uint32_t got = UINT32_MAX;
    assert_int_equal(fair_share_next_ps(&s), at_ps);
    assert_false(fair_share_pop(&s, at_ps - 1, &got));
    assert_true(fair_share_pop(&s, at_ps, &got));
    assert_int_equal(got, handle);
}

static void expect_idle(void)
{
    uint32_t got;
    assert_int_equal(fair_share_next_ps(&s), PS_NEVER);
    assert_false(fair_share_pop(&s, PS_LIMIT, &got));
    fair_share_deinit(&s);
}

static void alone(void **state)
{
    (void)state;
    start(1, 500);
    fair_share_add(&s, 100, 1000, 7);
    expect_next(100 + 1000 * 1000 + 500, 7);
    expect_idle();
}

/* The second arrives when half of the first is sent: both get half the rate until the first is done. */
static void two_share(void **state)
{
    (void)state;
    start(1, 0);
    fair_share_add(&s, 0, 1000, 1);
    fair_share_add(&s, 500000, 1000, 2);
    expect_next(1500000, 1);
    expect_next(2000000, 2);
    expect_idle();
}

static void equal_ones_end_together_in_order(void **state)
{
    (void)state;
    start(1, 40);
    for (uint32_t i = 0; i < 5; i++)
        fair_share_add(&s, 0, 100, 10 + i);
    for (uint32_t i = 0; i < 5; i++)
        expect_next(500000 + 40, 10 + i);
    expect_idle();
}

/* What is in its latency takes no bandwidth. */
static void latency_takes_no_bandwidth(void **state)
{
    (void)state;
    start(1, 1000000);
    fair_share_add(&s, 0, 100, 1);      /* leaves by 100,000 */
    fair_share_add(&s, 200000, 100, 2); /* alone from then on */
    expect_next(1100000, 1);
    expect_next(1300000, 2);
    expect_idle();
}

static void nothing_to_send(void **state)
{
    (void)state;
    start(1, 300);
    fair_share_add(&s, 0, 1000, 1);
    fair_share_add(&s, 10, 0, 2);
    expect_next(310, 2);
    expect_next(1000300, 1);
    expect_idle();
    start(1, 0);
    fair_share_add(&s, 77, 0, 3);
    expect_next(77, 3);
    expect_idle();
}

static void no_limit_is_latency_alone(void **state)
{
    (void)state;
    start(0, 50);
    fair_share_add(&s, 5, UINT64_MAX, 1);
    fair_share_add(&s, 5, 1, 2);
    fair_share_add(&s, 6, 0, 3);
    expect_next(55, 1);
    expect_next(55, 2);
    expect_next(56, 3);
    expect_idle();
}

/* The peer simulator's links: nobody waits for anybody. */
static void unshared_takes_the_whole_link_each(void **state)
{
    (void)state;
    start(1, 10);
    s.unshared = true;
    fair_share_add(&s, 0, 1000, 1);
    fair_share_add(&s, 500000, 1000, 2);
    uint32_t gone = fair_share_add(&s, 500000, 200, 3);
    fair_share_add(&s, 600000, 100, 4);
    fair_share_cancel(&s, 650000, gone);
    expect_next(700010, 4);
    expect_next(1000010, 1);
    expect_next(1500010, 2);
    expect_idle();
}

/* Two of equal size, one cancelled half-way: the other has half its bytes left and the link to itself. */
static void cancel_gives_the_share_back(void **state)
{
    (void)state;
    start(1, 0);
    uint32_t a = fair_share_add(&s, 0, 1000, 1);
    fair_share_add(&s, 0, 1000, 2);
    fair_share_cancel(&s, 1000000, a);
    expect_next(1500000, 2);
    expect_idle();
}

static void cancel_in_latency(void **state)
{
    (void)state;
    start(1, 1000);
    uint32_t id[3];
    for (uint32_t i = 0; i < 3; i++)
        id[i] = fair_share_add(&s, i, 0, i);
    fair_share_cancel(&s, 500, id[1]);
    expect_next(1000, 0);
    expect_next(1002, 2);
    assert_int_equal(fair_share_next_ps(&s), PS_NEVER);
    id[0] = fair_share_add(&s, 2000, 0, 9);
    fair_share_cancel(&s, 2000, id[0]);
    expect_idle();
}

static void ids_are_used_again(void **state)
{
    (void)state;
    start(1, 0);
    uint32_t handle, id = fair_share_add(&s, 0, 10, 1);
    assert_true(fair_share_pop(&s, 10000, &handle));
    for (int64_t t = 1; t < 1000; t++) {
        assert_int_equal(fair_share_add(&s, t * 10000, 10, 2), id);
        assert_true(fair_share_pop(&s, (t + 1) * 10000, &handle));
    }
    assert_int_equal(s.n_transfers, 1);
    expect_idle();
}

/* Popped late, all at once: same order as one by one. */
static void late_pops(void **state)
{
    (void)state;
    start(1, 0);
    fair_share_add(&s, 0, 3000, 3);
    fair_share_add(&s, 0, 1000, 1);
    fair_share_add(&s, 0, 2000, 2);
    uint32_t handle;
    for (uint32_t i = 1; i <= 3; i++) {
        assert_true(fair_share_pop(&s, PS_PER_S, &handle));
        assert_int_equal(handle, i);
    }
    expect_idle();
}

static void copy_goes_its_own_way(void **state)
{
    (void)state;
    struct fair_share copy;
    uint32_t handle;
    start(1, 10);
    assert_int_equal(fair_share_init(&copy, 5, 5), 0);
    for (uint32_t i = 0; i < 40; i++)
        fair_share_add(&copy, 0, i, i); /* larger than what comes over it */
    fair_share_add(&s, 0, 0, 1);
    fair_share_add(&s, 0, 1000, 2);
    assert_int_equal(fair_share_copy(&copy, &s), 0);
    fair_share_add(&s, 0, 1000, 3);
    assert_int_equal(fair_share_next_ps(&copy), 10);
    assert_true(fair_share_pop(&copy, 10, &handle));
    assert_int_equal(handle, 1);
    assert_int_equal(fair_share_next_ps(&copy), 1000010);
    fair_share_deinit(&copy);
    expect_next(10, 1);
    expect_next(2000010, 2);
    expect_next(2000010, 3);
    expect_idle();
}

static void refused(void **state)
{
    (void)state;
    assert_int_equal(fair_share_init(&s, -1, 0), WEIR_E_INVALID);
    assert_int_equal(fair_share_init(&s, NAN, 0), WEIR_E_INVALID);
    assert_int_equal(fair_share_init(&s, INFINITY, 0), WEIR_E_INVALID);
    assert_int_equal(fair_share_init(&s, FAIR_SHARE_MAX_GB_S * 1.01, 0), WEIR_E_INVALID);
    assert_int_equal(fair_share_init(&s, 1, -1), WEIR_E_INVALID);
    fair_share_deinit(&s); /* harmless then, too */
    start(FAIR_SHARE_MAX_GB_S, PS_LIMIT);
    fair_share_deinit(&s);
}

/* A link so slow that nothing ends before PS_LIMIT, at the largest size: it arrives then. */
static void endless_transfers(void **state)
{
    (void)state;
    start(1e-9, 5); /* a byte a second */
    uint32_t a = fair_share_add(&s, 0, UINT64_MAX, 1);
    for (uint32_t i = 2; i < 1000; i++)
        fair_share_add(&s, 0, FAIR_SHARE_MAX_BYTES, i);
    assert_int_equal(fair_share_next_ps(&s), PS_LIMIT);
    uint32_t handle;
    assert_false(fair_share_pop(&s, PS_LIMIT - 1, &handle));
    fair_share_cancel(&s, PS_LIMIT - 1, a);
    for (uint32_t i = 2; i < 1000; i++)
        expect_next(PS_LIMIT, i);
    fair_share_add(&s, PS_LIMIT + 3, 1, 7);
    expect_next(PS_LIMIT + 3, 7);
    fair_share_deinit(&s);
    start(1, PS_LIMIT);
    fair_share_add(&s, 1, 1, 5);
    expect_next(PS_LIMIT, 5);
    fair_share_deinit(&s);
    start(1e-15, 0); /* less than a byte a second counts as one */
    fair_share_add(&s, 0, 2, 1);
    expect_next(2 * PS_PER_S, 1);
    expect_idle();
}

/* A slow link whose number of transfers changes all the time: what a division leaves over is not lost. */
static void nothing_is_lost_in_rounding(void **state)
{
    (void)state;
    start(1e-9, 0); /* a byte a second: one unit of 10^-12 byte in a ps */
    for (uint32_t i = 0; i < 3; i++)
        fair_share_add(&s, 0, 1, i);
    for (int64_t t = 1; t <= 1000; t++)
        fair_share_cancel(&s, t, fair_share_add(&s, t, 5, 9));
    assert_true(s.received * 3 + s.left_over == 1000);
    expect_next(3 * PS_PER_S, 0);
    fair_share_deinit(&s);
}

/* More is left over of a division among four (3 units) than the last one still needs (2). */
static void remainder_is_enough_to_finish(void **state)
{
    (void)state;
    uint32_t id[4];
    start(1e-9, 0);
    for (uint32_t i = 0; i < 4; i++)
        id[i] = fair_share_add(&s, 0, 1, i);
    for (uint32_t i = 1; i < 4; i++)
        fair_share_cancel(&s, 4 * PS_PER_S - 5, id[i]);
    expect_next(4 * PS_PER_S - 5, 0);
    expect_idle();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone),
        cmocka_unit_test(two_share),
        cmocka_unit_test(equal_ones_end_together_in_order),
        cmocka_unit_test(latency_takes_no_bandwidth),
        cmocka_unit_test(nothing_to_send),
        cmocka_unit_test(no_limit_is_latency_alone),
        cmocka_unit_test(unshared_takes_the_whole_link_each),
        cmocka_unit_test(cancel_gives_the_share_back),
        cmocka_unit_test(cancel_in_latency),
        cmocka_unit_test(ids_are_used_again),
        cmocka_unit_test(late_pops),
        cmocka_unit_test(copy_goes_its_own_way),
        cmocka_unit_test(refused),
        cmocka_unit_test(endless_transfers),
        cmocka_unit_test(nothing_is_lost_in_rounding),
        cmocka_unit_test(remainder_is_enough_to_finish),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
