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
    uint32_t n_ids;  /* in trace.ids: hash ids, or chained keys if `chained` */
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
    uint64_t file_rows; /* good, bad or failed, in this file */
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

    uint64_t rows, bad_rows, failed_rows;
    bool started;
    wide_ps first_ps;
    int64_t last_ps;
    int failed;
    char error[TRACE_ERROR_BYTES];
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
static const char *found(char *out, const yyjson_val *v)
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
        return strcat(out, "\"");
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
    for (; len > 8; s += 8, len -= 8) {
        memcpy(&w, s, 8);
        h = rng_mix64(h ^ w);
    }
    w = 0;
    for (size_t i = 0; i < len; i++) /* by value: same on any byte order; the loop above is not */
        w |= (uint64_t)(unsigned char)s[i] << (8 * i);
    h = rng_mix64(h ^ w);
    return h ? h : 1;
}

static int want_tokens(struct trace *t, const char *name, const yyjson_val *v, uint64_t *out)
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
    return bad(t, "expected %s to be a whole number of tokens, 0 to %u, found %s; correct the row or "
               "leave it out (--skip-bad)", name, TRACE_TOKENS_MAX, found(b, v));
}

static int want_ms(struct trace *t, const char *name, const yyjson_val *v, wide_ps *out)
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
    return bad(t, "expected %s in milliseconds, a number from 0 to 2^53, found %s; correct the row or "
               "leave it out (--skip-bad)", name, found(b, v));
}

static int want_delay(struct trace *t, const char *name, const yyjson_val *v, int64_t *out)
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
static int want_name(struct trace *t, const char *name, const yyjson_val *v, bool hex, uint64_t *out)
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

