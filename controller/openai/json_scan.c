/* json_scan.c - see json_scan.h. */
#include "controller/openai/json_scan.h"

#include <stdlib.h>
#include <string.h>

/* ---- strings */

typedef int8_t block __attribute__((vector_size(16)));
typedef int64_t halves __attribute__((vector_size(16)));

/* Bytes 0xff where the string needs a look: its end, an escape, and (negative, or less than a blank) what is not ASCII
 * and controls. */
static inline block suspects(const char *s)
{
    block b;
    memcpy(&b, s, sizeof b);
    return (block)(b == '"') | (block)(b == '\\') | (block)(b < 0x20);
}

static inline bool any(block b)
{
    halves h = (halves)b;
    return h[0] | h[1];
}

/* Which byte of s is the first suspect. */
static inline const char *first_of(block b, const char *s)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    halves h = (halves)b;
    return h[0] ? s + __builtin_ctzll((uint64_t)h[0]) / 8
                : s + 8 + __builtin_ctzll((uint64_t)h[1]) / 8;
#else
    for (int i = 0; !b[i]; i++)
        s++;
    return s;
#endif
}

/* The first byte from s on that needs a look, or end. */
static inline const char *plain_end(const char *s, const char *end)
{
    while (end - s >= 16) {
        block b = suspects(s);
        if (any(b))
            return first_of(b, s);
        s += 16;
        while (end - s >= 32 && !any(suspects(s) | suspects(s + 16)))
            s += 32;
    }
    while (s < end && *s != '"' && *s != '\\' && (signed char)*s >= 0x20)
        s++;
    return s;
}

/* Bytes of the UTF-8 character at s: RFC 3629's table. 0: it is none. */
static size_t character(const char *text, const char *end)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t left = (size_t)(end - text);
    unsigned char low = 0x80, high = 0xbf;
    size_t n = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (!n || n > left)
        return 0;
    if (s[0] == 0xe0)
        low = 0xa0;
    else if (s[0] == 0xed)
        high = 0x9f;
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xf4)
        high = 0x8f;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

/* Four hexadecimal digits; -1: they are not. */
static int32_t hex4(const char *s, const char *end)
{
    int32_t x = 0;
    if (end - s < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = s[i], lower = (char)(c | 0x20);
        int digit = c >= '0' && c <= '9'           ? c - '0'
                    : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10
                                                   : -1;
        if (digit < 0)
            return -1;
        x = x << 4 | digit;
    }
    return x;
}

static bool is_high(int32_t x)
{
    return x >= 0xd800 && x < 0xdc00;
}

static bool is_low(int32_t x)
{
    return x >= 0xdc00 && x < 0xe000;
}

/* Bytes of the escape at s (a backslash); 0: it is none. */
static size_t escape(const char *s, const char *end)
{
    if (end - s < 2)
        return 0;
    if (s[1] != 'u')
        return memchr("\"\\/bfnrt", s[1], 8) ? 2 : 0;
    int32_t x = hex4(s + 2, end);
    if (x < 0 || is_low(x))
        return 0;
    if (!is_high(x))
        return 6;
    return end - s >= 12 && s[6] == '\\' && s[7] == 'u' && is_low(hex4(s + 8, end)) ? 12 : 0;
}

