/* kv_blocks.c - see kv_blocks.h. */
#include "controller/engines/kv_blocks.h"

#include <stdlib.h>
#include <string.h>

#include "controller/openai/openai_request.h"
#include "predictor/mem.h"
#include "predictor/rng.h"

#define NONE UINT32_MAX
#define FIRST_BUCKETS 64u
#define CHUNK OPENAI_CHUNK_TOK

struct block {
    uint64_t hash, parent; /* parent: 0 and depth 0: none */
    uint32_t depth;        /* in blocks of its own size */
    uint32_t next;         /* in its bucket, or free */
};

struct kv_blocks {
    uint32_t core_tok; /* block size of the core */
    uint32_t size;     /* of the engine's blocks; 0: not heard yet */
    uint32_t n_keys;   /* a block has: those of its chunks; one where a chunk has several blocks */
    uint32_t n_tokens; /* a block keeps: all where a chunk has several blocks, else none */
    struct block *blocks;
    uint64_t *keys; /* n_keys a block; the last one is what the next block goes on from */
    uint32_t *tokens;
    uint32_t used, free, blocks_cap, keys_cap, tokens_cap;
    uint32_t *buckets, n_buckets;
    char *model;
    kv_tell_fn tell;
    void *ctx;
    /* a run of the core's blocks that is to be told */
    uint64_t *run;
    uint32_t run_cap;
    struct core_cache_event out;
    struct kv_blocks_stats stats;
};

struct kv_blocks *kv_blocks_new(uint32_t block_tok, const char *model, kv_tell_fn tell, void *ctx)
{
    struct kv_blocks *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    *b = (struct kv_blocks){.core_tok = block_tok,
                            .free = NONE,
                            .n_buckets = FIRST_BUCKETS,
                            .buckets = malloc(FIRST_BUCKETS * sizeof *b->buckets),
                            .model = strdup(model),
                            .tell = tell,
                            .ctx = ctx};
    if (b->buckets && b->model) {
        memset(b->buckets, 0xff, FIRST_BUCKETS * sizeof *b->buckets);
        return b;
    }
    kv_blocks_free(b);
    return NULL;
}

void kv_blocks_free(struct kv_blocks *b)
{
    if (!b)
        return;
    free(b->blocks);
    free(b->keys);
    free(b->tokens);
    free(b->buckets);
    free(b->model);
    free(b->run);
    free(b);
}

const struct kv_blocks_stats *kv_blocks_stats(const struct kv_blocks *b)
{
    return &b->stats;
}

/* ---- by hash */

static uint32_t *bucket_of(struct kv_blocks *b, uint64_t hash)
{
    return &b->buckets[rng_mix64(hash) & (b->n_buckets - 1)];
}

static uint32_t find(struct kv_blocks *b, uint64_t hash)
{
    uint32_t i = *bucket_of(b, hash);
    while (i != NONE && b->blocks[i].hash != hash)
        i = b->blocks[i].next;
    return i;
}

static void grow_buckets(struct kv_blocks *b)
{
    uint32_t n = b->n_buckets * 2, *old = b->buckets, n_old = b->n_buckets;
    b->buckets = malloc(n * sizeof *b->buckets);
    if (!b->buckets)
        abort(); /* as MEM_GROW does */
    memset(b->buckets, 0xff, n * sizeof *b->buckets);
    b->n_buckets = n;
    for (uint32_t k = 0; k < n_old; k++) {
        for (uint32_t i = old[k], next; i != NONE; i = next) {
            uint32_t *to = bucket_of(b, b->blocks[i].hash);
            next = b->blocks[i].next;
            b->blocks[i].next = *to;
            *to = i;
        }
    }
    free(old);
}

static uint32_t insert(struct kv_blocks *b, uint64_t hash, uint64_t parent, uint32_t depth)
{
    uint32_t i = b->free;
    if (i != NONE) {
        b->free = b->blocks[i].next;
    } else {
        i = b->used++;
        MEM_GROW(b->blocks, b->blocks_cap, i + 1);
        MEM_GROW(b->keys, b->keys_cap, (i + 1) * b->n_keys);
        if (b->n_tokens)
            MEM_GROW(b->tokens, b->tokens_cap, (i + 1) * b->n_tokens);
    }
    if (b->stats.blocks++ == b->n_buckets)
        grow_buckets(b);
    uint32_t *at = bucket_of(b, hash);
    b->blocks[i] = (struct block){hash, parent, depth, *at};
    *at = i;
    return i;
}

