/* trace_json.c - rows that are JSON objects: Mooncake's and weir's own log.
 *
 * JSON is parsed by yyjson out of one buffer. The plain Mooncake row is scanned by hand first: yyjson's
 * tree of 16 bytes a number costs more than all the rest of loading. The scanner gives up on anything
 * but the exact shape and yyjson decides.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

#include "controller/replay/trace_internal.h"
#include "controller/config/words.h"
#include "predictor/request.h"

#define FOREIGN_MIN_CHARS 5 /* shorter names are near to anything */
#define FAR_SLIP 3

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
        input_quote(out + 1, TRACE_QUOTE_BYTES - 2, yyjson_get_str(v), yyjson_get_len(v),
                    TRACE_QUOTE_CHARS);
        memcpy(out + strlen(out), "\"", 2);
        return out;
    default: break;
    }
    if (yyjson_is_uint(v))
        snprintf(out, TRACE_QUOTE_BYTES, "%llu", (unsigned long long)yyjson_get_uint(v));
    else if (yyjson_is_sint(v))
        snprintf(out, TRACE_QUOTE_BYTES, "%lld", (long long)yyjson_get_sint(v));
    else
        snprintf(out, TRACE_QUOTE_BYTES, "%.15g", yyjson_get_real(v));
    return out;
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
    char b[TRACE_QUOTE_BYTES];
    return trace_bad(t, "expected %s to be a whole number of tokens, 0 to %u, found %s" TRACE_FIX,
                     name, TRACE_TOKENS_MAX, found(b, v));
}

static int want_ms(struct trace *t, const char *name, yyjson_val *v, wide_ps *out)
{
    if (yyjson_is_uint(v) && yyjson_get_uint(v) <= TRACE_TIME_MS_MAX) {
        *out = (wide_ps)yyjson_get_uint(v) * PS_PER_MS;
        return 0;
    }
    double d = yyjson_get_num(v);
    if (yyjson_is_real(v) && d >= 0 && d <= (double)TRACE_TIME_MS_MAX) {
        uint64_t whole = (uint64_t)d;
        *out = (wide_ps)whole * PS_PER_MS + ps_from_ms(d - (double)whole);
        return 0;
    }
    char b[TRACE_QUOTE_BYTES];
    return trace_bad(t, "expected %s in milliseconds, a number from 0 to 2^53, found %s" TRACE_FIX,
                     name, found(b, v));
}

static int want_delay(struct trace *t, const char *name, yyjson_val *v, int64_t *out)
{
    wide_ps ps;
    int rc = want_ms(t, name, v, &ps);
    if (rc)
        return rc;
    if (ps > PS_LIMIT)
        return trace_bad(t, "expected %s of at most 53 days, found %.0f ms; is it in milliseconds?",
                         name, (double)ps / 1e9);
    *out = (int64_t)ps;
    return 0;
}

/* A name: text or a number ("7" and 7 are the same). hex: weir's own log writes hashes as 16 digits. */
static int want_name(struct trace *t, const char *name, yyjson_val *v, bool hex, uint64_t *out)
{
    if (yyjson_is_str(v)) {
        const char *s = yyjson_get_str(v);
        size_t len = yyjson_get_len(v);
        if (hex && len == 16 && strspn(s, "0123456789abcdef") == 16)
            *out = strtoull(s, NULL, 16);
        else
            *out = len ? trace_hash_name(s, len) : 0;
        return 0;
    }
    char b[TRACE_QUOTE_BYTES];
    if (yyjson_is_int(v)) {
        found(b, v);
        *out = trace_hash_name(b, strlen(b));
        return 0;
    }
    return trace_bad(t, "expected %s to be a string or a whole number, found %s" TRACE_FIX, name,
                     found(b, v));
}

