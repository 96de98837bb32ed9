/* test_version.c - the version is three numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "predictor/version.h"

static void test_three_numbers(void **state)
{
    int major, minor, patch;
    char rest;

    (void)state;
    assert_int_equal(sscanf(weir_version(), "%d.%d.%d%c", &major, &minor, &patch, &rest), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
