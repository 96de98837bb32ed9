/* trace.c - see trace.h.
 *
 *   input (lines) -> row parser of the format -> struct row -> finish(): sessions, keys, order, limits
 *
 * A parser only extracts; everything that can be wrong with a row besides its spelling is checked once,
 * in finish(). Nothing of the trace's state changes before a row is known to be good, so that a bad one
 * can be left out (skip_bad).
 *
 * JSON is parsed by yyjson out of one buffer. The plain Mooncake row is scanned by hand first: yyjson's
 * tree of 16 bytes a number costs more than all the rest of loading. The scanner gives up on anything
 * but the exact shape and yyjson decides.
 */
#include "controller/replay/trace.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yyjson.h>

#include "controller/replay/input.h"
#include "predictor/request.h"
#include "predictor/rng.h"

static_assert(INPUT_ERROR_BYTES == TRACE_ERROR_BYTES, "messages are passed through");

#define MOONCAKE_BLOCK_TOK 512u
#define TIME_MS_MAX UINT64_C(9007199254740992) /* 2^53: times as doubles and integers agree below */
#define CSV_MAX_FIELDS 64
#define QUOTE_BYTES 64
#define QUOTE_CHARS 40

typedef __int128 wide_ps; /* absolute times (since 1970) do not fit int64_t picoseconds */

/* What a row says, before anything is made of it. */
struct row {
    bool has_time, has_ids, has_in, has_out;
    bool failed; /* the trace says that this request failed: left out and counted */
    wide_ps time_ps;
    int64_t delay_ps;
    uint64_t in_tok, out_tok, max_tok;
    uint64_t session, tenant;
    int32_t priority;
    uint32_t n_ids; /* in trace.ids: hash ids, or chained keys if `chained` */
    bool chained;
    uint64_t output_ids;
    bool has_output_ids;
    uint32_t key_tok;
    double ttft_ms, e2e_ms;
};

/* A session of mooncake-delta: what its next turn starts from. Other formats use id alone. */
struct session {
    uint64_t id; /* 0: empty slot */
    uint64_t uid;
    uint32_t prompt_tok, total_tok;
    uint64_t *keys;
    uint32_t n_keys, cap;
};

enum csv_column {
    COL_TIME,
    COL_IN,
    COL_OUT,
    COL_TOTAL,
    COL_MODEL,
    COL_LOG,
    COL_SESSION,
    COL_ELAPSED,
    COL_N,
};

struct trace {
    enum trace_format format;
    struct trace_options opt;
    uint32_t key_tok;

    char **paths;
    size_t n_paths, next_path;
    struct input *in;
    uint64_t file_rows;  /* good, bad or failed, in this file */
    uint64_t blank_line; /* an empty line waiting to be the last, 0: none */
    const char *line;
    size_t len;
    bool pending; /* line was read ahead (format detection) */

    int column[COL_N]; /* index of each column, -1: none */

    void *pool; /* yyjson's */
    size_t pool_bytes;
    uint64_t *ids;
    size_t ids_cap;

    struct session *sessions;
    size_t sessions_used, sessions_cap; /* cap: power of two */
    uint64_t session_keys;
    struct session lone; /* mooncake-delta rows without a session_id */

    uint64_t rows, bad_rows, failed_rows;
    bool started;
    wide_ps first_ps;
    int64_t last_ps;
    int failed;
    char error[TRACE_ERROR_BYTES];
};

/* What the trace lets a row be, found before anything changes. */
struct verdict {
    bool follows;
    int64_t arrival_ps;
    uint64_t prompt_tok, block_tok;
    struct session *session; /* found, or the empty slot; NULL: none */
};

