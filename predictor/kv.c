/* kv.c - see kv.h. Invariants that everything here keeps:
 *   - every block of a run has the same holders, so one count and one list entry serve all of them;
 *   - runs that overlap in depth and agree in content there start at the same depth (a *group*: same key0
 *     and start, oldest first in the hash chain), though they may part later; splitting one splits all of
 *     the group that reach that far. Names are chained, so equal names at one depth mean equal all above;
 *   - a request that holds a block holds some copy of every block above it, and releases tail first, so
 *     eviction only ever eats the tails of leaves.
 */
#include "predictor/kv.h"

#include <assert.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

static uint32_t key_index(const struct kv *kv, uint32_t block, uint32_t key_tok)
{
    if (key_tok == kv->block_size)
        return block;
    return (uint32_t)((((uint64_t)block + 1) * kv->block_size - 1) / key_tok);
}

/* Blocks of s that its own keys name; later ones are named by the uid. */
static uint32_t keyed_blocks(const struct kv *kv, const struct request_spec *s)
{
    uint64_t covered = (uint64_t)s->n_keys * s->key_tok;
    if (covered < (uint64_t)s->prompt_tok + s->key_tok && covered > s->prompt_tok)
        covered = s->prompt_tok;
    return (uint32_t)(covered / kv->block_size);
}

static uint64_t block_name(const struct kv *kv, const struct request_spec *s, uint32_t keyed,
                           uint32_t block)
{
    return block < keyed ? s->keys[key_index(kv, block, s->key_tok)]
                         : request_generated_key(s->uid);
}

/* Names are hashes already: one multiplication spreads what depth adds to them (Knuth's multiplicative
 * hashing: the upper bits). */
static uint64_t hash_of(uint64_t key, uint32_t start)
{
    return (key ^ (uint64_t)start * UINT64_C(0xd6e8feb86659fd93)) * UINT64_C(0x9e3779b97f4a7c15);
}

static struct kv_bucket *bucket_of(const struct kv *kv, uint64_t hash)
{
    return &kv->buckets[(uint32_t)(hash >> 32) & kv->bucket_mask];
}

static uint32_t tag_of(uint64_t hash)
{
    return UINT32_C(1) << (hash >> 27 & 31);
}

static uint32_t find(const struct kv *kv, uint64_t key, uint32_t start)
{
    if (!kv->buckets)
        return KV_NONE;
    uint64_t hash = hash_of(key, start);
    const struct kv_bucket *b = bucket_of(kv, hash);
    if (!(b->tags & tag_of(hash)))
        return KV_NONE;
    uint32_t i = b->first;
    while (i != KV_NONE && (kv->runs[i].key0 != key || kv->runs[i].start != start))
        i = kv->runs[i].chain;
    return i;
}

/* The next younger copy of run i's group. */
static uint32_t next_copy(const struct kv *kv, uint32_t i)
{
    const struct kv_run *r = &kv->runs[i];
    uint32_t j = r->chain;
    while (j != KV_NONE && (kv->runs[j].key0 != r->key0 || kv->runs[j].start != r->start))
        j = kv->runs[j].chain;
    return j;
}

static void bucket_append(struct kv *kv, uint32_t i)
{
    struct kv_run *r = &kv->runs[i];
    uint64_t hash = hash_of(r->key0, r->start);
    struct kv_bucket *b = bucket_of(kv, hash);
    uint32_t *slot = &b->first;
    b->tags = *slot == KV_NONE ? tag_of(hash) : b->tags | tag_of(hash);
    while (*slot != KV_NONE)
        slot = &kv->runs[*slot].chain;
    *slot = i;
    r->chain = KV_NONE;
}

static uint32_t *bucket_slot(struct kv *kv, uint32_t i)
{
    uint32_t *slot = &bucket_of(kv, hash_of(kv->runs[i].key0, kv->runs[i].start))->first;
    while (*slot != i)
        slot = &kv->runs[*slot].chain;
    return slot;
}

static uint32_t bucket_count(const struct kv *kv)
{
    return kv->buckets ? kv->bucket_mask + 1 : 0;
}

