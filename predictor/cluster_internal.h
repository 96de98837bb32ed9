/* cluster_internal.h - what cluster.c (workers, faults, time) and transfer.c (where requests and their KV
 * are) share. Not installed. */
#ifndef WEIR_CLUSTER_INTERNAL_H
#define WEIR_CLUSTER_INTERNAL_H

#include "predictor/cluster.h"
#include "predictor/fair_share.h"
#include "predictor/dp.h"
#include "predictor/shared_tier.h"

enum worker_state {
    WORKER_DOWN,
    WORKER_STARTING,
    WORKER_UP,
    WORKER_DRAINING, /* takes nothing new, ends what it has, and is down then */
};

struct worker {
    struct dp_group group;
    struct worker_config config;
    enum worker_state state;
    int64_t ready_ps; /* STARTING: when it will be up */
    int64_t held_since_ps, held_total_ps;
    struct fair_share uplink; /* KV leaves through it; only workers that prefill have one */
    uint32_t n_inbound;       /* prefills that wait for blocks of a decode worker first */
    uint32_t first_boxed, last_boxed, n_boxed; /* lazy: legs that wait to be submitted, in order */
    bool has_uplink, touched;
    int64_t next_ps; /* key in the heap */
    uint32_t heap_pos;
};

/* Where a request is. */
struct leg {
    /* of the engine that works on it now, or holds its KV; rank and slot only if `there` */
    uint32_t worker, rank, slot;
    /* decode worker that its KV is on the way to, or that reserves blocks for it (then with a slot) */
    uint32_t to, to_rank, to_slot;
    uint32_t transfer; /* in worker's uplink */
    bool live, there, moving, held, reserving, reserved, tokens_out, boxed, prefill_only;
    uint32_t next_boxed;      /* boxed: the worker's next one */
    uint32_t cached_tok;      /* prompt tokens that `to` had cached when it reserved */
    int64_t lease_ps;         /* held: until when, PS_NEVER without a lease */
    int64_t at_ps;            /* boxed: when it was submitted */
    struct request_spec spec; /* while moving, reserving or boxed */
};

/* A lease that may run out. All leases are equally long, so that they run out in the order they began. */
struct lease {
    int64_t at_ps;
    uint32_t handle;
};

struct cluster {
    struct cluster_options opt;
    struct worker *workers;
    uint32_t n_workers;
    uint32_t *heap, n_heap; /* workers by next_ps, then number */
    uint32_t n_boxed;       /* legs that wait to be submitted */
    struct leg *legs;       /* by handle */
    uint32_t legs_cap;
    struct lease *leases; /* queue; the first is always one that still holds (lease_trim) */
    uint32_t leases_first, n_leases, leases_cap;
    uint32_t *touched, n_touched, touched_cap;
    struct fault *faults;
    uint32_t n_faults, next_fault;
    struct shared_tier *shared; /* NULL: none */

    struct cluster_event *events;
    uint32_t events_head, n_events, events_cap;
};

static inline bool worker_takes(const struct worker *w)
{
    return w->state == WORKER_UP;
}

/* What has been promised to it before may still come. */
static inline bool worker_runs(const struct worker *w)
{
    return w->state == WORKER_UP || w->state == WORKER_DRAINING;
}

/* ---- cluster.c */

/* The worker's next event may have moved. */
void cluster_reschedule(struct cluster *c, uint32_t w);
/* The worker may begin a pass at the end of this instant. */
void cluster_touch(struct cluster *c, uint32_t w);
struct cluster_event *cluster_event_new(struct cluster *c, enum cluster_event_kind kind, int64_t at,
                                        uint32_t worker, uint32_t handle);
/* A draining worker that has nothing left goes down. */
void cluster_leave(struct cluster *c, int64_t now, uint32_t w);

/* ---- transfer.c */

/* Submits what waits for worker w, and everything that waits. */
void transfer_unbox(struct cluster *c, uint32_t w);
void transfer_unbox_all(struct cluster *c);

/* Moves an engine's events out. */
void transfer_collect(struct cluster *c, uint32_t w);
/* The request is gone from worker `dead`, which lost everything: it goes everywhere, and is lost. */
void transfer_lost(struct cluster *c, int64_t now, uint32_t dead, uint32_t handle);
/* Worker `dead` lost everything: what was on its way to it is lost as well. */
void transfer_worker_down(struct cluster *c, int64_t now, uint32_t dead);
/* Transfers out of worker w that are complete by now. */
void transfer_arrivals(struct cluster *c, int64_t now, uint32_t w);
/* When the next lease runs out; PS_NEVER: none. */
int64_t transfer_lease_next(const struct cluster *c);
void transfer_expire(struct cluster *c, int64_t now);

#endif
