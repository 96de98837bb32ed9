/* hold_queue.h - requests that wait: the most urgent priority first, within one priority by the round that
 * fairness.h gave them (all alike where it is off), within one round by the order of their arrival. Each
 * has a deadline of its own.
 *
 * Internal to the core. A search tree whose nodes know the least need below them: the next in line that
 * needs less than so many tokens is found without looking at those that need more, however many these
 * are. Balanced by random weights (a treap: Seidel and Aragon, Randomized search trees, 1996), which are
 * hashes of seq, so that the same calls make the same tree. Entering, leaving and the next in line cost
 * O(log n), and so does a deadline.
 */
#ifndef WEIR_HOLD_QUEUE_H
#define WEIR_HOLD_QUEUE_H

#include <stdint.h>

#include "predictor/units.h"

#define HOLD_NONE UINT32_MAX

/* What a request enters with. */
struct hold_entry {
    int32_t priority; /* smaller is first */
    uint64_t round;
    uint64_t seq;      /* unique */
    uint64_t need_tok; /* below UINT64_MAX */
    uint64_t bytes;
    int64_t deadline_ps; /* PS_NEVER: none */
};

struct hold_node {
    struct hold_entry e;
    uint64_t least_tok; /* need_tok, here and below */
    uint64_t entered;   /* ties between deadlines: who came first */
    uint32_t up, left, right;
    uint32_t weight; /* not above its parent's */
    uint32_t pos;    /* in the heap of deadlines; HOLD_NONE: has none */
};

struct hold_queue {
    struct hold_node *nodes; /* by handle; grows with the largest handle held */
    uint32_t nodes_cap;
    uint32_t root;
    uint32_t n;
    uint64_t bytes; /* of all that wait */
    uint32_t *soon; /* handles with a deadline: heap by (deadline_ps, entered) */
    uint32_t n_soon, soon_cap;
    uint64_t entered;
};

void hold_queue_init(struct hold_queue *q);
void hold_queue_deinit(struct hold_queue *q);

/* handle is not in the queue. */
void hold_queue_push(struct hold_queue *q, uint32_t handle, const struct hold_entry *e);
/* handle is in the queue. */
void hold_queue_remove(struct hold_queue *q, uint32_t handle);

/* The first in line, and the next one after `handle`, of those that need less than below_tok (UINT64_MAX:
 * of all); HOLD_NONE: there is none. */
uint32_t hold_queue_first(const struct hold_queue *q, uint64_t below_tok);
uint32_t hold_queue_after(const struct hold_queue *q, uint32_t handle, uint64_t below_tok);

/* Whoever has the earliest deadline, and that deadline: HOLD_NONE and PS_NEVER if nobody has one. */
static inline uint32_t hold_queue_soonest(const struct hold_queue *q)
{
    return q->n_soon ? q->soon[0] : HOLD_NONE;
}

static inline int64_t hold_queue_deadline_ps(const struct hold_queue *q)
{
    return q->n_soon ? q->nodes[q->soon[0]].e.deadline_ps : PS_NEVER;
}

#endif