static int want_int32(struct trace *t, const char *name, yyjson_val *v, int32_t *out)
{
    int64_t n = yyjson_get_sint(v);
    if (yyjson_is_int(v) && n >= INT32_MIN && n <= INT32_MAX &&
        !(yyjson_is_uint(v) && yyjson_get_uint(v) > INT32_MAX)) {
        *out = (int32_t)n;
        return 0;
    }
    char b[TRACE_QUOTE_BYTES];
    return trace_bad(t, "expected %s to be a whole number of 32 bits, found %s" TRACE_FIX, name,
                     found(b, v));
}

/* An array of whole numbers of 64 bits into ids, which has room for them. */
static int want_numbers(struct trace *t, const char *name, yyjson_val *v, uint64_t *ids)
{
    char b[TRACE_QUOTE_BYTES];
    size_t i, max;
    yyjson_val *e;
    if (!yyjson_is_arr(v))
        return trace_bad(t, "expected %s to be an array of whole numbers, found %s" TRACE_FIX, name,
                         found(b, v));
    yyjson_arr_foreach (v, i, max, e) {
        if (!yyjson_is_int(e))
            return trace_bad(t,
                             "expected %s to be an array of whole numbers of 64 bits, found %s at "
                             "index %zu" TRACE_FIX,
                             name, found(b, e), i);
        ids[i] = yyjson_get_uint(e); /* a negative id is as good a name as any */
    }
    return 0;
}

static int want_ids(struct trace *t, const char *name, yyjson_val *v, struct row *r)
{
    size_t n = yyjson_arr_size(v); /* bounded by TRACE_LINE_MAX_BYTES */
    int rc = trace_grow_ids(t, n);
    r->n_ids = (uint32_t)n;
    r->has_ids = n > 0;
    return rc ? rc : want_numbers(t, name, v, t->ids);
}