static void bucket_clear(struct kv_bucket *to, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] = (struct kv_bucket){.first = KV_NONE};
}

/* Moves all runs to a table of n (a power of two), which is the kv's from now on. */
static void bucket_move(struct kv *kv, struct kv_bucket *to, uint32_t n)
{
    uint32_t old_n = bucket_count(kv);
    struct kv_bucket *old = kv->buckets;
    kv->buckets = to;
    kv->bucket_mask = n - 1;
    bucket_clear(to, n);
    for (uint32_t b = 0; b < old_n; b++) {
        for (uint32_t i = old[b].first, next; i != KV_NONE; i = next) {
            next = kv->runs[i].chain;
            bucket_append(kv, i);
        }
    }
    free(old);
}

static void bucket_grow(struct kv *kv)
{
    uint32_t n = kv->buckets ? bucket_count(kv) * 2 : 64;
    struct kv_bucket *to = malloc(n * sizeof *to);
    if (!to)
        abort();
    bucket_move(kv, to, n);
}

/* ---- key pool: pieces of 2^class keys, free lists through the first key */

static uint32_t key_alloc(struct kv *kv, uint32_t n, uint32_t *class_out)
{
    uint32_t c = n <= 1 ? 0 : 32 - (uint32_t)__builtin_clz(n - 1);
    *class_out = c;
    uint32_t off = kv->key_free[c];
    if (off != KV_NONE) {
        kv->key_free[c] = (uint32_t)kv->keys[off];
        return off;
    }
    off = kv->keys_used;
    MEM_GROW(kv->keys, kv->keys_cap, off + (UINT32_C(1) << c));
    kv->keys_used = off + (UINT32_C(1) << c);
    return off;
}

static void key_free(struct kv *kv, uint32_t off, uint32_t c)
{
    kv->keys[off] = kv->key_free[c];
    kv->key_free[c] = off;
}

/* ---- eviction order */

/* A policy names the list that a freed run joins at its end. The head of the first list that has any goes
 * first. */
struct evict_ops {
    uint32_t (*list_of)(const struct kv_run *r); /* 0..31 */
    bool counts_uses;                            /* blocks of different uses must not share a run */
};

static uint32_t lru_list(const struct kv_run *r)
{
    (void)r;
    return 0;
}

/* A list per power of two of uses, each in order of time: what was useful once stays until all of the less
 * useful has gone. */
static uint32_t lfu_list(const struct kv_run *r)
{
    return 31 - (uint32_t)__builtin_clz(r->uses | 1);
}

static const struct evict_ops kv_evict_ops[] = {
    [EVICT_LRU] = {lru_list, false},
    [EVICT_LFU] = {lfu_list, true},
};

static uint32_t order_of(const struct kv *kv, const struct kv_run *r)
{
    return kv_evict_ops[kv->evict].list_of(r);
}

static void order_append(struct kv *kv, uint32_t i)
{
    struct kv_run *r = &kv->runs[i];
    uint32_t o = order_of(kv, r);
    r->prev = kv->tail[o];
    r->next = KV_NONE;
    *(r->prev == KV_NONE ? &kv->head[o] : &kv->runs[r->prev].next) = i;
    kv->tail[o] = i;
    kv->free_named += r->len;
}

static void order_remove(struct kv *kv, uint32_t i)
{
    struct kv_run *r = &kv->runs[i];
    uint32_t o = order_of(kv, r);
    *(r->prev == KV_NONE ? &kv->head[o] : &kv->runs[r->prev].next) = r->next;
    *(r->next == KV_NONE ? &kv->tail[o] : &kv->runs[r->next].prev) = r->prev;
    kv->free_named -= r->len;
}

/* ---- runs */

static uint32_t run_new(struct kv *kv)
{
    uint32_t i = kv->runs_free;
    if (i != KV_NONE) {
        kv->runs_free = kv->runs[i].chain;
    } else {
        i = kv->runs_used;
        MEM_GROW(kv->runs, kv->runs_cap, i + 1);
        kv->runs_used = i + 1;
    }
    if (!kv->buckets || ++kv->n_runs > kv->bucket_mask) {
        bucket_grow(kv);
        if (kv->n_runs == 0)
            kv->n_runs = 1;
    }
    return i;
}

