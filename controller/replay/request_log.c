/* request_log.c - one JSON line a request, in the format of weir's own log, which trace.c reads
 * back.
 *
 * A trace is in order of arrival, but requests end in another order. A row that ends early waits
 * in a heap by (arrival, row) until all rows before it are written; rows are dense, and without
 * sessions they are in order of arrival. A later turn arrives whenever the answer before it
 * ended, so rows of sessions, and everything behind the first of them, wait for the end of the
 * run. The log of one run is a trace; the logs of several policies follow one another in the
 * file.
 *
 *   report_request -> heap -> line in a 1 MiB buffer -> deflate / zstd -> write(2)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "controller/replay/input.h"
#include "controller/replay/report.h"
#include "controller/replay/report_internal.h"
#include "controller/replay/trace.h"
#include "predictor/mem.h"
#include "predictor/units.h"

#define BUFFER_BYTES ((size_t)1 << 20)
#define PACKED_BYTES ((size_t)1 << 18)
#define LINE_BYTES                                                                                 \
    2048 /* at least the longest line without keys: names 600, numbers 33 * 28, policy 256 */
#define KEY_BYTES 19 /* with quotes and comma */
#define POLICY_BYTES 128
#define POLICY_JSON_BYTES 256
/* Somebody waits for the replay: level 3 of zstd takes 1.5 times and level 6 of gzip 2.5 times
 * as long for files at most a fifth smaller. */
#define ZSTD_LEVEL 1
#define GZIP_LEVEL 1
#define GZIP_WINDOW (15 + 16) /* zlib's way to ask for a gzip header */
#define NAME_CHARS 300

enum packing { PLAIN, GZIP, ZSTD };

struct waiting {
    int64_t arrival_ps;
    uint64_t row;
    uint32_t slot;
};

struct request_log {
    int fd;
    int failed; /* the first error; sticky */
    enum packing packing;
    z_stream gzip;
    ZSTD_CCtx *zstd;
    uint8_t *packed; /* PACKED_BYTES of compressed output */
    char *buffer;    /* BUFFER_BYTES of lines */
    size_t len;

    char policy[POLICY_BYTES], policy_json[POLICY_JSON_BYTES];
    size_t policy_json_len;

    uint64_t next_row;    /* all rows before it are written */
    struct waiting *heap; /* smallest (arrival, row) first */
    uint32_t n_heap, heap_cap;
    struct report_request *slots;
    uint32_t n_slots, slots_cap;
    uint32_t *spare; /* slots that are free again */
    uint32_t n_spare, spare_cap;
};

/* ---- bytes out ---- */

