/* What the subcommands share in reading their command lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "tests/support/files.h"

static void whole_numbers(void **state)
{
    (void)state;
    uint64_t v = 0;
    assert_true(cli_whole("0", 0, 9, &v) && v == 0);
    assert_true(cli_whole("18446744073709551615", 0, UINT64_MAX, &v) && v == UINT64_MAX);
    static const char *const bad[] = {
        "", " 1", "1 ", "+1", "-1", "1.0", "0x1", "1e3", "18446744073709551616", "a"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(cli_whole(bad[i], 0, UINT64_MAX, &v));
    assert_false(cli_whole("10", 0, 9, &v));
    assert_false(cli_whole("1", 2, 9, &v));
}

static void real_numbers(void **state)
{
    (void)state;
    double v = 0, three[3];
    assert_true(cli_real("1.5", 0, 9, &v) && fabs(v - 1.5) < 1e-12);
    assert_true(cli_real("-2e-3", -1, 9, &v) && fabs(v + 0.002) < 1e-12);
    assert_true(cli_real(".5", 0, 1, &v) && fabs(v - 0.5) < 1e-12);
    static const char *const bad[] = {"",     " 1",  "1 ",  "nan", "inf", "1e999",
                                      "0x10", "1,5", "--1", "e",   ".",   "1x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(cli_real(bad[i], -1e300, 1e300, &v));
    assert_false(cli_real("10", 0, 9, &v));
    assert_true(cli_reals("1,2.5,-3", three, 3) && fabs(three[2] + 3) < 1e-12);
    assert_false(cli_reals("1,2", three, 3));
    assert_false(cli_reals("1,2,3,4", three, 3));
    assert_false(cli_reals("1,,3", three, 3));
    assert_false(cli_reals("", three, 1));
}

static const struct option options[] = {
    {"policy", required_argument, NULL, 'p'},
    {"quiet", no_argument, NULL, 'q'},
    {"seed", required_argument, NULL, 256},
    {"spread", required_argument, NULL, 257},
    {NULL, 0, NULL, 0},
};

/* A command that knows these options and takes everything else for a mistake. */
static int command(int argc, char **argv)
{
    int c;
    cli_start();
    while ((c = getopt_long(argc, argv, ":p:q", options, NULL)) != -1) {
        if (c == '?' || c == ':')
            return cli_bad_option("test", options, argv, c);
    }
    (void)printf("%d operands\n", argc - optind);
    return cli_finish("test", 0);
}

static void mistakes(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"--polcy", "a", "weir test: --polcy: no such option; did you mean --policy?\n"},
        {"--polcy=a", "", "weir test: --polcy: no such option; did you mean --policy?\n"},
        {"--zzzzzz", "", "weir test: --zzzzzz: no such option; see weir test --help\n"},
        {"--s", "5", "weir test: --s: no such option; see weir test --help\n"}, /* two begin so */
        {"--policy", NULL,
         "weir test: --policy: expected a value behind it; see weir test --help\n"},
        {"-p", NULL, "weir test: --policy: expected a value behind it; see weir test --help\n"},
        {"--quiet=3", "", "weir test: --quiet: takes no value; leave out what follows the =\n"},
        {"-x", "", "weir test: -x: no such option; see weir test --help\n"},
        {"-qx", "", "weir test: -x: no such option; see weir test --help\n"},
        {"-\xff", "", "weir test: -\\xff: no such option; see weir test --help\n"},
        {"--a\x1b", "", "weir test: --a\\x1b: no such option; see weir test --help\n"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int status = -1;
        char *text = OUTPUT(command, &status, "test", bad[i][0], bad[i][1]);
        assert_int_equal(status, CLI_EXIT_INPUT);
        assert_string_equal(text, bad[i][2]);
        free(text);
    }
}

static void good_lines(void **state)
{
    (void)state;
    for (int again = 0; again < 2; again++) { /* getopt starts afresh each time */
        int status = -1;
        char *text =
            OUTPUT(command, &status, "test", "file", "--seed", "4", "-q", "--pol", "x", "file");
        assert_int_equal(status, 0);
        assert_string_equal(text, "2 operands\n");
        free(text);
    }
}

static int ask(int argc, char **argv)
{
    (void)argc;
    return argv[1][0] == 'p' ? cli_unknown_policy("test", argv[2])
                             : cli_unknown("test", "thing", argv[2], "alpha beta", "there are two");
}

static void unknown_words(void **state)
{
    (void)state;
    int status = -1;
    char *text = OUTPUT(ask, &status, "test", "p", "stiky");
    assert_int_equal(status, CLI_EXIT_INPUT);
    assert_string_equal(text, "weir test: no policy 'stiky'; did you mean sticky?\n");
    free(text);
    text = OUTPUT(ask, &status, "test", "t", "gamma_ray");
    assert_string_equal(text, "weir test: no thing 'gamma_ray'; there are two\n");
    free(text);
    text = OUTPUT(ask, &status, "test", "t", "");
    assert_string_equal(text, "weir test: no thing ''; there are two\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_numbers), cmocka_unit_test(real_numbers),
        cmocka_unit_test(mistakes),      cmocka_unit_test(good_lines),
        cmocka_unit_test(unknown_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