/* Takes run i (not in the eviction list) out of the index and returns its slot. */
static void run_free(struct kv *kv, uint32_t i)
{
    struct kv_run *r = &kv->runs[i];
    *bucket_slot(kv, i) = r->chain;
    if (r->key_tok)
        key_free(kv, r->key_off, r->key_class);
    r->chain = kv->runs_free;
    kv->runs_free = i;
    kv->n_runs--;
}

static uint32_t run_end(const struct kv_run *r)
{
    return r->start + r->len;
}

/* Copies names [first, first + n) of a request into run r's part of the pool. */
static void run_set_keys(struct kv *kv, uint32_t i, const uint64_t *keys, uint32_t n)
{
    uint32_t c, off = key_alloc(kv, n, &c);
    memcpy(&kv->keys[off], keys, n * sizeof *keys);
    kv->runs[i].key_off = off;
    kv->runs[i].key_class = c;
    kv->runs[i].n_keys = n;
}

/* Splits run x at depth m: a new run takes the head (and x's place among its copies), x keeps the tail. */
static void split_run(struct kv *kv, uint32_t x, uint32_t m)
{
    uint32_t u = run_new(kv);
    struct kv_run *r = &kv->runs[x], *up = &kv->runs[u];
    *up = *r;
    up->len = m - r->start;
    uint32_t *slot = bucket_slot(kv, x);
    *slot = u; /* up->chain is r->chain already */
    if (r->key_tok) {
        uint32_t base = key_index(kv, r->start, r->key_tok);
        uint32_t last_up = key_index(kv, m - 1, r->key_tok) - base;
        uint32_t first_low = key_index(kv, m, r->key_tok) - base;
        uint32_t low_off = r->key_off, c, n_low = r->n_keys - first_low;
        uint32_t off = key_alloc(kv, n_low, &c);
        memcpy(&kv->keys[off], &kv->keys[low_off + first_low], n_low * sizeof *kv->keys);
        up->n_keys = last_up + 1;
        r->key_off = off;
        r->key_class = c;
        r->n_keys = n_low;
        r->key0 = kv->keys[off];
    }
    r->upper = u;
    r->start = m;
    r->len -= up->len;
    bucket_append(kv, x);
    if (r->ref == 0) { /* the head leaves after the tail */
        up->prev = x;
        up->next = r->next;
        *(r->next == KV_NONE ? &kv->tail[order_of(kv, r)] : &kv->runs[r->next].prev) = u;
        r->next = u;
    }
}

/* Splits every copy of the group (key, start) that reaches beyond depth m. */
static void split_group(struct kv *kv, uint64_t key, uint32_t start, uint32_t m)
{
    for (uint32_t i = find(kv, key, start), next; i != KV_NONE; i = next) {
        next = next_copy(kv, i);
        if (run_end(&kv->runs[i]) > m)
            split_run(kv, i, m);
    }
}

/* First depth >= from, at most lim, at which s and run r differ. */
static uint32_t common_end(const struct kv *kv, const struct kv_run *r,
                           const struct request_spec *s, uint32_t keyed, uint32_t from,
                           uint32_t lim)
{
    if (lim > run_end(r))
        lim = run_end(r);
    if (lim <= from)
        return from;
    if (!r->key_tok)
        return from >= keyed && r->key0 == request_generated_key(s->uid) ? lim : from;
    if (r->key_tok != s->key_tok)
        return from;
    if (lim > keyed)
        lim = keyed;
    if (lim <= from)
        return from;
    uint32_t base = key_index(kv, r->start, r->key_tok);
    uint32_t first = key_index(kv, from, r->key_tok), last = key_index(kv, lim - 1, r->key_tok);
    const uint64_t *a = kv->keys + r->key_off, *b = s->keys;
    for (uint32_t k = first; k <= last; k++) {
        if (a[k - base] != b[k]) {
            uint32_t end = (uint32_t)((uint64_t)k * r->key_tok / kv->block_size);
            return end > from ? end : from;
        }
    }
    return lim;
}