static void drop(struct kv_blocks *b, uint32_t i)
{
    uint32_t *at = bucket_of(b, b->blocks[i].hash);
    while (*at != i)
        at = &b->blocks[*at].next;
    *at = b->blocks[i].next;
    b->blocks[i].next = b->free;
    b->free = i;
    b->stats.blocks--;
}

/* ---- to the core */

static void flush(struct kv_blocks *b)
{
    b->out.keys = b->run;
    if (b->out.n_blocks)
        b->tell(b->ctx, &b->out);
    b->out.n_blocks = 0;
}

static void add_to_run(struct kv_blocks *b, bool stored, uint32_t depth, uint32_t n, uint64_t key)
{
    if (b->out.n_blocks && (b->out.stored != stored || b->out.depth + b->out.n_blocks != depth))
        flush(b);
    if (!b->out.n_blocks)
        b->out = (struct core_cache_event){.stored = stored, .depth = depth};
    MEM_GROW(b->run, b->run_cap, b->out.n_blocks + n);
    while (n--)
        b->run[b->out.n_blocks++] = key;
}

/* Chunk c (from the start of the prompt) is there, or gone. */
static void tell_chunk(struct kv_blocks *b, bool stored, uint32_t c, uint64_t key)
{
    uint32_t size = b->core_tok;
    if (size <= CHUNK)
        add_to_run(b, stored, c * (CHUNK / size), CHUNK / size, key);
    else if ((c + 1) * CHUNK % size == 0)
        add_to_run(b, stored, (c + 1) * CHUNK / size - 1, 1, key);
}

/* The chunks that end in block i. */
static void tell_block(struct kv_blocks *b, bool stored, uint32_t i)
{
    uint32_t end_tok = (b->blocks[i].depth + 1) * b->size;
    if (end_tok % CHUNK)
        return;
    for (uint32_t k = 0; k < b->n_keys; k++)
        tell_chunk(b, stored, end_tok / CHUNK - b->n_keys + k, b->keys[i * b->n_keys + k]);
}

void kv_blocks_tell_all(struct kv_blocks *b)
{
    for (uint32_t k = 0; k < b->n_buckets; k++) {
        for (uint32_t i = b->buckets[k]; i != NONE; i = b->blocks[i].next)
            tell_block(b, true, i);
    }
    flush(b);
}

void kv_blocks_clear(struct kv_blocks *b)
{
    memset(b->buckets, 0xff, b->n_buckets * sizeof *b->buckets);
    b->used = 0;
    b->free = NONE;
    b->size = 0;
    b->stats.blocks = 0;
    b->stats.cleared++;
    b->tell(b->ctx, &(struct core_cache_event){.cleared = true});
}

/* ---- names */

static bool fits(uint32_t a, uint32_t b)
{
    return a && (a % b == 0 || b % a == 0);
}

/* The engine's block size, as of its first event. */
static bool take_size(struct kv_blocks *b, uint32_t size)
{
    if (b->size)
        return b->size == size;
    if (size > ENGINE_MAX_BLOCK_SIZE || !fits(size, CHUNK) || !fits(b->core_tok, CHUNK))
        return false;
    b->size = size;
    b->n_keys = size > CHUNK ? size / CHUNK : 1;
    b->n_tokens = size < CHUNK ? size : 0;
    return true;
}

static bool same(struct kv_text a, struct kv_text b)
{
    return a.len == b.len && !memcmp(a.s, b.s, a.len);
}

/* Where the chain begins: by the adapter or model, and the one text beside the adapter's name that the first block has:
 * the salt. False: it has no name here. */
static bool root_of(const struct kv_blocks *b, const struct kv_event *ev, uint64_t *root)
{
    struct kv_text salt = {"", 0}, model = {b->model, strlen(b->model)};
    const struct kv_extra *x = ev->n_extra ? &ev->extra[0] : NULL;
    if (ev->has_lora_id && !ev->lora_name.s)
        return false;
    if (ev->lora_name.s)
        model = ev->lora_name;
    if (x && x->n > KV_EVENTS_MAX_EXTRA)
        return false;
    for (uint32_t i = 0; x && i < x->n; i++) {
        if (ev->lora_name.s && same(x->text[i], ev->lora_name))
            continue;
        if (salt.len)
            return false;
        salt = x->text[i];
    }
    *root = openai_root(model.s, model.len, salt.s, salt.len);
    return true;
}

/* A later block's keys are the adapter's name, if any: others mean an image. */
static bool has_image(const struct kv_event *ev, uint32_t block)
{
    const struct kv_extra *x = block < ev->n_extra ? &ev->extra[block] : NULL;
    if (!x || !x->n)
        return false;
    return x->n > 1 || !ev->lora_name.s || !same(x->text[0], ev->lora_name);
}

