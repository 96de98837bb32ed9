/* yaml_tree.c - a YAML document as a tree that knows its lines, and the reading of scalars. */
#include "controller/config/yaml_tree.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "controller/config/words.h"

#define CHUNK_BYTES 16384u
#define READ_BYTES 65536u

struct ytree_chunk {
    struct ytree_chunk *next;
    size_t used, size;
    max_align_t data[];
};

void ytree_error(char *error, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(error, YTREE_ERROR_BYTES, fmt, ap);
    va_end(ap);
    for (unsigned char *c = (unsigned char *)error; *c; c++) {
        if (*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
}

static void *tree_alloc(struct ytree *t, size_t n)
{
    n = (n + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    struct ytree_chunk *c = t->chunks;
    if (!c || c->size - c->used < n) {
        size_t size = n > CHUNK_BYTES ? n : CHUNK_BYTES;
        c = malloc(sizeof *c + size);
        if (!c)
            return NULL;
        *c = (struct ytree_chunk){.next = t->chunks, .size = size};
        t->chunks = c;
    }
    void *p = (char *)c->data + c->used;
    c->used += n;
    return p;
}

void ytree_deinit(struct ytree *t)
{
    while (t->chunks) {
        struct ytree_chunk *next = t->chunks->next;
        free(t->chunks);
        t->chunks = next;
    }
    t->root = NULL;
}

static int check_text(const char *name, const char *text, size_t len, char *error)
{
    size_t good = utf8_span(text, len), nul = strnlen(text, len);
    size_t bad = good < nul ? good : nul;
    if (bad == len)
        return WEIR_OK;
    unsigned line = 1;
    for (size_t i = 0; i < bad; i++)
        line += text[i] == '\n';
    ytree_error(error,
                "%s:%u: expected YAML text in UTF-8, found byte 0x%02x; save the file as UTF-8",
                name, line, (unsigned)(unsigned char)text[bad]);
    return WEIR_E_INPUT;
}

/* State of one parse: the open lists and maps, innermost last. */
struct build {
    struct ytree *tree;
    const char *name;
    char *error;
    struct {
        struct ytree_node *node, *last;
        const char *key; /* map: key read, value awaited */
        unsigned key_line;
    } open[YTREE_MAX_DEPTH];
    int depth;
    bool ended; /* the first document is over */
};

static int refuse(struct build *b, const yaml_mark_t *at, const char *what)
{
    ytree_error(b->error, "%s:%zu: %s", b->name, at->line + 1, what);
    return WEIR_E_INPUT;
}

static int out_of_memory(struct build *b)
{
    ytree_error(b->error, "%s: out of memory while reading it", b->name);
    return WEIR_E_NOMEM;
}

/* Hangs a new node under the innermost open one. NULL: *rc says why. */
static struct ytree_node *add_node(struct build *b, enum ytree_kind kind, const yaml_mark_t *at,
                                   int *rc)
{
    if (b->tree->n_nodes >= YTREE_MAX_NODES) {
        *rc = refuse(b, at, "more than 1000000 values; split the file");
        return NULL;
    }
    struct ytree_node *n = tree_alloc(b->tree, sizeof *n);
    if (!n) {
        *rc = out_of_memory(b);
        return NULL;
    }
    b->tree->n_nodes++;
    *n = (struct ytree_node){.kind = kind, .line = (unsigned)at->line + 1};
    if (b->depth == 0) {
        b->tree->root = n;
        return n;
    }
    if (b->open[b->depth - 1].node->kind == YTREE_MAP) {
        n->key = b->open[b->depth - 1].key;
        n->line = b->open[b->depth - 1].key_line;
        b->open[b->depth - 1].key = NULL;
    }
    if (b->open[b->depth - 1].last)
        b->open[b->depth - 1].last->next = n;
    else
        b->open[b->depth - 1].node->first = n;
    b->open[b->depth - 1].last = n;
    return n;
}

static bool awaits_key(const struct build *b)
{
    return b->depth > 0 && b->open[b->depth - 1].node->kind == YTREE_MAP &&
           !b->open[b->depth - 1].key;
}

static int on_scalar(struct build *b, const yaml_event_t *e)
{
    const char *value = (const char *)e->data.scalar.value;
    size_t len = e->data.scalar.length;

    if (e->data.scalar.anchor || e->data.scalar.tag)
        return refuse(b, &e->start_mark, "anchors and tags are not accepted; write the value out");
    if (memchr(value, '\0', len))
        return refuse(b, &e->start_mark, "a NUL character in a value; remove it");
    char *text = tree_alloc(b->tree, len + 1);
    if (!text)
        return out_of_memory(b);
    memcpy(text, value, len);
    text[len] = '\0';
    if (awaits_key(b)) {
        b->open[b->depth - 1].key = text;
        b->open[b->depth - 1].key_line = (unsigned)e->start_mark.line + 1;
        return WEIR_OK;
    }
    int rc = WEIR_OK;
    struct ytree_node *n = add_node(b, YTREE_SCALAR, &e->start_mark, &rc);
    if (!n)
        return rc;
    n->text = text;
    n->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return WEIR_OK;
}

static int on_open(struct build *b, const yaml_event_t *e, enum ytree_kind kind, bool marked)
{
    if (marked)
        return refuse(b, &e->start_mark, "anchors and tags are not accepted; write the value out");
    if (awaits_key(b))
        return refuse(b, &e->start_mark, "a list or a mapping as a key; a key is a word");
    if (b->depth == YTREE_MAX_DEPTH)
        return refuse(b, &e->start_mark, "nested deeper than 12 levels, which no key needs");
    int rc = WEIR_OK;
    struct ytree_node *n = add_node(b, kind, &e->start_mark, &rc);
    if (!n)
        return rc;
    b->open[b->depth].node = n;
    b->open[b->depth].last = NULL;
    b->open[b->depth].key = NULL;
    b->depth++;
    return WEIR_OK;
}

static int on_event(struct build *b, const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (b->ended)
            return refuse(b, &e->start_mark,
                          "a second document (---); one file holds one document");
        return WEIR_OK;
    case YAML_DOCUMENT_END_EVENT: b->ended = true; return WEIR_OK;
    case YAML_ALIAS_EVENT:
        return refuse(b, &e->start_mark, "aliases (*name) are not accepted; write the value out");
    case YAML_SCALAR_EVENT: return on_scalar(b, e);
    case YAML_SEQUENCE_START_EVENT:
        return on_open(b, e, YTREE_LIST,
                       e->data.sequence_start.anchor || e->data.sequence_start.tag);
    case YAML_MAPPING_START_EVENT:
        return on_open(b, e, YTREE_MAP, e->data.mapping_start.anchor || e->data.mapping_start.tag);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT: b->depth--; return WEIR_OK;
    default: return WEIR_OK;
    }
}

static int not_yaml(struct build *b, const yaml_parser_t *p, const char *text, size_t len)
{
    if (p->error == YAML_MEMORY_ERROR)
        return out_of_memory(b);
    size_t line = p->problem_mark.line + 1;
    if (p->error == YAML_READER_ERROR) { /* it reads ahead of its marks */
        line = 1;
        for (size_t i = 0; i < len && i < p->problem_offset; i++)
            line += text[i] == '\n';
    }
    ytree_error(
        b->error,
        "%s:%zu: not YAML: %s%s%s; see deploy/stack-reference.md or deploy/serve.md for the form",
        b->name, line, p->problem ? p->problem : "unreadable", p->context ? ", " : "",
        p->context ? p->context : "");
    return WEIR_E_INPUT;
}

int ytree_parse(struct ytree *t, const char *name, const char *text, size_t len, char *error)
{
    *t = (struct ytree){0};
    if (len > YTREE_MAX_BYTES) {
        ytree_error(error, "%s: larger than %u MiB; split it", name, YTREE_MAX_BYTES >> 20);
        return WEIR_E_INPUT;
    }
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
        text += 3;
        len -= 3;
    }
    int rc = check_text(name, text, len, error);
    if (rc)
        return rc;

    struct build b = {.tree = t, .name = name, .error = error};
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return out_of_memory(&b);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
    for (bool over = false; !over && rc == WEIR_OK;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            rc = not_yaml(&b, &parser, text, len);
            break;
        }
        over = event.type == YAML_STREAM_END_EVENT || event.type == YAML_NO_EVENT;
        rc = on_event(&b, &event);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return rc;
}

int ytree_read_file(const char *path, size_t max_bytes, char **text, size_t *len, char *error)
{
    int rc = WEIR_OK;
    size_t n = 0, size = 0;
    char *buf = NULL;
    FILE *f = fopen(path, "rb");

    if (!f) {
        ytree_error(error, "%s: cannot open it: %s; check the path", path, strerror(errno));
        return WEIR_E_IO;
    }
    for (;;) {
        if (size - n < READ_BYTES + 1) {
            size = size ? size * 2 : 2 * READ_BYTES;
            char *more = realloc(buf, size);
            if (!more) {
                ytree_error(error, "%s: out of memory while reading it", path);
                rc = WEIR_E_NOMEM;
                goto out;
            }
            buf = more;
        }
        size_t got = fread(buf + n, 1, READ_BYTES, f);
        n += got;
        if (n > max_bytes) {
            ytree_error(error, "%s: larger than %zu MiB; split it", path, max_bytes >> 20);
            rc = WEIR_E_INPUT;
            goto out;
        }
        if (got == 0)
            break;
    }
    if (ferror(f)) {
        ytree_error(error, "%s: cannot read it: %s", path, strerror(errno));
        rc = WEIR_E_IO;
        goto out;
    }
    buf[n] = '\0';
    *text = buf;
    *len = n;
    buf = NULL;
out:
    free(buf);
    (void)fclose(f);
    return rc;
}
