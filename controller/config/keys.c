/* keys.c - see keys.h. */
#include "controller/config/keys.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "controller/config/words.h"
#include "predictor/step.h"
#include "predictor/units.h"

/* ---- tables ---- */

void key_plain_name(const char *name, char out[WORD_BYTES])
{
    if (name[0] == '-' && name[1] == '-')
        name += 2;
    size_t n = strlen(name);
    if (n >= WORD_BYTES)
        n = 0;
    for (size_t i = 0; i < n; i++)
        out[i] = name[i] == '-' ? '_' : name[i];
    out[n] = '\0';
}

static bool has_alias(const struct key *k, const char *name, bool *negated)
{
    char word[WORD_BYTES];
    for (const char *at = k->aliases; at && (at = word_next(at, word));) {
        bool no = word[0] == '!';
        if (strcmp(word + no, name) == 0) {
            *negated = no;
            return true;
        }
    }
    return false;
}

/* The part of a key's name after the prefix; NULL: it is not under that prefix, or deeper. */
static const char *below(const struct key *k, const char *prefix)
{
    size_t n = strlen(prefix);
    if (strncmp(k->name, prefix, n) != 0 || strchr(k->name + n, '.'))
        return NULL;
    return k->name + n;
}

const struct key *keys_find(const struct key_table *t, int scope, const char *prefix,
                            const char *name, bool *negated)
{
    char plain[WORD_BYTES];
    key_plain_name(name, plain);
    *negated = false;
    for (unsigned i = 0; i < t->n; i++) {
        const struct key *k = &t->keys[i];
        const char *own = k->scope == scope ? below(k, prefix) : NULL;
        if (own && (strcmp(own, plain) == 0 || has_alias(k, plain, negated)))
            return k;
    }
    return NULL;
}

/* The same name elsewhere in the file: a key at the wrong level. */
static const struct key *key_elsewhere(const struct key_table *t, const char *plain)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct key *k = &t->keys[i];
        const char *last = strrchr(k->name, '.');
        bool negated;
        if (k->scope != t->apart &&
            (strcmp(last ? last + 1 : k->name, plain) == 0 || has_alias(k, plain, &negated)))
            return k;
    }
    return NULL;
}

void keys_suggest(const struct key_table *t, int scope, const char *prefix, const char *name,
                  char *out, size_t n)
{
    char plain[WORD_BYTES], words[4096] = "", near[WORD_BYTES];
    key_plain_name(name, plain);
    const char *advice = t->advice ? t->advice(scope, plain) : NULL;
    if (advice) {
        (void)snprintf(out, n, "%s", advice);
        return;
    }
    for (unsigned i = 0; i < t->n; i++) {
        const char *own = t->keys[i].scope == scope ? below(&t->keys[i], prefix) : NULL;
        if (own)
            word_add(words, sizeof words, own);
    }
    const struct key *other = scope == t->apart ? NULL : key_elsewhere(t, plain);
    if (word_nearest(words, plain, 1, near, sizeof near)) {
        (void)snprintf(out, n, "did you mean %s?", near);
    } else if (other) {
        const char *at = t->paths[other->scope];
        (void)snprintf(out, n, "it belongs at %s%s%s", at, *at ? "." : "", other->name);
    } else if (word_nearest(words, plain, 0, near, sizeof near)) {
        (void)snprintf(out, n, "did you mean %s?", near);
    } else {
        (void)snprintf(out, n, "the keys here are: %.512s%s%s%s", words,
                       strlen(words) > 512 ? " ... (" : "", strlen(words) > 512 ? t->lists_all : "",
                       strlen(words) > 512 ? " lists all)" : "");
    }
}

/* ---- reading ---- */

static void describe_range(const struct key *k, char *out, size_t n)
{
    (void)snprintf(out, n, "%.15g..%.15g%s%s", k->min, k->max, k->unit ? " " : "",
                   k->unit ? k->unit : "");
}