/* The ids of the chunk that ends with block i: its own, and those of its parents. False: one of them is not known. */
static bool gather(struct kv_blocks *b, uint32_t i, uint32_t ids[CHUNK])
{
    for (uint32_t at = CHUNK; at;) {
        at -= b->size;
        memcpy(ids + at, &b->tokens[i * b->n_tokens], b->size * sizeof *ids);
        if (at && (i = find(b, b->blocks[i].parent)) == NONE)
            return false;
    }
    return true;
}

/* Keys of block i, whose tokens these are, behind `key`. */
static bool name_block(struct kv_blocks *b, uint32_t i, const uint32_t *tokens, uint64_t key)
{
    uint64_t *keys = &b->keys[i * b->n_keys];
    uint32_t ids[CHUNK];
    if (b->n_tokens) {
        memcpy(&b->tokens[i * b->n_tokens], tokens, b->size * sizeof *tokens);
        keys[0] = key;
        if ((b->blocks[i].depth + 1) * b->size % CHUNK)
            return true;
        if (!gather(b, i, ids))
            return false;
        keys[0] = openai_ids_key(key, ids);
        return true;
    }
    for (uint32_t k = 0; k < b->n_keys; k++)
        key = keys[k] = openai_ids_key(key, tokens + k * CHUNK);
    return true;
}

/* ---- events */

static bool is_elsewhere(const struct kv_event *ev)
{
    return ev->group || (ev->medium.s && !same(ev->medium, (struct kv_text){"GPU", 3}));
}

/* One block behind parent (NONE: the first of a prompt). NONE: it is not followed, and why is counted. */
static uint32_t store_block(struct kv_blocks *b, const struct kv_event *ev, uint32_t n,
                            uint32_t parent)
{
    uint64_t key = 0, up = parent == NONE ? 0 : b->blocks[parent].hash;
    uint32_t depth = parent == NONE ? 0 : b->blocks[parent].depth + 1;
    uint32_t i = find(b, ev->hashes[n]);
    if (i != NONE)
        return i;
    if (parent == NONE ? !root_of(b, ev, &key) : has_image(ev, n)) {
        b->stats.nameless++;
        return NONE;
    }
    if (b->stats.blocks >= KV_BLOCKS_MAX / b->n_keys ||
        (uint64_t)(depth + 1) * b->size > OPENAI_MAX_TOKENS) {
        b->stats.beyond++;
        return NONE;
    }
    if (parent != NONE)
        key = b->keys[parent * b->n_keys + b->n_keys - 1];
    i = insert(b, ev->hashes[n], up, depth);
    if (!name_block(b, i, ev->tokens + (size_t)n * b->size, key)) {
        drop(b, i);
        b->stats.orphans++;
        return NONE;
    }
    b->stats.stored++;
    tell_block(b, true, i);
    return i;
}

static void stored(struct kv_blocks *b, const struct kv_event *ev)
{
    uint32_t parent = ev->has_parent ? find(b, ev->parent) : NONE;
    if (is_elsewhere(ev)) {
        b->stats.elsewhere += ev->n_hashes;
    } else if (ev->odd_tokens || !ev->n_tokens) {
        b->stats.nameless += ev->n_hashes;
    } else if (!take_size(b, ev->block_size) || (uint64_t)ev->n_hashes * b->size != ev->n_tokens) {
        b->stats.unfit += ev->n_hashes;
    } else if (ev->has_parent && parent == NONE) {
        b->stats.orphans += ev->n_hashes;
    } else {
        for (uint32_t n = 0; n < ev->n_hashes; n++) {
            parent = store_block(b, ev, n, parent);
            if (parent != NONE)
                continue;
            b->stats.orphans += ev->n_hashes - n - 1;
            break;
        }
    }
}

static void removed(struct kv_blocks *b, const struct kv_event *ev)
{
    if (is_elsewhere(ev))
        return;
    for (uint32_t n = 0; n < ev->n_hashes; n++) {
        uint32_t i = find(b, ev->hashes[n]);
        if (i == NONE) {
            b->stats.strangers++;
            continue;
        }
        tell_block(b, false, i);
        drop(b, i);
        b->stats.removed++;
    }
}

void kv_blocks_event(struct kv_blocks *b, const struct kv_event *ev)
{
    if (ev->kind == KV_CLEARED)
        kv_blocks_clear(b);
    else if (ev->kind == KV_STORED)
        stored(b, ev);
    else
        removed(b, ev);
    flush(b);
}
