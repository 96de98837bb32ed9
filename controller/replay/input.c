/* input.c - see input.h. */
#include "controller/replay/input.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define RAW_BYTES ((size_t)64 << 10)
#define WINDOW_BYTES                                                                               \
    ((size_t)128 << 10) /* more would push what the simulation uses out of the cache */
#define SENTINEL_BYTES 1

enum encoding { PLAIN, GZIP, ZSTD };

struct input {
    enum encoding encoding;
    int fd; /* -1: memory */
    const uint8_t *mem;
    size_t mem_left;

    uint8_t *raw; /* compressed bytes not yet decoded: [raw_pos, raw_len) */
    size_t raw_pos, raw_len;
    bool raw_end;

    char *win; /* decoded bytes not yet returned: [pos, len) */
    size_t pos, len, cap;
    bool win_borrowed; /* plain memory */
    bool end;          /* nothing more to decode */
    char *tail;        /* last line of plain memory, with a sentinel */

    z_stream z;
    bool z_live;
    bool member_done; /* between gzip members or zstd frames */
    ZSTD_DStream *zstd;

    size_t line_max;
    uint64_t line;
    int failed;
    char name[INPUT_NAME_BYTES];
    char error[INPUT_ERROR_BYTES];
};

char *input_quote(char *out, size_t cap, const char *s, size_t len, size_t max)
{
    assert(cap >= 8);
    size_t n = 0, i = 0;
    for (; i < len && i < max && n + 8 < cap; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x7f)
            out[n++] = (char)c;
        else
            n += (size_t)snprintf(out + n, cap - n, "\\x%02x", c);
    }
    if (i < len) {
        memcpy(out + n, "...", 3);
        n += 3;
    }
    out[n] = '\0';
    return out;
}

__attribute__((format(printf, 3, 4))) static int fail(struct input *in, int code, const char *fmt,
                                                      ...)
{
    int n = snprintf(in->error, sizeof in->error, "%s: ", in->name);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(in->error + n, sizeof in->error - (size_t)n, fmt, ap);
    va_end(ap);
    in->failed = code;
    return code;
}

/* Up to cap undecoded bytes; *got 0 at the end. */
static int read_raw(struct input *in, void *dst, size_t cap, size_t *got)
{
    if (in->fd < 0) {
        *got = cap < in->mem_left ? cap : in->mem_left;
        if (*got)
            memcpy(dst, in->mem, *got);
        in->mem += *got;
        in->mem_left -= *got;
        return 0;
    }
    ssize_t n;
    do
        n = read(in->fd, dst, cap);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return fail(in, WEIR_E_IO, "cannot be read: %s", strerror(errno));
    *got = (size_t)n;
    return 0;
}

static int refill_raw(struct input *in)
{
    if (in->raw_pos < in->raw_len || in->raw_end)
        return 0;
    in->raw_pos = in->raw_len = 0;
    int rc = read_raw(in, in->raw, RAW_BYTES, &in->raw_len);
    if (!rc && !in->raw_len)
        in->raw_end = true;
    return rc;
}

static int cut_off(struct input *in, const char *what)
{
    return fail(
        in, WEIR_E_INPUT,
        "the %s data is cut off: it ends after %llu whole lines; fetch or compress it again", what,
        (unsigned long long)in->line);
}

/* Decodes into [len, cap); *got 0 only at the end. */
static int decode_gzip(struct input *in, size_t *got)
{
    size_t room = in->cap - SENTINEL_BYTES - in->len;
    uInt want = room > UINT32_MAX ? UINT32_MAX : (uInt)room;
    for (;;) {
        int rc = refill_raw(in);
        if (rc)
            return rc;
        bool dry = in->raw_pos == in->raw_len;
        if (in->member_done) {
            if (dry)
                return 0;
            if (inflateReset(&in->z) != Z_OK)
                return fail(in, WEIR_E_NOMEM, "out of memory");
            in->member_done = false;
        }
        in->z.next_in = in->raw + in->raw_pos;
        in->z.avail_in = (uInt)(in->raw_len - in->raw_pos);
        in->z.next_out = (Bytef *)in->win + in->len;
        in->z.avail_out = want;
        int z = inflate(&in->z, Z_NO_FLUSH);
        in->raw_pos = in->raw_len - in->z.avail_in;
        *got = want - in->z.avail_out;
        if (z == Z_STREAM_END)
            in->member_done = true;
        else if (z == Z_MEM_ERROR)
            return fail(in, WEIR_E_NOMEM, "out of memory");
        else if (z != Z_OK && z != Z_BUF_ERROR)
            return fail(in, WEIR_E_INPUT,
                        "the gzip data is corrupt (%s); fetch or compress it again",
                        in->z.msg ? in->z.msg : "zlib error");
        if (*got)
            return 0;
        if (dry && z != Z_STREAM_END)
            return cut_off(in, "gzip");
    }
}