static int refuse(const struct key *k, const struct ytree_node *n, const char *where, char *error)
{
    char range[WORD_BYTES], near[WORD_BYTES];
    char got[WORD_BYTES], expected[2 * WORD_BYTES], hint[2 * WORD_BYTES] = "";

    describe_range(k, range, sizeof range);
    switch (k->type) {
    case KEY_BOOL: (void)snprintf(expected, sizeof expected, "true or false"); break;
    case KEY_U32:
    case KEY_U64:
    case KEY_I32: (void)snprintf(expected, sizeof expected, "a whole number %s", range); break;
    case KEY_REAL:
    case KEY_MS:
        (void)snprintf(expected, sizeof expected, "a number %s%s", range,
                       k->none ? ", or none" : "");
        break;
    case KEY_CHOICE:
        (void)snprintf(expected, sizeof expected, "one of: %s", k->choices);
        if (n->kind == YTREE_SCALAR && word_nearest(k->choices, n->text, 0, near, sizeof near))
            (void)snprintf(hint, sizeof hint, "; did you mean %s?", near);
        break;
    case KEY_TEXT:
        (void)snprintf(expected, sizeof expected,
                       "text of %.0f..%zu bytes without control characters", k->min, k->cap - 1);
        break;
    case KEY_TEXTS:
        (void)snprintf(expected, sizeof expected,
                       "a list of at most %zu texts of 1..%.0f bytes without control characters",
                       k->cap, k->max - 1);
        break;
    case KEY_REALS:
        (void)snprintf(expected, sizeof expected, "a list of at most %zu numbers %s", k->cap,
                       range);
        break;
    case KEY_GRID:
        (void)snprintf(expected, sizeof expected,
                       "a list of at most %zu rows of equally many numbers %s", k->cap, range);
        break;
    case KEY_INNER:
        (void)snprintf(expected, sizeof expected, "keys of its own (%s)", k->help);
        break;
    }
    if (n->kind == YTREE_SCALAR)
        (void)snprintf(got, sizeof got, "%s%.60s%s", n->quoted || !*n->text ? "'" : "", n->text,
                       n->quoted || !*n->text ? "'" : "");
    else
        (void)snprintf(got, sizeof got, "a %s", n->kind == YTREE_LIST ? "list" : "mapping");
    ytree_error(error, "%s: expected %s, got %s%s", where, expected, got, hint);
    return WEIR_E_INPUT;
}

/* A plain scalar as a decimal number: no hex, no inf, no nan, nothing behind it. */
static bool read_real(const struct ytree_node *n, double *v)
{
    if (n->kind != YTREE_SCALAR || n->quoted || !*n->text ||
        strspn(n->text, "0123456789+-.eE") != strlen(n->text))
        return false;
    char *end;
    *v = strtod(n->text, &end);
    return *end == '\0' && isfinite(*v);
}

static bool read_whole(const struct ytree_node *n, uint64_t *v)
{
    if (n->kind != YTREE_SCALAR || n->quoted || !*n->text ||
        strspn(n->text, "0123456789") != strlen(n->text))
        return false;
    errno = 0;
    *v = strtoull(n->text, NULL, 10);
    return errno == 0;
}

static bool is_none(const struct ytree_node *n)
{
    return n->kind == YTREE_SCALAR && !n->quoted && strcmp(n->text, "none") == 0;
}

static bool in_range(const struct key *k, double v)
{
    return v >= k->min && v <= k->max;
}

static bool read_choice(const struct key *k, const struct ytree_node *n, uint32_t *v)
{
    char word[WORD_BYTES];
    uint32_t i = 0;
    if (n->kind != YTREE_SCALAR)
        return false;
    for (const char *at = k->choices; (at = word_next(at, word)); i++) {
        if (strcmp(word, n->text) == 0) {
            *v = i;
            return true;
        }
    }
    return false;
}