static int want_output_ids(struct trace *t, const char *name, yyjson_val *v, struct row *r)
{
    int rc = trace_grow_out_ids(t, yyjson_arr_size(v));
    r->output_ids = yyjson_arr_size(v);
    r->has_output_ids = true;
    return rc ? rc : want_numbers(t, name, v, t->out_ids);
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
            *rc = trace_no_memory(t);
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
    char b[TRACE_QUOTE_BYTES];
    if (doc) {
        *rc = trace_bad(t, "expected a JSON object, one request a line, found %s" TRACE_FIX,
                        found(b, yyjson_doc_get_root(doc)));
    } else {
        size_t at = err.pos < t->len ? err.pos : t->len;
        const char *s = t->line + at;
        *rc = trace_bad(
            t,
            "expected a JSON object, found '%s' at column %zu (%s); is the line cut off, or "
            "not UTF-8? Correct it or leave it out (--skip-bad)",
            input_quote(b, sizeof b, s, t->len - at, TRACE_QUOTE_CHARS), at + 1, err.msg);
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
    F_POLICY,
    F_WEIR,
    F_LIVE,
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
    {"arrival_ms", F_TIME},
    {"prompt_tok", F_IN},
    {"output_tok", F_OUT},
    {"max_tokens", F_MAX},
    {"priority", F_PRIORITY},
    {"session", F_SESSION},
    {"tenant", F_TENANT},
    {"key_tok", F_KEY_TOK},
    {"keys", F_KEYS},
    {"ttft_ms", F_TTFT},
    {"e2e_ms", F_E2E},
    {"status", F_STATUS},
    {"delay_ms", F_DELAY},
    {"policy", F_POLICY},
    {"weir", F_WEIR},
    {"live", F_LIVE},
    {NULL, F_N},
};

static const struct field_name *field_of(const struct field_name *names, yyjson_val *key)
{
    while (names->name && !yyjson_equals_str(key, names->name))
        names++;
    return names;
}

static int want_keys(struct trace *t, yyjson_val *v, struct row *r)
{
    char b[TRACE_QUOTE_BYTES];
    size_t n = yyjson_arr_size(v), i, max;
    int rc = trace_grow_ids(t, n);
    if (rc)
        return rc;
    yyjson_val *e;
    bool ok = yyjson_is_arr(v) && n <= UINT32_MAX;
    yyjson_arr_foreach (v, i, max, e) {
        const char *s = yyjson_get_str(e);
        ok = ok && s && yyjson_get_len(e) == 16 && strspn(s, "0123456789abcdef") == 16;
        if (!ok)
            return trace_bad(
                t,
                "expected keys to be strings of 16 hexadecimal digits, found %s at index %zu" TRACE_FIX,
                found(b, e), i);
        t->ids[i] = strtoull(s, NULL, 16);
    }
    if (!ok)
        return trace_bad(t, "expected keys to be an array of strings, found %s" TRACE_FIX,
                         found(b, v));
    r->n_ids = (uint32_t)n;
    r->has_ids = n > 0;
    r->chained = true;
    return 0;
}

static int want_duration(struct trace *t, const char *name, yyjson_val *v, double *out)
{
    char b[TRACE_QUOTE_BYTES];
    double d = yyjson_get_num(v);
    if (!yyjson_is_num(v) || !(d <= (double)TRACE_TIME_MS_MAX))
        return trace_bad(t, "expected %s in milliseconds, found %s" TRACE_FIX, name, found(b, v));
    *out = d < 0 ? -1 : d;
    return 0;
}

static int want_text(struct trace *t, const char *name, yyjson_val *v)
{
    char b[TRACE_QUOTE_BYTES];
    if (yyjson_is_str(v) || yyjson_is_int(v))
        return 0;
    return trace_bad(t, "expected %s to be a string or a whole number, found %s" TRACE_FIX, name,
                     found(b, v));
}

static int take_field(struct trace *t, const struct field_name *f, yyjson_val *v, struct row *r)
{
    bool weir = t->format == TRACE_WEIR;
    char b[TRACE_QUOTE_BYTES];
    int32_t ignored;
    uint64_t n = 0;
    int rc = 0;
    if (yyjson_is_null(v)) /* as good as absent: tables turned into JSON are full of them */
        return 0;
    switch (f->field) {
    case F_TIME: r->has_time = true; return want_ms(t, f->name, v, &r->time_ps);
    case F_IN: r->has_in = true; return want_tokens(t, f->name, v, &r->in_tok);
    case F_OUT: r->has_out = true; return want_tokens(t, f->name, v, &r->out_tok);
    case F_MAX: return want_tokens(t, f->name, v, &r->max_tok);
    case F_IDS: return want_ids(t, f->name, v, r);
    case F_SESSION: return want_name(t, f->name, v, weir, &r->session);
    case F_TENANT: return want_name(t, f->name, v, weir, &r->tenant);
    case F_DELAY: return want_delay(t, f->name, v, &r->delay_ps);
    case F_OUTPUT_IDS: return want_output_ids(t, f->name, v, r);
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
    case F_LIVE: r->live = yyjson_get_bool(v); return 0;
    case F_POLICY: return want_name(t, f->name, v, false, &r->policy);
    case F_WEIR:
        if (yyjson_get_uint(v) == 1)
            return 0;
        return trace_bad(
            t, "expected version 1 of weir's request log, found %s; a newer weir reads it",
            found(b, v));
    case F_N: break;
    }
    return 0;
}

static bool one_slip(const char *list, yyjson_val *key, unsigned limit, char near[WORD_BYTES])
{
    const char *s = yyjson_get_str(key);
    size_t len = yyjson_get_len(key);
    return len == strlen(s) && word_nearest(list, s, limit, near, WORD_BYTES) &&
           strlen(near) <=
               len + limit; /* "session" is no slip for session_id, "input" none at all */
}

/* Traces carry fields of their own, which are passed over; but one letter from a field that is read, it
 * is more likely a slip, and what it says must not get lost. Each name is looked at once. */
static int check_foreign(struct trace *t, const struct field_name *names, yyjson_val *key)
{
    char list[512] = "", near[WORD_BYTES], b[TRACE_QUOTE_BYTES];
    size_t len = yyjson_get_len(key);
    uint64_t hash = trace_hash_name(yyjson_get_str(key), len);
    for (uint32_t i = 0; i < t->n_foreign; i++)
        if (t->foreign[i] == hash)
            return 0;
    if (t->n_foreign == TRACE_FOREIGN_MAX)
        return 0;
    for (const struct field_name *f = names; f->name; f++)
        word_add(list, sizeof list, f->name);
    if (len >= FOREIGN_MIN_CHARS && one_slip(list, key, 1, near))
        return trace_bad(t,
                         "expected %s, found %s; correct the name, or rename the field if it is "
                         "another",
                         near,
                         input_quote(b, sizeof b, yyjson_get_str(key), len, TRACE_QUOTE_CHARS));
    t->foreign[t->n_foreign++] = hash;
    return 0;
}

/* A field that every row needs is not there. */
static int missing(struct trace *t, const struct field_name *fields, yyjson_val *root,
                   enum field field)
{
    const struct field_name *names = fields;
    size_t i, max;
    yyjson_val *key, *v;
    char near[WORD_BYTES], b[TRACE_QUOTE_BYTES];
    while (names->field != field)
        names++;
    yyjson_obj_foreach (root, i, max, key, v) {
        if (!field_of(fields, key)->name && one_slip(names->name, key, FAR_SLIP, near))
            return trace_bad(t, "expected a field %s, found %s instead; correct the name",
                             names->name,
                             input_quote(b, sizeof b, yyjson_get_str(key), yyjson_get_len(key),
                                         TRACE_QUOTE_CHARS));
    }
    return trace_bad(
        t,
        "expected a field %s, found none; complete the row or leave it out (--skip-bad), "
        "or is --format wrong?",
        names->name);
}

int trace_json_row(struct trace *t, struct row *r)
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
        if (!f->name) {
            rc = check_foreign(t, names, key);
            if (rc)
                return rc;
            continue;
        }
        if (seen & 1u << f->field)
            return trace_bad(
                t, "expected %s once, found it again, perhaps under its other name" TRACE_FIX,
                f->name);
        seen |= 1u << f->field;
        rc = take_field(t, f, v, r);
        if (rc)
            return rc;
    }
    if (!r->has_in || !r->has_out)
        rc = missing(t, names, yyjson_doc_get_root(doc), r->has_in ? F_OUT : F_IN);
    return rc; /* doc lies in the pool: nothing to free */
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

