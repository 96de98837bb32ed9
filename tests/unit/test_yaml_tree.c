/* YAML documents as trees that know their lines, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/replay/stack.h"
#include "controller/config/yaml_tree.h"
#include "tests/support/files.h"

static char error[STACK_ERROR_BYTES];

/* The tree as one line: scalars 'quoted' or plain, @line behind keys. */
static void show(FILE *f, const struct ytree_node *n)
{
    if (n->key)
        (void)fprintf(f, "%s@%u=", n->key, n->line);
    if (n->kind == YTREE_SCALAR) {
        (void)fprintf(f, n->quoted ? "'%s'" : "%s", n->text);
        return;
    }
    (void)fputc(n->kind == YTREE_MAP ? '{' : '[', f);
    for (const struct ytree_node *c = n->first; c; c = c->next) {
        show(f, c);
        (void)fputs(c->next ? " " : "", f);
    }
    (void)fputc(n->kind == YTREE_MAP ? '}' : ']', f);
}

static void expect(const char *text, const char *want)
{
    struct ytree t;
    char *got = NULL;
    size_t len = 0;
    if (ytree_parse(&t, "f", text, strlen(text), error))
        fail_msg("%s for:\n%s", error, text);
    FILE *f = open_memstream(&got, &len);
    assert_non_null(f);
    if (t.root)
        show(f, t.root);
    assert_int_equal(fclose(f), 0);
    assert_string_equal(got, want);
    free(got);
    ytree_deinit(&t);
}

static void refuse(const char *text, size_t len, const char *want)
{
    struct ytree t;
    assert_int_equal(ytree_parse(&t, "f", text, len, error), WEIR_E_INPUT);
    ytree_deinit(&t);
    if (strncmp(error, want, strlen(want)) != 0)
        fail_msg("expected '%s', got '%s'", want, error);
}

static void trees(void **state)
{
    (void)state;
    expect("", "");
    expect("# only a comment\n", "");
    expect("7", "7");
    expect("a: 1\nb:\n  - x\n  - {c: '2', d: [3, \"4\"]}\n\ne:\n",
           "{a@1=1 b@2=[x {c@4='2' d@4=[3 '4']}] e@6=}");
    expect("\xef\xbb\xbf"
           "a: \xc3\xa9\r\nb: 2\r\n",
           "{a@1=\xc3\xa9 b@2=2}");
    expect("a: |\n  two\n  lines\n", "{a@1='two\nlines\n'}");
    expect("---\na: 1\n...\n", "{a@2=1}");
}

static void refusals(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"a: &x 1\n", "f:1: anchors and tags are not accepted"},
        {"a: !!int 1\n", "f:1: anchors and tags are not accepted"},
        {"a: 1\nb: *x\n", "f:2: aliases (*name) are not accepted"},
        {"a: 1\n---\nb: 2\n", "f:2: a second document"},
        {"[a]: 1\n", "f:1: a list or a mapping as a key"},
        {"a: [1, 2\n", "f:2: not YAML: did not find expected"},
        {"a: 'open\n", "f:2: not YAML"},
        {"a: \"\\0\"\n", "f:1: a NUL character in a value"},
        {"a: 1\nb: \xff\n", "f:2: expected YAML text in UTF-8, found byte 0xff"},
        {"[[[[[[[[[[[[[1]]]]]]]]]]]]]", "f:1: nested deeper than 12 levels"},
        {"a: 1\n\x01", "f:2: not YAML"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refuse(bad[i][0], strlen(bad[i][0]), bad[i][1]);
    refuse("a: 1\nb\0: 2\n", 11, "f:2: expected YAML text in UTF-8, found byte 0x00");
}

static void deepest_tree(void **state)
{
    (void)state;
    expect("[[[[[[[[[[[[1]]]]]]]]]]]]", "[[[[[[[[[[[[1]]]]]]]]]]]]");
}

static void node_limit(void **state)
{
    (void)state;
    size_t n = (size_t)YTREE_MAX_NODES * 2 + 2;
    char *text = malloc(n);
    struct ytree t;
    assert_non_null(text);
    text[0] = '[';
    for (size_t i = 1; i < n; i++)
        text[i] = i % 2 ? '1' : ',';
    text[n - 1] = ']';
    refuse(text, n, "f:1: more than 1000000 values; split the file");
    text[n - 5] = ']'; /* the list and 999,999 values */
    if (ytree_parse(&t, "f", text, n - 4, error))
        fail_msg("%s", error);
    assert_true(t.n_nodes <= YTREE_MAX_NODES);
    ytree_deinit(&t);
    free(text);
}

static void files(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len = 0;
    const char *path = file_of("a: 1\n");
    assert_int_equal(ytree_read_file(path, 5, &text, &len, error), 0);
    assert_int_equal(len, 5);
    assert_string_equal(text, "a: 1\n");
    free(text);
    assert_int_equal(ytree_read_file(path, 4, &text, &len, error), WEIR_E_INPUT);
    assert_non_null(strstr(error, "larger than 0 MiB"));
    assert_int_equal(ytree_read_file("/no/such", 9, &text, &len, error), WEIR_E_IO);
    assert_string_equal(error,
                        "/no/such: cannot open it: No such file or directory; check the path");
    assert_int_equal(ytree_read_file("/", 9, &text, &len, error), WEIR_E_IO);
    assert_string_equal(error, "/: cannot read it: Is a directory");
}

/* A message is one line, whatever is in it. */
static void messages(void **state)
{
    (void)state;
    ytree_error(error, "a\nb\x7f%s", "c\td");
    assert_string_equal(error, "a?b?c?d");
    char endless[2 * STACK_ERROR_BYTES];
    memset(endless, 'x', sizeof endless - 1);
    endless[sizeof endless - 1] = '\0';
    ytree_error(error, "%s", endless);
    assert_int_equal(strlen(error), STACK_ERROR_BYTES - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trees),      cmocka_unit_test(refusals), cmocka_unit_test(deepest_tree),
        cmocka_unit_test(node_limit), cmocka_unit_test(files),    cmocka_unit_test(messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