/* ---- messages ------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static int bad(struct trace *t, const char *fmt, ...)
{
    int n = snprintf(t->error, sizeof t->error, "%s:%llu: ", input_name(t->in),
                     (unsigned long long)input_line_number(t->in));
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->error + n, sizeof t->error - (size_t)n, fmt, ap);
    va_end(ap);
    return WEIR_E_INPUT;
}

static int no_memory(struct trace *t)
{
    bad(t, "out of memory");
    t->failed = WEIR_E_NOMEM;
    return WEIR_E_NOMEM;
}

/* A value as found, shortened. */
static const char *found(char *out, yyjson_val *v)
{
    switch (v ? yyjson_get_type(v) : YYJSON_TYPE_NONE) {
    case YYJSON_TYPE_NONE: return "nothing";
    case YYJSON_TYPE_NULL: return "null";
    case YYJSON_TYPE_BOOL: return yyjson_get_bool(v) ? "true" : "false";
    case YYJSON_TYPE_ARR: return "an array";
    case YYJSON_TYPE_OBJ: return "an object";
    case YYJSON_TYPE_STR:
        out[0] = '"';
        input_quote(out + 1, QUOTE_BYTES - 2, yyjson_get_str(v), yyjson_get_len(v), QUOTE_CHARS);
        memcpy(out + strlen(out), "\"", 2);
        return out;
    default: break;
    }
    if (yyjson_is_uint(v))
        snprintf(out, QUOTE_BYTES, "%llu", (unsigned long long)yyjson_get_uint(v));
    else if (yyjson_is_sint(v))
        snprintf(out, QUOTE_BYTES, "%lld", (long long)yyjson_get_sint(v));
    else
        snprintf(out, QUOTE_BYTES, "%.15g", yyjson_get_real(v));
    return out;
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Never 0: 0 is "none". */
static uint64_t hash_text(const char *s, size_t len)
{
    uint64_t h = rng_mix64(len), w;
    for (size_t i = 0; i < len; i += 8) {
        w = 0;
        for (size_t j = i; j < len && j < i + 8; j++) /* by value: the same for any byte order */
            w |= (uint64_t)(unsigned char)s[j] << (8 * (j - i));
        h = rng_mix64(h ^ w);
    }
    return h ? h : 1;
}

static int want_tokens(struct trace *t, const char *name, yyjson_val *v, uint64_t *out)
{
    double d = yyjson_get_num(v);
    if (yyjson_is_uint(v) && yyjson_get_uint(v) <= TRACE_TOKENS_MAX) {
        *out = yyjson_get_uint(v);
        return 0;
    }
    if (yyjson_is_real(v) && d >= 0 && d <= TRACE_TOKENS_MAX && d == (double)(uint64_t)d) {
        *out = (uint64_t)d;
        return 0;
    }
    char b[QUOTE_BYTES];
    return bad(t,
               "expected %s to be a whole number of tokens, 0 to %u, found %s; correct the row or "
               "leave it out (--skip-bad)",
               name, TRACE_TOKENS_MAX, found(b, v));
}

static int want_ms(struct trace *t, const char *name, yyjson_val *v, wide_ps *out)
{
    if (yyjson_is_uint(v) && yyjson_get_uint(v) <= TIME_MS_MAX) {
        *out = (wide_ps)yyjson_get_uint(v) * PS_PER_MS;
        return 0;
    }
    double d = yyjson_get_num(v);
    if (yyjson_is_real(v) && d >= 0 && d <= (double)TIME_MS_MAX) {
        uint64_t whole = (uint64_t)d;
        *out = (wide_ps)whole * PS_PER_MS + ps_from_ms(d - (double)whole);
        return 0;
    }
    char b[QUOTE_BYTES];
    return bad(t,
               "expected %s in milliseconds, a number from 0 to 2^53, found %s; correct the row or "
               "leave it out (--skip-bad)",
               name, found(b, v));
}

static int want_delay(struct trace *t, const char *name, yyjson_val *v, int64_t *out)
{
    wide_ps ps;
    int rc = want_ms(t, name, v, &ps);
    if (rc)
        return rc;
    if (ps > PS_LIMIT)
        return bad(t, "expected %s of at most 53 days, found %.0f ms; is it in milliseconds?", name,
                   (double)ps / 1e9);
    *out = (int64_t)ps;
    return 0;
}

/* A name: text or a number ("7" and 7 are the same). hex: weir's own log writes hashes as 16 digits. */
static int want_name(struct trace *t, const char *name, yyjson_val *v, bool hex, uint64_t *out)
{
    if (yyjson_is_null(v)) {
        *out = 0;
        return 0;
    }
    if (yyjson_is_str(v)) {
        const char *s = yyjson_get_str(v);
        size_t len = yyjson_get_len(v);
        if (hex && len == 16 && strspn(s, "0123456789abcdef") == 16)
            *out = strtoull(s, NULL, 16);
        else
            *out = len ? hash_text(s, len) : 0;
        return 0;
    }
    char b[QUOTE_BYTES];
    if (yyjson_is_int(v)) {
        found(b, v);
        *out = hash_text(b, strlen(b));
        return 0;
    }
    return bad(t, "expected %s to be a string or a whole number, found %s", name, found(b, v));
}

static int want_int32(struct trace *t, const char *name, yyjson_val *v, int32_t *out)
{
    int64_t n = yyjson_get_sint(v);
    if (yyjson_is_int(v) && n >= INT32_MIN && n <= INT32_MAX &&
        !(yyjson_is_uint(v) && yyjson_get_uint(v) > INT32_MAX)) {
        *out = (int32_t)n;
        return 0;
    }
    char b[QUOTE_BYTES];
    return bad(t, "expected %s to be a whole number of 32 bits, found %s", name, found(b, v));
}

static int grow_ids(struct trace *t, size_t want)
{
    if (want <= t->ids_cap)
        return 0;
    size_t cap = t->ids_cap ? t->ids_cap : 1024;
    while (cap < want)
        cap *= 2;
    uint64_t *p = realloc(t->ids, cap * sizeof *p);
    if (!p)
        return no_memory(t);
    t->ids = p;
    t->ids_cap = cap;
    return 0;
}

static int want_ids(struct trace *t, yyjson_val *v, struct row *r)
{
    char b[QUOTE_BYTES];
    if (yyjson_is_null(v))
        return 0;
    if (!yyjson_is_arr(v))
        return bad(t, "expected hash_ids to be an array of whole numbers, found %s", found(b, v));
    size_t n = yyjson_arr_size(v), i, max;
    int rc = grow_ids(t, n);
    if (rc)
        return rc;
    yyjson_val *e;
    yyjson_arr_foreach (v, i, max, e) {
        if (!yyjson_is_int(e))
            return bad(t,
                       "expected hash_ids to be an array of whole numbers of 64 bits, found %s at "
                       "index %zu",
                       found(b, e), i);
        t->ids[i] = yyjson_get_uint(e); /* a negative id is as good a name as any */
    }
    if (n > UINT32_MAX)
        return bad(t, "too many hash_ids");
    r->n_ids = (uint32_t)n;
    r->has_ids = n > 0;
    return 0;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* Parses the line out of t->pool. NULL: *rc says why. */
static yyjson_doc *parse_json(struct trace *t, yyjson_alc *alc, int *rc)
{
    size_t need = yyjson_read_max_memory_usage(t->len, YYJSON_READ_NOFLAG);
    if (need > t->pool_bytes) {
        size_t bytes = t->pool_bytes ? t->pool_bytes : (size_t)64 << 10;
        while (bytes < need)
            bytes *= 2;
        free(t->pool); /* nothing in it outlives a row */
        t->pool_bytes = 0;
        t->pool = malloc(bytes);
        if (!t->pool) {
            *rc = no_memory(t);
            return NULL;
        }
        t->pool_bytes = bytes;
    }
    yyjson_alc_pool_init(alc, t->pool, t->pool_bytes);
    yyjson_read_err err;
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)t->line, t->len, YYJSON_READ_NOFLAG, alc,
                                       &err); /* without YYJSON_READ_INSITU it does not write */
    if (doc && yyjson_is_obj(yyjson_doc_get_root(doc)))
        return doc;
    char b[QUOTE_BYTES];
    if (doc) {
        *rc = bad(t, "expected a JSON object, one request a line, found %s",
                  found(b, yyjson_doc_get_root(doc)));
    } else {
        size_t at = err.pos < t->len ? err.pos : t->len;
        const char *s = t->line + at;
        *rc = bad(t,
                  "expected a JSON object, found %s at column %zu (near '%s'); is the line cut off "
                  "or not UTF-8?",
                  err.msg, at + 1, input_quote(b, sizeof b, s, t->len - at, QUOTE_CHARS));
    }
    return NULL;
}

enum field {
    F_TIME,
    F_IN,
    F_OUT,
    F_IDS,
    F_SESSION,
    F_DELAY,
    F_OUTPUT_IDS,
    F_REQUEST_ID,
    F_PRIORITY,
    F_STRICT,
    F_CLASS,
    F_TENANT,
    F_MAX,
    F_KEY_TOK,
    F_KEYS,
    F_TTFT,
    F_E2E,
    F_STATUS,
    F_WEIR,
    F_N,
};

struct field_name {
    const char *name;
    enum field field;
};

static const struct field_name mooncake_fields[] = {
    {"timestamp", F_TIME},
    {"created_time", F_TIME},
    {"input_length", F_IN},
    {"input_tokens", F_IN},
    {"output_length", F_OUT},
    {"output_tokens", F_OUT},
    {"hash_ids", F_IDS},
    {"session_id", F_SESSION},
    {"delay", F_DELAY},
    {"delay_ms", F_DELAY},
    {"output_token_ids", F_OUTPUT_IDS},
    {"request_id", F_REQUEST_ID},
    {"priority", F_PRIORITY},
    {"strict_priority", F_STRICT},
    {"policy_class", F_CLASS},
    {"tenant", F_TENANT},
    {"user", F_TENANT},
    {NULL, F_N},
};

static const struct field_name weir_fields[] = {
    {"arrival_ms", F_TIME},   {"prompt_tok", F_IN},   {"output_tok", F_OUT}, {"max_tokens", F_MAX},
    {"priority", F_PRIORITY}, {"session", F_SESSION}, {"tenant", F_TENANT},  {"key_tok", F_KEY_TOK},
    {"keys", F_KEYS},         {"ttft_ms", F_TTFT},    {"e2e_ms", F_E2E},     {"status", F_STATUS},
    {"delay_ms", F_DELAY},    {"weir", F_WEIR},       {NULL, F_N},
};

