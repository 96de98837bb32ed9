/* kv_events.c - see kv_events.h. */
#include "controller/engines/kv_events.h"

#include <stdlib.h>
#include <string.h>

#include <mpack.h>
#include <xxhash.h>

#include "predictor/mem.h"

struct cursor {
    mpack_tokbuf_t buf;
    const char *at;
    size_t left;
};

void kv_decoder_deinit(struct kv_decoder *d)
{
    free(d->hashes);
    free(d->tokens);
    free(d->extra);
    *d = (struct kv_decoder){.hashes = NULL};
}

/* ---- values. All of these: false on the end of the data, or on what msgpack does not have. */

/* Bytes of a token, but for what a text or ext contains: its first byte, and what follows on it (the msgpack specification).
 * Asked before libmpack reads: version 1.0.5 runs beyond the end where the type of an ext is missing (found by
 * fuzz_kv_events). */
static size_t token_bytes(unsigned char first)
{
    static const unsigned char sizes[32] = {
        1, 1, 1, 1, 2, 3, 5, 3, 4, 6, 5, 9, 2, 3, 5, 9, /* c0: nil ... bin, ext, float, uint */
        2, 3, 5, 9, 2, 2, 2, 2, 2, 2, 3, 5, 3, 5, 3, 5, /* d0: int, fixext, str, array, map */
    };
    return first >= 0xc0 && first < 0xe0 ? sizes[first - 0xc0] : 1;
}

/* An array, map or text that says it is longer than what is left is a lie: each item takes a byte. */
static bool next(struct cursor *c, mpack_token_t *t)
{
    if (!c->left || token_bytes((unsigned char)*c->at) > c->left ||
        mpack_read(&c->buf, &c->at, &c->left, t) != MPACK_OK)
        return false;
    return t->type < MPACK_TOKEN_ARRAY || t->length <= c->left;
}

static bool has_bytes(const mpack_token_t *t)
{
    return t->type == MPACK_TOKEN_STR || t->type == MPACK_TOKEN_BIN || t->type == MPACK_TOKEN_EXT;
}

/* What a token that has_bytes stands for. */
static bool bytes_of(struct cursor *c, const mpack_token_t *t, struct kv_text *out)
{
    if (t->length > c->left)
        return false;
    *out = (struct kv_text){t->length ? c->at : "", t->length};
    c->at += t->length;
    c->left -= t->length;
    mpack_tokbuf_init(&c->buf); /* it need not pass them through */
    return true;
}

/* The rest of a value whose first token was t. */
static bool skip_from(struct cursor *c, mpack_token_t t)
{
    struct kv_text text;
    for (uint64_t open = 1;;) {
        if (has_bytes(&t) && !bytes_of(c, &t, &text))
            return false;
        if (t.type == MPACK_TOKEN_ARRAY)
            open += t.length;
        else if (t.type == MPACK_TOKEN_MAP)
            open += 2 * (uint64_t)t.length;
        if (!--open)
            return true;
        if (!next(c, &t))
            return false;
    }
}

static uint64_t whole(const mpack_token_t *t)
{
    return t->type == MPACK_TOKEN_SINT ? (uint64_t)mpack_unpack_sint(*t) : mpack_unpack_uint(*t);
}

static bool is_whole(const mpack_token_t *t)
{
    return t->type == MPACK_TOKEN_UINT || t->type == MPACK_TOKEN_SINT;
}

static bool read_text(struct cursor *c, struct kv_text *out)
{
    mpack_token_t t;
    if (!next(c, &t))
        return false;
    return has_bytes(&t) ? bytes_of(c, &t, out) : skip_from(c, t);
}

static bool read_u32(struct cursor *c, uint32_t *out)
{
    mpack_token_t t;
    if (!next(c, &t))
        return false;
    if (t.type == MPACK_TOKEN_UINT && mpack_unpack_uint(t) <= UINT32_MAX)
        *out = (uint32_t)mpack_unpack_uint(t);
    return skip_from(c, t);
}

/* t: its first token. None (nil, or no hash at all): *given is false. */
static bool read_hash(struct cursor *c, mpack_token_t t, uint64_t *out, bool *given)
{
    struct kv_text text;
    *given = is_whole(&t) || has_bytes(&t);
    if (!has_bytes(&t)) {
        if (*given)
            *out = whole(&t);
        return skip_from(c, t);
    }
    if (!bytes_of(c, &t, &text))
        return false;
    *out = XXH3_64bits(text.s, text.len);
    return true;
}

/* ---- lists */

