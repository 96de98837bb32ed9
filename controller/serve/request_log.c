/* request_log.c - see request_log.h. */
#include "controller/serve/request_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <uv.h>

#include "controller/replay/report_internal.h"

#define KEY_BYTES 16u /* of SipHash */
#define BUFFER_BYTES (1u << 20)
/* At least the longest line: names escaped six to one, numbers, candidates, keys. */
#define LINE_BYTES (16384u + REQLOG_MAX_KEYS * 19u)

struct reqlog {
    uv_mutex_t lock;
    uv_cond_t wake;
    uv_thread_t thread;
    /* under the lock */
    struct reqlog_entry *fill; /* REQLOG_RING */
    uint32_t n_fill;
    uint64_t fill_keys;
    bool ending, reopen;
    struct reqlog_stats stats;
    /* the thread's own */
    struct reqlog_entry *work;
    char *path, *rotated;
    uint64_t rotate_bytes, size;
    int fd;
    bool broken; /* the file ends in half a line that could not be cut off */
    bool failing;
    unsigned char salt[KEY_BYTES];
    EVP_MAC *mac;
    EVP_MAC_CTX *ctx;
    char *buffer;
    size_t len;
    uint64_t lines; /* in the buffer */
};

/* ---- text */

__attribute__((format(printf, 2, 3))) static void put(struct reqlog *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->buffer + l->len, BUFFER_BYTES - l->len, format, args);
    va_end(args);
    if (n > 0)
        l->len += (size_t)n;
}

static void put_text(struct reqlog *l, const char *name, const char *s)
{
    put(l, ",\"%s\":", name);
    if (s && *s)
        l->len += report_json_text(l->buffer + l->len, BUFFER_BYTES - l->len, s);
    else
        put(l, "null");
}

static void put_ns(struct reqlog *l, const char *name, int64_t ns)
{
    if (ns < 0)
        put(l, ",\"%s\":null", name);
    else
        put(l, ",\"%s\":%" PRId64 ".%06d", name, ns / 1000000, (int)(ns % 1000000));
}

static uint64_t salted(struct reqlog *l, uint64_t x)
{
    uint64_t out = 0;
    size_t n = 0;
    if (!EVP_MAC_init(l->ctx, l->salt, sizeof l->salt, NULL) ||
        !EVP_MAC_update(l->ctx, (const unsigned char *)&x, sizeof x) ||
        !EVP_MAC_final(l->ctx, (unsigned char *)&out, &n, sizeof out))
        return 0;
    return out;
}

static void put_hash(struct reqlog *l, const char *name, uint64_t x)
{
    if (x)
        put(l, ",\"%s\":\"%016" PRIx64 "\"", name, salted(l, x));
    else
        put(l, ",\"%s\":null", name);
}

static void put_candidates(struct reqlog *l, const struct reqlog_entry *e)
{
    put(l, ",\"n_candidates\":%u,\"candidates\":[", e->n_candidates);
    for (uint32_t i = 0; i < e->n; i++) {
        const struct core_candidate *c = &e->candidates[i].was;
        put(l, "%s{\"name\":", i ? "," : "");
        l->len +=
            report_json_text(l->buffer + l->len, BUFFER_BYTES - l->len, e->candidates[i].worker);
        put(l, ",\"inflight\":%u,\"ahead_tok\":%" PRIu64 ",\"cached\":%u", c->inflight,
            c->prefill_tok, c->cached_tok);
        put(l, ",\"ttft\":%.3f,\"tpot\":%.3f}", (double)c->ttft_ps / 1e9, (double)c->tpot_ps / 1e9);
    }
    put(l, "]");
}

static void put_keys(struct reqlog *l, const struct reqlog_entry *e)
{
    uint32_t n = e->n_keys < REQLOG_MAX_KEYS ? e->n_keys : REQLOG_MAX_KEYS;
    uint64_t fit = ((uint64_t)e->prompt_tok + e->key_tok - 1) / (e->key_tok ? e->key_tok : 1);
    if (n > fit) /* keys beyond the prompt would name tokens of the answer */
        n = (uint32_t)fit;
    if (!n)
        return;
    put(l, ",\"key_tok\":%u,\"keys\":[", e->key_tok);
    for (uint32_t i = 0; i < n; i++)
        put(l, "%s\"%016" PRIx64 "\"", i ? "," : "", salted(l, e->keys[i]));
    put(l, "]");
}

static void put_predicted(struct reqlog *l, const char *name, int64_t ps)
{
    put_ns(l, name, ps < 0 ? -1 : ps / PS_PER_NS);
}

