/* fuzz_input.c - any bytes as a file of lines, plain, gzip or zstd, with a small limit of the line's
 * length: read from memory and through a file, the same lines and the same message; plain text, the
 * lines that a naive splitter finds.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "controller/replay/input.h"
#include "predictor/rng.h"
#include "tests/fuzz/fuzz.h"

#define LINE_MAX_BYTES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct outcome {
    uint64_t hash, lines;
    int rc;
    char error[INPUT_ERROR_BYTES];
};

static uint64_t hash_line(uint64_t h, const char *s, size_t len)
{
    h = rng_mix64(h ^ len);
    for (size_t i = 0; i < len; i++)
        h = rng_mix64(h ^ (unsigned char)s[i]);
    return h;
}

static void read_all(struct input *in, struct outcome *out)
{
    const char *line;
    size_t len;
    if (!in)
        return;
    while ((out->rc = input_line(in, &line, &len)) > 0) {
        need(len <= LINE_MAX_BYTES, "a line longer than the limit");
        need(line[len] == '\n' || line[len] == '\r' || line[len] == '\0', "no sentinel");
        need(input_line_number(in) == ++out->lines, "lines are not numbered one by one");
        out->hash = hash_line(out->hash, line, len);
    }
    if (out->rc < 0) {
        snprintf(out->error, sizeof out->error, "%s", input_error(in));
        need(input_line(in, &line, &len) == out->rc, "an error that goes away");
    }
    input_close(in);
}

/* What the header of input.h promises for plain text. */
static void split(const char *s, size_t size, struct outcome *out)
{
    size_t at = 0;
    while (at < size) {
        const char *nl = memchr(s + at, '\n', size - at);
        size_t end = nl ? (size_t)(nl - s) : size, len = end - at;
        const char *line = s + at;
        if (len > LINE_MAX_BYTES) {
            out->rc = WEIR_E_INPUT;
            return;
        }
        if (len && line[len - 1] == '\r')
            len--;
        if (!out->lines++ && len >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) {
            line += 3;
            len -= 3;
        }
        out->hash = hash_line(out->hash, line, len);
        at = end + 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct outcome mem = {0}, file = {0}, plain = {0};
    if (fd < 0) {
        fd = memfd_create("f", MFD_CLOEXEC);
        need(fd >= 0, "memfd_create");
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    need(!ftruncate(fd, 0) && pwrite(fd, data, size, 0) == (ssize_t)size, "memfd");
    read_all(input_open_memory(path, data, size, LINE_MAX_BYTES, mem.error), &mem);
    read_all(input_open(path, LINE_MAX_BYTES, file.error), &file);
    need(mem.rc == file.rc && mem.lines == file.lines && mem.hash == file.hash &&
             strcmp(mem.error, file.error) == 0,
         "a file reads differently from memory");
    if (size && (data[0] == 0x1f || data[0] == 0x28 || (data[0] & 0xf0) == 0x50))
        return 0; /* perhaps compressed */
    split((const char *)data, size, &plain);
    need(mem.rc == plain.rc && mem.lines == plain.lines && mem.hash == plain.hash,
         "lines differ from a naive split");
    return 0;
}
