/* prefix_index.c - see prefix_index.h. Two open-addressing tables (linear probing, deletion by moving back):
 *
 *   names   name           -> how many workers have it, first pair of their list
 *   slots   (name, worker) -> pair
 *
 *   pair: in the list of its name (any order) and in the list of its worker (by last touch)
 */
#include "controller/core/prefix_index.h"

#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

#define NONE UINT32_MAX
#define FIRST_SLOTS 64u

struct name {
    uint64_t name;
    uint32_t first; /* pair */
    uint32_t n;     /* workers that have it; 0: empty slot */
};

struct pair {
    uint64_t name;
    uint32_t worker, refs;
    uint32_t prev, next;   /* same name; next also links the free ones */
    uint32_t older, newer; /* same worker */
};

struct owner {
    uint32_t oldest, newest, n;
};

struct prefix_index {
    struct name *names;
    uint32_t names_mask, n_names;
    uint32_t *slots; /* pair, NONE: empty */
    uint32_t slots_mask, n_pairs;
    struct pair *pairs;
    uint32_t pairs_used, pairs_cap, pairs_free;
    struct owner *owners;
    uint32_t n_workers, max_entries;
};

struct prefix_index *prefix_index_new(uint32_t n_workers, uint32_t max_entries)
{
    struct prefix_index *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->n_workers = n_workers;
    x->max_entries = max_entries;
    x->pairs_free = NONE;
    x->names = calloc(FIRST_SLOTS, sizeof *x->names);
    x->slots = malloc(FIRST_SLOTS * sizeof *x->slots);
    x->owners = malloc((n_workers ? n_workers : 1) * sizeof *x->owners);
    if (!x->names || !x->slots || !x->owners) {
        prefix_index_free(x);
        return NULL;
    }
    x->names_mask = x->slots_mask = FIRST_SLOTS - 1;
    memset(x->slots, 0xff, FIRST_SLOTS * sizeof *x->slots);
    for (uint32_t w = 0; w < n_workers; w++)
        x->owners[w] = (struct owner){NONE, NONE, 0};
    return x;
}

void prefix_index_free(struct prefix_index *x)
{
    if (!x)
        return;
    free(x->names);
    free(x->slots);
    free(x->pairs);
    free(x->owners);
    free(x);
}

uint64_t prefix_name(uint64_t key, uint32_t depth, uint32_t block_tok)
{
    return rng_mix64(key ^ ((uint64_t)block_tok << 32 | depth));
}

uint64_t prefix_request_name(const uint64_t *keys, uint32_t key_tok, uint32_t depth,
                             uint32_t block_tok)
{
    uint64_t end = ((uint64_t)depth + 1) * block_tok;
    return prefix_name(keys[(end + key_tok - 1) / key_tok - 1], depth, block_tok);
}

/* ---- the table of names */

static uint32_t name_at(const struct prefix_index *x, uint64_t name)
{
    uint32_t i = (uint32_t)name & x->names_mask;
    while (x->names[i].n && x->names[i].name != name)
        i = (i + 1) & x->names_mask;
    return i;
}

static void *grown(size_t n, size_t size)
{
    void *p = malloc(n * size);
    if (!p)
        abort();
    return p;
}

static void names_grow(struct prefix_index *x)
{
    struct name *old = x->names;
    uint32_t old_mask = x->names_mask;
    x->names_mask = old_mask * 2 + 1;
    x->names = grown((size_t)x->names_mask + 1, sizeof *x->names);
    memset(x->names, 0, ((size_t)x->names_mask + 1) * sizeof *x->names);
    for (uint32_t i = 0; i <= old_mask; i++) {
        if (old[i].n)
            x->names[name_at(x, old[i].name)] = old[i];
    }
    free(old);
}

/* Empties slot i and moves back what would no longer be found. */
static void name_remove(struct prefix_index *x, uint32_t i)
{
    uint32_t j = i;
    for (;;) {
        x->names[i].n = 0;
        for (;;) {
            j = (j + 1) & x->names_mask;
            if (!x->names[j].n) {
                x->n_names--;
                return;
            }
            uint32_t home = (uint32_t)x->names[j].name & x->names_mask;
            if (((j - home) & x->names_mask) >= ((j - i) & x->names_mask))
                break;
        }
        x->names[i] = x->names[j];
        i = j;
    }
}