static const struct field_name *field_of(const struct field_name *names, yyjson_val *key)
{
    const char *s = yyjson_get_str(key);
    size_t len = yyjson_get_len(key);
    while (names->name && (strncmp(names->name, s, len) || names->name[len]))
        names++;
    return names;
}

static int want_keys(struct trace *t, yyjson_val *v, struct row *r)
{
    char b[QUOTE_BYTES];
    size_t n = yyjson_arr_size(v), i, max;
    int rc = grow_ids(t, n);
    if (rc)
        return rc;
    yyjson_val *e;
    bool ok = yyjson_is_arr(v) && n <= UINT32_MAX;
    yyjson_arr_foreach (v, i, max, e) {
        const char *s = yyjson_get_str(e);
        ok = ok && s && yyjson_get_len(e) == 16 && strspn(s, "0123456789abcdef") == 16;
        if (!ok)
            return bad(
                t, "expected keys to be strings of 16 hexadecimal digits, found %s at index %zu",
                found(b, e), i);
        t->ids[i] = strtoull(s, NULL, 16);
    }
    if (!ok)
        return bad(t, "expected keys to be an array of strings, found %s", found(b, v));
    r->n_ids = (uint32_t)n;
    r->has_ids = n > 0;
    r->chained = true;
    return 0;
}

static int want_duration(struct trace *t, const char *name, yyjson_val *v, double *out)
{
    char b[QUOTE_BYTES];
    if (yyjson_is_null(v))
        return 0;
    double d = yyjson_get_num(v);
    if (!yyjson_is_num(v) || !(d <= (double)TIME_MS_MAX))
        return bad(t, "expected %s in milliseconds, found %s", name, found(b, v));
    *out = d < 0 ? -1 : d;
    return 0;
}

static int want_text(struct trace *t, const char *name, yyjson_val *v)
{
    char b[QUOTE_BYTES];
    if (yyjson_is_str(v) || yyjson_is_int(v) || yyjson_is_null(v))
        return 0;
    return bad(t, "expected %s to be a string or a whole number, found %s", name, found(b, v));
}

static int want_output_ids(struct trace *t, yyjson_val *v, struct row *r)
{
    char b[QUOTE_BYTES];
    if (yyjson_is_null(v))
        return 0;
    if (!yyjson_is_arr(v))
        return bad(t, "expected output_token_ids to be an array, found %s", found(b, v));
    r->output_ids = yyjson_arr_size(v);
    r->has_output_ids = true;
    return 0;
}

static int take_field(struct trace *t, const struct field_name *f, yyjson_val *v, struct row *r)
{
    bool weir = t->format == TRACE_WEIR;
    int32_t ignored;
    uint64_t n = 0;
    int rc = 0;
    switch (f->field) {
    case F_TIME: r->has_time = true; return want_ms(t, f->name, v, &r->time_ps);
    case F_IN: r->has_in = true; return want_tokens(t, f->name, v, &r->in_tok);
    case F_OUT: r->has_out = true; return want_tokens(t, f->name, v, &r->out_tok);
    case F_MAX: return want_tokens(t, f->name, v, &r->max_tok);
    case F_IDS: return want_ids(t, v, r);
    case F_SESSION: return want_name(t, f->name, v, weir, &r->session);
    case F_TENANT: return want_name(t, f->name, v, weir, &r->tenant);
    case F_DELAY: return want_delay(t, f->name, v, &r->delay_ps);
    case F_OUTPUT_IDS: return want_output_ids(t, v, r);
    case F_PRIORITY: return want_int32(t, f->name, v, &r->priority);
    case F_STRICT: return want_int32(t, f->name, v, &ignored);
    case F_REQUEST_ID:
    case F_CLASS: return want_text(t, f->name, v);
    case F_KEY_TOK:
        rc = want_tokens(t, f->name, v, &n);
        r->key_tok = (uint32_t)n;
        return rc;
    case F_KEYS: return want_keys(t, v, r);
    case F_TTFT: return want_duration(t, f->name, v, &r->ttft_ms);
    case F_E2E: return want_duration(t, f->name, v, &r->e2e_ms);
    case F_STATUS:
        r->failed = yyjson_is_str(v) && strcmp(yyjson_get_str(v), "completed") != 0 &&
                    strcmp(yyjson_get_str(v), "ok") != 0;
        return want_text(t, f->name, v);
    case F_WEIR:
        if (yyjson_get_uint(v) == 1)
            return 0;
        return bad(t, "expected version 1 of weir's request log, found another");
    case F_N: break;
    }
    return 0;
}

static int parse_json_row(struct trace *t, struct row *r)
{
    const struct field_name *names = t->format == TRACE_WEIR ? weir_fields : mooncake_fields;
    yyjson_alc alc;
    int rc = 0;
    yyjson_doc *doc = parse_json(t, &alc, &rc);
    if (!doc)
        return rc;
    uint32_t seen = 0;
    size_t i, max;
    yyjson_val *key, *v;
    yyjson_obj_foreach (yyjson_doc_get_root(doc), i, max, key, v) {
        const struct field_name *f = field_of(names, key);
        if (!f->name)
            continue; /* traces carry fields of their own */
        if (seen & 1u << f->field)
            return bad(t,
                       "expected one %s, found a second one (%s and its other name are the same "
                       "field)",
                       f->name, f->name);
        seen |= 1u << f->field;
        rc = take_field(t, f, v, r);
        if (rc)
            return rc;
    }
    return 0; /* doc lies in the pool: nothing to free */
}

/* ---- the plain Mooncake row by hand ----------------------------------------------------------- */

/* Up to 7 digits at once (Lemire and Langdale's SWAR); 8 bytes from p must be readable. Returns the
 * first character behind them; p itself if this is not the place. */
static inline const char *scan_short_uint(const char *p, uint64_t *out)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t sixes = UINT64_C(0x0606060606060606), high = UINT64_C(0xf0f0f0f0f0f0f0f0);
    uint64_t v;
    memcpy(&v, p, 8);
    v ^= UINT64_C(0x3030303030303030);
    uint64_t other =
        (v | (v + sixes)) & high; /* carries only run upwards from the first other byte */
    if (!other)
        return p;
    unsigned bits = (unsigned)__builtin_ctzll(other) & ~7u;
    if (!bits || (bits > 8 && !(v & 0xff)))
        return p;
    v <<= 64 - bits;
    v = v * 10 + (v >> 8);
    v = ((v & UINT64_C(0x000000ff000000ff)) * UINT64_C(0x000f424000000064) +
         ((v >> 16) & UINT64_C(0x000000ff000000ff)) * UINT64_C(0x0000271000000001)) >>
        32;
    *out = v;
    return p + bits / 8;
#else
    (void)out;
    return p;
#endif
}