/* Whether run i or a copy of it reaches beyond depth m. */
static bool reaches_beyond(const struct kv *kv, uint32_t i, uint32_t m)
{
    const struct kv_run *r = &kv->runs[i];
    for (i = find(kv, r->key0, r->start); i != KV_NONE; i = next_copy(kv, i)) {
        if (run_end(&kv->runs[i]) > m)
            return true;
    }
    return false;
}

/* The oldest run that starts at depth and agrees with s there; *end is how far it does, at most lim. */
static uint32_t matching_copy(const struct kv *kv, const struct request_spec *s, uint32_t keyed,
                              uint32_t depth, uint32_t lim, uint32_t *end)
{
    uint32_t i = find(kv, block_name(kv, s, keyed, depth), depth);
    while (i != KV_NONE && (*end = common_end(kv, &kv->runs[i], s, keyed, depth, lim)) == depth)
        i = next_copy(kv, i);
    return i;
}

static void log_change(struct kv *kv, bool stored, const struct kv_run *r, uint32_t from,
                       uint32_t to)
{
    if (from >= to)
        return;
    MEM_GROW(kv->log, kv->log_cap, kv->log_used + 1);
    MEM_GROW(kv->log_names, kv->log_names_cap, kv->log_names_used + (to - from));
    kv->log[kv->log_used++] = (struct kv_log_entry){
        .stored = stored, .depth = from, .n_blocks = to - from, .name_off = kv->log_names_used};
    uint32_t base = r->key_tok ? key_index(kv, r->start, r->key_tok) : 0;
    for (uint32_t b = from; b < to; b++)
        kv->log_names[kv->log_names_used++] =
            r->key_tok ? kv->keys[r->key_off + key_index(kv, b, r->key_tok) - base] : r->key0;
}

/* Logs blocks [from, to) of run i unless another copy of the group holds them as well. */
static void log_run(struct kv *kv, bool stored, uint32_t i, uint32_t from, uint32_t to)
{
    const struct kv_run *r = &kv->runs[i];
    for (uint32_t j = find(kv, r->key0, r->start); j != KV_NONE; j = next_copy(kv, j)) {
        if (j != i && run_end(&kv->runs[j]) > from)
            from = run_end(&kv->runs[j]);
    }
    log_change(kv, stored, r, from, to);
}

static void push_piece(struct kv *kv, struct kv_hold *hold, uint32_t run)
{
    uint32_t p = kv->pieces_free;
    if (p != KV_NONE) {
        kv->pieces_free = kv->pieces[p].up;
    } else {
        p = kv->pieces_used;
        MEM_GROW(kv->pieces, kv->pieces_cap, p + 1);
        kv->pieces_used = p + 1;
    }
    kv->pieces[p] = (struct kv_piece){.run = run, .start = kv->runs[run].start, .up = hold->tail};
    hold->tail = p;
}

/* ---- public */

int kv_init(struct kv *kv, uint32_t block_size, uint32_t usable_blocks, bool caching,
            enum evict_kind evict)
{
    if (!block_size || !usable_blocks || usable_blocks > ENGINE_MAX_BLOCKS)
        return WEIR_E_INVALID;
    memset(kv, 0, sizeof *kv);
    kv->block_size = block_size;
    kv->usable = kv->free_unnamed = usable_blocks;
    kv->caching = caching;
    kv->evict = evict;
    kv->runs_free = kv->pieces_free = KV_NONE;
    memset(kv->key_free, 0xff, sizeof kv->key_free);
    memset(kv->head, 0xff, sizeof kv->head);
    memset(kv->tail, 0xff, sizeof kv->tail);
    return 0;
}

void kv_deinit(struct kv *kv)
{
    free(kv->runs);
    free(kv->buckets);
    free(kv->pieces);
    free(kv->keys);
    free(kv->log);
    free(kv->log_names);
    memset(kv, 0, sizeof *kv);
}