/* ---- the table of pairs */

static uint32_t pair_home(const struct prefix_index *x, uint64_t name, uint32_t worker)
{
    uint64_t h = (name ^ worker) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(h >> 32) & x->slots_mask;
}

/* The slot of the pair, or the empty one where it would go. */
static uint32_t slot_at(const struct prefix_index *x, uint64_t name, uint32_t worker)
{
    uint32_t i = pair_home(x, name, worker);
    for (;; i = (i + 1) & x->slots_mask) {
        uint32_t p = x->slots[i];
        if (p == NONE || (x->pairs[p].name == name && x->pairs[p].worker == worker))
            return i;
    }
}

static void slots_grow(struct prefix_index *x)
{
    uint32_t *old = x->slots, old_mask = x->slots_mask;
    x->slots_mask = old_mask * 2 + 1;
    x->slots = grown((size_t)x->slots_mask + 1, sizeof *x->slots);
    memset(x->slots, 0xff, ((size_t)x->slots_mask + 1) * sizeof *x->slots);
    for (uint32_t i = 0; i <= old_mask; i++) {
        if (old[i] != NONE)
            x->slots[slot_at(x, x->pairs[old[i]].name, x->pairs[old[i]].worker)] = old[i];
    }
    free(old);
}

static void slot_remove(struct prefix_index *x, uint32_t i)
{
    uint32_t j = i;
    for (;;) {
        x->slots[i] = NONE;
        for (;;) {
            j = (j + 1) & x->slots_mask;
            uint32_t p = x->slots[j];
            if (p == NONE)
                return;
            uint32_t home = pair_home(x, x->pairs[p].name, x->pairs[p].worker);
            if (((j - home) & x->slots_mask) >= ((j - i) & x->slots_mask))
                break;
        }
        x->slots[i] = x->slots[j];
        i = j;
    }
}

/* ---- the lists */

static void name_link(struct prefix_index *x, uint32_t p)
{
    struct pair *a = &x->pairs[p];
    if (x->n_names >= x->names_mask / 2)
        names_grow(x);
    struct name *s = &x->names[name_at(x, a->name)];
    if (!s->n) {
        *s = (struct name){a->name, NONE, 0};
        x->n_names++;
    }
    a->prev = NONE;
    a->next = s->first;
    if (s->first != NONE)
        x->pairs[s->first].prev = p;
    s->first = p;
    s->n++;
}

static void name_unlink(struct prefix_index *x, uint32_t p)
{
    const struct pair *a = &x->pairs[p];
    uint32_t i = name_at(x, a->name);
    if (a->prev == NONE)
        x->names[i].first = a->next;
    else
        x->pairs[a->prev].next = a->next;
    if (a->next != NONE)
        x->pairs[a->next].prev = a->prev;
    if (x->names[i].n == 1)
        name_remove(x, i);
    else
        x->names[i].n--;
}

static void owner_link(struct prefix_index *x, uint32_t p)
{
    struct pair *a = &x->pairs[p];
    struct owner *o = &x->owners[a->worker];
    a->newer = NONE;
    a->older = o->newest;
    if (o->newest != NONE)
        x->pairs[o->newest].newer = p;
    else
        o->oldest = p;
    o->newest = p;
}

static void owner_unlink(struct prefix_index *x, uint32_t p)
{
    const struct pair *a = &x->pairs[p];
    struct owner *o = &x->owners[a->worker];
    *(a->older == NONE ? &o->oldest : &x->pairs[a->older].newer) = a->newer;
    *(a->newer == NONE ? &o->newest : &x->pairs[a->newer].older) = a->older;
}

/* ---- pairs come and go */

static void pair_free(struct prefix_index *x, uint32_t slot)
{
    uint32_t p = x->slots[slot];
    slot_remove(x, slot);
    name_unlink(x, p);
    owner_unlink(x, p);
    x->owners[x->pairs[p].worker].n--;
    x->n_pairs--;
    x->pairs[p].next = x->pairs_free;
    x->pairs_free = p;
}

static void evict(struct prefix_index *x, uint32_t worker)
{
    const struct pair *a = &x->pairs[x->owners[worker].oldest];
    pair_free(x, slot_at(x, a->name, worker));
}

