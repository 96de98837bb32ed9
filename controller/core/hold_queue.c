/* hold_queue.c - see hold_queue.h. */
#include "controller/core/hold_queue.h"

#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"

void hold_queue_init(struct hold_queue *q)
{
    *q = (struct hold_queue){.soonest = HOLD_NONE, .latest = HOLD_NONE};
}

void hold_queue_deinit(struct hold_queue *q)
{
    free(q->nodes);
    free(q->bands);
    hold_queue_init(q);
}

/* The first band whose priority is not more urgent. */
static uint32_t band_at(const struct hold_queue *q, int32_t priority)
{
    uint32_t low = 0, high = q->n_bands;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (q->bands[mid].priority < priority)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct hold_band *band_of(struct hold_queue *q, int32_t priority)
{
    uint32_t i = band_at(q, priority);
    if (i < q->n_bands && q->bands[i].priority == priority)
        return &q->bands[i];
    MEM_GROW(q->bands, q->bands_cap, q->n_bands + 1);
    memmove(&q->bands[i + 1], &q->bands[i], (q->n_bands - i) * sizeof *q->bands);
    q->bands[i] = (struct hold_band){priority, HOLD_NONE, HOLD_NONE};
    q->n_bands++;
    return &q->bands[i];
}

/* Nearly always the last of all (a newcomer) or one of the first (a request that was out already). */
static uint32_t successor(const struct hold_queue *q, const struct hold_band *b, uint64_t seq)
{
    if (b->last == HOLD_NONE || q->nodes[b->last].seq < seq)
        return HOLD_NONE;
    uint32_t i = b->first;
    while (q->nodes[i].seq < seq)
        i = q->nodes[i].next;
    return i;
}

void hold_queue_push(struct hold_queue *q, uint32_t handle, int32_t priority, uint64_t seq,
                     int64_t deadline_ps)
{
    MEM_GROW(q->nodes, q->nodes_cap, handle + 1);
    struct hold_band *b = band_of(q, priority);
    uint32_t next = successor(q, b, seq);
    uint32_t prev = next == HOLD_NONE ? b->last : q->nodes[next].prev;
    q->nodes[handle] = (struct hold_node){.seq = seq,
                                          .deadline_ps = deadline_ps,
                                          .prev = prev,
                                          .next = next,
                                          .sooner = q->latest,
                                          .later = HOLD_NONE,
                                          .priority = priority};
    *(prev == HOLD_NONE ? &b->first : &q->nodes[prev].next) = handle;
    *(next == HOLD_NONE ? &b->last : &q->nodes[next].prev) = handle;
    *(q->latest == HOLD_NONE ? &q->soonest : &q->nodes[q->latest].later) = handle;
    q->latest = handle;
    q->n++;
}

void hold_queue_remove(struct hold_queue *q, uint32_t handle)
{
    const struct hold_node *h = &q->nodes[handle];
    uint32_t i = band_at(q, h->priority);
    struct hold_band *b = &q->bands[i];
    *(h->prev == HOLD_NONE ? &b->first : &q->nodes[h->prev].next) = h->next;
    *(h->next == HOLD_NONE ? &b->last : &q->nodes[h->next].prev) = h->prev;
    *(h->sooner == HOLD_NONE ? &q->soonest : &q->nodes[h->sooner].later) = h->later;
    *(h->later == HOLD_NONE ? &q->latest : &q->nodes[h->later].sooner) = h->sooner;
    q->n--;
    if (b->first != HOLD_NONE)
        return;
    q->n_bands--;
    memmove(b, b + 1, (q->n_bands - i) * sizeof *b);
}

uint32_t hold_queue_first(const struct hold_queue *q)
{
    return q->n_bands ? q->bands[0].first : HOLD_NONE;
}

uint32_t hold_queue_after(const struct hold_queue *q, uint32_t handle)
{
    const struct hold_node *h = &q->nodes[handle];
    if (h->next != HOLD_NONE)
        return h->next;
    uint32_t i = band_at(q, h->priority) + 1;
    return i < q->n_bands ? q->bands[i].first : HOLD_NONE;
}