static void put_line(struct reqlog *l, const struct reqlog_entry *e)
{
    bool tpot = e->output_tok >= 2 && e->first_token_ns >= 0 && e->end_ns >= e->first_token_ns;
    put(l, "{\"weir\":1,\"live\":true,\"arrival_ms\":%" PRId64 ".%03d", e->arrival_us / 1000,
        (int)(e->arrival_us % 1000));
    put(l,
        ",\"prompt_tok\":%u,\"output_tok\":%u,\"estimated_tok\":%u,\"cached_tok\":", e->prompt_tok,
        e->output_tok, e->estimated_tok);
    put(l, e->has_usage ? "%u" : "null", e->cached_tok);
    put(l, ",\"max_tokens\":%u,\"priority\":%d", e->max_tokens, e->priority);
    put_hash(l, "session", e->session);
    put_hash(l, "tenant", e->tenant);
    put_text(l, "status", e->status);
    put_text(l, "reason", e->reason);
    put_text(l, "finish", e->finish);
    put(l, ",\"http_status\":%d,\"streamed\":%s", e->http_status, e->stream ? "true" : "false");
    put_text(l, "request", e->id);
    put_text(l, "model", e->model);
    put_text(l, "pool", e->pool);
    put_text(l, "router", e->policy);
    put_text(l, "endpoint", e->endpoint);
    put_text(l, "worker", e->worker);
    put_text(l, "prefill_worker", e->prefill_worker);
    put_ns(l, "decided_ms", e->decided_ns);
    put_ns(l, "sent_ms", e->sent_ns);
    put_ns(l, "first_byte_ms", e->first_byte_ns);
    put_ns(l, "ttft_ms", e->first_token_ns);
    put_ns(l, "e2e_ms", e->end_ns);
    put_ns(l, "mean_tpot_ms",
           tpot ? (e->end_ns - e->first_token_ns) / (int64_t)(e->output_tok - 1) : -1);
    put_predicted(l, "predicted_ttft_ms", e->ttft_ps);
    put_predicted(l, "predicted_tpot_ms", e->tpot_ps);
    if (e->overlap_tok >= 0)
        put(l, ",\"overlap_tok\":%.0f", e->overlap_tok);
    put(l, ",\"retries\":%u", e->retries);
    put_candidates(l, e);
    put_keys(l, e);
    put(l, "}\n");
    l->lines++;
}

/* ---- the file */

static void count(struct reqlog *l, uint64_t written, uint64_t lost, uint64_t bytes)
{
    uv_mutex_lock(&l->lock);
    l->stats.written += written;
    l->stats.dropped_disk += lost;
    l->stats.bytes += bytes;
    l->stats.failing = l->failing;
    uv_mutex_unlock(&l->lock);
}

static void open_file(struct reqlog *l)
{
    struct stat st;
    l->fd = open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    l->size = l->fd >= 0 && !fstat(l->fd, &st) ? (uint64_t)st.st_size : 0;
    l->broken = false;
}

static void reopen(struct reqlog *l)
{
    if (l->fd >= 0)
        close(l->fd);
    open_file(l);
}

static void rotate(struct reqlog *l)
{
    if (!l->rotate_bytes || l->size < l->rotate_bytes)
        return;
    if (rename(l->path, l->rotated))
        fprintf(stderr, "weir serve: the request log cannot be renamed to %s: %s\n", l->rotated,
                strerror(errno));
    else
        reopen(l);
}