static bool read_hashes(struct kv_decoder *d, struct cursor *c, struct kv_event *e)
{
    mpack_token_t t;
    bool given;
    if (!next(c, &t))
        return false;
    if (t.type != MPACK_TOKEN_ARRAY)
        return skip_from(c, t);
    uint32_t n = t.length;
    MEM_GROW(d->hashes, d->hashes_cap, n);
    for (uint32_t i = 0; i < n; i++) {
        if (!next(c, &t) || !read_hash(c, t, &d->hashes[i], &given) || !given)
            return false;
    }
    e->hashes = d->hashes;
    e->n_hashes = n;
    return true;
}

static bool read_tokens(struct kv_decoder *d, struct cursor *c, struct kv_event *e)
{
    mpack_token_t t;
    if (!next(c, &t))
        return false;
    if (t.type != MPACK_TOKEN_ARRAY)
        return skip_from(c, t);
    uint32_t n = t.length;
    MEM_GROW(d->tokens, d->tokens_cap, n);
    for (uint32_t i = 0; i < n; i++) {
        if (!next(c, &t))
            return false;
        bool id = t.type == MPACK_TOKEN_UINT && mpack_unpack_uint(t) <= UINT32_MAX;
        d->tokens[i] = id ? (uint32_t)mpack_unpack_uint(t) : 0;
        e->odd_tokens |= !id;
        if (!skip_from(c, t))
            return false;
    }
    e->tokens = d->tokens;
    e->n_tokens = n;
    return true;
}

/* The keys of one block: nil, a text, or a list of texts and others. */
static bool read_block_extra(struct cursor *c, struct kv_extra *out)
{
    mpack_token_t t;
    *out = (struct kv_extra){.n = 0};
    if (!next(c, &t))
        return false;
    if (t.type != MPACK_TOKEN_ARRAY) {
        out->n = t.type == MPACK_TOKEN_NIL ? 0 : UINT32_MAX;
        return skip_from(c, t);
    }
    uint32_t n = t.length;
    out->n = n;
    for (uint32_t i = 0; i < n; i++) {
        struct kv_text text = {NULL, 0};
        if (!read_text(c, &text))
            return false;
        if (!text.s)
            out->n = UINT32_MAX;
        else if (i < KV_EVENTS_MAX_EXTRA)
            out->text[i] = text;
    }
    return true;
}

static bool read_extra(struct kv_decoder *d, struct cursor *c, struct kv_event *e)
{
    mpack_token_t t;
    if (!next(c, &t))
        return false;
    if (t.type != MPACK_TOKEN_ARRAY)
        return skip_from(c, t);
    uint32_t n = t.length;
    MEM_GROW(d->extra, d->extra_cap, n);
    for (uint32_t i = 0; i < n; i++) {
        if (!read_block_extra(c, &d->extra[i]))
            return false;
    }
    e->extra = d->extra;
    e->n_extra = n;
    return true;
}

/* ---- events */

enum field {
    F_HASHES,
    F_PARENT,
    F_TOKENS,
    F_BLOCK_SIZE,
    F_LORA_ID,
    F_MEDIUM,
    F_LORA_NAME,
    F_EXTRA,
    F_GROUP,
    F_TYPE,
    F_OTHER
};

static const char *const field_names[F_OTHER] = {
    "block_hashes", "parent_block_hash", "token_ids",  "block_size", "lora_id",
    "medium",       "lora_name",         "extra_keys", "group_idx",  "type",
};
static const enum field removed_fields[] = {F_HASHES, F_MEDIUM, F_GROUP};

static bool is(struct kv_text t, const char *text)
{
    return t.s && t.len == strlen(text) && !memcmp(t.s, text, t.len);
}

static enum field field_of(struct kv_text name)
{
    int f = 0;
    while (f < F_OTHER && !is(name, field_names[f]))
        f++;
    return (enum field)f;
}

/* The n-th field of an array of that kind; those of BlockStored are in the order of the enum. */
static enum field field_at(enum kv_event_kind kind, uint32_t n)
{
    if (kind == KV_STORED)
        return n < F_TYPE ? (enum field)n : F_OTHER;
    if (kind == KV_REMOVED && n < sizeof removed_fields / sizeof *removed_fields)
        return removed_fields[n];
    return F_OTHER;
}

static bool kind_of(struct kv_text type, enum kv_event_kind *kind)
{
    static const char *const names[] = {"BlockStored", "BlockRemoved", "AllBlocksCleared"};
    for (int i = 0; i < 3; i++) {
        if (is(type, names[i])) {
            *kind = (enum kv_event_kind)i;
            return true;
        }
    }
    return false;
}