static inline const char *scan_uint(const char *p, uint64_t *out)
{
    unsigned d = (unsigned)(*p - '0');
    if (d > 9)
        return NULL;
    uint64_t v = d;
    const char *first = p++;
    while ((d = (unsigned)(*p - '0')) <= 9) {
        v = v * 10 + d;
        p++;
    }
    if (p - first > 15 || (*first == '0' && p - first > 1))
        return NULL; /* long or with a leading zero: yyjson decides */
    *out = v;
    return p;
}

static const char *scan_member(const char *p, const char *end, const char *name, size_t n,
                               uint64_t *out)
{
    if ((size_t)(end - p) < n + 2 || memcmp(p, name, n) || p[n] != ':')
        return NULL;
    p += n + 1;
    p += *p == ' ';
    return scan_uint(p, out);
}

#define SCAN_MEMBER(p, end, name, out) scan_member(p, end, name, sizeof(name) - 1, out)

static const char *scan_comma(const char *p)
{
    if (!p || *p != ',')
        return NULL;
    return p + 1 + (p[1] == ' ');
}

/* {"timestamp": N, "input_length": N, "output_length": N, "hash_ids": [N, ...]} and nothing else.
 * Every step stops at the byte behind the line, which is no part of the shape. */
static bool scan_mooncake(struct trace *t, struct row *r)
{
    const char *p = t->line, *end = p + t->len;
    uint64_t ms, in, out;
    if (!t->len || t->len / 2 >= t->ids_cap || *p++ != '{')
        return false;
    p = scan_comma(SCAN_MEMBER(p, end, "\"timestamp\"", &ms));
    p = p ? scan_comma(SCAN_MEMBER(p, end, "\"input_length\"", &in)) : NULL;
    p = p ? scan_comma(SCAN_MEMBER(p, end, "\"output_length\"", &out)) : NULL;
    static const char ids_name[] = "\"hash_ids\":";
    if (!p || (size_t)(end - p) < sizeof ids_name || memcmp(p, ids_name, sizeof ids_name - 1))
        return false;
    p += sizeof ids_name - 1;
    p += *p == ' ';
    if (*p++ != '[' || in > TRACE_TOKENS_MAX || out > TRACE_TOKENS_MAX || ms > TIME_MS_MAX)
        return false;
    uint64_t *k = t->ids, key = 0, id;
    ptrdiff_t step = 0; /* "," or ", ", the same all along */
    for (;;) {
        const char *q = end - p >= 8 ? scan_short_uint(p, &id) : p;
        p = q != p ? q : scan_uint(p, &id);
        if (!p)
            return false;
        key = request_chain_key(key, id);
        *k++ = key;
        if (*p != ',')
            break;
        if (!step)
            step = 1 + (p[1] == ' ');
        if ((p[1] == ' ') != (step == 2))
            return false;
        p += step; /* and not "+ (p[1] == ' ')": a load less between one number and the next */
    }
    if (p + 2 != end || p[0] != ']' || p[1] != '}')
        return false;
    r->has_time = r->has_in = r->has_out = r->has_ids = r->chained = true;
    r->time_ps = (wide_ps)ms * PS_PER_MS;
    r->in_tok = in;
    r->out_tok = out;
    r->n_ids = (uint32_t)(k - t->ids);
    return true;
}

/* ---- sessions ---------------------------------------------------------------------------------- */

static struct session *session_slot(const struct trace *t, uint64_t id)
{
    size_t i = rng_mix64(id) & (t->sessions_cap - 1);
    while (t->sessions[i].id && t->sessions[i].id != id)
        i = (i + 1) & (t->sessions_cap - 1);
    return &t->sessions[i];
}

static struct session *session_find(const struct trace *t, uint64_t id)
{
    if (!id || !t->sessions_cap)
        return NULL;
    struct session *s = session_slot(t, id);
    return s->id ? s : NULL;
}

/* Room for one more session; slots move. */
static int session_reserve(struct trace *t)
{
    if (t->sessions_used >= TRACE_SESSIONS_MAX)
        return bad(t, "more than %u sessions in one trace, the most there may be; split the trace",
                   TRACE_SESSIONS_MAX);
    if (t->sessions_used * 2 < t->sessions_cap)
        return 0;
    size_t old_cap = t->sessions_cap;
    struct session *old = t->sessions;
    size_t cap = old_cap ? old_cap * 2 : 256;
    struct session *p = calloc(cap, sizeof *p);
    if (!p)
        return no_memory(t);
    t->sessions = p;
    t->sessions_cap = cap;
    for (size_t i = 0; i < old_cap; i++)
        if (old[i].id)
            *session_slot(t, old[i].id) = old[i];
    free(old);
    return 0;
}

/* ---- from row to request ------------------------------------------------------------------------ */

/* Names of the slots of a delta row's prompt, see trace.h; s->keys up to the previous prompt stay. */
static void delta_keys(const struct trace *t, struct session *s, const struct row *r,
                       uint64_t prompt)
{
    uint64_t kt = t->key_tok, bt = t->opt.block_tok;
    uint64_t before = s->prompt_tok, total = s->total_tok; /* 0 and 0 at the first turn */
    uint64_t n = (prompt + kt - 1) / kt, generated = request_generated_key(s->uid);
    uint64_t alone = rng_mix64(t->rows ^ UINT64_C(0x6e6577)); /* names input without hash_ids */
    for (uint64_t i = before / kt; i < n; i++) {
        uint64_t from = i * kt, to = from + kt < prompt ? from + kt : prompt;
        uint64_t key = i ? s->keys[i - 1] : 0;
        if (from + kt <= total) {
            s->keys[i] = generated;
            continue;
        }
        if (from < total) {
            key = request_chain_key(key, generated);
            from = total;
        }
        for (uint64_t c = (from - total) / bt; c <= (to - 1 - total) / bt; c++)
            key = request_chain_key(key, r->has_ids ? t->ids[c] : alone + c);
        s->keys[i] = key;
    }
    s->n_keys = (uint32_t)n;
}

static int delta_reserve(struct trace *t, struct session *s, uint64_t prompt)
{
    uint64_t n = (prompt + t->key_tok - 1) / t->key_tok, cap = s->cap ? s->cap : 16;
    while (cap < n)
        cap *= 2;
    if (cap == s->cap)
        return 0;
    if (t->session_keys + cap - s->cap > TRACE_SESSION_KEYS_MAX)
        return bad(
            t,
            "the sessions of this mooncake-delta trace need more than %u keys, the most that "
            "are kept; split the trace",
            TRACE_SESSION_KEYS_MAX);
    uint64_t *p = realloc(s->keys, cap * sizeof *p);
    if (!p)
        return no_memory(t);
    t->session_keys += cap - s->cap;
    s->keys = p;
    s->cap = (uint32_t)cap;
    return 0;
}

