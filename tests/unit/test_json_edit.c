/* Changes to the top level of a JSON object: what stays is the original text, byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <yyjson.h>

#include "controller/openai/json_edit.h"

static char joined[4096];

static const char *join(const struct json_edit *e)
{
    size_t n = 0;
    for (size_t i = 0; i < e->n_slices; i++) {
        assert_true(n + e->slices[i].len < sizeof joined);
        memcpy(joined + n, e->slices[i].s, e->slices[i].len);
        n += e->slices[i].len;
    }
    joined[n] = '\0';
    assert_int_equal(n, e->len);
    return joined;
}

static struct json_change set(const char *name, const char *value)
{
    return (struct json_change){name, {value, value ? strlen(value) : 0}};
}

static const char *edit(const char *text, const struct json_change *changes, size_t n)
{
    struct json_edit e;
    assert_int_equal(json_edit(&e, text, strlen(text), changes, n), 0);
    const char *out = join(&e);
    yyjson_doc *doc = yyjson_read(out, strlen(out), 0);
    assert_non_null(doc); /* always JSON again */
    yyjson_doc_free(doc);
    return out;
}

static void nothing_to_change(void **state)
{
    (void)state;
    const char *text = " {\"a\" : [1, {\"b\":2}] }\n";
    assert_string_equal(edit(text, NULL, 0), text);
}

static void removes_and_sets(void **state)
{
    (void)state;
    struct json_change c[] = {set("stream", NULL), set("max_tokens", "1")};
    assert_string_equal(edit("{\"model\":\"m\",\"stream\":true,\"x\":1}", c, 2),
                        "{\"model\":\"m\",\"x\":1,\"max_tokens\":1}");
    assert_string_equal(edit("{\"stream\":true}", c, 2), "{\"max_tokens\":1}");
    assert_string_equal(edit("{}", c, 2), "{\"max_tokens\":1}");
    assert_string_equal(edit("{\"stream\":true,\"a\":1}", c, 2), "{\"a\":1,\"max_tokens\":1}");
    assert_string_equal(edit("{\"a\":1,\"stream\":true}", c, 2), "{\"a\":1,\"max_tokens\":1}");
    assert_string_equal(edit("{\"max_tokens\":9,\"a\":1,\"max_tokens\":8}", c, 2),
                        "{\"a\":1,\"max_tokens\":1}");
}

static void only_the_top_level(void **state)
{
    (void)state;
    struct json_change c[] = {set("stream", NULL)};
    const char *text =
        "{\"a\":{\"stream\":1},\"b\":[\"stream\",{\"stream\":2}],\"c\":\"\\\"stream\\\":\"}";
    assert_string_equal(edit(text, c, 1), text);
}

static void strings_with_anything(void **state)
{
    (void)state;
    struct json_change c[] = {set("x", NULL)};
    assert_string_equal(edit("{\"a\":\"}]\\\\\\\"{[,\",\"x\":\"\\\\\",\"b\":2}", c, 1),
                        "{\"a\":\"}]\\\\\\\"{[,\",\"b\":2}");
}

static void broken_text(void **state)
{
    (void)state;
    static const char *const bad[] = {"",           "[]",         "{",         "{\"a\"",
                                      "{\"a\":",    "{\"a\":1",   "{\"a\":1,", "{\"a\" 1}",
                                      "{\"a\":1}}", "{\"a\":]}",  "{a:1}",     "{\"a\":\"",
                                      "{\"a\":1,}", "{\"a\":1}x", "{\"a\":[}"};
    struct json_change c[] = {set("a", "1")};
    struct json_edit e;
    struct json_slice v;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = json_edit(&e, bad[i], strlen(bad[i]), c, 1);
        if (rc != WEIR_E_INPUT)
            fail_msg("%s: %d", bad[i], rc);
        json_member(bad[i], strlen(bad[i]), "a", &v);
    }
}

static void limits(void **state)
{
    (void)state;
    struct json_change c[JSON_EDIT_MAX_CHANGES + 1];
    struct json_edit e;
    char long_name[80];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    for (size_t i = 0; i < JSON_EDIT_MAX_CHANGES + 1; i++)
        c[i] = set("a", "1");
    assert_int_equal(json_edit(&e, "{}", 2, c, JSON_EDIT_MAX_CHANGES), 0);
    assert_int_equal(json_edit(&e, "{}", 2, c, JSON_EDIT_MAX_CHANGES + 1), WEIR_E_LIMIT);
    c[0] = set(long_name, "1");
    assert_int_equal(json_edit(&e, "{}", 2, c, 1), WEIR_E_LIMIT);
    /* more gaps than there are slices: a member repeated between others */
    char text[4096] = "{\"k\":0";
    for (int i = 0; i < 100; i++)
        strncat(text, ",\"a\":1,\"k\":0", sizeof text - strlen(text) - 1);
    strncat(text, "}", sizeof text - strlen(text) - 1);
    c[0] = set("a", NULL);
    assert_int_equal(json_edit(&e, text, strlen(text), c, 1), WEIR_E_LIMIT);
}

static void members(void **state)
{
    (void)state;
    const char *text = "{\"a\": {\"b\":[1,2]} ,\"c\":null,\"a\":7}";
    struct json_slice v;
    assert_true(json_member(text, strlen(text), "a", &v));
    assert_int_equal(v.len, 1);
    assert_memory_equal(v.s, "7", 1); /* the last one, as parsers take it */
    assert_true(json_member(text, strlen(text), "c", &v));
    assert_memory_equal(v.s, "null", 4);
    assert_false(json_member(text, strlen(text), "b", &v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_to_change),
        cmocka_unit_test(removes_and_sets),
        cmocka_unit_test(only_the_top_level),
        cmocka_unit_test(strings_with_anything),
        cmocka_unit_test(broken_text),
        cmocka_unit_test(limits),
        cmocka_unit_test(members),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