/* As much of the buffer as goes; returns how many bytes. */
static size_t write_some(struct reqlog *l)
{
    size_t at = 0;
    while (at < l->len && l->fd >= 0) {
        ssize_t n = write(l->fd, l->buffer + at, l->len - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    return at;
}

static uint64_t lines_in(const char *s, size_t len)
{
    uint64_t n = 0;
    for (const char *end = s + len; s < end && (s = memchr(s, '\n', (size_t)(end - s))); s++)
        n++;
    return n;
}

/* Only `at` bytes went: whole lines stay, the rest of a line is cut off. */
static void heal(struct reqlog *l, size_t at)
{
    const char *end = at ? memrchr(l->buffer, '\n', at) : NULL;
    size_t whole = end ? (size_t)(end - l->buffer) + 1 : 0;
    uint64_t good = lines_in(l->buffer, whole);
    struct stat st;
    l->size += whole;
    /* while a successor takes over, two processes append to the file: what is behind may not be ours */
    if (whole < at)
        l->broken = fstat(l->fd, &st) || (uint64_t)st.st_size != l->size + (at - whole) ||
                    ftruncate(l->fd, (off_t)l->size);
    count(l, good, l->lines - good, whole);
}

static void flush(struct reqlog *l)
{
    if (!l->len)
        return;
    if (l->fd < 0)
        open_file(l);
    if (l->broken && write(l->fd, "\n", 1) == 1)
        l->broken = false;
    size_t at = l->broken ? 0 : write_some(l);
    bool failed = at < l->len;
    if (failed && !l->failing)
        fprintf(stderr, "weir serve: the request log %s cannot be written: %s; lines are dropped\n",
                l->path, strerror(errno));
    else if (!failed && l->failing)
        fprintf(stderr, "weir serve: the request log %s can be written again\n", l->path);
    l->failing = failed;
    if (failed) {
        heal(l, at);
    } else {
        l->size += at;
        count(l, l->lines, 0, at);
    }
    l->len = 0;
    l->lines = 0;
    rotate(l);
}

/* ---- the thread */

static void work_off(struct reqlog *l, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (l->len + LINE_BYTES > BUFFER_BYTES)
            flush(l);
        put_line(l, &l->work[i]);
        free(l->work[i].keys);
    }
    flush(l);
}

static void run(void *user)
{
    struct reqlog *l = user;
    uv_mutex_lock(&l->lock);
    for (;;) {
        if (!l->n_fill && l->ending)
            break;
        if (!l->ending && !l->reopen && l->n_fill < REQLOG_RING / 2)
            uv_cond_timedwait(&l->wake, &l->lock, REQLOG_EVERY_MS * UINT64_C(1000000));
        struct reqlog_entry *full = l->fill;
        uint32_t n = l->n_fill;
        bool again = l->reopen;
        l->fill = l->work;
        l->work = full;
        l->n_fill = 0;
        l->fill_keys = 0;
        l->reopen = false;
        uv_mutex_unlock(&l->lock);
        if (again)
            reopen(l);
        work_off(l, n);
        uv_mutex_lock(&l->lock);
    }
    uv_mutex_unlock(&l->lock);
}

void reqlog_put(struct reqlog *l, const struct reqlog_entry *e)
{
    uv_mutex_lock(&l->lock);
    bool full = l->n_fill == REQLOG_RING || l->fill_keys + e->n_keys > REQLOG_RING_KEYS;
    if (full) {
        l->stats.dropped_full++;
    } else {
        l->fill[l->n_fill++] = *e;
        l->fill_keys += e->n_keys;
        if (l->n_fill == REQLOG_RING / 2)
            uv_cond_signal(&l->wake);
    }
    uv_mutex_unlock(&l->lock);
    if (full)
        free(e->keys);
}

void reqlog_reopen(struct reqlog *l)
{
    uv_mutex_lock(&l->lock);
    l->reopen = true;
    uv_cond_signal(&l->wake);
    uv_mutex_unlock(&l->lock);
}

struct reqlog_stats reqlog_stats(struct reqlog *l)
{
    uv_mutex_lock(&l->lock);
    struct reqlog_stats s = l->stats;
    uv_mutex_unlock(&l->lock);
    return s;
}

/* ---- life */

static bool make_salt(struct reqlog *l, const struct reqlog_options *o)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    if (!o->salt)
        return RAND_bytes(l->salt, sizeof l->salt) == 1;
    if (!EVP_Digest(o->salt, o->salt_len, digest, NULL, EVP_sha256(), NULL))
        return false;
    memcpy(l->salt, digest, sizeof l->salt);
    return true;
}

static bool make_mac(struct reqlog *l)
{
    unsigned size = sizeof(uint64_t);
    OSSL_PARAM params[] = {OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_SIZE, &size),
                           OSSL_PARAM_construct_end()};
    l->mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
    l->ctx = l->mac ? EVP_MAC_CTX_new(l->mac) : NULL;
    return l->ctx && EVP_MAC_CTX_set_params(l->ctx, params);
}

static void free_log(struct reqlog *l)
{
    EVP_MAC_CTX_free(l->ctx);
    EVP_MAC_free(l->mac);
    if (l->fd >= 0)
        close(l->fd);
    free(l->path);
    free(l->rotated);
    free(l->fill);
    free(l->work);
    free(l->buffer);
    free(l);
}

struct reqlog *reqlog_open(const struct reqlog_options *o, char error[REQLOG_ERROR_BYTES])
{
    struct reqlog *l = calloc(1, sizeof *l);
    snprintf(error, REQLOG_ERROR_BYTES, "out of memory");
    if (!l)
        return NULL;
    l->fd = -1;
    l->rotate_bytes = o->rotate_bytes;
    l->fill = calloc(REQLOG_RING, sizeof *l->fill);
    l->work = calloc(REQLOG_RING, sizeof *l->work);
    l->buffer = malloc(BUFFER_BYTES);
    l->path = strdup(o->path);
    if (!l->fill || !l->work || !l->buffer || !l->path ||
        asprintf(&l->rotated, "%s.1", o->path) < 0 || !make_salt(l, o) || !make_mac(l)) {
        free_log(l);
        return NULL;
    }
    signal(SIGXFSZ,
           SIG_IGN); /* a file size limit is an error of write, not the end of the process */
    open_file(l);
    if (l->fd < 0)
        snprintf(error, REQLOG_ERROR_BYTES, "the request log %.300s cannot be opened: %s", o->path,
                 strerror(errno));
    if (l->fd < 0 || uv_mutex_init(&l->lock)) {
        free_log(l);
        return NULL;
    }
    if (!uv_cond_init(&l->wake)) {
        if (!uv_thread_create(&l->thread, run, l))
            return l;
        uv_cond_destroy(&l->wake);
    }
    uv_mutex_destroy(&l->lock);
    free_log(l);
    return NULL;
}

void reqlog_close(struct reqlog *l)
{
    if (!l)
        return;
    uv_mutex_lock(&l->lock);
    l->ending = true;
    uv_cond_signal(&l->wake);
    uv_mutex_unlock(&l->lock);
    uv_thread_join(&l->thread);
    uv_cond_destroy(&l->wake);
    uv_mutex_destroy(&l->lock);
    free_log(l);
}