static int check_tokens(struct trace *t, const struct row *r)
{
    bool weir = t->format == TRACE_WEIR;
    if (!r->has_in || !r->has_out)
        return bad(t,
                   "expected a field %s, found none; complete the row, or is --trace-format wrong?",
                   r->has_in ? (weir ? "output_tok" : "output_length")
                             : (weir ? "prompt_tok" : "input_length"));
    if (!r->in_tok || !r->out_tok)
        return bad(t,
                   "expected at least 1 token of %s, found 0; correct the row or leave it out "
                   "(--skip-bad)",
                   r->in_tok ? "output" : "input");
    if (r->has_output_ids && r->output_ids != r->out_tok)
        return bad(
            t,
            "expected %llu output_token_ids as output_length says, found %llu; correct the row "
            "or leave it out (--skip-bad)",
            (unsigned long long)r->out_tok, (unsigned long long)r->output_ids);
    if (r->max_tok && r->max_tok < r->out_tok)
        return bad(
            t,
            "expected max_tokens of at least output_tok, %llu, found %llu; correct the row or "
            "leave it out (--skip-bad)",
            (unsigned long long)r->out_tok, (unsigned long long)r->max_tok);
    return 0;
}

static int check_keys(struct trace *t, const struct row *r, uint64_t block_tok)
{
    if (!r->has_ids)
        return 0;
    if (!block_tok)
        return bad(t, "expected key_tok, the tokens that each of the keys covers, found none");
    uint64_t blocks = (r->in_tok + block_tok - 1) / block_tok;
    if (t->format != TRACE_WEIR && blocks != r->n_ids)
        return bad(t,
                   "expected %llu hash_ids for %llu input tokens in blocks of %llu, found %u; is "
                   "--trace-block-size right?",
                   (unsigned long long)blocks, (unsigned long long)r->in_tok,
                   (unsigned long long)block_tok, r->n_ids);
    if (r->n_ids > (r->in_tok + r->out_tok + block_tok - 1) / block_tok)
        return bad(t, "expected at most one key for each %llu of %llu tokens, found %u keys",
                   (unsigned long long)block_tok, (unsigned long long)(r->in_tok + r->out_tok),
                   r->n_ids);
    return 0;
}

static int check_time(struct trace *t, const struct row *r, struct verdict *v)
{
    if (!r->has_time && !v->follows)
        return bad(t,
                   "expected a field %s, found none; only later turns of a session go without one",
                   t->format == TRACE_WEIR ? "arrival_ms" : "timestamp");
    if (r->delay_ps && !r->session)
        return bad(t,
                   "expected a session with the delay, found none; name the session or remove the "
                   "delay");
    v->arrival_ps = PS_NEVER;
    if (!r->has_time)
        return 0;
    wide_ps rel = t->started ? r->time_ps - t->first_ps : 0;
    if (rel < t->last_ps)
        return bad(t,
                   "expected a time not before that of the row before, found one %.3f ms earlier; "
                   "sort the rows by time%s",
                   (double)(t->last_ps - rel) / 1e9,
                   t->n_paths > 1 ? " and name the files in order" : "");
    if (rel > PS_LIMIT)
        return bad(t,
                   "expected times within 53 days of the first, found one %.0f ms after it; is the "
                   "unit right?",
                   (double)rel / 1e9);
    v->arrival_ps = (int64_t)rel;
    return 0;
}

/* Everything that can be wrong with a row's meaning. Changes nothing that shows. */
static int check_row(struct trace *t, const struct row *r, struct verdict *v)
{
    int rc = check_tokens(t, r);
    if (rc)
        return rc;
    bool delta = t->format == TRACE_MOONCAKE_DELTA;
    v->block_tok = t->format == TRACE_WEIR ? r->key_tok : t->opt.block_tok;
    rc = check_keys(t, r, v->block_tok);
    if (rc)
        return rc;
    v->session = session_find(t, r->session);
    v->follows = v->session != NULL;
    rc = check_time(t, r, v);
    if (rc)
        return rc;
    v->prompt_tok = r->in_tok + (delta && v->follows ? v->session->total_tok : 0);
    if (v->prompt_tok + r->out_tok > TRACE_TOKENS_MAX * UINT64_C(2) ||
        v->prompt_tok > TRACE_TOKENS_MAX)
        return bad(t, "expected a session of at most %u tokens, found %llu", TRACE_TOKENS_MAX,
                   (unsigned long long)v->prompt_tok);
    if (r->session && !v->follows) {
        rc = session_reserve(t);
        if (rc)
            return rc;
        v->session = session_slot(t, r->session);
    }
    if (delta) {
        if (!v->session) {
            v->session = &t->lone;
            t->lone.prompt_tok = t->lone.total_tok = 0;
        }
        rc = delta_reserve(t, v->session, v->prompt_tok);
    }
    return rc;
}

/* Makes the request of a checked row and moves the trace on. */
static void take_row(struct trace *t, const struct row *r, const struct verdict *v,
                     struct trace_request *out)
{
    struct session *s = v->session;
    *out = (struct trace_request){
        .row = t->rows,
        .arrival_ps = v->arrival_ps,
        .delay_ps = r->delay_ps,
        .session = r->session,
        .follows = v->follows,
        .prompt_tok = (uint32_t)v->prompt_tok,
        .output_tok = (uint32_t)r->out_tok,
        .max_tokens = (uint32_t)(r->max_tok ? r->max_tok : r->out_tok),
        .priority = r->priority,
        .tenant = r->tenant,
        .recorded_ttft_ms = r->ttft_ms,
        .recorded_e2e_ms = r->e2e_ms,
    };
    if (t->format == TRACE_MOONCAKE_DELTA) {
        delta_keys(t, s, r, v->prompt_tok);
        out->keys = s->keys;
        out->n_keys = s->n_keys;
        out->key_tok = t->key_tok;
        s->uid = t->rows + 1;
        s->prompt_tok = (uint32_t)v->prompt_tok;
        s->total_tok = (uint32_t)(v->prompt_tok + r->out_tok);
    } else if (r->has_ids) {
        uint64_t key = 0;
        for (uint32_t i = 0; !r->chained && i < r->n_ids; i++)
            key = t->ids[i] = request_chain_key(key, t->ids[i]);
        out->keys = t->ids;
        out->n_keys = r->n_ids;
        out->key_tok = (uint32_t)v->block_tok;
    }
    if (r->session && !v->follows) {
        s->id = r->session;
        t->sessions_used++;
    }
    if (r->has_time && !t->started) {
        t->started = true;
        t->first_ps = r->time_ps;
    }
    if (r->has_time)
        t->last_ps = v->arrival_ps;
    t->rows++;
}

/* ---- CSV ------------------------------------------------------------------------------------------ */

struct text {
    const char *s;
    size_t len;
};

static struct text trim(struct text x)
{
    while (x.len && (*x.s == ' ' || *x.s == '\t'))
        x.s++, x.len--;
    while (x.len && (x.s[x.len - 1] == ' ' || x.s[x.len - 1] == '\t'))
        x.len--;
    return x;
}

