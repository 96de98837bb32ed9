/* Time in whole picoseconds: conversions and limits. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "predictor/units.h"

static void units_are_powers_of_ten(void **state)
{
    (void)state;
    assert_int_equal(PS_PER_US, 1000 * PS_PER_NS);
    assert_int_equal(PS_PER_MS, 1000 * PS_PER_US);
    assert_int_equal(PS_PER_S, 1000 * PS_PER_MS);
}

static void milliseconds_round_to_nearest(void **state)
{
    (void)state;
    assert_int_equal(ps_from_ms(0), 0);
    assert_int_equal(ps_from_ms(1), PS_PER_MS);
    assert_int_equal(ps_from_ms(-1), -PS_PER_MS);
    assert_int_equal(ps_from_ms(16.50142), INT64_C(16501420000));
    assert_int_equal(ps_from_ms(1.4e-9), 1);
    assert_int_equal(ps_from_ms(1.5e-9), 2);
    assert_int_equal(ps_from_ms(-1.5e-9), -2); /* ties away from zero */
    assert_int_equal(ps_from_ms(0.4e-9), 0);
}

static void conversions_undo_each_other(void **state)
{
    (void)state;
    static const int64_t times[] = {0, 1, 999, PS_PER_MS - 1, PS_PER_MS, 3600 * PS_PER_S};
    for (unsigned i = 0; i < sizeof times / sizeof *times; i++)
        assert_int_equal(ps_from_ms(ms_from_ps(times[i])), times[i]);
}

/* The sum of two times that a caller may pass in is still before "never". */
static void limit_leaves_room_for_sums(void **state)
{
    (void)state;
    assert_true(PS_LIMIT + PS_LIMIT < PS_NEVER);
    assert_true(PS_LIMIT > 50 * INT64_C(86400) * PS_PER_S); /* 53 days */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_are_powers_of_ten),
        cmocka_unit_test(milliseconds_round_to_nearest),
        cmocka_unit_test(conversions_undo_each_other),
        cmocka_unit_test(limit_leaves_room_for_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