static int decode_zstd(struct input *in, size_t *got)
{
    for (;;) {
        int rc = refill_raw(in);
        if (rc)
            return rc;
        bool dry = in->raw_pos == in->raw_len;
        if (dry && in->member_done)
            return 0;
        ZSTD_inBuffer src = {in->raw, in->raw_len, in->raw_pos};
        ZSTD_outBuffer dst = {in->win + in->len, in->cap - SENTINEL_BYTES - in->len, 0};
        size_t z = ZSTD_decompressStream(in->zstd, &dst, &src);
        in->raw_pos = src.pos;
        if (ZSTD_isError(z))
            return fail(in, WEIR_E_INPUT,
                        "the zstd data is corrupt (%s); fetch or compress it again",
                        ZSTD_getErrorName(z));
        in->member_done = z == 0;
        *got = dst.pos;
        if (*got)
            return 0;
        if (dry)
            return cut_off(in, "zstd");
    }
}

/* More decoded bytes behind len, or end. */
static int fill(struct input *in)
{
    assert(!in->win_borrowed);
    size_t held = in->len - in->pos;
    if (in->pos) {
        memmove(in->win, in->win + in->pos, held);
        in->pos = 0;
        in->len = held;
    }
    if (in->cap - SENTINEL_BYTES - in->len < in->cap / 2) {
        char *p = realloc(in->win, in->cap * 2);
        if (!p)
            return fail(in, WEIR_E_NOMEM, "out of memory for a line of %zu bytes", held);
        in->win = p;
        in->cap *= 2;
    }
    size_t got = 0;
    int rc;
    if (in->encoding == GZIP)
        rc = decode_gzip(in, &got);
    else if (in->encoding == ZSTD)
        rc = decode_zstd(in, &got);
    else
        rc = read_raw(in, in->win + in->len, in->cap - SENTINEL_BYTES - in->len, &got);
    if (rc)
        return rc;
    in->len += got;
    in->end = got == 0;
    return 0;
}

/* The last line has no end of line: give it a sentinel. */
static int last_line(struct input *in, const char **line, size_t *len)
{
    *len = in->len - in->pos;
    *line = in->win + in->pos;
    in->pos = in->len;
    if (!in->win_borrowed) {
        in->win[in->len] = '\0';
        return 1;
    }
    in->tail = malloc(*len + 1);
    if (!in->tail)
        return fail(in, WEIR_E_NOMEM, "out of memory");
    memcpy(in->tail, *line, *len);
    in->tail[*len] = '\0';
    *line = in->tail;
    return 1;
}

int input_line(struct input *in, const char **line, size_t *len)
{
    if (in->failed)
        return in->failed;
    size_t scanned = 0;
    for (;;) {
        size_t held = in->len - in->pos;
        const char *s = in->win + in->pos;
        const char *nl = held > scanned ? memchr(s + scanned, '\n', held - scanned) : NULL;
        if (nl ? (size_t)(nl - s) > in->line_max : held > in->line_max)
            return fail(in, WEIR_E_INPUT,
                        "line %llu is longer than %zu bytes, the most a line may have; is this a "
                        "trace with one request a line?",
                        (unsigned long long)in->line + 1, in->line_max);
        if (nl) {
            *line = s;
            *len = (size_t)(nl - s);
            in->pos += *len + 1;
            break;
        }
        if (in->end) {
            if (!held)
                return 0;
            int rc = last_line(in, line, len);
            if (rc < 0)
                return rc;
            break;
        }
        scanned = held;
        int rc = fill(in);
        if (rc)
            return rc;
    }
    if (*len && (*line)[*len - 1] == '\r')
        --*len;
    if (in->line++ == 0 && *len >= 3 && !memcmp(*line, "\xef\xbb\xbf", 3)) {
        *line += 3;
        *len -= 3;
    }
    return 1;
}

uint64_t input_line_number(const struct input *in)
{
    return in->line;
}

