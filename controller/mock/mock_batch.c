/* mock_batch.c - see mock_batch.h. */
#include "controller/mock/mock_batch.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <mpack.h>

const char *const mock_encoding_names[MOCK_ENC_COUNT] = {"map", "array", "sglang"};

void mock_batch_deinit(struct mock_batch *b)
{
    free(b->events.s);
    free(b->whole.s);
    b->events = b->whole = (struct mock_bytes){NULL, 0, 0};
}

static void reserve(struct mock_bytes *b, size_t more)
{
    size_t cap = b->cap ? b->cap : 1024;
    while (cap < b->len + more)
        cap *= 2;
    if (cap == b->cap)
        return;
    b->s = realloc(b->s, cap);
    if (!b->s)
        abort(); /* as mem_grow does */
    b->cap = cap;
}

static void put(struct mock_bytes *b, mpack_token_t t)
{
    mpack_tokbuf_t buf;
    mpack_tokbuf_init(&buf);
    reserve(b, MPACK_MAX_TOKEN_LEN);
    char *at = b->s + b->len;
    size_t left = b->cap - b->len;
    (void)mpack_write(&buf, &at, &left, &t);
    b->len = (size_t)(at - b->s);
}

static void put_bytes(struct mock_bytes *b, const void *s, size_t n)
{
    reserve(b, n);
    memcpy(b->s + b->len, s, n);
    b->len += n;
}

static void put_text(struct mock_bytes *b, const char *s)
{
    put(b, mpack_pack_str((mpack_uint32_t)strlen(s)));
    put_bytes(b, s, strlen(s));
}

static void put_hash(struct mock_batch *b, uint64_t hash)
{
    if (b->encoding == MOCK_ENC_ARRAY) {
        put(&b->events, mpack_pack_bin(32));
        for (int i = 0; i < 4; i++)
            put_bytes(&b->events, &hash, sizeof hash);
    } else if (b->encoding == MOCK_ENC_SGLANG) {
        put(&b->events, mpack_pack_sint((mpack_sintmax_t)hash));
    } else {
        put(&b->events, mpack_pack_uint(hash));
    }
}

static void put_hashes(struct mock_batch *b, const uint64_t *hashes, uint32_t n)
{
    put(&b->events, mpack_pack_array(n));
    for (uint32_t i = 0; i < n; i++)
        put_hash(b, hashes[i]);
}

/* The name of a field, where fields have names. */
static void field(struct mock_batch *b, const char *name)
{
    if (b->encoding == MOCK_ENC_MAP)
        put_text(&b->events, name);
}

static void begin(struct mock_batch *b, const char *type, uint32_t fields)
{
    put(&b->events,
        b->encoding == MOCK_ENC_MAP ? mpack_pack_map(fields + 1) : mpack_pack_array(fields + 1));
    field(b, "type");
    put_text(&b->events, type);
    b->n++;
}

static void put_extra(struct mock_batch *b, uint32_t n, const char *salt)
{
    put(&b->events, mpack_pack_array(n));
    for (uint32_t i = 0; i < n; i++) {
        put(&b->events, i || !salt ? mpack_pack_nil() : mpack_pack_array(1));
        if (!i && salt)
            put_text(&b->events, salt);
    }
}

void mock_batch_stored(struct mock_batch *b, const uint64_t *hashes, uint32_t n,
                       const uint64_t *parent, const uint32_t *tokens, uint32_t block_size,
                       const char *salt)
{
    bool all = b->encoding != MOCK_ENC_SGLANG;
    begin(b, "BlockStored", all ? 8 : 5);
    field(b, "block_hashes");
    put_hashes(b, hashes, n);
    field(b, "parent_block_hash");
    if (parent)
        put_hash(b, *parent);
    else
        put(&b->events, mpack_pack_nil());
    field(b, "token_ids");
    put(&b->events, mpack_pack_array(n * block_size));
    for (uint32_t i = 0; i < n * block_size; i++)
        put(&b->events, mpack_pack_uint(tokens[i]));
    field(b, "block_size");
    put(&b->events, mpack_pack_uint(block_size));
    field(b, "lora_id");
    put(&b->events, mpack_pack_nil());
    if (!all)
        return;
    field(b, "medium");
    put_text(&b->events, "GPU");
    field(b, "lora_name");
    put(&b->events, mpack_pack_nil());
    field(b, "extra_keys");
    put_extra(b, n, salt);
}

void mock_batch_removed(struct mock_batch *b, const uint64_t *hashes, uint32_t n)
{
    bool all = b->encoding != MOCK_ENC_SGLANG;
    begin(b, "BlockRemoved", all ? 2 : 1);
    field(b, "block_hashes");
    put_hashes(b, hashes, n);
    if (!all)
        return;
    field(b, "medium");
    put_text(&b->events, "GPU");
}

void mock_batch_cleared(struct mock_batch *b)
{
    begin(b, "AllBlocksCleared", 0);
}

const struct mock_bytes *mock_batch_end(struct mock_batch *b, double ts)
{
    struct mock_bytes *w = &b->whole;
    w->len = 0;
    put(w, mpack_pack_array(3));
    put(w, mpack_pack_float(ts));
    put(w, mpack_pack_array(b->n));
    if (b->events.len)
        put_bytes(w, b->events.s, b->events.len);
    put(w, mpack_pack_uint(0)); /* data-parallel rank */
    b->events.len = 0;
    b->n = 0;
    return w;
}