int kv_reserve_as(struct kv *dst, const struct kv *src)
{
    uint32_t buckets_cap = bucket_count(dst);
    if (MEM_RESERVE(dst->runs, dst->runs_cap, src->runs_used) ||
        MEM_RESERVE(dst->pieces, dst->pieces_cap, src->pieces_used) ||
        MEM_RESERVE(dst->keys, dst->keys_cap, src->keys_used))
        return WEIR_E_NOMEM;
    if (bucket_count(src) <= buckets_cap)
        return 0;
    struct kv_bucket *buckets = malloc(bucket_count(src) * sizeof *buckets);
    if (!buckets)
        return WEIR_E_NOMEM;
    bucket_move(dst, buckets, bucket_count(src));
    return 0;
}

int kv_copy(struct kv *dst, const struct kv *src)
{
    if (kv_reserve_as(dst, src))
        return WEIR_E_NOMEM;
    uint32_t buckets_cap = bucket_count(dst), n_buckets = bucket_count(src);
    struct kv old = *dst;
    *dst = *src;
    dst->runs = old.runs;
    dst->runs_cap = old.runs_cap;
    dst->pieces = old.pieces;
    dst->pieces_cap = old.pieces_cap;
    dst->keys = old.keys;
    dst->keys_cap = old.keys_cap;
    dst->buckets = old.buckets;
    dst->log = old.log;
    dst->log_cap = old.log_cap;
    dst->log_names = old.log_names;
    dst->log_names_cap = old.log_names_cap;
    dst->log_on = false;
    dst->log_used = dst->log_names_used = 0;
    MEM_COPY(dst->runs, src->runs, src->runs_used);
    MEM_COPY(dst->pieces, src->pieces, src->pieces_used);
    MEM_COPY(dst->keys, src->keys, src->keys_used);
    MEM_COPY(dst->buckets, src->buckets, n_buckets);
    if (!n_buckets && buckets_cap) { /* an empty table, but a table */
        dst->bucket_mask = buckets_cap - 1;
        bucket_clear(dst->buckets, buckets_cap);
    }
    return 0;
}

void kv_hold_init(struct kv_hold *h)
{
    *h = (struct kv_hold){.tail = KV_NONE};
}

struct kv_match kv_lookup(const struct kv *kv, const struct request_spec *s, uint32_t max_blocks)
{
    struct kv_match m = {0, 0};
    if (!kv->caching)
        return m;
    uint32_t keyed = keyed_blocks(kv, s), depth = 0;
    while (depth < max_blocks) {
        uint32_t i = find(kv, block_name(kv, s, keyed, depth), depth), before = depth;
        for (; i != KV_NONE; i = next_copy(kv, i)) {
            const struct kv_run *r = &kv->runs[i];
            uint32_t end = common_end(kv, r, s, keyed, depth, max_blocks);
            if (r->ref == 0)
                m.free_blocks += end - depth;
            depth = end;
        }
        if (depth == before)
            break;
    }
    m.blocks = depth;
    return m;
}

bool kv_same_block(const struct kv *kv, const struct request_spec *a, const struct request_spec *b,
                   uint32_t block)
{
    return block_name(kv, a, keyed_blocks(kv, a), block) ==
           block_name(kv, b, keyed_blocks(kv, b), block);
}

void kv_attach(struct kv *kv, const struct request_spec *s, uint32_t blocks, struct kv_hold *hold)
{
    uint32_t keyed = keyed_blocks(kv, s), depth = 0;
    assert(hold->n_blocks == 0);
    while (depth < blocks) {
        uint64_t name = block_name(kv, s, keyed, depth);
        uint32_t end, i = matching_copy(kv, s, keyed, depth, blocks, &end);
        assert(i != KV_NONE);
        if (reaches_beyond(kv, i, end)) {
            split_group(kv, name, depth, end);
            i = matching_copy(kv, s, keyed, depth, end, &end);
        }
        struct kv_run *r = &kv->runs[i];
        if (r->ref++ == 0)
            order_remove(kv, i);
        r->uses++;
        push_piece(kv, hold, i);
        depth = end;
    }
    hold->n_blocks = hold->n_named = blocks;
}

static void evict(struct kv *kv, uint32_t n)
{
    uint32_t o = 0;
    while (n) {
        while (kv->head[o] == KV_NONE)
            o++;
        uint32_t i = kv->head[o];
        struct kv_run *r = &kv->runs[i];
        uint32_t k = r->len < n ? r->len : n;
        if (kv->log_on)
            log_run(kv, false, i, run_end(r) - k, run_end(r));
        n -= k;
        if (k == r->len) {
            order_remove(kv, i);
            run_free(kv, i);
        } else {
            r->len -= k;
            kv->free_named -= k;
        }
    }
}

