/* JSON as a flat list: what is taken and what is not, escapes, numbers, limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/openai/json_scan.c"
#include "tests/support/fail_alloc.h"

static struct json_scan scan;

static int read(const char *text)
{
    /* in a block of its own, so that a sanitizer sees a byte too far */
    static char *copy;
    size_t len = strlen(text);
    free(copy);
    copy = malloc(len ? len : 1);
    memcpy(copy, text, len);
    int rc = json_scan(&scan, copy, len);
    if (!len) {
        free(copy);
        copy = NULL;
    }
    return rc;
}

static void texts_that_are_taken(void **state)
{
    static const char *const good[] = {
        "{}",
        "[]",
        " [ ] ",
        "null",
        "0",
        "-0",
        "-1.5e+3",
        "1E2",
        "\"\"",
        "[[],{},[{}]]",
        "{\"a\":{\"b\":[1,2]},\"a\":0}",
        "\"\\u0000\\ud83d\\ude80\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
        "\"a string of more than thirty-two bytes, then a quote\"",
        "\t\r\n true\n"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(read(good[i]), 0);
}

static void texts_that_are_not(void **state)
{
    static const char *const bad[] = {"",
                                      " ",
                                      "{",
                                      "[",
                                      "[1,]",
                                      "[,1]",
                                      "{\"a\"}",
                                      "{\"a\":}",
                                      "{\"a\":1,}",
                                      "{a:1}",
                                      "{'a':1}",
                                      "[1 2]",
                                      "1 2",
                                      "01",
                                      "-",
                                      "+1",
                                      "1.",
                                      ".5",
                                      "1e",
                                      "1e+",
                                      "nul",
                                      "nulll",
                                      "True",
                                      "NaN",
                                      "Infinity",
                                      "\"",
                                      "\"\\\"",
                                      "\"\\x41\"",
                                      "\"\\u12g4\"",
                                      "\"\\u123\"",
                                      "\"\\ud83d\"",
                                      "\"\\ud83d\\u0041\"",
                                      "\"\\ude80\"",
                                      "\"\\ud83d\\ud83d\"",
                                      "\"\n\"",
                                      "\"\x01\"",
                                      "\"\x80\"",
                                      "\"\xc0\xaf\"",
                                      "\"\xc1\xbf\"",
                                      "\"\xe0\x9f\xbf\"",
                                      "\"\xed\xa0\x80\"",
                                      "\"\xf0\x8f\xbf\xbf\"",
                                      "\"\xf4\x90\x80\x80\"",
                                      "\"\xf5\x80\x80\x80\"",
                                      "\"\xe2\x82\"",
                                      "\"\xc2",
                                      "[}",
                                      "{]",
                                      "{\"a\":1]",
                                      "[1}",
                                      "]",
                                      "}",
                                      "\xef\xbb\xbf{}",
                                      "// x\n1",
                                      "[1]]",
                                      "{\"a\":1}{"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read(bad[i]), WEIR_E_INPUT);
        assert_non_null(scan.why);
        assert_true(scan.at <= strlen(bad[i]));
    }
}

/* A byte that needs a look is found wherever it stands in a block. */
static void every_place_in_a_block(void **state)
{
    char text[128];
    (void)state;
    for (size_t n = 0; n < 100; n++) {
        for (int kind = 0; kind < 4; kind++) {
            static const char *const what[] = {"\x1f", "\\n", "\xc3\xa4", "\xff"};
            text[0] = '"';
            memset(text + 1, 'x', 110);
            memcpy(text + 1 + n, what[kind], strlen(what[kind]));
            memcpy(text + 111, "\"", 2);
            assert_int_equal(read(text), kind % 3 ? 0 : WEIR_E_INPUT);
        }
    }
}

static void members(void **state)
{
    uint64_t u;
    int64_t i;
    (void)state;
    assert_int_equal(
        read(
            "{\"a\":1,\"b\":{\"a\":[true,\"\\u0061\\u00e4\"]},\"\\u0063\":-7,\"a\":18446744073709551615}"),
        0);
    const struct json_value *root = scan.values, *b = json_get(root, "b");
    assert_int_equal(root->len, 4);
    assert_true(json_uint(json_get(root, "a"), &u) && u == UINT64_MAX); /* the last one */
    assert_false(json_int(json_get(root, "a"), &i));
    assert_true(json_int(json_get(root, "c"), &i) && i == -7);
    assert_false(json_uint(json_get(root, "c"), &u));
    assert_null(json_get(root, "d"));
    assert_null(json_get(json_get(root, "a"), "a"));
    const struct json_value *a = json_get(b, "a"), *first = json_first(a);
    assert_true(json_is(first, JSON_TRUE));
    const struct json_value *text = json_next(a, first);
    assert_true(json_equals(text, "a\xc3\xa4") && !json_equals(text, "a") &&
                !json_equals(text, "a\xc3\xa4x"));
    assert_int_equal(json_length(text), 3);
    char copy[3];
    json_copy(text, copy);
    assert_memory_equal(copy, "a\xc3\xa4", 3);
    assert_null(json_next(a, text));
    assert_int_equal(
        read(
            "[9223372036854775807,-9223372036854775808,9223372036854775808,-9223372036854775809,1.0,1e2]"),
        0);
    bool fits[] = {true, true, false, false, false, false};
    const struct json_value *v = json_first(scan.values);
    for (int k = 0; k < 6; k++, v = json_next(scan.values, v))
        assert_int_equal(json_int(v, &i), fits[k]);
}

static void limits(void **state)
{
    size_t n = 4 * JSON_KEEP_VALUES;
    char *text = malloc(n);
    (void)state;
    memset(text, '[', n);
    assert_int_equal(json_scan(&scan, text, JSON_MAX_DEPTH + 1), WEIR_E_INPUT);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    assert_int_equal(json_scan(&scan, text, 2 * JSON_MAX_DEPTH), 0);
    assert_int_equal(scan.values->span, JSON_MAX_DEPTH);
    for (size_t i = 1; i < n; i++)
        text[i] = i % 2 ? '1' : ',';
    text[n - 1] = ']';
    text[n - 2] = '1';
    text[n - 3] = ' ';
    text[n - 4] = ',';
    assert_int_equal(json_scan(&scan, text, n), 0);
    assert_true(scan.cap > JSON_KEEP_VALUES);
    json_scan_reset(&scan);
    assert_int_equal(scan.cap, 0);
    n = 2 * (size_t)JSON_MAX_VALUES + 8;
    text = realloc(text, n);
    memset(text, '0', n);
    for (size_t i = 0; i < n; i += 2)
        text[i] = i ? ',' : '[';
    assert_int_equal(json_scan(&scan, text, n), WEIR_E_INPUT);
    assert_string_equal(scan.why, "more values than are taken");
    json_scan_reset(&scan);
    free(text);
}

static void memory(void **state)
{
    (void)state;
    fail_alloc_at(1);
    assert_int_equal(json_scan(&scan, "[1]", 3), WEIR_E_NOMEM);
    fail_alloc_at(0);
    assert_int_equal(json_scan(&scan, "[1]", 3), 0);
    json_scan_deinit(&scan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_that_are_taken),
        cmocka_unit_test(texts_that_are_not),
        cmocka_unit_test(every_place_in_a_block),
        cmocka_unit_test(members),
        cmocka_unit_test(limits),
        cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