/* Inlined for its name: comparing with a text of known length is a load or two. */
__attribute__((always_inline)) static inline const char *
scan_member(const char *p, const char *end, const char *name, size_t n, uint64_t *out)
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

/* The numbers behind the one at p, of `digits` digits and followed by what separates them, as long as each is the one
 * before and 1 and only its last two digits change: then its text is known. Chains their keys, and returns where the first
 * other number begins. */
__attribute__((always_inline)) static inline const char *
scan_run(const char *p, const char *end, size_t digits, int step, uint64_t id, uint64_t **out)
{
    size_t stride = digits + (size_t)step;
    const char *next = p + stride;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t *k = *out, key = k[-1], text, want;
    unsigned drop = 64 - 8 * (unsigned)stride;
    uint64_t one = UINT64_C(1) << (drop + 8 * ((unsigned)digits - 1));
    memcpy(&text, p, 8);
    want = (text << drop) + one;
    for (int left = '9' - next[-1 - step]; end - next >= 8; left--) {
        if (!left) { /* 19, 20 */
            if (digits < 2 || next[-2 - step] == '9')
                break;
            want += (one >> 8) - 10 * one;
            left = 10;
        }
        memcpy(&text, next, 8);
        if (text << drop != want)
            break;
        want += one;
        next += stride;
        key = request_chain_key(key, ++id);
        *k++ = key;
    }
    *out = k;
#else
    (void)end, (void)id, (void)out;
#endif
    return next;
}

/* N, N, ...: with `step` characters from one comma to the next number, "," or ", ". Chains the keys into
 * *out and returns what is behind the last number; NULL: yyjson decides. The step is a constant and the
 * loop a function of its own because the way from one number to the next is what loading a trace waits
 * for: 1.4 times as long with other things kept in registers around it. Most numbers are the one before
 * and 1: blocks that were new together were numbered together. */