void kv_take(struct kv *kv, struct kv_hold *hold, uint32_t n)
{
    assert(n <= kv_free_blocks(kv));
    uint32_t plain = n < kv->free_unnamed ? n : kv->free_unnamed;
    kv->free_unnamed -= plain;
    if (n > plain)
        evict(kv, n - plain);
    hold->n_blocks += n;
}

/* Whether the deepest run of hold may simply grow by blocks of the given kind. */
static bool can_extend(const struct kv *kv, const struct kv_hold *hold, uint32_t from,
                       uint32_t key_tok, uint64_t name)
{
    if (hold->tail == KV_NONE)
        return false;
    const struct kv_run *r = &kv->runs[kv->pieces[hold->tail].run];
    return r->ref == 1 && run_end(r) == from && r->key_tok == key_tok &&
           (key_tok || r->key0 == name) && (r->uses == 1 || !kv_evict_ops[kv->evict].counts_uses);
}

static void extend_run(struct kv *kv, uint32_t i, const struct request_spec *s, uint32_t to)
{
    struct kv_run *r = &kv->runs[i];
    r->len = to - r->start;
    if (!r->key_tok)
        return;
    uint32_t base = key_index(kv, r->start, r->key_tok);
    uint32_t n = key_index(kv, to - 1, r->key_tok) - base + 1;
    if (n > UINT32_C(1) << r->key_class) {
        uint32_t off = r->key_off, class = r->key_class;
        run_set_keys(kv, i, s->keys + base, n);
        key_free(kv, off, class);
    } else {
        memcpy(&kv->keys[r->key_off], s->keys + base, n * sizeof *s->keys);
        r->n_keys = n;
    }
}

static void add_run(struct kv *kv, struct kv_hold *hold, const struct request_spec *s,
                    uint32_t key_tok, uint64_t name, uint32_t from, uint32_t to)
{
    uint32_t i = run_new(kv);
    struct kv_run *r = &kv->runs[i];
    *r = (struct kv_run){.key0 = name,
                         .start = from,
                         .len = to - from,
                         .ref = 1,
                         .upper = KV_NONE,
                         .key_tok = key_tok,
                         .uses = 1};
    if (key_tok) {
        uint32_t base = key_index(kv, from, key_tok);
        run_set_keys(kv, i, s->keys + base, key_index(kv, to - 1, key_tok) - base + 1);
    }
    bucket_append(kv, i);
    push_piece(kv, hold, i);
}

/* One step of naming: blocks [from, ...) up to at most lim, which are all of one kind. Returns where it
 * stopped. */
static uint32_t name_some(struct kv *kv, const struct request_spec *s, struct kv_hold *hold,
                          uint32_t keyed, uint32_t from, uint32_t lim, bool shared)
{
    uint64_t name = block_name(kv, s, keyed, from);
    uint32_t key_tok = from < keyed ? s->key_tok : 0;
    if (hold->tail != KV_NONE) {
        uint32_t t = kv->pieces[hold->tail].run;
        struct kv_run run = kv->runs[t];
        if (reaches_beyond(kv, t, run_end(&run)))
            split_group(kv, run.key0, run.start, run_end(&run));
    }
    uint32_t end = from, i = matching_copy(kv, s, keyed, from, lim, &end);
    if (i == KV_NONE) {
        if (can_extend(kv, hold, from, key_tok, name)) {
            i = kv->pieces[hold->tail].run;
            extend_run(kv, i, s, lim);
        } else {
            add_run(kv, hold, s, key_tok, name, from, lim);
            i = kv->pieces[hold->tail].run;
        }
        if (kv->log_on)
            log_run(kv, true, i, from, lim);
        return lim;
    }
    /* somebody has these blocks already */
    if (shared && reaches_beyond(kv, i, end)) {
        split_group(kv, name, from, end);
        i = matching_copy(kv, s, keyed, from, end, &end);
    }
    if (shared) {
        struct kv_run *r = &kv->runs[i];
        if (r->ref++ == 0)
            order_remove(kv, i);
        r->uses++;
        kv->free_unnamed += end - from; /* the copy that was just computed */
        push_piece(kv, hold, i);
    } else {
        add_run(kv, hold, s, key_tok, name, from, end);
    }
    return end;
}