static size_t put_utf8(char out[4], uint32_t x)
{
    if (x < 0x80) {
        out[0] = (char)x;
        return 1;
    }
    if (x < 0x800) {
        out[0] = (char)(0xc0 | x >> 6);
        out[1] = (char)(0x80 | (x & 0x3f));
        return 2;
    }
    if (x < 0x10000) {
        out[0] = (char)(0xe0 | x >> 12);
        out[1] = (char)(0x80 | (x >> 6 & 0x3f));
        out[2] = (char)(0x80 | (x & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | x >> 18);
    out[1] = (char)(0x80 | (x >> 12 & 0x3f));
    out[2] = (char)(0x80 | (x >> 6 & 0x3f));
    out[3] = (char)(0x80 | (x & 0x3f));
    return 4;
}

/* What a valid escape stands for; *len: how long the escape is. */
static size_t unescape(const char *s, const char *end, char out[4], size_t *len)
{
    static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    *len = escape(s, end);
    if (*len == 2) {
        out[0] = means[strchr(names, s[1]) - names];
        return 1;
    }
    uint32_t x = (uint32_t)hex4(s + 2, end);
    if (*len == 12)
        x = 0x10000 + ((x - 0xd800) << 10) + ((uint32_t)hex4(s + 8, end) - 0xdc00);
    return put_utf8(out, x);
}

bool json_piece(struct json_pieces *p, const char **piece, size_t *len)
{
    if (p->at == p->end)
        return false;
    const char *backslash = memchr(p->at, '\\', (size_t)(p->end - p->at));
    if (backslash == p->at) {
        size_t used;
        *len = unescape(p->at, p->end, p->buf, &used);
        *piece = p->buf;
        p->at += used;
        return true;
    }
    *piece = p->at;
    *len = (size_t)((backslash ? backslash : p->end) - p->at);
    p->at += *len;
    return true;
}

/* ---- the scanner */

struct scanner {
    struct json_scan *j;
    const char *at, *end;
    uint32_t open[JSON_MAX_DEPTH]; /* arrays and objects around */
    uint32_t depth;
};

static int wrong(struct scanner *k, const char *why)
{
    k->j->why = why;
    return WEIR_E_INPUT;
}

static int grow(struct scanner *k)
{
    struct json_scan *j = k->j;
    uint32_t cap = j->cap ? j->cap * 2 : 64;
    if (j->n == JSON_MAX_VALUES)
        return wrong(k, "more values than are taken");
    struct json_value *v = realloc(j->values, cap * sizeof *v);
    if (!v)
        return WEIR_E_NOMEM;
    j->values = v;
    j->cap = cap;
    return 0;
}

static int add(struct scanner *k, enum json_type type, const char *s, size_t len, bool escaped)
{
    struct json_scan *j = k->j;
    int rc = j->n == j->cap ? grow(k) : 0;
    if (!rc)
        j->values[j->n++] = (struct json_value){
            .s = s, .len = (uint32_t)len, .span = 1, .type = type, .escaped = escaped};
    return rc;
}

static void skip_blanks(struct scanner *k)
{
    while (k->at < k->end && (*k->at == ' ' || *k->at == '\n' || *k->at == '\r' || *k->at == '\t'))
        k->at++;
}

/* The quote that ends the string whose text begins at `at`; NULL: *why has what is wrong, *bad where. */
static const char *string_end(const char *at, const char *end, bool *escaped, const char **why,
                              const char **bad)
{
    for (;;) {
        size_t n;
        *bad = at = plain_end(at, end);
        if (at == end) {
            *why = "a string without its end";
            return NULL;
        }
        if (*at == '"')
            return at;
        if (*at == '\\') {
            *escaped = true;
            n = escape(at, end);
            *why = "an escape that is none";
        } else if ((unsigned char)*at < 0x20) {
            n = 0;
            *why = "a control character in a string";
        } else {
            n = character(at, end);
            *why = "a byte that is not UTF-8";
        }
        if (!n)
            return NULL;
        at += n;
    }
}

static inline int scan_string(struct scanner *k)
{
    const char *from = k->at + 1, *why, *bad;
    bool escaped = false;
    const char *to = string_end(from, k->end, &escaped, &why, &bad);
    if (!to) {
        k->at = bad;
        return wrong(k, why);
    }
    k->at = to + 1;
    return add(k, JSON_STRING, from, (size_t)(to - from), escaped);
}

static bool digits(struct scanner *k)
{
    const char *from = k->at;
    while (k->at < k->end && *k->at >= '0' && *k->at <= '9')
        k->at++;
    return k->at > from;
}

static bool is_at(const struct scanner *k, char c)
{
    return k->at < k->end && *k->at == c;
}

static int scan_number(struct scanner *k)
{
    const char *from = k->at;
    k->at += *k->at == '-';
    bool zero = is_at(k, '0');
    const char *first = k->at;
    bool good = digits(k) && (!zero || k->at == first + 1);
    if (good && is_at(k, '.')) {
        k->at++;
        good = digits(k);
    }
    if (good && (is_at(k, 'e') || is_at(k, 'E'))) {
        k->at++;
        k->at += is_at(k, '+') || is_at(k, '-');
        good = digits(k);
    }
    return good ? add(k, JSON_NUMBER, from, (size_t)(k->at - from), false)
                : wrong(k, "a number that is none");
}

static int scan_word(struct scanner *k, const char *word, enum json_type type)
{
    size_t n = strlen(word);
    if ((size_t)(k->end - k->at) < n || memcmp(k->at, word, n))
        return wrong(k, "neither a value nor a quote");
    k->at += n;
    return add(k, type, k->at - n, n, false);
}

static int open_container(struct scanner *k, enum json_type type)
{
    if (k->depth == JSON_MAX_DEPTH)
        return wrong(k, "nested deeper than is taken");
    int rc = add(k, type, NULL, 0, false);
    if (rc)
        return rc;
    k->open[k->depth++] = k->j->n - 1;
    k->j->values[k->j->n - 1].names = 0;
    k->at++;
    return 0;
}

/* Its bit in json_value.names. */
static uint64_t name_bit(size_t len)
{
    return UINT64_C(1) << (len < 63 ? len : 63);
}

static int scan_value(struct scanner *k)
{
    if (k->depth)
        k->j->values[k->open[k->depth - 1]].len++;
    switch (k->at < k->end ? *k->at : 0) {
    case '"': return scan_string(k);
    case '{': return open_container(k, JSON_OBJECT);
    case '[': return open_container(k, JSON_ARRAY);
    case 't': return scan_word(k, "true", JSON_TRUE);
    case 'f': return scan_word(k, "false", JSON_FALSE);
    case 'n': return scan_word(k, "null", JSON_NULL);
    case '-':
    case '0' ... '9': return scan_number(k);
    default: return wrong(k, "neither a value nor a quote");
    }
}

static int scan_name(struct scanner *k)
{
    skip_blanks(k);
    if (!is_at(k, '"'))
        return wrong(k, "a name is missing");
    int rc = scan_string(k);
    if (rc)
        return rc;
    const struct json_value *name = &k->j->values[k->j->n - 1];
    k->j->values[k->open[k->depth - 1]].names |= name->escaped ? UINT64_MAX : name_bit(name->len);
    skip_blanks(k);
    if (!is_at(k, ':'))
        return wrong(k, "a colon is missing");
    k->at++;
    return 0;
}

/* A value has ended: so may those around it. 0: one more begins; 1: the text is complete. */
static int after_value(struct scanner *k)
{
    struct json_scan *j = k->j;
    for (;;) {
        if (!k->depth)
            return 1;
        struct json_value *around = &j->values[k->open[k->depth - 1]];
        bool object = around->type == JSON_OBJECT, empty = around == &j->values[j->n - 1];
        skip_blanks(k);
        if (is_at(k, object ? '}' : ']')) {
            around->span = (uint32_t)(&j->values[j->n] - around) & 0x7ffffffu;
            k->depth--;
            k->at++;
            continue;
        }
        if (!empty && !is_at(k, ','))
            return wrong(k, object ? "a comma or '}' is missing" : "a comma or ']' is missing");
        k->at += !empty;
        return object ? scan_name(k) : 0;
    }
}

int json_scan(struct json_scan *j, const char *text, size_t len)
{
    struct scanner k; /* not its table of what is open: that is written before it is read */
    int rc = 0;
    k.j = j;
    k.at = text;
    k.end = text + len;
    k.depth = 0;
    j->n = 0;
    if (len > JSON_MAX_TEXT)
        rc = wrong(&k, "longer than is taken");
    while (!rc) {
        skip_blanks(&k);
        rc = scan_value(&k);
        if (!rc)
            rc = after_value(&k);
    }
    if (rc == 1) {
        skip_blanks(&k);
        rc = k.at == k.end ? 0 : wrong(&k, "something behind the end");
    }
    j->at = (size_t)(k.at - text);
    return rc;
}

void json_scan_reset(struct json_scan *j)
{
    j->n = 0;
    if (j->cap > JSON_KEEP_VALUES)
        json_scan_deinit(j);
}

void json_scan_deinit(struct json_scan *j)
{
    free(j->values);
    j->values = NULL;
    j->n = j->cap = 0;
}

/* ---- values */

bool json_equals(const struct json_value *v, const char *text)
{
    size_t len = strlen(text), n;
    const char *piece;
    if (!json_is(v, JSON_STRING))
        return false;
    if (!v->escaped)
        return v->len == len && !memcmp(v->s, text, len);
    for (struct json_pieces p = json_pieces(v); json_piece(&p, &piece, &n); text += n, len -= n) {
        if (n > len || memcmp(piece, text, n))
            return false;
    }
    return !len;
}

const struct json_value *json_find(const struct json_value *v, const char *name, size_t len)
{
    const struct json_value *found = NULL;
    for (const struct json_value *m = json_first(v); m; m = json_next(v, m + 1)) {
        if (m->escaped ? json_equals(m, name) : m->len == len && !memcmp(m->s, name, len))
            found = m + 1;
    }
    return found;
}

bool json_uint(const struct json_value *v, uint64_t *out)
{
    uint64_t x = 0;
    if (!json_is(v, JSON_NUMBER))
        return false;
    for (uint32_t i = 0; i < v->len; i++) {
        unsigned digit = (unsigned)(v->s[i] - '0');
        if (digit > 9 || x > (UINT64_MAX - digit) / 10)
            return false;
        x = x * 10 + digit;
    }
    *out = x;
    return true;
}

bool json_int(const struct json_value *v, int64_t *out)
{
    uint64_t x;
    if (!json_is(v, JSON_NUMBER))
        return false;
    bool negative = v->s[0] == '-';
    struct json_value digits = *v;
    digits.s += negative;
    digits.len -= negative;
    if (!json_uint(&digits, &x) || x > (uint64_t)INT64_MAX + negative)
        return false;
    *out = negative ? (int64_t)(0 - x) : (int64_t)x;
    return true;
}

size_t json_length(const struct json_value *v)
{
    size_t len = 0, n;
    const char *piece;
    if (!json_is(v, JSON_STRING))
        return 0;
    if (!v->escaped)
        return v->len;
    for (struct json_pieces p = json_pieces(v); json_piece(&p, &piece, &n);)
        len += n;
    return len;
}

void json_copy(const struct json_value *v, char *out)
{
    size_t n;
    const char *piece;
    for (struct json_pieces p = json_pieces(v); json_piece(&p, &piece, &n); out += n)
        memcpy(out, piece, n);
}