static bool skip(struct cursor *c)
{
    mpack_token_t t;
    return next(c, &t) && skip_from(c, t);
}

static bool read_given(struct cursor *c, bool *given)
{
    mpack_token_t t;
    if (!next(c, &t))
        return false;
    *given = t.type != MPACK_TOKEN_NIL;
    return skip_from(c, t);
}

static bool read_parent(struct cursor *c, struct kv_event *e)
{
    mpack_token_t t;
    return next(c, &t) && read_hash(c, t, &e->parent, &e->has_parent);
}

static bool read_field(struct kv_decoder *d, struct cursor *c, enum field f, struct kv_event *e,
                       struct kv_text *type)
{
    switch (f) {
    case F_HASHES: return read_hashes(d, c, e);
    case F_PARENT: return read_parent(c, e);
    case F_TOKENS: return read_tokens(d, c, e);
    case F_BLOCK_SIZE: return read_u32(c, &e->block_size);
    case F_LORA_ID: return read_given(c, &e->has_lora_id);
    case F_MEDIUM: return read_text(c, &e->medium);
    case F_LORA_NAME: return read_text(c, &e->lora_name);
    case F_EXTRA: return read_extra(d, c, e);
    case F_GROUP: return read_u32(c, &e->group);
    case F_TYPE: return read_text(c, type);
    case F_OTHER: break;
    }
    return skip(c);
}

static bool read_array_event(struct kv_decoder *d, struct cursor *c, uint32_t n, struct kv_event *e,
                             bool *known)
{
    struct kv_text type = {NULL, 0};
    if (n && !read_text(c, &type))
        return false;
    *known = kind_of(type, &e->kind);
    for (uint32_t i = 1; i < n; i++) {
        enum field f = *known ? field_at(e->kind, i - 1) : F_OTHER;
        if (!read_field(d, c, f, e, &type))
            return false;
    }
    return true;
}

static bool read_map_event(struct kv_decoder *d, struct cursor *c, uint32_t n, struct kv_event *e,
                           bool *known)
{
    struct kv_text type = {NULL, 0};
    for (uint32_t i = 0; i < n; i++) {
        struct kv_text name = {NULL, 0};
        if (!read_text(c, &name) || !read_field(d, c, field_of(name), e, &type))
            return false;
    }
    *known = kind_of(type, &e->kind);
    return true;
}

static bool read_event(struct kv_decoder *d, struct cursor *c, kv_event_fn fn, void *ctx)
{
    struct kv_event e = {.kind = KV_CLEARED};
    mpack_token_t t;
    bool known = false, ok;
    if (!next(c, &t))
        return false;
    if (t.type == MPACK_TOKEN_ARRAY)
        ok = read_array_event(d, c, t.length, &e, &known);
    else if (t.type == MPACK_TOKEN_MAP)
        ok = read_map_event(d, c, t.length, &e, &known);
    else
        ok = skip_from(c, t);
    if (ok && known)
        fn(ctx, &e);
    else if (ok)
        d->unknown++;
    return ok;
}

static bool read_events(struct kv_decoder *d, struct cursor *c, kv_event_fn fn, void *ctx)
{
    mpack_token_t t;
    if (!next(c, &t) || t.type != MPACK_TOKEN_ARRAY)
        return false;
    for (uint32_t n = t.length; n; n--) {
        if (!read_event(d, c, fn, ctx))
            return false;
    }
    return true;
}

int kv_events_decode(struct kv_decoder *d, const void *data, size_t n, kv_event_fn fn, void *ctx)
{
    struct cursor c = {.at = data, .left = n};
    mpack_token_t t;
    bool found = false, map;
    mpack_tokbuf_init(&c.buf);
    if (n > KV_EVENTS_MAX_BYTES || !next(&c, &t) ||
        (t.type != MPACK_TOKEN_ARRAY && t.type != MPACK_TOKEN_MAP))
        return WEIR_E_INPUT;
    map = t.type == MPACK_TOKEN_MAP;
    for (uint32_t i = 0, fields = t.length; i < fields; i++) {
        struct kv_text name = {NULL, 0};
        if (map && !read_text(&c, &name))
            return WEIR_E_INPUT;
        bool events = map ? is(name, "events") : i == 1;
        found |= events;
        if (events ? !read_events(d, &c, fn, ctx) : !skip(&c))
            return WEIR_E_INPUT;
    }
    return found && !c.left ? WEIR_OK : WEIR_E_INPUT;
}