/* Fields of a line; quotes may surround a whole field. Returns how many, at most CSV_MAX_FIELDS. */
static int csv_split(const char *line, size_t len, struct text *out)
{
    int n = 0;
    const char *p = line, *end = line + len;
    for (;;) {
        const char *q;
        struct text f;
        if (p < end && *p == '"' && (q = memchr(p + 1, '"', (size_t)(end - p - 1))) &&
            (q + 1 == end || q[1] == ',')) {
            f = (struct text){p + 1, (size_t)(q - p - 1)};
            p = q + 1;
        } else {
            q = memchr(p, ',', (size_t)(end - p));
            f = (struct text){p, (size_t)((q ? q : end) - p)};
            p = q ? q : end;
        }
        if (n < CSV_MAX_FIELDS)
            out[n++] = trim(f);
        if (p == end)
            return n;
        p++;
    }
}

static bool same_name(struct text x, const char *name)
{
    return x.len == strlen(name) && !strncasecmp(x.s, name, x.len);
}

static const struct {
    const char *name;
    enum csv_column column;
} csv_names[] = {
    {"timestamp", COL_TIME},       {"contexttokens", COL_IN},    {"generatedtokens", COL_OUT},
    {"request tokens", COL_IN},    {"response tokens", COL_OUT}, {"total tokens", COL_TOTAL},
    {"model", COL_MODEL},          {"log type", COL_LOG},        {"session id", COL_SESSION},
    {"elapsed time", COL_ELAPSED},
};

/* Reads a header line into t->column. AUTO: it is none; otherwise the format that it belongs to. */
static enum trace_format csv_header(struct trace *t, const char *line, size_t len)
{
    struct text f[CSV_MAX_FIELDS];
    int n = csv_split(line, len, f), column[COL_N];
    enum trace_format format = TRACE_AUTO;
    for (int c = 0; c < COL_N; c++)
        column[c] = -1;
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < sizeof csv_names / sizeof csv_names[0]; k++)
            if (same_name(f[i], csv_names[k].name) && column[csv_names[k].column] < 0) {
                column[csv_names[k].column] = i;
                if (csv_names[k].column == COL_OUT)
                    format = k == 2 ? TRACE_AZURE : TRACE_BURSTGPT;
            }
    if (column[COL_TIME] < 0 || column[COL_IN] < 0 || column[COL_OUT] < 0)
        return TRACE_AUTO;
    memcpy(t->column, column, sizeof column);
    return format;
}

static int want_column(struct trace *t, const struct text *f, int n, enum csv_column c,
                       const char *name, struct text *out)
{
    if (t->column[c] >= n)
        return bad(t,
                   "expected at least %d columns, found %d: no %s; correct the row or leave it out "
                   "(--skip-bad)",
                   t->column[c] + 1, n, name);
    *out = f[t->column[c]];
    return 0;
}

static int want_csv_tokens(struct trace *t, struct text x, const char *name, uint64_t *out)
{
    uint64_t v = 0;
    size_t i = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9' && v <= TRACE_TOKENS_MAX; i++)
        v = v * 10 + (uint64_t)(x.s[i] - '0');
    bool ok = i > 0 && v <= TRACE_TOKENS_MAX;
    if (ok && i < x.len && x.s[i] == '.') /* 12.0 as some tools write it */
        for (i++; i < x.len && x.s[i] == '0';)
            i++;
    *out = v;
    char b[QUOTE_BYTES];
    if (ok && i == x.len)
        return 0;
    return bad(
        t,
        "expected %s to be a whole number of tokens, 0 to %u, found '%s'; correct the row or "
        "leave it out (--skip-bad)",
        name, TRACE_TOKENS_MAX, input_quote(b, sizeof b, x.s, x.len, QUOTE_CHARS));
}

/* Digits of a fraction behind a point, as picoseconds; digits beyond the 12th are cut. Returns the
 * first character behind them. */
static size_t take_fraction(struct text x, size_t i, int64_t *ps)
{
    int64_t unit = PS_PER_S / 10;
    *ps = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9'; i++) {
        *ps += unit * (x.s[i] - '0');
        unit /= 10;
    }
    return i;
}

/* Seconds: 12 or 12.5, exactly. */
static bool take_seconds(struct text x, wide_ps *out)
{
    uint64_t s = 0;
    size_t i = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9' && s <= TIME_MS_MAX; i++)
        s = s * 10 + (uint64_t)(x.s[i] - '0');
    int64_t frac = 0;
    bool ok = i > 0 && s <= TIME_MS_MAX;
    if (ok && i < x.len && x.s[i] == '.')
        i = take_fraction(x, i + 1, &frac);
    *out = (wide_ps)s * PS_PER_S + frac;
    return ok && i == x.len;
}

static int digits(const char *s, int n)
{
    int v = 0;
    while (n--) {
        if (*s < '0' || *s > '9')
            return -1;
        v = v * 10 + (*s++ - '0');
    }
    return v;
}

/* Days since 1970-01-01 of the proleptic Gregorian calendar (Hinnant, days_from_civil). */
static int64_t days_from_civil(int y, int m, int d)
{
    y -= m <= 2;
    int era = y / 400, yoe = y - era * 400;
    int doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    int doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    return (int64_t)era * 146097 + doe - 719468;
}

/* YYYY-MM-DD HH:MM:SS[.fraction][Z|+HH:MM|-HH:MM]; without a zone it is UTC. */
static bool take_date(struct text x, wide_ps *out)
{
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (x.len < 19 || x.s[4] != '-' || x.s[7] != '-' || (x.s[10] != ' ' && x.s[10] != 'T') ||
        x.s[13] != ':' || x.s[16] != ':')
        return false;
    int y = digits(x.s, 4), mo = digits(x.s + 5, 2), d = digits(x.s + 8, 2);
    int h = digits(x.s + 11, 2), mi = digits(x.s + 14, 2), sec = digits(x.s + 17, 2);
    if (y < 1970 || mo < 1 || mo > 12 || d < 1 || h < 0 || h > 23 || mi < 0 || mi > 59 || sec < 0 ||
        sec > 59)
        return false;
    bool leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    if (d > month_days[mo - 1] + (mo == 2 && leap))
        return false;
    int64_t frac = 0, zone_s = 0;
    size_t i = 19;
    if (i < x.len && x.s[i] == '.') {
        i = take_fraction(x, i + 1, &frac);
        if (i == 20)
            return false;
    }
    if (i + 1 == x.len && x.s[i] == 'Z')
        i++;
    if (i + 6 == x.len && (x.s[i] == '+' || x.s[i] == '-') && x.s[i + 3] == ':') {
        int zh = digits(x.s + i + 1, 2), zm = digits(x.s + i + 4, 2);
        if (zh < 0 || zh > 23 || zm < 0 || zm > 59)
            return false;
        zone_s = (zh * 3600 + zm * 60) * (x.s[i] == '-' ? -1 : 1);
        i += 6;
    }
    int64_t s = ((days_from_civil(y, mo, d) * 24 + h) * 60 + mi) * 60 + sec - zone_s;
    *out = (wide_ps)s * PS_PER_S + frac;
    return i == x.len;
}

