/* Lines of files, of pipes and of memory; plain, gzip and zstd; and what is wrong with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "controller/replay/input.h"
#include "tests/support/files.h"

#define LIMIT 1000

static char error[INPUT_ERROR_BYTES];

/* All lines, with '|' behind each, and behind an error its message. Free it. */
static char *lines_of(struct input *in)
{
    char *text = NULL;
    size_t size = 0, len;
    const char *line;
    int rc;
    FILE *f = open_memstream(&text, &size);
    assert_non_null(f);
    assert_non_null(in);
    while ((rc = input_line(in, &line, &len)) > 0) {
        assert_true(line[len] == '\n' || line[len] == '\r' || line[len] == '\0');
        (void)fwrite(line, 1, len, f);
        (void)fputc('|', f);
    }
    if (rc < 0) {
        (void)fprintf(f, "!%s", input_error(in));
        assert_int_equal(input_line(in, &line, &len), rc);
    }
    assert_int_equal(fclose(f), 0);
    input_close(in);
    return text;
}

static void expect_bytes(const void *data, size_t len, const char *want)
{
    const char *path = file_with(data, len);
    char *file = lines_of(input_open(path, LIMIT, error));
    char *memory = lines_of(input_open_memory(path, data, len, LIMIT, error));
    assert_string_equal(file, memory);
    const char *says = strchr(file, '!');
    if (says) { /* "lines!" and then only a part of the message */
        const char *part = strchr(want, '!');
        assert_non_null(part);
        assert_int_equal(says - file, part - want);
        if (strncmp(says + 1, path, strlen(path)) != 0 || !strstr(says, part + 1))
            fail_msg("expected '%s', got '%s'", want, file);
    } else {
        assert_string_equal(file, want);
    }
    free(file);
    free(memory);
}

static void expect(const char *text, const char *want)
{
    expect_bytes(text, strlen(text), want);
}

static void plain(void **state)
{
    (void)state;
    expect("", "");
    expect("\n", "|");
    expect("one", "one|");
    expect("one\ntwo\n", "one|two|");
    expect("one\n\n\ntwo", "one|||two|");
    expect("one\r\ntwo\r\n", "one|two|");
    expect("a\rb\n\r\n", "a\rb||");
    expect("\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", "one|\xef\xbb\xbftwo|");
    expect("\xef\xbb\xbf", "|");
}

static void nul_bytes(void **state)
{
    (void)state;
    const char *line;
    size_t len;
    struct input *in = input_open_memory("m", "a\0b\n\0\n", 6, LIMIT, error);
    assert_int_equal(input_line(in, &line, &len), 1);
    assert_int_equal(len, 3);
    assert_memory_equal(line, "a\0b", 3);
    assert_int_equal(input_line(in, &line, &len), 1);
    assert_int_equal(len, 1);
    assert_int_equal(input_line_number(in), 2);
    assert_int_equal(input_line(in, &line, &len), 0);
    assert_int_equal(input_line(in, &line, &len), 0);
    input_close(in);
    input_close(NULL);
}

static void line_limit(void **state)
{
    (void)state;
    char text[LIMIT + 3], want[LIMIT + 4];
    memset(text, 'x', sizeof text);
    text[LIMIT] = '\n';
    text[LIMIT + 1] = 'y';
    memcpy(want, text, LIMIT);
    memcpy(want + LIMIT, "|y|", 4);
    expect_bytes(text, LIMIT + 2, want);
    text[LIMIT] = 'x';
    text[LIMIT + 1] = '\n';
    expect_bytes(text, LIMIT + 2, "!line 1 is longer than 1000 bytes");
    expect_bytes(text, LIMIT + 1, "!line 1 is longer than 1000 bytes"); /* without its end */
}

/* Lines of all sizes up to the limit, so that windows move and grow. */
static char *many_lines(size_t *len)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, len);
    assert_non_null(f);
    for (unsigned i = 0; i < 3000; i++)
        (void)fprintf(f, "%0*u\n", (int)(i * 7919 % (LIMIT - 10)) + 1, i);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void compressed(void **state)
{
    (void)state;
    size_t len, n, m;
    char *text = many_lines(&len);
    char *want = lines_of(input_open_memory("m", text, len, LIMIT, error));
    assert_true(len > 1000000);
    void *(*const packers[])(const void *, size_t, size_t *) = {gzip_of, zstd_of};
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *whole = packers[i](text, len, &n);
        expect_bytes(whole, n, want);
        free(whole);
        /* two members one behind the other, cut inside a line */
        uint8_t *head = packers[i](text, 12345, &n),
                *tail = packers[i](text + 12345, len - 12345, &m);
        uint8_t *both = malloc(n + m);
        assert_non_null(both);
        memcpy(both, head, n);
        memcpy(both + n, tail, m);
        expect_bytes(both, n + m, want);
        free(head);
        free(tail);
        free(both);
        /* nothing in it */
        whole = packers[i]("", 0, &n);
        expect_bytes(whole, n, "");
        free(whole);
    }
    free(text);
    free(want);
}

