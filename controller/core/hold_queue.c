/* hold_queue.c - see hold_queue.h. */
#include "controller/core/hold_queue.h"

#include <stdbool.h>
#include <stdlib.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

void hold_queue_init(struct hold_queue *q)
{
    *q = (struct hold_queue){.root = HOLD_NONE};
}

void hold_queue_deinit(struct hold_queue *q)
{
    free(q->nodes);
    free(q->soon);
    hold_queue_init(q);
}

/* ---- the tree */

static bool is_before(const struct hold_node *a, const struct hold_node *b)
{
    if (a->e.priority != b->e.priority)
        return a->e.priority < b->e.priority;
    return a->e.round != b->e.round ? a->e.round < b->e.round : a->e.seq < b->e.seq;
}

static uint64_t least_of(const struct hold_queue *q, uint32_t i)
{
    return i == HOLD_NONE ? UINT64_MAX : q->nodes[i].least_tok;
}

static void measure(struct hold_queue *q, uint32_t i)
{
    struct hold_node *n = &q->nodes[i];
    uint64_t left = least_of(q, n->left), right = least_of(q, n->right);
    n->least_tok = left < right ? left : right;
    if (n->e.need_tok < n->least_tok)
        n->least_tok = n->e.need_tok;
}

/* Where the tree names `child`, it names `other` from now on. */
static void rename_child(struct hold_queue *q, uint32_t parent, uint32_t child, uint32_t other)
{
    if (parent == HOLD_NONE)
        q->root = other;
    else if (q->nodes[parent].left == child)
        q->nodes[parent].left = other;
    else
        q->nodes[parent].right = other;
}

/* i changes places with its parent; order stays. */
static void lift(struct hold_queue *q, uint32_t i)
{
    struct hold_node *n = &q->nodes[i];
    uint32_t p = n->up;
    struct hold_node *parent = &q->nodes[p];
    bool is_left = parent->left == i;
    uint32_t moved = is_left ? n->right : n->left;
    *(is_left ? &parent->left : &parent->right) = moved;
    if (moved != HOLD_NONE)
        q->nodes[moved].up = p;
    rename_child(q, parent->up, p, i);
    n->up = parent->up;
    parent->up = i;
    *(is_left ? &n->right : &n->left) = p;
    measure(q, p);
    measure(q, i);
}

static void plant(struct hold_queue *q, uint32_t handle)
{
    struct hold_node *n = &q->nodes[handle];
    uint32_t *link = &q->root;
    while (*link != HOLD_NONE) {
        struct hold_node *at = &q->nodes[*link];
        if (n->e.need_tok < at->least_tok)
            at->least_tok = n->e.need_tok;
        n->up = *link;
        link = is_before(n, at) ? &at->left : &at->right;
    }
    *link = handle;
    while (n->up != HOLD_NONE && q->nodes[n->up].weight < n->weight)
        lift(q, handle);
}

static void uproot(struct hold_queue *q, uint32_t handle)
{
    const struct hold_node *n = &q->nodes[handle];
    while (n->left != HOLD_NONE && n->right != HOLD_NONE)
        lift(q, q->nodes[n->left].weight > q->nodes[n->right].weight ? n->left : n->right);
    uint32_t only = n->left != HOLD_NONE ? n->left : n->right;
    if (only != HOLD_NONE)
        q->nodes[only].up = n->up;
    rename_child(q, n->up, handle, only);
    for (uint32_t i = n->up; i != HOLD_NONE; i = q->nodes[i].up)
        measure(q, i);
}

/* The first below i that needs less than below_tok; there is one. */
static uint32_t first_below(const struct hold_queue *q, uint32_t i, uint64_t below_tok)
{
    for (;;) {
        const struct hold_node *n = &q->nodes[i];
        if (least_of(q, n->left) < below_tok)
            i = n->left;
        else if (n->e.need_tok < below_tok)
            return i;
        else
            i = n->right;
    }
}

uint32_t hold_queue_first(const struct hold_queue *q, uint64_t below_tok)
{
    return least_of(q, q->root) < below_tok ? first_below(q, q->root, below_tok) : HOLD_NONE;
}

uint32_t hold_queue_after(const struct hold_queue *q, uint32_t handle, uint64_t below_tok)
{
    for (uint32_t i = handle, from = HOLD_NONE; i != HOLD_NONE; from = i, i = q->nodes[i].up) {
        const struct hold_node *n = &q->nodes[i];
        if (i != handle && from != n->left)
            continue; /* i and all on its left are before handle */
        if (i != handle && n->e.need_tok < below_tok)
            return i;
        if (least_of(q, n->right) < below_tok)
            return first_below(q, n->right, below_tok);
    }
    return HOLD_NONE;
}

/* ---- deadlines */

static bool is_sooner(const struct hold_queue *q, uint32_t a, uint32_t b)
{
    const struct hold_node *x = &q->nodes[a], *y = &q->nodes[b];
    return x->e.deadline_ps != y->e.deadline_ps ? x->e.deadline_ps < y->e.deadline_ps
                                                : x->entered < y->entered;
}

static void put(struct hold_queue *q, uint32_t pos, uint32_t handle)
{
    q->soon[pos] = handle;
    q->nodes[handle].pos = pos;
}

/* Finds the place of `handle`, for which `pos` is free. */
static void settle(struct hold_queue *q, uint32_t pos, uint32_t handle)
{
    while (pos && is_sooner(q, handle, q->soon[(pos - 1) / 2])) {
        put(q, pos, q->soon[(pos - 1) / 2]);
        pos = (pos - 1) / 2;
    }
    for (uint32_t child; (child = 2 * pos + 1) < q->n_soon; pos = child) {
        if (child + 1 < q->n_soon && is_sooner(q, q->soon[child + 1], q->soon[child]))
            child++;
        if (!is_sooner(q, q->soon[child], handle))
            break;
        put(q, pos, q->soon[child]);
    }
    put(q, pos, handle);
}

static void forget_deadline(struct hold_queue *q, uint32_t handle)
{
    uint32_t pos = q->nodes[handle].pos;
    if (pos == HOLD_NONE)
        return;
    uint32_t last = q->soon[--q->n_soon];
    if (last != handle)
        settle(q, pos, last);
}

/* ---- both */

void hold_queue_push(struct hold_queue *q, uint32_t handle, const struct hold_entry *e)
{
    MEM_GROW(q->nodes, q->nodes_cap, handle + 1);
    q->nodes[handle] = (struct hold_node){.e = *e,
                                          .least_tok = e->need_tok,
                                          .entered = q->entered++,
                                          .up = HOLD_NONE,
                                          .left = HOLD_NONE,
                                          .right = HOLD_NONE,
                                          .weight = (uint32_t)rng_mix64(e->seq),
                                          .pos = HOLD_NONE};
    plant(q, handle);
    if (e->deadline_ps != PS_NEVER) {
        MEM_GROW(q->soon, q->soon_cap, q->n_soon + 1);
        q->n_soon++;
        settle(q, q->n_soon - 1, handle);
    }
    q->n++;
    q->bytes += e->bytes;
}

void hold_queue_remove(struct hold_queue *q, uint32_t handle)
{
    uproot(q, handle);
    forget_deadline(q, handle);
    q->n--;
    q->bytes -= q->nodes[handle].e.bytes;
}
