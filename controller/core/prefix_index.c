/* prefix_index.c - see prefix_index.h.
 *
 *   table     open addressing by span name (linear probing, deletion by moving back)
 *   holders   who has a span, and which of its blocks: one worker in the table itself, or an array
 *             ordered by worker
 *   ages      with a limit: a worker's spans by last touch
 *   tallies   references block by block, where requests use different parts of a span
 *
 * The table outgrows the processor's caches, so the slots of a prompt's spans are fetched ahead, a batch
 * at a time: waiting for one of them is waiting for all.
 */
#include "controller/core/prefix_index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

#define NONE UINT32_MAX
#define FIRST_SLOTS 64u
#define SPAN_BLOCKS 64u
#define SIZE_CLASSES 16 /* arrays of holders: 2^class, up to 2^15 */
#define BATCH 16        /* slots fetched ahead */

/* A worker that has blocks of a span. */
struct holder {
    uint64_t mask; /* which: bit = depth % 64 */
    uint32_t worker;
    uint32_t note; /* with a limit: its age; in use: refs, or TALLY + tally; else nothing */
};

/* A slot of the table; n is 0: empty. */
struct entry {
    uint64_t name;
    union {
        struct holder one; /* n is 1, size_class 0 */
        uint32_t at;       /* in the pool */
    };
    uint16_t n; /* holders */
    uint8_t size_class;
};

struct age {
    uint64_t name;
    uint32_t older, newer; /* of the same worker; newer also links free ones */
};

#define TALLY (UINT32_C(1) << 31)

struct tally {
    uint32_t refs[SPAN_BLOCKS]; /* refs[0] also links free tallies */
};

struct owner {
    uint64_t blocks;
    uint32_t oldest, newest;
};

struct prefix_index {
    struct entry *table;
    uint32_t mask, n_entries;
    struct holder *pool;
    uint32_t pool_used, pool_cap, pool_free[SIZE_CLASSES];
    struct age *ages;
    uint32_t ages_used, ages_cap, ages_free;
    struct tally *tallies;
    uint32_t tallies_used, tallies_cap, tallies_free;
    struct owner *owners;
    uint32_t n_workers, max_blocks;
};

struct prefix_index *prefix_index_new(uint32_t n_workers, uint32_t max_blocks)
{
    struct prefix_index *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->n_workers = n_workers;
    x->max_blocks = max_blocks;
    x->ages_free = x->tallies_free = NONE;
    memset(x->pool_free, 0xff, sizeof x->pool_free);
    x->mask = FIRST_SLOTS - 1;
    x->table = calloc(FIRST_SLOTS, sizeof *x->table);
    x->owners = malloc((n_workers ? n_workers : 1) * sizeof *x->owners);
    if (!x->table || !x->owners) {
        prefix_index_free(x);
        return NULL;
    }
    for (uint32_t w = 0; w < n_workers; w++)
        x->owners[w] = (struct owner){0, NONE, NONE};
    return x;
}

void prefix_index_free(struct prefix_index *x)
{
    if (!x)
        return;
    free(x->table);
    free(x->pool);
    free(x->ages);
    free(x->tallies);
    free(x->owners);
    free(x);
}

uint64_t prefix_index_blocks(const struct prefix_index *x, uint32_t worker)
{
    return x->owners[worker].blocks;
}

/* ---- spans of a prompt */

struct span {
    uint64_t name, mask;
    uint32_t start, end; /* blocks [start, end) */
};

static uint64_t span_name(uint64_t key, uint32_t depth, uint32_t block_tok)
{
    return rng_mix64(key ^ ((uint64_t)block_tok << 32 | depth / SPAN_BLOCKS));
}

/* Bits of blocks [start, end), which are in one span. */
static uint64_t span_mask(uint32_t start, uint32_t end)
{
    return UINT64_MAX >> (SPAN_BLOCKS - (end - start)) << start % SPAN_BLOCKS;
}

/* The span that has block `depth`, cut off at n_blocks. */
static struct span span_at(const struct prefix_chain *p, uint32_t depth, uint32_t n_blocks)
{
    uint64_t end_tok = ((uint64_t)depth + 1) * p->block_tok;
    uint64_t key = (end_tok - 1) / p->key_tok;
    uint64_t start = key * p->key_tok / p->block_tok;
    uint64_t end = (key + 1) * p->key_tok / p->block_tok;
    uint32_t from = depth / SPAN_BLOCKS * SPAN_BLOCKS;
    struct span s = {.start = start > from ? (uint32_t)start : from,
                     .end = end < from + SPAN_BLOCKS ? (uint32_t)end : from + SPAN_BLOCKS};
    if (s.end > n_blocks)
        s.end = n_blocks;
    s.name = span_name(p->keys[key], depth, p->block_tok);
    s.mask = span_mask(s.start, s.end);
    return s;
}

