/* files.c - see files.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "tests/support/files.h"

#define MAX_FILES 256
#define OUTPUT_MAX_BYTES ((size_t)8 << 20)

static char names[MAX_FILES][64];
static unsigned n_names;

static void remove_all(void)
{
    while (n_names)
        (void)unlink(names[--n_names]);
}

static void write_all(int fd, const char *p, size_t len)
{
    while (len) {
        ssize_t n = write(fd, p, len);
        assert_true(n > 0);
        p += n;
        len -= (size_t)n;
    }
}

const char *file_with(const void *data, size_t len)
{
    if (!n_names)
        assert_int_equal(atexit(remove_all), 0);
    assert_true(n_names < MAX_FILES);
    char *name = names[n_names];
    (void)snprintf(name, sizeof names[0], "%s/weir-test-XXXXXX",
                   getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 40 ? getenv("TMPDIR") : "/tmp");
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    n_names++;
    write_all(fd, data, len);
    assert_int_equal(close(fd), 0);
    return name;
}

const char *file_of(const char *text)
{
    return file_with(text, strlen(text));
}

void *gzip_of(const void *data, size_t len, size_t *out_len)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)data, .avail_in = (uInt)len};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    size_t cap = deflateBound(&z, len) + 64;
    uint8_t *out = malloc(cap);
    assert_non_null(out);
    z.next_out = out;
    z.avail_out = (uInt)cap;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    *out_len = cap - z.avail_out;
    deflateEnd(&z);
    return out;
}

void *zstd_of(const void *data, size_t len, size_t *out_len)
{
    size_t cap = ZSTD_compressBound(len);
    void *out = malloc(cap);
    ZSTD_CCtx *c = ZSTD_createCCtx();
    assert_non_null(out);
    assert_non_null(c);
    assert_false(ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1)));
    *out_len = ZSTD_compress2(c, out, cap, data, len);
    assert_false(ZSTD_isError(*out_len));
    ZSTD_freeCCtx(c);
    return out;
}

/* Puts fd in the place of `at`; returns what was there. */
static int swap(int fd, int at)
{
    int old = dup(at);
    assert_true(old >= 0);
    assert_int_equal(dup2(fd, at), at);
    return old;
}

static void swap_back(int old, int at)
{
    assert_int_equal(dup2(old, at), at);
    (void)close(old);
}

char *output_of(int (*command)(int, char **), const char *const *argv, const char *input,
                int *status)
{
    int argc = 0, out = memfd_create("out", 0), in = memfd_create("in", 0);
    char *copy[64];
    assert_true(out >= 0 && in >= 0);
    for (; argv[argc]; argc++) { /* getopt reorders them, strsep cuts them up */
        assert_true(argc < 63);
        copy[argc] = strdup(argv[argc]);
        assert_non_null(copy[argc]);
    }
    copy[argc] = NULL;
    char *kept[64];
    memcpy(kept, copy, sizeof kept);
    if (input)
        write_all(in, input, strlen(input));
    assert_int_equal(lseek(in, 0, SEEK_SET), 0);

    (void)fflush(NULL);
    int old_in = swap(in, 0), old_out = swap(out, 1), old_err = swap(out, 2);
    *status = command(argc, copy);
    (void)fflush(NULL);
    swap_back(old_in, 0);
    swap_back(old_out, 1);
    swap_back(old_err, 2);

    off_t len = lseek(out, 0, SEEK_END);
    assert_true(len >= 0 && (size_t)len < OUTPUT_MAX_BYTES);
    char *text = calloc(1, (size_t)len + 1);
    assert_non_null(text);
    assert_int_equal(pread(out, text, (size_t)len, 0), len);
    (void)close(in);
    (void)close(out);
    while (argc)
        free(kept[--argc]);
    return text;
}