static bool copy_text(const struct ytree_node *n, char *to, size_t min, size_t cap)
{
    if (n->kind != YTREE_SCALAR)
        return false;
    size_t len = strlen(n->text);
    if (len >= cap || len < min)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)n->text[i];
        if (c < 0x20 || c == 0x7f)
            return false;
    }
    memcpy(to, n->text, len + 1);
    return true;
}

/* A list of texts, or a single one; each fills a row of k->max bytes. */
static bool read_texts(const struct key *k, const struct ytree_node *n, char *base)
{
    uint32_t count = 0;
    const struct ytree_node *e = n->kind == YTREE_LIST ? n->first : n;
    for (; e; e = n->kind == YTREE_LIST ? e->next : NULL) {
        char *to = base + k->offset + count * (size_t)k->max;
        if (count == k->cap || !copy_text(e, to, 1, (size_t)k->max))
            return false;
        count++;
    }
    memcpy(base + k->count_offset, &count, sizeof count);
    return true;
}

/* A list of numbers into to[cap]; *count is its length. */
static bool read_list(const struct key *k, const struct ytree_node *n, double *to, uint32_t *count)
{
    if (n->kind != YTREE_LIST)
        return false;
    *count = 0;
    for (const struct ytree_node *e = n->first; e; e = e->next) {
        double v;
        if (*count == k->cap || !read_real(e, &v) || !in_range(k, v))
            return false;
        to[(*count)++] = v;
    }
    return true;
}

/* Lists that share a count (a table's axis and its values) may come in either order: each sets it if
 * it is still 0 and must agree with it otherwise; the caller resets the counts before a new table. */
static int read_reals(const struct key *k, char *base, const struct ytree_node *n,
                      const char *where, char *error)
{
    double list[STEP_TABLE_MAX] = {0};
    uint32_t count = 0, known = 0;
    assert(k->cap <= STEP_TABLE_MAX);
    if (!read_list(k, n, list, &count))
        return refuse(k, n, where, error);
    if (k->count_offset) {
        memcpy(&known, base + k->count_offset, sizeof known);
        if (known && count && known != count) {
            ytree_error(error,
                        "%s: expected as many numbers as in the list that goes with it (%" PRIu32
                        "), got %" PRIu32,
                        where, known, count);
            return WEIR_E_INPUT;
        }
        if (count)
            memcpy(base + k->count_offset, &count, sizeof count);
    }
    memcpy(base + k->offset, list, k->cap * sizeof list[0]);
    return WEIR_OK;
}

static int read_grid(const struct key *k, char *base, const struct ytree_node *n, const char *where,
                     char *error)
{
    double row[STEP_TABLE_MAX];
    uint32_t rows = 0, columns = 0;
    if (n->kind != YTREE_LIST)
        return refuse(k, n, where, error);
    for (const struct ytree_node *e = n->first; e; e = e->next) {
        uint32_t count = 0;
        if (rows == k->cap || !read_list(k, e, row, &count) || count == 0 ||
            (rows && count != columns))
            return refuse(k, n, where, error);
        columns = count;
        memcpy(base + k->offset + rows * columns * sizeof row[0], row, columns * sizeof row[0]);
        rows++;
    }
    /* Shared with the axes: decode_ms has n_kv rows of n_ctx numbers. */
    struct step_params *p = (struct step_params *)(void *)base;
    if ((p->n_kv && rows && p->n_kv != rows) || (p->n_ctx && columns && p->n_ctx != columns)) {
        ytree_error(error,
                    "%s: expected one row per decode_kv_tok and one column per decode_ctx_tok, got "
                    "%" PRIu32 " rows of %" PRIu32,
                    where, rows, columns);
        return WEIR_E_INPUT;
    }
    if (rows) {
        p->n_kv = rows;
        p->n_ctx = columns;
    }
    return WEIR_OK;
}

