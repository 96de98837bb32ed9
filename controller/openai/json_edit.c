/* json_edit.c - see json_edit.h. */
#include "controller/openai/json_edit.h"

#include <stdio.h>
#include <string.h>

struct cursor {
    const char *s;
    size_t at, len;
};

struct member {
    struct json_slice name, value;
    size_t from, to; /* `"name": value`, without a comma */
};

static void skip_blanks(struct cursor *c)
{
    while (c->at < c->len && strchr(" \t\r\n", c->s[c->at]) && c->s[c->at])
        c->at++;
}

static bool take(struct cursor *c, char want)
{
    skip_blanks(c);
    if (c->at >= c->len || c->s[c->at] != want)
        return false;
    c->at++;
    return true;
}

/* Past the closing quote of the string that starts here. */
static bool skip_string(struct cursor *c)
{
    if (!take(c, '"'))
        return false;
    while (c->at < c->len) {
        const char *quote = memchr(c->s + c->at, '"', c->len - c->at);
        if (!quote)
            return false;
        size_t q = (size_t)(quote - c->s), slashes = 0;
        while (q - slashes > c->at && c->s[q - slashes - 1] == '\\')
            slashes++;
        c->at = q + 1;
        if (slashes % 2 == 0)
            return true;
    }
    return false;
}

static bool is_end_of_scalar(char ch)
{
    return ch == ',' || ch == '}' || ch == ']' || ch == ' ' || ch == '\t' || ch == '\r' ||
           ch == '\n';
}

static bool skip_value(struct cursor *c)
{
    size_t depth = 0;
    do {
        skip_blanks(c);
        if (c->at >= c->len)
            return false;
        char ch = c->s[c->at];
        if (ch == '"') {
            if (!skip_string(c))
                return false;
        } else if (ch == '{' || ch == '[') {
            depth++;
            c->at++;
        } else if (ch == '}' || ch == ']') {
            if (!depth)
                return false;
            depth--;
            c->at++;
        } else if (ch == ',' || ch == ':') {
            if (!depth)
                return false;
            c->at++;
        } else {
            while (c->at < c->len && !is_end_of_scalar(c->s[c->at]) && c->s[c->at] != ':')
                c->at++;
        }
    } while (depth);
    return true;
}

/* The next member of the object. 1, 0 at its closing brace (c is behind it), WEIR_E_INPUT. */
static int next_member(struct cursor *c, bool first, struct member *m)
{
    if (take(c, '}'))
        return 0;
    if (!first && !take(c, ','))
        return WEIR_E_INPUT;
    skip_blanks(c);
    m->from = c->at;
    if (!skip_string(c))
        return WEIR_E_INPUT;
    m->name = (struct json_slice){c->s + m->from + 1, c->at - m->from - 2};
    if (!take(c, ':'))
        return WEIR_E_INPUT;
    skip_blanks(c);
    size_t start = c->at;
    if (!skip_value(c))
        return WEIR_E_INPUT;
    m->value = (struct json_slice){c->s + start, c->at - start};
    m->to = c->at;
    return 1;
}

static bool named(const struct member *m, const char *name)
{
    return strlen(name) == m->name.len && !memcmp(m->name.s, name, m->name.len);
}

bool json_member(const char *text, size_t len, const char *name, struct json_slice *value)
{
    struct cursor c = {text, 0, len};
    struct member m;
    bool found = false;
    int rc = WEIR_E_INPUT;
    if (!take(&c, '{'))
        return false;
    for (bool first = true; (rc = next_member(&c, first, &m)) > 0; first = false) {
        if (named(&m, name)) {
            *value = m.value;
            found = true;
        }
    }
    return !rc && found;
}

static int add_slice(struct json_edit *e, const char *s, size_t len)
{
    if (!len)
        return 0;
    if (e->n_slices == JSON_EDIT_MAX_SLICES)
        return WEIR_E_LIMIT;
    e->slices[e->n_slices++] = (struct json_slice){s, len};
    e->len += len;
    return 0;
}

static bool changed(const struct member *m, const struct json_change *changes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (named(m, changes[i].name))
            return true;
    }
    return false;
}

/* What stays, in as few slices as possible. *any: whether a member stays. *end: where the object's
 * closing brace is. */
static int keep_rest(struct json_edit *e, struct cursor *c, const struct json_change *changes,
                     size_t n, bool *any, size_t *end)
{
    struct member m;
    size_t from = 0, to = c->at; /* the slice being collected; so far the opening brace */
    bool broken = false;         /* a member was left out since */
    int rc;
    *any = false;
    for (bool first = true; (rc = next_member(c, first, &m)) > 0; first = false) {
        if (changed(&m, changes, n)) {
            broken = true;
            continue;
        }
        if (broken) {
            rc = add_slice(e, c->s + from, to - from);
            if (!rc && *any)
                rc = add_slice(e, ",", 1);
            if (rc)
                return rc;
            from = m.from;
            broken = false;
        }
        *any = true;
        to = m.to;
    }
    *end = c->at ? c->at - 1 : 0;
    return rc ? rc : add_slice(e, c->s + from, (broken ? to : *end) - from);
}

int json_edit(struct json_edit *out, const char *text, size_t len,
              const struct json_change *changes, size_t n_changes)
{
    struct cursor c = {text, 0, len};
    bool any;
    size_t end;
    out->n_slices = out->len = 0;
    if (n_changes > JSON_EDIT_MAX_CHANGES)
        return WEIR_E_LIMIT;
    if (!take(&c, '{'))
        return WEIR_E_INPUT;
    int rc = keep_rest(out, &c, changes, n_changes, &any, &end);
    for (size_t i = 0; !rc && i < n_changes; i++) {
        if (!changes[i].value.s)
            continue;
        int n = snprintf(out->glue[i], sizeof out->glue[i], "%s\"%s\":", any ? "," : "",
                         changes[i].name);
        if (n < 0 || (size_t)n >= sizeof out->glue[i])
            return WEIR_E_LIMIT;
        rc = add_slice(out, out->glue[i], (size_t)n);
        if (!rc)
            rc = add_slice(out, changes[i].value.s, changes[i].value.len);
        any = true;
    }
    if (rc)
        return rc;
    skip_blanks(&c);
    return c.at < c.len ? WEIR_E_INPUT : add_slice(out, text + end, c.len - end);
}