static int write_all(struct request_log *l, const void *data, size_t len)
{
    const char *p = data;
    while (len) {
        ssize_t n = write(l->fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return WEIR_E_IO;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int pack_gzip(struct request_log *l, bool last)
{
    int rc = 0;
    l->gzip.next_in = (Bytef *)l->buffer;
    l->gzip.avail_in = (uInt)l->len;
    do {
        l->gzip.next_out = l->packed;
        l->gzip.avail_out = (uInt)PACKED_BYTES;
        if (deflate(&l->gzip, last ? Z_FINISH : Z_NO_FLUSH) == Z_STREAM_ERROR)
            return WEIR_E_IO;
        rc = write_all(l, l->packed, PACKED_BYTES - l->gzip.avail_out);
    } while (!rc && !l->gzip.avail_out);
    return rc;
}

static int pack_zstd(struct request_log *l, bool last)
{
    ZSTD_inBuffer in = {l->buffer, l->len, 0};
    for (;;) {
        ZSTD_outBuffer out = {l->packed, PACKED_BYTES, 0};
        size_t left = ZSTD_compressStream2(l->zstd, &out, &in, last ? ZSTD_e_end : ZSTD_e_continue);
        if (ZSTD_isError(left))
            return WEIR_E_IO;
        int rc = write_all(l, l->packed, out.pos);
        if (rc || (last ? !left : in.pos == in.size))
            return rc;
    }
}

static void flush(struct request_log *l, bool last)
{
    if (!l->failed && l->packing == PLAIN)
        l->failed = write_all(l, l->buffer, l->len);
    else if (!l->failed)
        l->failed = l->packing == GZIP ? pack_gzip(l, last) : pack_zstd(l, last);
    l->len = 0;
}

/* ---- numbers and lines ---- */

#define PUT(p, text) ((char *)memcpy(p, text, sizeof(text) - 1) + sizeof(text) - 1)

static const char digit_pairs[201] = "00010203040506070809101112131415161718192021222324"
                                     "25262728293031323334353637383940414243444546474849"
                                     "50515253545556575859606162636465666768697071727374"
                                     "75767778798081828384858687888990919293949596979899";

static inline char *put_pair(char *p, uint32_t n)
{
    memcpy(p, digit_pairs + 2 * n, 2);
    return p + 2;
}

static char *put_uint(char *p, uint64_t n)
{
    char text[20];
    size_t at = sizeof text;
    for (; n >= 100; n /= 100)
        memcpy(text + (at -= 2), digit_pairs + 2 * (n % 100), 2);
    if (n >= 10)
        memcpy(text + (at -= 2), digit_pairs + 2 * n, 2);
    else
        text[--at] = (char)('0' + n);
    memcpy(p, text + at, sizeof text - at);
    return p + (sizeof text - at);
}

/* Milliseconds with six decimals, rounded to the nanosecond. */
static char *put_ms(char *p, int64_t ps)
{
    uint64_t ns = ((uint64_t)ps + PS_PER_NS / 2) / PS_PER_NS;
    uint32_t fraction = (uint32_t)(ns % 1000000);
    p = put_uint(p, ns / 1000000);
    *p++ = '.';
    p = put_pair(p, fraction / 10000);
    p = put_pair(p, fraction / 100 % 100);
    return put_pair(p, fraction % 100);
}

static char *put_since(char *p, int64_t from_ps, int64_t to_ps)
{
    return to_ps < from_ps ? PUT(p, "null") : put_ms(p, to_ps - from_ps);
}

static char *put_worker(char *p, uint32_t worker)
{
    return worker == CORE_NO_WORKER ? PUT(p, "null") : put_uint(p, worker);
}

static char *put_hash(char *p, uint64_t hash)
{
    *p++ = '"';
    for (int shift = 60; shift >= 0; shift -= 4)
        *p++ = "0123456789abcdef"[hash >> shift & 15];
    *p++ = '"';
    return p;
}

/* A session or tenant, which the trace names by its hash. */
static char *put_name(char *p, uint64_t hash)
{
    return hash ? put_hash(p, hash) : PUT(p, "null");
}

/* What a replay of this log has to know beside sizes and times. */
static char *put_prompt(char *p, const struct report_request *q)
{
    uint32_t n = q->n_keys < REQUEST_LOG_MAX_KEYS ? q->n_keys : REQUEST_LOG_MAX_KEYS;
    if (q->max_tokens) {
        p = PUT(p, ",\"max_tokens\":");
        p = put_uint(p, q->max_tokens);
    }
    if (q->priority) {
        p = PUT(p, ",\"priority\":");
        if (q->priority < 0)
            *p++ = '-';
        p = put_uint(p, (uint64_t)llabs(q->priority));
    }
    if (!n)
        return p;
    p = PUT(p, ",\"key_tok\":");
    p = put_uint(p, q->key_tok);
    p = PUT(p, ",\"keys\":[");
    for (uint32_t i = 0; i < n; i++) {
        p = put_hash(p, q->keys[i]);
        *p++ = ',';
    }
    p[-1] = ']';
    return p;
}

static char *put_reason(char *p, enum core_reason reason)
{
    const char *name = report_reason_name(reason);
    if (!name)
        return PUT(p, "null");
    *p++ = '"';
    p = stpcpy(p, name);
    *p++ = '"';
    return p;
}

/* Tokens that a policy believed in: whole ones or thousandths. */
static char *put_overlap(char *p, double tok)
{
    if (!(tok >= 0 && tok < 1e12))
        return PUT(p, "null");
    uint64_t milli = (uint64_t)(tok * 1000 + 0.5);
    p = put_uint(p, milli / 1000);
    if (milli % 1000) {
        *p++ = '.';
        *p++ = (char)('0' + milli % 1000 / 100);
        p = put_pair(p, (uint32_t)(milli % 100));
    }
    return p;
}

static const char *status_of(enum core_reason reason)
{
    if (reason == CORE_REASON_NONE)
        return "completed";
    return reason == CORE_REASON_RETRIES || reason == CORE_REASON_PARTIAL ? "failed" : "rejected";
}

static char *put_times(char *p, const struct report_request *q)
{
    bool tpot = q->output_tok >= 2 && q->first_token_ps >= 0 && q->end_ps >= q->first_token_ps;
    p = PUT(p, ",\"first_admit_ms\":");
    p = put_since(p, q->arrival_ps, q->first_admit_ps);
    p = PUT(p, ",\"ttft_ms\":");
    p = put_since(p, q->arrival_ps, q->first_token_ps);
    p = PUT(p, ",\"second_ms\":");
    p = put_since(p, q->arrival_ps, q->second_token_ps);
    p = PUT(p, ",\"e2e_ms\":");
    p = put_since(p, q->arrival_ps, q->end_ps);
    p = PUT(p, ",\"tpot_ms\":");
    return tpot ? put_ms(p, (q->end_ps - q->first_token_ps) / (q->output_tok - 1)) : PUT(p, "null");
}

static char *put_line(char *p, const struct request_log *l, const struct report_request *q)
{
    p = PUT(p, "{\"weir\":1,\"row\":");
    p = put_uint(p, q->row);
    p = PUT(p, ",\"arrival_ms\":");
    p = put_ms(p, q->arrival_ps);
    p = PUT(p, ",\"prompt_tok\":");
    p = put_uint(p, q->prompt_tok);
    p = PUT(p, ",\"output_tok\":");
    p = put_uint(p, q->output_tok);
    p = PUT(p, ",\"session\":");
    p = put_name(p, q->session);
    p = PUT(p, ",\"tenant\":");
    p = put_name(p, q->tenant);
    p = PUT(p, ",\"status\":\"");
    p = stpcpy(p, status_of(q->reason));
    p = PUT(p, "\",\"reason\":");
    p = put_reason(p, q->reason);
    p = PUT(p, ",\"policy\":");
    p = mempcpy(p, l->policy_json, l->policy_json_len);
    p = PUT(p, ",\"worker\":");
    p = put_worker(p, q->worker);
    p = PUT(p, ",\"prefill_worker\":");
    p = put_worker(p, q->prefill_worker);
    p = put_times(p, q);
    p = PUT(p, ",\"reused_tok\":");
    p = put_uint(p, q->reused_tok);
    p = PUT(p, ",\"overlap_tok\":");
    p = put_overlap(p, q->overlap_tok);
    p = PUT(p, ",\"preemptions\":");
    p = put_uint(p, q->preemptions);
    p = PUT(p, ",\"retries\":");
    p = put_uint(p, q->retries);
    p = put_prompt(p, q);
    return PUT(p, "}\n");
}

static void write_line(struct request_log *l, const struct report_request *q)
{
    size_t n = q->n_keys < REQUEST_LOG_MAX_KEYS ? q->n_keys : REQUEST_LOG_MAX_KEYS;
    if (l->len + LINE_BYTES + n * KEY_BYTES > BUFFER_BYTES)
        flush(l, false);
    l->len = (size_t)(put_line(l->buffer + l->len, l, q) - l->buffer);
    if (q->row == l->next_row)
        l->next_row++;
}

/* ---- putting rows in order ---- */

static bool earlier(const struct waiting *a, const struct waiting *b)
{
    return a->arrival_ps != b->arrival_ps ? a->arrival_ps < b->arrival_ps : a->row < b->row;
}

static const uint64_t *copy_keys(const struct report_request *q)
{
    if (!q->n_keys)
        return NULL;
    uint64_t *keys = malloc(q->n_keys * sizeof *keys);
    if (!keys)
        abort(); /* as mem.h */
    return memcpy(keys, q->keys, q->n_keys * sizeof *keys);
}

static void heap_push(struct request_log *l, const struct report_request *q)
{
    uint32_t slot = l->n_spare ? l->spare[--l->n_spare] : l->n_slots++;
    MEM_GROW(l->slots, l->slots_cap, l->n_slots);
    l->slots[slot] = *q;
    l->slots[slot].keys = copy_keys(q);
    struct waiting w = {q->arrival_ps, q->row, slot};
    MEM_GROW(l->heap, l->heap_cap, l->n_heap + 1);
    uint32_t i = l->n_heap++;
    for (; i && earlier(&w, &l->heap[(i - 1) / 2]); i = (i - 1) / 2)
        l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = w;
}

/* Takes the first row off the heap; what is returned holds until the next heap_push. */
static const struct report_request *heap_pop(struct request_log *l)
{
    uint32_t slot = l->heap[0].slot, i = 0;
    struct waiting last = l->heap[--l->n_heap];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= l->n_heap)
            break;
        if (child + 1 < l->n_heap && earlier(&l->heap[child + 1], &l->heap[child]))
            child++;
        if (!earlier(&l->heap[child], &last))
            break;
        l->heap[i] = l->heap[child];
        i = child;
    }
    l->heap[i] = last;
    MEM_GROW(l->spare, l->spare_cap, l->n_spare + 1);
    l->spare[l->n_spare++] = slot;
    return &l->slots[slot];
}

/* Writes what is next for certain; all: everything, the run being over. */
static void write_waiting(struct request_log *l, bool all)
{
    while (l->n_heap) {
        const struct waiting *w = &l->heap[0];
        if (!all && (w->row != l->next_row || l->slots[w->slot].session))
            return;
        const struct report_request *q = heap_pop(l);
        write_line(l, q);
        free((void *)q->keys);
    }
}

static void begin_run(struct request_log *l, const char *policy)
{
    write_waiting(l, true);
    snprintf(l->policy, sizeof l->policy, "%s", policy);
    l->policy_json_len = report_json_text(l->policy_json, sizeof l->policy_json, l->policy);
    l->next_row = 0;
}

int request_log_add(struct request_log *l, const char *policy, const struct report_request *q)
{
    if (q->row < l->next_row || strncmp(l->policy, policy, sizeof l->policy - 1))
        begin_run(l, policy);
    if (!l->n_heap && q->row == l->next_row && !q->session) {
        write_line(l, q);
    } else {
        heap_push(l, q);
        write_waiting(l, false);
    }
    return l->failed;
}

/* ---- opening and closing ---- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && !strcmp(s + n - k, end);
}

static int complain(char *error, const char *path, const char *why)
{
    char name[2 * NAME_CHARS];
    input_quote(name, sizeof name, path, strlen(path), NAME_CHARS);
    snprintf(error, TRACE_ERROR_BYTES, "cannot write %.*s: %s", NAME_CHARS, name, why);
    return -1;
}

static int open_packing(struct request_log *l, const char *path)
{
    l->packing = ends_with(path, ".zst") ? ZSTD : ends_with(path, ".gz") ? GZIP : PLAIN;
    if (l->packing == PLAIN)
        return 0;
    l->packed = malloc(PACKED_BYTES);
    if (!l->packed)
        return WEIR_E_NOMEM;
    if (l->packing == GZIP)
        return deflateInit2(&l->gzip, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) ==
                       Z_OK
                   ? 0
                   : WEIR_E_NOMEM;
    l->zstd = ZSTD_createCCtx();
    if (!l->zstd ||
        ZSTD_isError(ZSTD_CCtx_setParameter(l->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(l->zstd, ZSTD_c_checksumFlag, 1)))
        return WEIR_E_NOMEM;
    return 0;
}

static void free_log(struct request_log *l)
{
    if (l->packing == GZIP)
        deflateEnd(&l->gzip);
    ZSTD_freeCCtx(l->zstd);
    free(l->packed);
    free(l->buffer);
    free(l->heap);
    free(l->slots);
    free(l->spare);
    free(l);
}

static int open_file(struct request_log *l, const char *path, char *error)
{
    if (!strcmp(path, "-")) {
        fflush(stdout);
        l->fd = STDOUT_FILENO;
        return 0;
    }
    l->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (l->fd >= 0)
        return 0;
    if (errno == ENOENT)
        return complain(error, path, "its folder does not exist; create it first");
    char why[160], text[96];
    snprintf(why, sizeof why, "%s; check the path and its permissions",
             strerror_r(errno, text, sizeof text));
    return complain(error, path, why);
}

struct request_log *request_log_open(const char *path, char *error)
{
    struct request_log *l = calloc(1, sizeof *l);
    if (!l) {
        complain(error, path, "out of memory");
        return NULL;
    }
    l->buffer = malloc(BUFFER_BYTES);
    if (!l->buffer || open_packing(l, path))
        complain(error, path, "out of memory");
    else if (!open_file(l, path, error))
        return l;
    free_log(l);
    return NULL;
}

int request_log_close(struct request_log *l)
{
    write_waiting(l, true);
    flush(l, true);
    int rc = l->failed;
    if (l->fd != STDOUT_FILENO && close(l->fd) && !rc)
        rc = WEIR_E_IO;
    free_log(l);
    return rc;
}