const char *input_name(const struct input *in)
{
    return in->name;
}

const char *input_error(const struct input *in)
{
    return in->error;
}

static enum encoding encoding_of(const uint8_t *p, size_t n)
{
    if (n >= 2 && p[0] == 0x1f && p[1] == 0x8b)
        return GZIP;
    if (n >= 4 && p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd)
        return ZSTD;
    if (n >= 4 && (p[0] & 0xf0) == 0x50 && p[1] == 0x2a && p[2] == 0x4d && p[3] == 0x18)
        return ZSTD; /* a skippable frame first */
    return PLAIN;
}

/* The first bytes, enough to tell the encoding (a pipe may give them one by one). */
static int peek(struct input *in)
{
    while (in->raw_len < 4) {
        size_t got = 0;
        int rc = read_raw(in, in->raw + in->raw_len, RAW_BYTES - in->raw_len, &got);
        if (rc)
            return rc;
        if (!got) {
            in->raw_end = true;
            break;
        }
        in->raw_len += got;
    }
    return 0;
}

static int start(struct input *in)
{
    if (in->fd < 0)
        in->encoding = encoding_of(in->mem, in->mem_left);
    if (in->fd < 0 && in->encoding == PLAIN) {
        in->win = (char *)(uintptr_t)in->mem; /* never written: win_borrowed */
        in->len = in->mem_left;
        in->win_borrowed = in->end = true;
        return 0;
    }
    in->raw = calloc(1, RAW_BYTES);
    in->win = malloc(WINDOW_BYTES);
    in->cap = WINDOW_BYTES;
    if (!in->raw || !in->win)
        return fail(in, WEIR_E_NOMEM, "out of memory");
    int rc = peek(in);
    if (rc)
        return rc;
    in->encoding = encoding_of(in->raw, in->raw_len);
    if (in->encoding == GZIP) {
        if (inflateInit2(&in->z, 15 + 16) != Z_OK)
            return fail(in, WEIR_E_NOMEM, "out of memory");
        in->z_live = true;
    } else if (in->encoding == ZSTD) {
        in->zstd = ZSTD_createDStream();
        if (!in->zstd)
            return fail(in, WEIR_E_NOMEM, "out of memory");
    } else {
        memcpy(in->win, in->raw, in->raw_len);
        in->len = in->raw_len;
        in->raw_pos = in->raw_len;
    }
    return 0;
}

static struct input *input_new(const char *name, size_t line_max, char *error)
{
    struct input *in = calloc(1, sizeof *in);
    if (!in) {
        snprintf(error, INPUT_ERROR_BYTES, "out of memory");
        return NULL;
    }
    size_t n = strlen(name), most = INPUT_NAME_BYTES / 2;
    if (n > most) {
        memcpy(in->name, "...", 3);
        input_quote(in->name + 3, sizeof in->name - 3, name + n - most, most, most);
    } else {
        input_quote(in->name, sizeof in->name, name, n, n);
    }
    in->fd = -1;
    in->line_max = line_max;
    return in;
}

static struct input *start_or_close(struct input *in, char *error)
{
    if (!start(in))
        return in;
    memcpy(error, in->error, INPUT_ERROR_BYTES);
    input_close(in);
    return NULL;
}

struct input *input_open(const char *path, size_t line_max, char *error)
{
    bool standard = !strcmp(path, "-");
    struct input *in = input_new(standard ? "<stdin>" : path, line_max, error);
    if (!in)
        return NULL;
    in->fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (in->fd < 0) {
        snprintf(error, INPUT_ERROR_BYTES, "%s: cannot be opened: %s", in->name, strerror(errno));
        input_close(in);
        return NULL;
    }
    return start_or_close(in, error);
}

struct input *input_open_memory(const char *name, const void *data, size_t len, size_t line_max,
                                char *error)
{
    struct input *in = input_new(name, line_max, error);
    if (!in)
        return NULL;
    in->mem = data;
    in->mem_left = len;
    return start_or_close(in, error);
}

void input_close(struct input *in)
{
    if (!in)
        return;
    if (in->fd > STDIN_FILENO)
        close(in->fd);
    if (in->z_live)
        inflateEnd(&in->z);
    ZSTD_freeDStream(in->zstd);
    free(in->raw);
    if (!in->win_borrowed)
        free(in->win);
    free(in->tail);
    free(in);
}