/* ---- the table */

/* The slot of this name, or the empty one where it would go. */
static uint32_t slot_of(const struct prefix_index *x, uint64_t name)
{
    uint32_t i = (uint32_t)name & x->mask;
    while (x->table[i].n && x->table[i].name != name)
        i = (i + 1) & x->mask;
    return i;
}

static void fetch_ahead(const struct prefix_index *x, uint64_t name)
{
    __builtin_prefetch(&x->table[name & x->mask]);
}

static void table_grow(struct prefix_index *x)
{
    struct entry *old = x->table;
    uint32_t old_mask = x->mask;
    x->mask = old_mask * 2 + 1;
    x->table = calloc((size_t)x->mask + 1, sizeof *x->table);
    if (!x->table)
        abort();
    for (uint32_t i = 0; i <= old_mask; i++) {
        if (old[i].n)
            x->table[slot_of(x, old[i].name)] = old[i];
    }
    free(old);
}

/* Empties slot i, and moves back what could not be found any more behind it. */
static void table_remove(struct prefix_index *x, uint32_t i)
{
    for (uint32_t j = (i + 1) & x->mask; x->table[j].n; j = (j + 1) & x->mask) {
        uint32_t home = (uint32_t)x->table[j].name & x->mask;
        if (((j - home) & x->mask) < ((j - i) & x->mask))
            continue;
        x->table[i] = x->table[j];
        i = j;
    }
    x->table[i].n = 0;
    x->n_entries--;
}

/* ---- arrays of holders */

static uint32_t pool_take(struct prefix_index *x, uint8_t size_class)
{
    uint32_t at = x->pool_free[size_class];
    if (at != NONE) {
        x->pool_free[size_class] = x->pool[at].note;
        return at;
    }
    at = x->pool_used;
    x->pool_used += 1u << size_class;
    MEM_GROW(x->pool, x->pool_cap, x->pool_used);
    return at;
}

static void pool_give(struct prefix_index *x, uint32_t at, uint8_t size_class)
{
    x->pool[at].note = x->pool_free[size_class];
    x->pool_free[size_class] = at;
}

static struct holder *holders(const struct prefix_index *x, const struct entry *e)
{
    return e->size_class ? &x->pool[e->at] : (struct holder *)&e->one;
}

/* Moves the holders of e to an array of another size (from the table, if size_class was 0). */
static void resize(struct prefix_index *x, struct entry *e, uint8_t size_class)
{
    uint32_t at = pool_take(x, size_class);
    memcpy(&x->pool[at], holders(x, e), e->n * sizeof *x->pool);
    if (e->size_class)
        pool_give(x, e->at, e->size_class);
    e->at = at;
    e->size_class = size_class;
}