static int want_int32(struct trace *t, const char *name, const yyjson_val *v, int32_t *out)
{
    int64_t n = yyjson_get_sint(v);
    if (yyjson_is_int(v) && n >= INT32_MIN && n <= INT32_MAX) {
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
    yyjson_arr_foreach(v, i, max, e) {
        if (!yyjson_is_int(e))
            return bad(t, "expected hash_ids to be an array of whole numbers of 64 bits, found %s at "
                       "index %zu", found(b, e), i);
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
        *rc = bad(t, "expected a JSON object, found %s at column %zu (near '%s'); is the line cut off "
                  "or not UTF-8?", err.msg, at + 1,
                  input_quote(b, sizeof b, s, t->len - at, QUOTE_CHARS));
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
    {"timestamp", F_TIME},       {"created_time", F_TIME},      {"input_length", F_IN},
    {"input_tokens", F_IN},      {"output_length", F_OUT},      {"output_tokens", F_OUT},
    {"hash_ids", F_IDS},         {"session_id", F_SESSION},     {"delay", F_DELAY},
    {"delay_ms", F_DELAY},       {"output_token_ids", F_OUTPUT_IDS}, {"request_id", F_REQUEST_ID},
    {"priority", F_PRIORITY},    {"strict_priority", F_STRICT}, {"policy_class", F_CLASS},
    {"tenant", F_TENANT},        {"user", F_TENANT},            {NULL, F_N},
};

static const struct field_name weir_fields[] = {
    {"arrival_ms", F_TIME},   {"prompt_tok", F_IN}, {"output_tok", F_OUT}, {"max_tokens", F_MAX},
    {"priority", F_PRIORITY}, {"session", F_SESSION}, {"tenant", F_TENANT}, {"key_tok", F_KEY_TOK},
    {"keys", F_KEYS},         {"ttft_ms", F_TTFT},  {"e2e_ms", F_E2E},     {"status", F_STATUS},
    {"delay_ms", F_DELAY},    {"weir", F_WEIR},     {NULL, F_N},
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
    yyjson_arr_foreach(v, i, max, e) {
        const char *s = yyjson_get_str(e);
        ok = ok && s && yyjson_get_len(e) == 16 && strspn(s, "0123456789abcdef") == 16;
        if (!ok)
            return bad(t, "expected keys to be strings of 16 hexadecimal digits, found %s at index %zu",
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
    yyjson_obj_foreach(yyjson_doc_get_root(doc), i, max, key, v) {
        const struct field_name *f = field_of(names, key);
        if (!f->name)
            continue; /* traces carry fields of their own */
        if (seen & 1u << f->field)
            return bad(t, "expected one %s, found a second one (%s and its other name are the same "
                       "field)", f->name, f->name);
        seen |= 1u << f->field;
        rc = take_field(t, f, v, r);
        if (rc)
            return rc;
    }
    return 0; /* doc lies in the pool: nothing to free */
}

/* ---- the plain Mooncake row by hand ----------------------------------------------------------- */

/* Literal text, then one optional space. */
#define SCAN_TEXT(p, text) (!memcmp(p, text, sizeof(text) - 1) ? ((p) += sizeof(text) - 1, true) : false)

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

static const char *scan_member(const char *p, const char *end, const char *name, size_t n, uint64_t *out)
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
    if (t->len < 2 || t->len / 2 > t->ids_cap || *p++ != '{')
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
    for (;;) {
        p = scan_uint(p, &id);
        if (!p)
            return false;
        key = request_chain_key(key, id);
        *k++ = key;
        if (*p != ',')
            break;
        p++;
        p += *p == ' ';
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

/* Names of the slots of a delta row's prompt, see trace.h; in place behind the ones that stay. */
static int delta_keys(struct trace *t, struct session *s, const struct row *r, uint64_t prompt)
{
    uint64_t kt = t->key_tok, bt = t->opt.block_tok;
    uint64_t before = s->prompt_tok, total = s->total_tok; /* 0 and 0 at the first turn */
    uint64_t n = (prompt + kt - 1) / kt, generated = request_generated_key(s->uid);
    uint64_t lone = rng_mix64(t->rows ^ UINT64_C(0x6e6577)); /* names input without hash_ids */
    if (n > s->cap) {
        uint64_t cap = s->cap ? s->cap : 16;
        while (cap < n)
            cap *= 2;
        if (t->session_keys + cap - s->cap > TRACE_SESSION_KEYS_MAX)
            return bad(t, "the sessions of this mooncake-delta trace need more than %u keys, the most "
                       "that are kept; split the trace", TRACE_SESSION_KEYS_MAX);
        uint64_t *p = realloc(s->keys, cap * sizeof *p);
        if (!p)
            return no_memory(t);
        t->session_keys += cap - s->cap;
        s->keys = p;
        s->cap = (uint32_t)cap;
    }
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
            key = request_chain_key(key, r->has_ids ? t->ids[c] : lone + c);
        s->keys[i] = key;
    }
    s->n_keys = (uint32_t)n;
    return 0;
}

/* Everything that can be wrong with a row's meaning; then the trace moves on. */
static int finish(struct trace *t, const struct row *r, struct trace_request *out)
{
    bool delta = t->format == TRACE_MOONCAKE_DELTA;
    const char *in_name = t->format == TRACE_WEIR                                     ? "prompt_tok"
                          : t->format == TRACE_MOONCAKE || t->format == TRACE_MOONCAKE_DELTA ? "input_length"
                                                                                      : "input tokens";
    if (!r->has_in || !r->has_out)
        return bad(t, "expected a field %s, found none; is this the right --trace-format?",
                   !r->has_in ? in_name : t->format == TRACE_WEIR ? "output_tok" : "output_length");
    if (!r->in_tok || !r->out_tok)
        return bad(t, "expected at least 1 token of %s, found 0; leave the row out (--skip-bad)",
                   !r->in_tok ? "input" : "output");
    if (r->has_output_ids && r->output_ids != r->out_tok)
        return bad(t, "expected %llu output_token_ids as output_length says, found %llu",
                   (unsigned long long)r->out_tok, (unsigned long long)r->output_ids);
    uint64_t block_tok = t->format == TRACE_WEIR ? r->key_tok : t->opt.block_tok;
    uint64_t blocks = 0;
    if (r->has_ids) {
        if (!block_tok)
            return bad(t, "expected key_tok, the tokens that a key covers, found none");
        blocks = (r->in_tok + block_tok - 1) / block_tok;
        if (t->format != TRACE_WEIR && blocks != r->n_ids)
            return bad(t, "expected %llu hash_ids for %llu input tokens in blocks of %llu, found %u; is "
                       "--trace-block-size right?", (unsigned long long)blocks,
                       (unsigned long long)r->in_tok, (unsigned long long)block_tok, r->n_ids);
        if (r->n_ids > (r->in_tok + r->out_tok + block_tok - 1) / block_tok)
            return bad(t, "expected at most a key for each %llu tokens, found %u keys for %llu tokens",
                       (unsigned long long)block_tok, r->n_ids,
                       (unsigned long long)(r->in_tok + r->out_tok));
    }
    if (r->max_tok && r->max_tok < r->out_tok)
        return bad(t, "expected max_tokens of at least output_tok, %llu, found %llu",
                   (unsigned long long)r->out_tok, (unsigned long long)r->max_tok);

    struct session *s = session_find(t, r->session);
    bool follows = s != NULL;
    if (!r->has_time && !follows)
        return bad(t, "expected a %s, found none; only later turns of a session may go without one",
                   t->format == TRACE_WEIR ? "arrival_ms" : "timestamp");
    int64_t arrival = PS_NEVER;
    if (r->has_time) {
        wide_ps rel = t->started ? r->time_ps - t->first_ps : 0;
        if (rel < t->last_ps)
            return bad(t, "expected a time not before that of the row before, found one %.3f ms "
                       "earlier; sort the rows by time%s", (double)(t->last_ps - rel) / 1e9,
                       t->n_paths > 1 ? " and give the files in order" : "");
        if (rel > PS_LIMIT)
            return bad(t, "expected times within 53 days of the first one, found %.0f ms after it; is "
                       "the unit right?", (double)rel / 1e9);
        arrival = (int64_t)rel;
    }
    if (!follows && r->delay_ps && !r->session)
        return bad(t, "expected a session_id where there is a delay, found none");
    uint64_t prompt = r->in_tok;
    if (delta && follows)
        prompt += s->total_tok;
    if (prompt > TRACE_TOKENS_MAX)
        return bad(t, "expected sessions of at most %u tokens, found %llu", TRACE_TOKENS_MAX,
                   (unsigned long long)prompt);

    struct session lone = {0};
    if (r->session && !follows) {
        int rc = session_reserve(t);
        if (rc)
            return rc;
        s = session_slot(t, r->session);
    }
    const uint64_t *keys = t->ids;
    uint32_t n_keys = r->n_ids, key_tok = (uint32_t)block_tok;
    if (delta && r->session) {
        int rc = delta_keys(t, s, r, prompt);
        if (rc)
            return rc;
        keys = s->keys;
        n_keys = s->n_keys;
        key_tok = t->key_tok;
    } else if (delta && r->has_ids && t->key_tok != block_tok) {
        int rc = delta_lone(t, r, &n_keys);
        (void)lone;
        if (rc)
            return rc;
        key_tok = t->key_tok;
    } else if (r->has_ids && !r->chained) {
        uint64_t key = 0;
        for (uint32_t i = 0; i < n_keys; i++)
            key = t->ids[i] = request_chain_key(key, t->ids[i]);
    }
    return 0;
}