int key_read(const struct key *k, void *base, const struct ytree_node *n, bool negated,
             const char *where, char *error)
{
    char *to = (char *)base + k->offset;
    double real = 0;
    uint64_t whole = 0;
    uint32_t word = 0;
    bool yes = false;

    switch (k->type) {
    case KEY_BOOL:
        if (n->kind != YTREE_SCALAR || n->quoted)
            return refuse(k, n, where, error);
        yes = strcmp(n->text, "true") == 0;
        if (!yes && strcmp(n->text, "false") != 0)
            return refuse(k, n, where, error);
        yes = yes != negated;
        memcpy(to, &yes, sizeof yes);
        return WEIR_OK;
    case KEY_U32:
    case KEY_U64:
        if (!read_whole(n, &whole) || !in_range(k, (double)whole))
            return refuse(k, n, where, error);
        word = (uint32_t)whole;
        if (k->type == KEY_U32)
            memcpy(to, &word, sizeof word);
        else
            memcpy(to, &whole, sizeof whole);
        return WEIR_OK;
    case KEY_REAL:
        if (!read_real(n, &real) || !in_range(k, real))
            return refuse(k, n, where, error);
        memcpy(to, &real, sizeof real);
        return WEIR_OK;
    case KEY_MS: {
        int64_t ps = PS_NEVER;
        if (!(k->none && is_none(n))) {
            if (!read_real(n, &real) || !in_range(k, real))
                return refuse(k, n, where, error);
            ps = ps_from_ms(real);
        }
        memcpy(to, &ps, sizeof ps);
        return WEIR_OK;
    }
    case KEY_CHOICE:
        if (!read_choice(k, n, &word))
            return refuse(k, n, where, error);
        memcpy(to, &word, sizeof word);
        return WEIR_OK;
    case KEY_TEXT:
        return copy_text(n, to, (size_t)k->min, k->cap) ? WEIR_OK : refuse(k, n, where, error);
    case KEY_TEXTS: return read_texts(k, n, base) ? WEIR_OK : refuse(k, n, where, error);
    case KEY_I32: {
        int32_t number;
        if (!read_real(n, &real) || !in_range(k, real) || real != (double)(int32_t)real)
            return refuse(k, n, where, error);
        number = (int32_t)real;
        memcpy(to, &number, sizeof number);
        return WEIR_OK;
    }
    case KEY_REALS: return read_reals(k, base, n, where, error);
    case KEY_GRID: return read_grid(k, base, n, where, error);
    case KEY_INNER: break;
    }
    return refuse(k, n, where, error);
}

void keys_defaults(const struct key_table *t, int scope, void *base)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct key *k = &t->keys[i];
        if (k->scope != scope || !k->def || k->type == KEY_REALS || k->type == KEY_GRID ||
            k->type == KEY_TEXTS)
            continue; /* lists are empty in a zeroed struct */
        struct ytree_node n = {.kind = YTREE_SCALAR, .text = k->def};
        if (k->type == KEY_TEXT)
            n.text = strcmp(k->def, "\"\"") ? k->def : "";
        char error[YTREE_ERROR_BYTES];
        int rc = key_read(k, base, &n, false, k->name, error);
        assert(rc == WEIR_OK);
        (void)rc;
    }
}

/* ---- printing ---- */

void print_real(FILE *out, double v)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    (void)fputs(text, out);
}

void print_quoted(FILE *out, const char *text)
{
    (void)fputc('"', out);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            (void)fputc('\\', out);
        (void)fputc(*text, out);
    }
    (void)fputc('"', out);
}

static void print_choice(FILE *out, const struct key *k, uint32_t v)
{
    char word[WORD_BYTES] = "";
    const char *at = k->choices;
    for (uint32_t i = 0; i <= v && at; i++)
        at = word_next(at, word);
    (void)fputs(word, out);
}

static void print_list(FILE *out, const double *v, uint32_t n)
{
    (void)fputc('[', out);
    for (uint32_t i = 0; i < n; i++) {
        (void)fputs(i ? ", " : "", out);
        print_real(out, v[i]);
    }
    (void)fputc(']', out);
}