__attribute__((always_inline)) static inline const char *scan_ids(const char *p, const char *end,
                                                                  int step, uint64_t **out)
{
    uint64_t *k = *out, key = 0, id;
    for (;;) {
        const char *q = end - p >= 8 ? scan_short_uint(p, &id) : p;
        size_t digits = (size_t)(q - p);
        q = digits ? q : scan_uint(p, &id);
        if (!q)
            return NULL;
        key = request_chain_key(key, id);
        *k++ = key;
        if (*q != ',') {
            *out = k;
            return q;
        }
        if ((q[1] == ' ') != (step == 2))
            return NULL;
        if (!digits || digits + (size_t)step > 8) {
            p = q + step;
            continue;
        }
        p = scan_run(p, end, digits, step, id, &k);
        key = k[-1];
    }
}

__attribute__((noinline)) static const char *scan_tight_ids(const char *p, const char *end,
                                                            uint64_t **out)
{
    return scan_ids(p, end, 1, out);
}

__attribute__((noinline)) static const char *scan_spaced_ids(const char *p, const char *end,
                                                             uint64_t **out)
{
    return scan_ids(p, end, 2, out);
}

/* {"timestamp": N, "input_length": N, "output_length": N, "hash_ids": [N, ...]} and nothing else.
 * Every step stops at the byte behind the line, which is no part of the shape. */
bool trace_scan_mooncake(struct trace *t, struct row *r)
{
    static const char ids_name[] = "\"hash_ids\":";
    const char *p = t->line, *end = p + t->len;
    uint64_t ms, in, out, *k = t->ids;
    if (!t->len || t->len / 2 >= t->ids_cap || *p++ != '{')
        return false;
    p = scan_comma(SCAN_MEMBER(p, end, "\"timestamp\"", &ms));
    p = p ? scan_comma(SCAN_MEMBER(p, end, "\"input_length\"", &in)) : NULL;
    p = p ? scan_comma(SCAN_MEMBER(p, end, "\"output_length\"", &out)) : NULL;
    if (!p || (size_t)(end - p) < sizeof ids_name || memcmp(p, ids_name, sizeof ids_name - 1))
        return false;
    p += sizeof ids_name - 1;
    bool spaced = *p == ' ';
    p += spaced;
    if (*p++ != '[' || in > TRACE_TOKENS_MAX || out > TRACE_TOKENS_MAX || ms > TRACE_TIME_MS_MAX)
        return false;
    p = spaced ? scan_spaced_ids(p, end, &k) : scan_tight_ids(p, end, &k);
    if (!p || p + 2 != end || p[0] != ']' || p[1] != '}')
        return false;
    r->has_time = r->has_in = r->has_out = r->has_ids = r->chained = true;
    r->time_ps = (wide_ps)ms * PS_PER_MS;
    r->in_tok = in;
    r->out_tok = out;
    r->n_ids = (uint32_t)(k - t->ids);
    return true;
}

int trace_json_detect(struct trace *t)
{
    yyjson_alc alc;
    int rc = 0;
    yyjson_doc *doc = parse_json(t, &alc, &rc);
    if (!doc)
        return rc;
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (yyjson_obj_get(root, "weir") ||
        (yyjson_obj_get(root, "arrival_ms") && yyjson_obj_get(root, "prompt_tok"))) {
        t->format = TRACE_WEIR;
        return 0;
    }
    for (const struct field_name *f = mooncake_fields; f->name; f++) {
        if (yyjson_obj_get(root, f->name)) {
            t->format = TRACE_MOONCAKE;
            return 0;
        }
    }
    char b[TRACE_QUOTE_BYTES];
    return trace_bad(
        t,
        "expected a row of a Mooncake trace (timestamp, input_length, output_length, "
        "hash_ids) or of weir's request log (arrival_ms, prompt_tok, output_tok), found "
        "'%s'; is this a trace?",
        input_quote(b, sizeof b, t->line, t->len, TRACE_QUOTE_CHARS));
}