static void name_blocks(struct kv *kv, const struct request_spec *s, struct kv_hold *hold,
                        uint32_t named, bool shared)
{
    assert(named >= hold->n_named && named <= hold->n_blocks);
    if (!kv->caching)
        return;
    uint32_t keyed = keyed_blocks(kv, s);
    while (hold->n_named < named) {
        uint32_t from = hold->n_named;
        uint32_t lim = from < keyed && keyed < named ? keyed : named;
        hold->n_named = name_some(kv, s, hold, keyed, from, lim, shared);
    }
}

void kv_name(struct kv *kv, const struct request_spec *s, struct kv_hold *hold, uint32_t named)
{
    name_blocks(kv, s, hold, named, false);
}

void kv_name_shared(struct kv *kv, const struct request_spec *s, struct kv_hold *hold,
                    uint32_t named)
{
    name_blocks(kv, s, hold, named, true);
}

void kv_release(struct kv *kv, struct kv_hold *hold)
{
    uint32_t uses =
        0; /* a block counts at least as often as what hangs on it: no gaps in a chain */
    kv->free_unnamed += hold->n_blocks - hold->n_named;
    for (uint32_t p = hold->tail, up; p != KV_NONE; p = up) {
        struct kv_piece *piece = &kv->pieces[p];
        uint32_t i = piece->run;
        for (;;) {
            struct kv_run *r = &kv->runs[i];
            assert(r->ref > 0);
            uses = r->uses = r->uses > uses ? r->uses : uses;
            if (--r->ref == 0)
                order_append(kv, i);
            if (r->start == piece->start)
                break;
            i = r->upper;
        }
        up = piece->up;
        piece->up = kv->pieces_free;
        kv->pieces_free = p;
    }
    kv_hold_init(hold);
}

void kv_drop_cache(struct kv *kv)
{
    uint32_t n = kv->free_named;
    if (n)
        evict(kv, n);
    kv->free_unnamed += n;
}

static const char *validate_order(const struct kv *kv, uint32_t o, uint32_t *named)
{
    uint32_t prev = KV_NONE;
    for (uint32_t i = kv->head[o]; i != KV_NONE; i = kv->runs[i].next) {
        const struct kv_run *r = &kv->runs[i];
        if (r->prev != prev)
            return "eviction list: broken back link";
        if (r->ref || !r->len)
            return "eviction list: a run in use or empty";
        if (order_of(kv, r) != o)
            return "eviction list: run in the wrong list";
        *named += r->len;
        prev = i;
    }
    return kv->tail[o] == prev ? NULL : "eviction list: wrong tail";
}

const char *kv_validate(const struct kv *kv)
{
    uint32_t named = 0, held = 0, n = 0;
    for (uint32_t o = 0; o < 32; o++) {
        const char *why = validate_order(kv, o, &named);
        if (why)
            return why;
    }
    if (named != kv->free_named)
        return "free named blocks do not add up";
    for (uint32_t b = 0; kv->buckets && b <= kv->bucket_mask; b++) {
        for (uint32_t i = kv->buckets[b].first; i != KV_NONE; i = kv->runs[i].chain) {
            const struct kv_run *r = &kv->runs[i];
            uint64_t hash = hash_of(r->key0, r->start);
            if (bucket_of(kv, hash) != &kv->buckets[b] || !(kv->buckets[b].tags & tag_of(hash)))
                return "hash chain: run in the wrong bucket";
            if (r->key_tok && kv->keys[r->key_off] != r->key0)
                return "run: first key differs from its name";
            if (r->ref)
                held += r->len;
            n++;
        }
    }
    if (n != kv->n_runs)
        return "hash: number of runs does not add up";
    if (kv->free_unnamed + kv->free_named + held > kv->usable)
        return "more blocks than there are";
    return NULL;
}