static void print_texts(FILE *out, const struct key *k, const char *base)
{
    uint32_t n;
    memcpy(&n, base + k->count_offset, sizeof n);
    (void)fputc('[', out);
    for (uint32_t i = 0; i < n; i++) {
        (void)fputs(i ? ", " : "", out);
        print_quoted(out, base + k->offset + i * (size_t)k->max);
    }
    (void)fputc(']', out);
}

/* How many numbers a list holds: its count, or up to the last that is not 0. */
static uint32_t list_length(const struct key *k, const char *base)
{
    uint32_t n = 0;
    if (k->count_offset) {
        memcpy(&n, base + k->count_offset, sizeof n);
        return n;
    }
    for (uint32_t i = 0; i < k->cap; i++) {
        double v;
        memcpy(&v, base + k->offset + i * sizeof v, sizeof v);
        if (v > 0 || v < 0)
            n = i + 1;
    }
    return n;
}

void key_print(FILE *out, const struct key *k, const void *base)
{
    const char *at = (const char *)base + k->offset;
    uint64_t whole = 0;
    uint32_t word = 0;
    double real = 0;
    int64_t ps = 0;

    switch (k->type) {
    case KEY_BOOL: (void)fputs(*(const bool *)(const void *)at ? "true" : "false", out); break;
    case KEY_U32:
        memcpy(&word, at, sizeof word);
        (void)fprintf(out, "%" PRIu32, word);
        break;
    case KEY_I32: (void)fprintf(out, "%" PRId32, *(const int32_t *)(const void *)at); break;
    case KEY_U64:
        memcpy(&whole, at, sizeof whole);
        (void)fprintf(out, "%" PRIu64, whole);
        break;
    case KEY_REAL:
        memcpy(&real, at, sizeof real);
        print_real(out, real);
        break;
    case KEY_MS:
        memcpy(&ps, at, sizeof ps);
        if (ps == PS_NEVER)
            (void)fputs("none", out);
        else
            print_real(out, ms_from_ps(ps));
        break;
    case KEY_CHOICE:
        memcpy(&word, at, sizeof word);
        print_choice(out, k, word);
        break;
    case KEY_TEXT: print_quoted(out, at); break;
    case KEY_TEXTS: print_texts(out, k, base); break;
    case KEY_REALS: print_list(out, (const double *)(const void *)at, list_length(k, base)); break;
    case KEY_GRID: {
        const struct step_params *p = base;
        (void)fputc('[', out);
        for (uint32_t i = 0; i < p->n_kv; i++) {
            (void)fputs(i ? ", " : "", out);
            print_list(out, (const double *)(const void *)at + (size_t)i * p->n_ctx, p->n_ctx);
        }
        (void)fputc(']', out);
        break;
    }
    case KEY_INNER: break;
    }
}

static size_t value_bytes(const struct key *k)
{
    switch (k->type) {
    case KEY_BOOL: return sizeof(bool);
    case KEY_U32:
    case KEY_I32:
    case KEY_CHOICE: return sizeof(uint32_t);
    case KEY_U64:
    case KEY_REAL:
    case KEY_MS: return sizeof(uint64_t);
    case KEY_TEXT: return k->cap;
    case KEY_TEXTS: return k->cap * (size_t)k->max;
    case KEY_REALS: return k->cap * sizeof(double);
    case KEY_GRID: return k->cap * k->cap * sizeof(double);
    case KEY_INNER: return 0;
    }
    return 0;
}

bool key_same(const struct key *k, const void *a, const void *b)
{
    const char *x = (const char *)a + k->offset, *y = (const char *)b + k->offset;
    if (k->type == KEY_TEXT)
        return strncmp(x, y, k->cap) == 0;
    return memcmp(x, y, value_bytes(k)) == 0;
}