/* The length of the well-formed UTF-8 at the head of s. */
static size_t utf8_span(const char *text, size_t len)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < len) {
        unsigned c = s[i];
        size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : 3;
        if ((more == 3 && (c < 0xf0 || c > 0xf4)) || i + more >= len)
            return i;
        for (size_t k = 1; k <= more; k++) {
            unsigned low = 0x80, high = 0xbf;
            if (k == 1)
                low = c == 0xe0   ? 0xa0
                      : c == 0xf0 ? 0x90
                                  : low,
                high = c == 0xed   ? 0x9f
                       : c == 0xf4 ? 0x8f
                                   : high;
            if (s[i + k] < low || s[i + k] > high)
                return i;
        }
        i += more + 1;
    }
    return i;
}

static int parse_csv_extra(struct trace *t, const struct text *f, int n, struct row *r)
{
    struct text x;
    char b[QUOTE_BYTES];
    wide_ps ps;
    if (t->column[COL_SESSION] >= 0) {
        int rc = want_column(t, f, n, COL_SESSION, "Session ID", &x);
        if (rc)
            return rc;
        r->session = x.len ? hash_text(x.s, x.len) : 0;
    }
    if (t->column[COL_ELAPSED] >= 0) {
        int rc = want_column(t, f, n, COL_ELAPSED, "Elapsed time", &x);
        if (rc)
            return rc;
        if (x.len && !take_seconds(x, &ps))
            return bad(
                t,
                "expected Elapsed time in seconds, found '%s'; correct the row or leave it out "
                "(--skip-bad)",
                input_quote(b, sizeof b, x.s, x.len, QUOTE_CHARS));
        r->e2e_ms = x.len ? (double)ps / 1e9 : -1;
    }
    return 0;
}

static int parse_csv_row(struct trace *t, struct row *r)
{
    bool azure = t->format == TRACE_AZURE;
    const char *in_name = azure ? "ContextTokens" : "Request tokens";
    const char *out_name = azure ? "GeneratedTokens" : "Response tokens";
    char b[QUOTE_BYTES];
    size_t good = utf8_span(t->line, t->len);
    if (good < t->len)
        return bad(t,
                   "expected UTF-8 text, found '%s' at column %zu; correct the row or leave it out "
                   "(--skip-bad)",
                   input_quote(b, sizeof b, t->line + good, t->len - good, 1), good + 1);
    struct text f[CSV_MAX_FIELDS], time, in, out;
    int n = csv_split(t->line, t->len, f), rc;
    if ((rc = want_column(t, f, n, COL_TIME, "timestamp", &time)) ||
        (rc = want_column(t, f, n, COL_IN, in_name, &in)) ||
        (rc = want_column(t, f, n, COL_OUT, out_name, &out)))
        return rc;
    if (!(azure ? take_date(time, &r->time_ps) : take_seconds(time, &r->time_ps)))
        return bad(
            t, "expected a time as %s, found '%s'; correct the row or leave it out (--skip-bad)",
            azure ? "2024-05-10 00:00:00.009930+00:00" : "seconds, 0 or more",
            input_quote(b, sizeof b, time.s, time.len, QUOTE_CHARS));
    if ((rc = want_csv_tokens(t, in, in_name, &r->in_tok)) ||
        (rc = want_csv_tokens(t, out, out_name, &r->out_tok)))
        return rc;
    r->has_time = r->has_in = r->has_out = true;
    if (azure && !r->out_tok)
        r->out_tok = 1; /* a prefill always yields a token */
    r->failed = !azure && !r->out_tok;
    return azure ? 0 : parse_csv_extra(t, f, n, r);
}

/* ---- files and formats ----------------------------------------------------------------------------- */

static bool is_csv(enum trace_format f)
{
    return f == TRACE_AZURE || f == TRACE_BURSTGPT;
}

static bool is_blank(const char *s, size_t len)
{
    while (len && (s[len - 1] == ' ' || s[len - 1] == '\t'))
        len--;
    return len == 0;
}

static int detect_json(struct trace *t)
{
    yyjson_alc alc;
    int rc = 0;
    yyjson_doc *doc = parse_json(t, &alc, &rc);
    t->format = TRACE_MOONCAKE;
    if (!doc)
        return rc == WEIR_E_NOMEM ? rc : 0; /* a bad row like any other, when its turn comes */
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (yyjson_obj_get(root, "weir") ||
        (yyjson_obj_get(root, "arrival_ms") && yyjson_obj_get(root, "prompt_tok"))) {
        t->format = TRACE_WEIR;
        return 0;
    }
    for (const struct field_name *f = mooncake_fields; f->name; f++)
        if (yyjson_obj_get(root, f->name))
            return 0;
    char b[QUOTE_BYTES];
    return bad(
        t,
        "expected a row of a Mooncake trace (timestamp, input_length, output_length, hash_ids) "
        "or of weir's request log (arrival_ms, prompt_tok, output_tok), found '%s'",
        input_quote(b, sizeof b, t->line, t->len, QUOTE_CHARS));
}

/* The first line of a file, in t->line: settles the format, takes a CSV's header. */
static int begin_format(struct trace *t)
{
    char b[QUOTE_BYTES];
    t->pending = true;
    if (t->format == TRACE_AUTO && t->line[0] == '{')
        return detect_json(t);
    if (t->format != TRACE_AUTO && !is_csv(t->format))
        return 0;
    enum trace_format f = csv_header(t, t->line, t->len);
    if (t->format == TRACE_AUTO && f == TRACE_AUTO)
        return bad(
            t,
            "expected a JSON object or the header of an Azure or BurstGPT CSV, found '%s'; is "
            "this a trace? If it lacks its header, name --trace-format",
            input_quote(b, sizeof b, t->line, t->len, QUOTE_CHARS));
    if (t->format == TRACE_AUTO)
        t->format = f;
    if (f == t->format) {
        t->pending = false;
        return 0;
    }
    if (t->line[0] >= '0' && t->line[0] <= '9') { /* no header: the columns as published */
        for (int c = 0; c < COL_N; c++)
            t->column[c] = -1;
        t->column[COL_TIME] = 0;
        t->column[COL_IN] = t->format == TRACE_AZURE ? 1 : 2;
        t->column[COL_OUT] = t->format == TRACE_AZURE ? 2 : 3;
        return 0;
    }
    return bad(t, "expected the header %s, found '%s'; is --trace-format right?",
               t->format == TRACE_AZURE ? "TIMESTAMP,ContextTokens,GeneratedTokens"
                                        : "Timestamp,Model,Request tokens,Response tokens,...",
               input_quote(b, sizeof b, t->line, t->len, QUOTE_CHARS));
}

static int input_failed(struct trace *t, int rc)
{
    memcpy(t->error, input_error(t->in), TRACE_ERROR_BYTES);
    return rc;
}