/* The pair, as the most recent one of its worker; made if it is not there (without references). */
static struct pair *touch(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    uint32_t p = x->slots[slot_at(x, name, worker)];
    if (p != NONE) {
        if (x->owners[worker].newest != p) {
            owner_unlink(x, p);
            owner_link(x, p);
        }
        return &x->pairs[p];
    }
    if (x->max_entries && x->owners[worker].n >= x->max_entries)
        evict(x, worker);
    if (x->n_pairs >= x->slots_mask / 2)
        slots_grow(x);
    p = x->pairs_free;
    if (p != NONE) {
        x->pairs_free = x->pairs[p].next;
    } else {
        p = x->pairs_used++;
        MEM_GROW(x->pairs, x->pairs_cap, x->pairs_used);
    }
    x->pairs[p] = (struct pair){.name = name, .worker = worker};
    x->slots[slot_at(x, name, worker)] = p;
    name_link(x, p);
    owner_link(x, p);
    x->owners[worker].n++;
    x->n_pairs++;
    return &x->pairs[p];
}

void prefix_index_add(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    touch(x, name, worker)->refs++;
}

void prefix_index_set(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    touch(x, name, worker)->refs = 1;
}

void prefix_index_drop(struct prefix_index *x, uint64_t name, uint32_t worker)
{
    uint32_t slot = slot_at(x, name, worker);
    if (x->slots[slot] != NONE && --x->pairs[x->slots[slot]].refs == 0)
        pair_free(x, slot);
}

void prefix_index_forget(struct prefix_index *x, uint32_t worker)
{
    while (x->owners[worker].n)
        evict(x, worker);
}

bool prefix_index_has(const struct prefix_index *x, uint64_t name, uint32_t worker)
{
    return x->slots[slot_at(x, name, worker)] != NONE;
}

uint64_t prefix_index_pairs(const struct prefix_index *x, uint32_t worker)
{
    return x->owners[worker].n;
}

/* ---- asking */

/* The request that is asked for. */
struct walk {
    const struct prefix_index *x;
    const uint64_t *keys;
    uint32_t key_tok, block_tok;
};

static const struct name *holders(const struct walk *k, uint32_t depth)
{
    return &k->x->names[name_at(k->x,
                                prefix_request_name(k->keys, k->key_tok, depth, k->block_tok))];
}

/* The first depth after `from` (all of whose n holders go on that far) that fewer than n have; n_blocks:
 * there is none. Steps double while all go on, then halve. */
static uint32_t first_fewer(const struct walk *k, uint32_t from, uint32_t n, uint32_t n_blocks)
{
    uint32_t low = from, step = 1, high;
    for (;; step *= 2) { /* all have low */
        if (low == n_blocks - 1)
            return n_blocks;
        high = step < n_blocks - 1 - low ? low + step : n_blocks - 1;
        if (holders(k, high)->n < n)
            break;
        low = high;
    }
    while (high - low > 1) { /* all have low, not all have high */
        uint32_t mid = low + (high - low) / 2;
        if (holders(k, mid)->n < n)
            high = mid;
        else
            low = mid;
    }
    return high;
}

uint32_t prefix_index_match(struct prefix_index *x, const uint64_t *keys, uint32_t key_tok,
                            uint32_t n_keys, uint32_t block_tok, uint32_t n_blocks,
                            uint32_t *blocks, uint32_t *touched)
{
    struct walk k = {x, keys, key_tok, block_tok};
    uint64_t reach = (uint64_t)n_keys * key_tok / block_tok;
    uint32_t n_touched = 0, depth = 0;
    if (n_blocks > reach)
        n_blocks = (uint32_t)reach;
    while (depth < n_blocks) {
        const struct name *s = holders(&k, depth);
        if (!s->n)
            break;
        uint32_t end = first_fewer(&k, depth, s->n, n_blocks);
        for (uint32_t p = s->first; p != NONE; p = x->pairs[p].next) {
            uint32_t w = x->pairs[p].worker;
            if (blocks[w] != depth) /* has this block, but not all before it */
                continue;
            blocks[w] = end;
            if (!depth)
                touched[n_touched++] = w;
        }
        depth = end;
    }
    return n_touched;
}