/* Cut off after any byte: an error that names the file, never a silent end. */
static void cut_off(void **state)
{
    (void)state;
    static const char text[] = "one\ntwo\nthree\n";
    void *(*const packers[])(const void *, size_t, size_t *) = {gzip_of, zstd_of};
    for (unsigned i = 0; i < 2; i++) {
        size_t n;
        uint8_t *packed = packers[i](text, sizeof text - 1, &n);
        for (size_t cut = 4; cut < n; cut++) {
            char *got = lines_of(input_open_memory("f", packed, cut, LIMIT, error));
            if (!strstr(got, i ? "!f: the zstd data is cut off" : "!f: the gzip data is cut off"))
                fail_msg("%zu of %zu bytes: '%s'", cut, n, got);
            free(got);
        }
        free(packed);
    }
}

static void corrupt(void **state)
{
    (void)state;
    static const char text[] = "one\ntwo\nthree\nfour\nfive\nsix\n";
    size_t n;
    uint8_t *packed = gzip_of(text, sizeof text - 1, &n);
    packed[n - 6] ^= 0x55; /* its checksum */
    expect_bytes(packed, n, "!the gzip data is corrupt");
    free(packed);
    packed = zstd_of(text, sizeof text - 1, &n);
    packed[n - 1] ^= 0x55;
    char *got = lines_of(input_open_memory("f", packed, n, LIMIT, error));
    assert_non_null(strstr(got, "!f: the zstd data is corrupt"));
    free(got);
    free(packed);
    expect_bytes("\x1f\x8bnonsense", 10, "!the gzip data is corrupt");
    expect_bytes("\x28\xb5\x2f\xfdnonsense", 12, "!the zstd data is corrupt");
    packed = gzip_of("one\n", 4, &n);
    uint8_t *longer = malloc(n + 3);
    assert_non_null(longer);
    memcpy(longer, packed, n);
    memcpy(longer + n, "abc", 3);
    expect_bytes(longer, n + 3, "one|!the gzip data is corrupt");
    free(packed);
    free(longer);
}

static void zstd_skippable_frame(void **state)
{
    (void)state;
    size_t n;
    uint8_t *packed = zstd_of("one\n", 4, &n), *both = malloc(n + 11);
    assert_non_null(both);
    memcpy(both, "\x50\x2a\x4d\x18\x03\0\0\0abc", 11);
    memcpy(both + 11, packed, n);
    expect_bytes(both, n + 11, "one|");
    free(packed);
    free(both);
}

/* A pipe that gives one byte at a time. */
static void standard_input(void **state)
{
    (void)state;
    static const char text[] = "one\ntwo\r\nthree";
    for (int i = 0; i < 2; i++) {
        int ends[2], old = dup(0);
        size_t n = sizeof text - 1;
        uint8_t *packed = i ? gzip_of(text, n, &n) : NULL;
        const char *bytes = i ? (const char *)packed : text;
        assert_int_equal(pipe(ends), 0);
        assert_int_equal(dup2(ends[0], 0), 0);
        (void)close(ends[0]);
        (void)fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            for (size_t k = 0; k < n; k++)
                if (write(ends[1], bytes + k, 1) != 1)
                    _exit(1);
            _exit(0);
        }
        (void)close(ends[1]);
        struct input *in = input_open("-", LIMIT, error);
        assert_non_null(in);
        assert_string_equal(input_name(in), "<stdin>");
        char *got = lines_of(in);
        assert_string_equal(got, "one|two|three|");
        free(got);
        free(packed);
        assert_int_equal(dup2(old, 0), 0);
        (void)close(old);
    }
}

static void cannot_open(void **state)
{
    (void)state;
    assert_null(input_open("/no/such/file", LIMIT, error));
    assert_string_equal(error, "/no/such/file: cannot be opened: No such file or directory");
    assert_null(input_open("/", LIMIT, error));
    assert_string_equal(error, "/: cannot be read: Is a directory");
}

static void names_in_messages(void **state)
{
    (void)state;
    char name[1000];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    memcpy(name + sizeof name - 7, "\n\x1b.gz", 6);
    name[sizeof name - 1] = '\0';
    assert_null(input_open(name, LIMIT, error));
    assert_non_null(strstr(error, "\\x0a\\x1b.gz"));
    assert_int_equal(strncmp(error, "...aaa", 6), 0);
    assert_true(strlen(error) < 2 * INPUT_NAME_BYTES);
    for (const char *c = error; *c; c++)
        assert_true(*c >= 0x20 && *c < 0x7f);
}

static void quoting(void **state)
{
    (void)state;
    char out[32];
    assert_string_equal(input_quote(out, sizeof out, "ab\n\xff", 4, 10), "ab\\x0a\\xff");
    assert_string_equal(input_quote(out, sizeof out, "abcdef", 6, 3), "abc...");
    assert_string_equal(input_quote(out, 12, "abcdefghijkl", 12, 100), "abcd...");
    assert_string_equal(input_quote(out, sizeof out, "", 0, 3), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain),
        cmocka_unit_test(nul_bytes),
        cmocka_unit_test(line_limit),
        cmocka_unit_test(compressed),
        cmocka_unit_test(cut_off),
        cmocka_unit_test(corrupt),
        cmocka_unit_test(zstd_skippable_frame),
        cmocka_unit_test(standard_input),
        cmocka_unit_test(cannot_open),
        cmocka_unit_test(names_in_messages),
        cmocka_unit_test(quoting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