void key_print_type(FILE *out, const struct key *k)
{
    switch (k->type) {
    case KEY_BOOL: (void)fputs("true, false", out); break;
    case KEY_U32:
    case KEY_U64:
    case KEY_I32: (void)fprintf(out, "whole %.15g..%.15g", k->min, k->max); break;
    case KEY_REAL: (void)fprintf(out, "number %.6g..%.6g", k->min, k->max); break;
    case KEY_MS: /* up to PS_LIMIT, which nobody means */
        (void)fprintf(out, "ms, %s 0%s", k->min > 0 ? "more than" : "from",
                      k->none ? "; none" : "");
        return;
    case KEY_CHOICE:
        for (const char *c = k->choices; *c; c++)
            (void)fputs(*c == ' ' ? ", " : (char[]){*c, '\0'}, out);
        break;
    case KEY_TEXT: (void)fprintf(out, "text, at most %zu bytes", k->cap - 1); break;
    case KEY_TEXTS: (void)fprintf(out, "list of at most %zu texts", k->cap); break;
    case KEY_REALS: (void)fprintf(out, "list of at most %zu numbers", k->cap); break;
    case KEY_GRID: (void)fprintf(out, "list of at most %zu rows of numbers", k->cap); break;
    case KEY_INNER: (void)fputs("keys of its own", out); break;
    }
    if (k->unit)
        (void)fprintf(out, " %s", k->unit);
}

void key_copy(const struct key *k, void *to, const void *from)
{
    memcpy((char *)to + k->offset, (const char *)from + k->offset, value_bytes(k));
}

/* ---- whole files ---- */

const char *keys_where(const struct keys_file *f, const struct ytree_node *n, const char *path,
                       const char *key, char out[KEYS_WHERE_BYTES])
{
    (void)snprintf(out, KEYS_WHERE_BYTES, "%.200s:%u: %s%s%.64s", f->name, n->line, path,
                   *path && *key && path[strlen(path) - 1] != '.' ? "." : "", key);
    return out;
}

int keys_fail(const struct keys_file *f, const struct ytree_node *n, const char *path,
              const char *fmt, ...)
{
    char what[YTREE_ERROR_BYTES], where[KEYS_WHERE_BYTES];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    ytree_error(f->error, "%s%s%s", keys_where(f, n, path, "", where), *path ? ": " : "", what);
    return WEIR_E_INPUT;
}

static int unknown_key(const struct keys_file *f, const struct ytree_node *n, int scope,
                       const char *prefix, const char *path)
{
    char hint[YTREE_ERROR_BYTES], where[KEYS_WHERE_BYTES];
    keys_suggest(f->table, scope, prefix, n->key, hint, sizeof hint);
    ytree_error(f->error, "%s: unknown key; %s", keys_where(f, n, path, n->key, where), hint);
    return WEIR_E_INPUT;
}

int keys_read_map(struct keys_file *f, int scope, const char *prefix, const struct ytree_node *map,
                  void *base, const char *path, keys_inner *inner)
{
    unsigned first_line[KEYS_MAX] = {0};
    char where[KEYS_WHERE_BYTES];

    assert(f->table->n <= KEYS_MAX);
    if (map->kind != YTREE_MAP)
        return keys_fail(f, map, path, "expected keys and values, got %s",
                         map->kind == YTREE_LIST ? "a list" : "a single value");
    for (const struct ytree_node *n = map->first; n; n = n->next) {
        bool negated;
        const struct key *k = keys_find(f->table, scope, prefix, n->key, &negated);
        if (!k)
            return unknown_key(f, n, scope, prefix, path);
        unsigned *line = &first_line[k - f->table->keys];
        (void)keys_where(f, n, path, n->key, where);
        if (*line) {
            ytree_error(f->error, "%s: given twice, first on line %u; remove one", where, *line);
            return WEIR_E_INPUT;
        }
        *line = n->line;
        int rc;
        if (k->type != KEY_INNER) {
            rc = key_read(k, base, n, negated, where, f->error);
        } else {
            char under[KEYS_PATH_BYTES];
            (void)snprintf(under, sizeof under, "%s%s%s", path, *path ? "." : "", k->name);
            rc = inner(f, k, n, base, under);
        }
        if (rc)
            return rc;
    }
    return WEIR_OK;
}
