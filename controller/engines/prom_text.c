/* prom_text.c - see prom_text.h. */
#include "controller/engines/prom_text.h"

#include <stdlib.h>
#include <string.h>

#define NUMBER_BYTES 64u

void prom_open(struct prom_reader *r, const char *text, size_t len)
{
    *r = (struct prom_reader){text, text + len, 0};
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == ':';
}

struct line {
    const char *at, *end;
};

static void skip_blanks(struct line *l)
{
    while (l->at < l->end && (*l->at == ' ' || *l->at == '\t'))
        l->at++;
}

static bool take(struct line *l, char c)
{
    skip_blanks(l);
    if (l->at == l->end || *l->at != c)
        return false;
    l->at++;
    return true;
}

static bool read_name(struct line *l, struct prom_slice *out)
{
    skip_blanks(l);
    const char *from = l->at;
    while (l->at < l->end && is_name(*l->at))
        l->at++;
    *out = (struct prom_slice){from, (size_t)(l->at - from)};
    return out->len > 0;
}

static bool read_quoted(struct line *l, struct prom_slice *out)
{
    if (!take(l, '"'))
        return false;
    const char *from = l->at;
    while (l->at < l->end && *l->at != '"')
        l->at += *l->at == '\\' && l->at + 1 < l->end ? 2 : 1;
    if (l->at >= l->end)
        return false;
    *out = (struct prom_slice){from, (size_t)(l->at - from)};
    l->at++;
    return true;
}

static bool read_labels(struct line *l, struct prom_sample *s)
{
    while (!take(l, '}')) {
        uint32_t i = s->n_labels;
        if (i == PROM_MAX_LABELS || (i && !take(l, ',')))
            return false;
        if (take(l, '}')) /* a comma may stand at the end */
            return true;
        if (!read_name(l, &s->label[i]) || !take(l, '=') || !read_quoted(l, &s->value_of[i]))
            return false;
        s->n_labels++;
    }
    return true;
}

/* strtod reads what the format allows (NaN, +Inf, exponents) in the C locale that weir runs in. */
static bool read_value(struct line *l, double *out)
{
    char text[NUMBER_BYTES], *end;
    size_t n = 0;
    skip_blanks(l);
    while (l->at < l->end && *l->at != ' ' && *l->at != '\t' && n + 1 < sizeof text)
        text[n++] = *l->at++;
    text[n] = '\0';
    *out = strtod(text, &end);
    return n && !*end && (l->at == l->end || *l->at == ' ' || *l->at == '\t');
}

static bool read_sample(struct line *l, struct prom_sample *s)
{
    s->n_labels = 0;
    return read_name(l, &s->name) && (!take(l, '{') || read_labels(l, s)) &&
           read_value(l, &s->value);
}

bool prom_next(struct prom_reader *r, struct prom_sample *s)
{
    const char *nl;
    while (r->at < r->end && (nl = memchr(r->at, '\n', (size_t)(r->end - r->at)))) {
        struct line l = {r->at, nl > r->at && nl[-1] == '\r' ? nl - 1 : nl};
        r->at = nl + 1;
        skip_blanks(&l);
        if (l.at == l.end || *l.at == '#')
            continue;
        if (read_sample(&l, s))
            return true;
        r->malformed++;
    }
    return false;
}

struct prom_slice prom_label(const struct prom_sample *s, const char *name)
{
    size_t len = strlen(name);
    for (uint32_t i = 0; i < s->n_labels; i++) {
        if (s->label[i].len == len && !memcmp(s->label[i].s, name, len))
            return s->value_of[i];
    }
    return (struct prom_slice){NULL, 0};
}

bool prom_is(const struct prom_sample *s, const char *name)
{
    return strlen(name) == s->name.len && !memcmp(s->name.s, name, s->name.len);
}

bool prom_label_count(const struct prom_sample *s, const char *name, uint64_t *out)
{
    struct prom_slice v = prom_label(s, name);
    uint64_t n = 0;
    if (!v.len || v.len > 18)
        return false;
    for (size_t i = 0; i < v.len; i++) {
        if (v.s[i] < '0' || v.s[i] > '9')
            return false;
        n = n * 10 + (uint64_t)(v.s[i] - '0');
    }
    *out = n;
    return true;
}
