/* hold_queue.h - requests that wait: the most urgent priority first, within one priority by the order of
 * their arrival. Each has a deadline; all of a queue wait equally long, so that deadlines come in the order
 * of entry.
 *
 * Internal to the core. Entering and leaving cost O(log priorities in use), and O(1) where all
 * priorities are equal; a priority seen for the first time moves the table of priorities.
 */
#ifndef WEIR_HOLD_QUEUE_H
#define WEIR_HOLD_QUEUE_H

#include <stdint.h>

#include "predictor/units.h"

#define HOLD_NONE UINT32_MAX

struct hold_node {
    uint64_t seq;
    int64_t deadline_ps;
    uint32_t prev, next;    /* same priority, by seq */
    uint32_t sooner, later; /* by deadline */
    int32_t priority;
};

/* The requests of one priority. */
struct hold_band {
    int32_t priority;
    uint32_t first, last;
};

struct hold_queue {
    struct hold_node *nodes; /* by handle; grows with the largest handle held */
    uint32_t nodes_cap;
    struct hold_band *bands; /* by priority; none is empty */
    uint32_t n_bands, bands_cap;
    uint32_t soonest, latest; /* by deadline */
    uint32_t n;
};

void hold_queue_init(struct hold_queue *q);
void hold_queue_deinit(struct hold_queue *q);

/* handle is not in the queue; seq is unique; deadline_ps is not before those of the others. */
void hold_queue_push(struct hold_queue *q, uint32_t handle, int32_t priority, uint64_t seq,
                     int64_t deadline_ps);
/* handle is in the queue. */
void hold_queue_remove(struct hold_queue *q, uint32_t handle);

/* The first in line, and the one after `handle`; HOLD_NONE: there is none. */
uint32_t hold_queue_first(const struct hold_queue *q);
uint32_t hold_queue_after(const struct hold_queue *q, uint32_t handle);

/* Whoever has the earliest deadline, and that deadline: HOLD_NONE and PS_NEVER if nobody waits. */
static inline uint32_t hold_queue_soonest(const struct hold_queue *q)
{
    return q->soonest;
}

static inline int64_t hold_queue_deadline_ps(const struct hold_queue *q)
{
    return q->soonest == HOLD_NONE ? PS_NEVER : q->nodes[q->soonest].deadline_ps;
}

#endif