/* Reads up to the first line of t->in. */
static int begin_file(struct trace *t)
{
    t->file_rows = t->blank_line = 0;
    do {
        int rc = input_line(t->in, &t->line, &t->len);
        if (rc < 0)
            return input_failed(t, rc);
        if (!rc) {
            snprintf(t->error, sizeof t->error,
                     "%s: expected a trace, one request a line, found an empty file",
                     input_name(t->in));
            return WEIR_E_INPUT;
        }
    } while (is_blank(t->line, t->len));
    if (input_line_number(t->in) > 1)
        return bad(t,
                   "expected the first request or the header on line 1, found it here; remove the "
                   "empty lines above");
    return begin_format(t);
}

static int open_next(struct trace *t)
{
    input_close(t->in);
    t->in = input_open(t->paths[t->next_path], TRACE_LINE_MAX_BYTES, t->error);
    t->next_path++;
    return t->in ? begin_file(t) : WEIR_E_IO;
}

/* 1: t->line is the next row. 0: end. */
static int next_line(struct trace *t)
{
    while (!t->pending) {
        int rc = input_line(t->in, &t->line, &t->len);
        if (rc < 0)
            return t->failed = input_failed(t, rc);
        if (!rc) {
            if (!t->file_rows) {
                bad(t, "expected requests after the header, found none");
                return t->failed = WEIR_E_INPUT;
            }
            if (t->next_path >= t->n_paths)
                return 0;
            rc = open_next(t);
            if (rc)
                return t->failed = rc;
        } else if (is_blank(t->line, t->len)) {
            t->blank_line = input_line_number(t->in);
        } else if (t->blank_line) {
            t->blank_line = 0;
            t->pending = true;
            return bad(
                t, "expected a request on every line, found an empty line above this one; remove "
                   "it or leave it out (--skip-bad)");
        } else {
            break;
        }
    }
    t->pending = false;
    t->file_rows++;
    return 1;
}

static int parse_row(struct trace *t, struct row *r)
{
    if (is_csv(t->format))
        return parse_csv_row(t, r);
    if (t->format == TRACE_MOONCAKE && !t->opt.no_fast_path) {
        int rc = grow_ids(t, t->len / 2 + 1);
        if (rc)
            return rc;
        if (scan_mooncake(t, r))
            return 0;
        *r = (struct row){.ttft_ms = -1, .e2e_ms = -1};
    }
    int rc = parse_json_row(t, r);
    if (!rc && t->format == TRACE_WEIR)
        r->failed = r->failed && !r->out_tok; /* one with an answer can be replayed */
    return rc;
}

/* 1: *out filled. 0: the trace itself marks the row as failed. */
static int load_row(struct trace *t, struct trace_request *out)
{
    struct row r = {.ttft_ms = -1, .e2e_ms = -1};
    struct verdict v = {0};
    int rc = parse_row(t, &r);
    if (rc)
        return rc;
    if (r.failed)
        return 0;
    rc = check_row(t, &r, &v);
    if (rc)
        return rc;
    take_row(t, &r, &v, out);
    return 1;
}

int trace_next(struct trace *t, struct trace_request *out)
{
    while (!t->failed && (!t->opt.max_rows || t->rows < t->opt.max_rows)) {
        int rc = next_line(t);
        if (!rc)
            return 0;
        if (rc > 0) {
            rc = load_row(t, out);
            if (rc > 0)
                return 1;
            if (!rc) {
                t->failed_rows++;
                continue;
            }
        }
        if (rc != WEIR_E_INPUT || t->failed || t->bad_rows == t->opt.skip_bad) {
            t->failed = rc;
            break;
        }
        t->bad_rows++;
    }
    return t->failed < 0 ? t->failed : 0;
}

const char *trace_error(const struct trace *t)
{
    return t->error;
}

uint64_t trace_bad_rows(const struct trace *t)
{
    return t->bad_rows;
}

uint64_t trace_failed_rows(const struct trace *t)
{
    return t->failed_rows;
}

enum trace_format trace_format(const struct trace *t)
{
    return t->format;
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static struct trace *trace_new(const struct trace_options *opt, char *error)
{
    struct trace *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(error, TRACE_ERROR_BYTES, "out of memory");
        return NULL;
    }
    t->opt = *opt;
    t->format = opt->format;
    if (!t->opt.block_tok)
        t->opt.block_tok = MOONCAKE_BLOCK_TOK;
    t->key_tok = opt->delta_key_tok ? opt->delta_key_tok : t->opt.block_tok;
    return t;
}

/* Before hours of replay end at the last file's name. */
static int check_path(const char *path, char *error)
{
    struct stat st;
    char b[INPUT_NAME_BYTES];
    int rc = !strcmp(path, "-") ? 0 : stat(path, &st) ? errno : access(path, R_OK) ? errno : 0;
    if (!rc && strcmp(path, "-") && S_ISDIR(st.st_mode))
        rc = EISDIR;
    if (rc)
        snprintf(error, TRACE_ERROR_BYTES,
                 "%s: cannot be opened: %s; name a trace file, or - for "
                 "standard input",
                 input_quote(b, sizeof b, path, strlen(path), INPUT_NAME_BYTES - 12), strerror(rc));
    return rc;
}

static int copy_paths(struct trace *t, const char *const *paths, size_t n)
{
    t->paths = calloc(n ? n : 1, sizeof *t->paths);
    if (!t->paths)
        goto no_memory;
    for (size_t i = 0; i < n; i++) {
        t->paths[i] = strdup(paths[i]);
        if (!t->paths[i])
            goto no_memory;
        t->n_paths++;
        if (check_path(paths[i], t->error))
            return WEIR_E_IO;
    }
    if (n)
        return 0;
    snprintf(t->error, sizeof t->error, "no trace named; name its file, or - for standard input");
    return WEIR_E_INPUT;
no_memory:
    snprintf(t->error, sizeof t->error, "out of memory");
    return WEIR_E_NOMEM;
}

struct trace *trace_open(const char *const *paths, size_t n_paths, const struct trace_options *opt,
                         char *error)
{
    struct trace *t = trace_new(opt, error);
    if (!t)
        return NULL;
    if (!copy_paths(t, paths, n_paths) && !open_next(t))
        return t;
    memcpy(error, t->error, TRACE_ERROR_BYTES);
    trace_close(t);
    return NULL;
}

struct trace *trace_open_memory(const char *name, const void *data, size_t len,
                                const struct trace_options *opt, char *error)
{
    struct trace *t = trace_new(opt, error);
    if (!t)
        return NULL;
    t->in = input_open_memory(name, data, len, TRACE_LINE_MAX_BYTES, t->error);
    if (t->in && !begin_file(t))
        return t;
    memcpy(error, t->error, TRACE_ERROR_BYTES);
    trace_close(t);
    return NULL;
}

void trace_close(struct trace *t)
{
    if (!t)
        return;
    input_close(t->in);
    for (size_t i = 0; i < t->n_paths; i++)
        free(t->paths[i]);
    free(t->paths);
    for (size_t i = 0; i < t->sessions_cap; i++)
        free(t->sessions[i].keys);
    free(t->sessions);
    free(t->lone.keys);
    free(t->ids);
    free(t->pool);
    free(t);
}