/* The first holder that is not below worker. */
static uint32_t lower_bound(const struct holder *h, uint32_t n, uint32_t worker)
{
    uint32_t low = 0;
    while (n) {
        uint32_t half = n / 2;
        if (h[low + half].worker < worker) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

/* ---- who has which blocks */

/* Where a holder is. */
struct place {
    uint32_t slot; /* in the table */
    uint32_t i;    /* among the entry's holders, or where it would go */
    bool found;
};

static struct place find(const struct prefix_index *x, uint64_t name, uint32_t worker)
{
    struct place at = {.slot = slot_of(x, name)};
    const struct entry *e = &x->table[at.slot];
    const struct holder *h = holders(x, e);
    at.i = lower_bound(h, e->n, worker);
    at.found = at.i < e->n && h[at.i].worker == worker;
    return at;
}

static struct holder *holder_at(const struct prefix_index *x, struct place at)
{
    return &holders(x, &x->table[at.slot])[at.i];
}

/* Ones in x, without a library call where the instruction may be missing. */
static uint32_t ones(uint64_t x)
{
    x -= x >> 1 & UINT64_C(0x5555555555555555);
    x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
    x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (uint32_t)(x * UINT64_C(0x0101010101010101) >> 56);
}

static void set_mask(struct prefix_index *x, struct holder *h, uint64_t mask)
{
    struct owner *o = &x->owners[h->worker];
    o->blocks += ones(mask & ~h->mask);
    o->blocks -= ones(h->mask & ~mask);
    h->mask = mask;
}

/* ---- ages */

static void link_newest(struct prefix_index *x, uint32_t i, uint32_t worker)
{
    struct owner *o = &x->owners[worker];
    x->ages[i].newer = NONE;
    x->ages[i].older = o->newest;
    *(o->newest == NONE ? &o->oldest : &x->ages[o->newest].newer) = i;
    o->newest = i;
}

static void unlink_age(struct prefix_index *x, uint32_t i, uint32_t worker)
{
    const struct age *a = &x->ages[i];
    struct owner *o = &x->owners[worker];
    *(a->older == NONE ? &o->oldest : &x->ages[a->older].newer) = a->newer;
    *(a->newer == NONE ? &o->newest : &x->ages[a->newer].older) = a->older;
}

static uint32_t age_new(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    uint32_t i = x->ages_free;
    if (i != NONE) {
        x->ages_free = x->ages[i].newer;
    } else {
        i = x->ages_used++;
        MEM_GROW(x->ages, x->ages_cap, x->ages_used);
    }
    x->ages[i].name = name;
    link_newest(x, i, worker);
    return i;
}

static void age_free(struct prefix_index *x, uint32_t i, uint32_t worker)
{
    unlink_age(x, i, worker);
    x->ages[i].newer = x->ages_free;
    x->ages_free = i;
}

/* ---- tallies */

/* `refs` requests, which all use the blocks of mask. */
static uint32_t tally_new(struct prefix_index *x, uint32_t refs, uint64_t mask)
{
    uint32_t t = x->tallies_free;
    if (t != NONE) {
        x->tallies_free = x->tallies[t].refs[0];
    } else {
        t = x->tallies_used++;
        MEM_GROW(x->tallies, x->tallies_cap, x->tallies_used);
    }
    for (uint32_t i = 0; i < SPAN_BLOCKS; i++)
        x->tallies[t].refs[i] = mask >> i & 1 ? refs : 0;
    return TALLY + t;
}

/* Frees the tally that a note has, if any. */
static void tally_free(struct prefix_index *x, uint32_t note)
{
    if (!(note & TALLY))
        return;
    x->tallies[note - TALLY].refs[0] = x->tallies_free;
    x->tallies_free = note - TALLY;
}

/* ---- holders come and go */

/* Adds the holder that `find` did not find, without blocks. */
static struct holder *insert(struct prefix_index *x, struct place at, uint64_t name,
                             uint32_t worker)
{
    if (!x->table[at.slot].n && x->n_entries >= x->mask / 2) {
        table_grow(x);
        at.slot = slot_of(x, name);
    }
    struct entry *e = &x->table[at.slot];
    if (!e->n) {
        *e = (struct entry){.name = name};
        x->n_entries++;
    } else if (e->n == 1u << e->size_class) {
        resize(x, e, (uint8_t)(e->size_class + 1));
    }
    struct holder *h = holders(x, e);
    memmove(&h[at.i + 1], &h[at.i], (e->n - at.i) * sizeof *h);
    h[at.i] = (struct holder){.worker = worker};
    if (x->max_blocks)
        h[at.i].note = age_new(x, name, worker);
    e->n++;
    return &h[at.i];
}

static struct holder *find_or_insert(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    struct place at = find(x, name, worker);
    return at.found ? holder_at(x, at) : insert(x, at, name, worker);
}

/* Without its note. */
static void remove_holder(struct prefix_index *x, struct place at)
{
    struct entry *e = &x->table[at.slot];
    struct holder *h = holder_at(x, at);
    set_mask(x, h, 0);
    if (x->max_blocks)
        age_free(x, h->note, h->worker);
    memmove(h, h + 1, (e->n - at.i - 1u) * sizeof *h);
    e->n--;
    if (!e->n) {
        if (e->size_class)
            pool_give(x, e->at, e->size_class);
        table_remove(x, at.slot);
    } else if (e->size_class > 1 && e->n == 1u << e->size_class >> 2) {
        resize(x, e, (uint8_t)(e->size_class - 1));
    }
}

void prefix_index_forget(struct prefix_index *x, uint32_t worker)
{
    while (x->max_blocks && x->owners[worker].oldest != NONE)
        remove_holder(x, find(x, x->ages[x->owners[worker].oldest].name, worker));
    for (uint32_t i = 0; x->owners[worker].blocks && i <= x->mask;) {
        const struct entry *e = &x->table[i];
        struct place at = e->n ? find(x, e->name, worker) : (struct place){0};
        if (!at.found) {
            i++;
            continue;
        }
        tally_free(x, holder_at(x, at)->note);
        remove_holder(x, at); /* may have moved another entry to slot i */
    }
}

/* ---- what is cached */

/* The least recent blocks go until the limit is kept; of a span, the deepest first. */
static void evict(struct prefix_index *x, uint32_t worker)
{
    const struct owner *o = &x->owners[worker];
    while (x->max_blocks && o->blocks > x->max_blocks) {
        struct place at = find(x, x->ages[o->oldest].name, worker);
        struct holder *h = holder_at(x, at);
        uint64_t mask = h->mask;
        for (uint64_t over = o->blocks - x->max_blocks; mask && over; over--)
            mask ^= UINT64_C(1) << (63 - __builtin_clzll(mask));
        if (mask)
            set_mask(x, h, mask);
        else
            remove_holder(x, at);
    }
}

static void store(struct prefix_index *x, uint64_t name, uint64_t mask, uint32_t worker)
{
    struct holder *h = find_or_insert(x, name, worker);
    set_mask(x, h, h->mask | mask);
    if (x->max_blocks && x->owners[worker].newest != h->note) {
        unlink_age(x, h->note, worker);
        link_newest(x, h->note, worker);
    }
}

static void unstore(struct prefix_index *x, uint64_t name, uint64_t mask, uint32_t worker)
{
    struct place at = find(x, name, worker);
    if (!at.found)
        return;
    struct holder *h = holder_at(x, at);
    if (h->mask & ~mask)
        set_mask(x, h, h->mask & ~mask);
    else
        remove_holder(x, at);
}

void prefix_index_set(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                      uint32_t worker)
{
    struct span batch[BATCH];
    while (n_blocks) {
        uint32_t n = 0;
        for (; n_blocks && n < BATCH; n++) {
            batch[n] = span_at(p, n_blocks - 1, n_blocks);
            fetch_ahead(x, batch[n].name);
            n_blocks = batch[n].start;
        }
        for (uint32_t i = 0; i < n; i++)
            store(x, batch[i].name, batch[i].mask, worker);
    }
    evict(x, worker);
}

/* How many of the keys are alike and in one span, beginning with the one of block `depth`. */
static uint32_t run_length(const uint64_t *keys, uint32_t n, uint32_t depth)
{
    uint32_t room = SPAN_BLOCKS - depth % SPAN_BLOCKS, len = 1;
    while (len < n && len < room && keys[len] == keys[0])
        len++;
    return len;
}

void prefix_index_change(struct prefix_index *x, uint32_t worker, uint32_t block_tok, bool stored,
                         uint32_t depth, uint32_t n_blocks, const uint64_t *keys)
{
    struct {
        uint64_t name, mask;
    } batch[BATCH];
    for (uint32_t done = 0; done < n_blocks;) {
        uint32_t n = 0;
        for (; done < n_blocks && n < BATCH; n++) {
            uint32_t start = depth + done, len = run_length(&keys[done], n_blocks - done, start);
            batch[n].name = span_name(keys[done], start, block_tok);
            batch[n].mask = span_mask(start, start + len);
            fetch_ahead(x, batch[n].name);
            done += len;
        }
        for (uint32_t i = 0; i < n; i++)
            (stored ? store : unstore)(x, batch[i].name, batch[i].mask, worker);
    }
    evict(x, worker);
}

/* ---- what is in use */

static void add_span(struct prefix_index *x, const struct span *s, uint32_t worker)
{
    struct holder *h = find_or_insert(x, s->name, worker);
    if (h->mask != s->mask && h->mask && !(h->note & TALLY))
        h->note = tally_new(x, h->note, h->mask);
    if (h->note & TALLY) {
        struct tally *t = &x->tallies[h->note - TALLY];
        for (uint64_t m = s->mask; m; m &= m - 1)
            t->refs[__builtin_ctzll(m)]++;
    } else {
        h->note++;
    }
    set_mask(x, h, h->mask | s->mask);
}

/* The blocks that are still in use when one request less uses those of `mask`. */
static uint64_t untally(struct tally *t, uint64_t used, uint64_t mask)
{
    for (uint64_t m = mask & used; m; m &= m - 1) {
        if (--t->refs[__builtin_ctzll(m)] == 0)
            used &= ~(m & -m);
    }
    return used;
}

static void drop_span(struct prefix_index *x, const struct span *s, uint32_t worker)
{
    struct place at = find(x, s->name, worker);
    if (!at.found)
        return;
    struct holder *h = holder_at(x, at);
    uint64_t left = h->mask;
    if (h->note & TALLY)
        left = untally(&x->tallies[h->note - TALLY], left, s->mask);
    else if (--h->note == 0)
        left = 0;
    if (left) {
        set_mask(x, h, left);
        return;
    }
    tally_free(x, h->note);
    remove_holder(x, at);
}

static void for_each_span(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                          uint32_t worker,
                          void (*fn)(struct prefix_index *, const struct span *, uint32_t))
{
    struct span batch[BATCH];
    for (uint32_t depth = 0; depth < n_blocks;) {
        uint32_t n = 0;
        for (; depth < n_blocks && n < BATCH; n++) {
            batch[n] = span_at(p, depth, n_blocks);
            fetch_ahead(x, batch[n].name);
            depth = batch[n].end;
        }
        for (uint32_t i = 0; i < n; i++)
            fn(x, &batch[i], worker);
    }
}

void prefix_index_add(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                      uint32_t worker)
{
    for_each_span(x, p, n_blocks, worker, add_span);
}

void prefix_index_drop(struct prefix_index *x, const struct prefix_chain *p, uint32_t n_blocks,
                       uint32_t worker)
{
    for_each_span(x, p, n_blocks, worker, drop_span);
}

/* ---- asking */

/* The request that is asked for. */
struct walk {
    const struct prefix_index *x;
    const struct prefix_chain *p;
    uint32_t n_blocks;
};

/* A span and who has it. */
struct step {
    struct span s;
    const struct entry *e;
};

static struct step step_at(const struct walk *k, uint32_t depth)
{
    struct step st = {.s = span_at(k->p, depth, k->n_blocks)};
    st.e = &k->x->table[slot_of(k->x, st.s.name)];
    return st;
}

/* The places where last_alike will look next, should all go well. */
static void fetch_strides(const struct walk *k, uint32_t from, uint32_t len)
{
    for (uint64_t at = from, stride = len; at < k->n_blocks; at += stride) {
        fetch_ahead(k->x, span_at(k->p, (uint32_t)at, k->n_blocks).name);
        stride *= 2;
    }
}

/* From a span on, the last one that as many workers have: strides double while they do, then halve. */
static struct step last_alike(const struct walk *k, struct step from)
{
    struct step low = from;
    uint32_t n = from.e->n, high = k->n_blocks; /* fewer than n have `high`, or it is the end */
    uint32_t len = from.s.end - from.s.start;
    fetch_strides(k, from.s.end, len);
    for (uint32_t skip = 0; low.s.end < k->n_blocks; skip = 2 * skip + len) {
        uint32_t left = k->n_blocks - low.s.end;
        struct step next = step_at(k, low.s.end + (skip < left ? skip : left - 1));
        if (next.e->n < n) {
            high = next.s.start;
            break;
        }
        low = next;
    }
    while (low.s.end < high) {
        struct step mid = step_at(k, low.s.end + (high - low.s.end) / 2);
        if (mid.e->n < n)
            high = mid.s.start;
        else
            low = mid;
    }
    return low;
}

/* How many blocks a worker has that has this mask of a span and everything before it. */
static uint32_t leading(const struct span *s, uint64_t mask)
{
    uint64_t missing = s->mask & ~mask;
    return missing ? (uint32_t)__builtin_ctzll(missing) - s->start % SPAN_BLOCKS + s->start
                   : s->end;
}

/* Those who had all blocks before `depth` get what they have up to this span's end. */
static uint32_t credit(const struct walk *k, const struct step *st, uint32_t depth,
                       uint32_t *blocks, uint32_t *touched)
{
    const struct entry *e = st->e;
    const struct holder *h = holders(k->x, e);
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->n; i++) {
        uint32_t w = h[i].worker, have = leading(&st->s, h[i].mask);
        if (blocks[w] != depth || !have)
            continue;
        blocks[w] = have;
        if (!depth)
            touched[n++] = w;
    }
    return n;
}

uint32_t prefix_index_match(const struct prefix_index *x, const struct prefix_chain *p,
                            uint32_t n_blocks, uint32_t *blocks, uint32_t *touched)
{
    struct walk k = {x, p, n_blocks};
    uint32_t n = 0;
    for (uint32_t depth = 0; depth < n_blocks;) {
        struct step st = step_at(&k, depth);
        if (!st.e->n)
            break;
        if (depth)
            st = last_alike(&k, st);
        n += credit(&k, &st, depth, blocks, touched);
        depth = st.s.end;
    }
    return n;
}
