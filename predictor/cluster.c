/* cluster.c - see cluster.h. Requests and their KV are in transfer.c; here are workers, faults and time. */
#include "predictor/cluster_internal.h"

#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

/* ---- heap of workers */

static bool heap_less(const struct cluster *c, uint32_t a, uint32_t b)
{
    const struct worker *x = &c->workers[a], *y = &c->workers[b];
    return x->next_ps != y->next_ps ? x->next_ps < y->next_ps : a < b;
}

static void heap_set(struct cluster *c, uint32_t pos, uint32_t w)
{
    c->heap[pos] = w;
    c->workers[w].heap_pos = pos;
}

static void heap_fix(struct cluster *c, uint32_t w)
{
    uint32_t pos = c->workers[w].heap_pos;
    while (pos && heap_less(c, w, c->heap[(pos - 1) / 2])) {
        heap_set(c, pos, c->heap[(pos - 1) / 2]);
        pos = (pos - 1) / 2;
    }
    for (;;) {
        uint32_t kid = 2 * pos + 1;
        if (kid >= c->n_heap)
            break;
        if (kid + 1 < c->n_heap && heap_less(c, c->heap[kid + 1], c->heap[kid]))
            kid++;
        if (!heap_less(c, c->heap[kid], w))
            break;
        heap_set(c, pos, c->heap[kid]);
        pos = kid;
    }
    heap_set(c, pos, w);
}

static int64_t worker_next(const struct worker *w)
{
    int64_t t = w->state == WORKER_STARTING ? w->ready_ps : dp_next_ps(&w->group);
    if (w->has_uplink) {
        int64_t u = fair_share_next_ps(&w->uplink);
        t = u < t ? u : t;
    }
    return t;
}

void cluster_reschedule(struct cluster *c, uint32_t w)
{
    if (c->opt.lazy)
        return;
    c->workers[w].next_ps = worker_next(&c->workers[w]);
    heap_fix(c, w);
}

void cluster_touch(struct cluster *c, uint32_t w)
{
    if (c->workers[w].touched || c->opt.lazy)
        return;
    c->workers[w].touched = true;
    MEM_GROW(c->touched, c->touched_cap, c->n_touched + 1);
    c->touched[c->n_touched++] = w;
}

/* ---- life */

static int init_worker(struct cluster *c, uint32_t i, const struct worker_config *wc)
{
    struct worker *w = &c->workers[i];
    w->config = *wc;
    int rc = dp_init(&w->group, &wc->engine, rng_mix64(c->opt.seed + i));
    if (rc)
        return rc;
    for (uint32_t r = 0; r < w->group.n; r++) {
        struct engine *e = w->group.ranks[r];
        engine_set_itl(e, c->opt.itl);
        engine_set_stepping(e, c->opt.stepping);
        engine_want_first_tokens(e, c->opt.first_tokens);
        engine_log_cache(e, c->opt.on_cache != NULL);
    }
    w->state = wc->starts_up ? WORKER_UP : WORKER_DOWN;
    w->next_ps = PS_NEVER; /* held_since_ps: 0 */
    heap_set(c, i, i);
    c->n_heap++;
    if (wc->engine.role != ROLE_PREFILL)
        return 0;
    w->has_uplink = true;
    rc =
        fair_share_init(&w->uplink, c->opt.link.bandwidth_gb_s, ps_from_ms(c->opt.link.latency_ms));
    w->uplink.unshared = c->opt.link.unshared;
    return rc;
}

/* The store of all workers that have num_shared_blocks. They depend on each other, so none can be lazy. */
static int init_shared(struct cluster *c)
{
    const struct engine_config *first = NULL;
    for (uint32_t i = 0; i < c->n_workers; i++) {
        const struct engine_config *e = &c->workers[i].config.engine;
        if (!e->num_shared_blocks)
            continue;
        if (first && !shared_tier_same(first, e))
            return WEIR_E_INVALID;
        if (!first)
            c->shared = shared_tier_new(e);
        first = e;
        if (!c->shared)
            return WEIR_E_NOMEM;
        for (uint32_t r = 0; r < c->workers[i].group.n; r++)
            engine_set_shared(c->workers[i].group.ranks[r], c->shared, i * ENGINE_MAX_DP + r);
    }
    if (first)
        c->opt.lazy = false;
    return 0;
}

/* A hand-over is a question that waits for its answer. */
static bool hands_over(const struct worker_config *w, uint32_t n)
{
    while (n && w[n - 1].engine.role == ROLE_BOTH)
        n--;
    return n > 0;
}

struct cluster *cluster_new(const struct worker_config *workers, uint32_t n,
                            const struct cluster_options *opt)
{
    struct cluster *c = n > CLUSTER_MAX_WORKERS ? NULL : calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->opt = *opt;
    c->opt.lazy &= !hands_over(workers, n);
    c->workers = calloc(n ? n : 1, sizeof *c->workers);
    c->heap = calloc(n ? n : 1, sizeof *c->heap);
    if (!c->workers || !c->heap)
        goto fail;
    for (; c->n_workers < n; c->n_workers++) {
        if (init_worker(c, c->n_workers, &workers[c->n_workers])) {
            c->n_workers++; /* half made: freed like the others */
            goto fail;
        }
    }
    if (init_shared(c))
        goto fail;
    return c;
fail:
    cluster_free(c);
    return NULL;
}

void cluster_free(struct cluster *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; c->workers && i < c->n_workers; i++) {
        dp_deinit(&c->workers[i].group);
        if (c->workers[i].has_uplink)
            fair_share_deinit(&c->workers[i].uplink);
    }
    shared_tier_free(c->shared);
    free(c->workers);
    free(c->heap);
    free(c->touched);
    free(c->legs);
    free(c->leases);
    free(c->faults);
    free(c->events);
    free(c);
}

int cluster_add_faults(struct cluster *c, const struct fault *faults, uint32_t n)
{
    if (n > CLUSTER_MAX_FAULTS)
        return WEIR_E_LIMIT;
    for (uint32_t i = 0; i < n; i++) {
        if (i && faults[i].at_ps < faults[i - 1].at_ps)
            return WEIR_E_INVALID;
        if (faults[i].worker != UINT32_MAX && faults[i].worker >= c->n_workers)
            return WEIR_E_INVALID;
        if (faults[i].kind == FAULT_SLOW && !(faults[i].factor > 0))
            return WEIR_E_INVALID;
    }
    if (!n)
        return 0;
    struct fault *p = malloc(n * sizeof *p);
    if (!p)
        return WEIR_E_NOMEM;
    memcpy(p, faults, n * sizeof *p);
    free(c->faults);
    c->faults = p;
    c->opt.lazy = false;
    c->n_faults = n;
    c->next_fault = 0;
    return 0;
}

/* ---- events out */

struct cluster_event *cluster_event_new(struct cluster *c, enum cluster_event_kind kind, int64_t at,
                                        uint32_t worker, uint32_t handle)
{
    if (c->events_head == c->n_events)
        c->events_head = c->n_events = 0;
    MEM_GROW(c->events, c->events_cap, c->n_events + 1);
    struct cluster_event *ev = &c->events[c->n_events++];
    *ev = (struct cluster_event){.kind = kind, .at_ps = at, .worker = worker, .handle = handle};
    return ev;
}

bool cluster_poll(struct cluster *c, struct cluster_event *ev)
{
    if (c->events_head == c->n_events)
        return false;
    *ev = c->events[c->events_head++];
    return true;
}

/* ---- faults */

struct kill_ctx {
    struct cluster *c;
    int64_t now;
    uint32_t worker;
};

static void killed(void *ctx, uint32_t handle)
{
    struct kill_ctx *k = ctx;
    transfer_lost(k->c, k->now, k->worker, handle);
}

static void take_down(struct cluster *c, int64_t now, uint32_t i)
{
    struct worker *w = &c->workers[i];
    bool ran = worker_runs(w);
    if (w->state == WORKER_DOWN)
        return;
    w->held_total_ps += now - w->held_since_ps;
    w->state = WORKER_DOWN;
    if (ran) {
        cluster_event_new(c, CLUSTER_EV_WORKER_DOWN, now, i, 0);
        for (uint32_t r = 0; w->config.engine.num_shared_blocks && r < w->group.n; r++)
            shared_tier_cancel(c->shared, now, i * ENGINE_MAX_DP + r);
        dp_kill(&w->group, now, killed, &(struct kill_ctx){c, now, i});
        transfer_worker_down(c, now, i);
    }
    cluster_reschedule(c, i);
}

void cluster_leave(struct cluster *c, int64_t now, uint32_t i)
{
    const struct worker *w = &c->workers[i];
    if (w->state == WORKER_DRAINING && !w->n_inbound && dp_empty(&w->group))
        take_down(c, now, i);
}

static void start_up(struct cluster *c, int64_t now, uint32_t i)
{
    struct worker *w = &c->workers[i];
    if (w->state == WORKER_DRAINING) { /* still there: it stays */
        w->state = WORKER_UP;
        cluster_event_new(c, CLUSTER_EV_WORKER_UP, now, i, 0);
    } else if (w->state == WORKER_DOWN) {
        w->state = WORKER_STARTING;
        w->held_since_ps = now;
        w->ready_ps = now + w->config.startup_ps;
        cluster_reschedule(c, i);
    }
}

static void drain(struct cluster *c, int64_t now, uint32_t i)
{
    struct worker *w = &c->workers[i];
    if (w->state == WORKER_STARTING) {
        take_down(c, now, i);
    } else if (w->state == WORKER_UP) {
        w->state = WORKER_DRAINING;
        cluster_event_new(c, CLUSTER_EV_WORKER_DRAIN, now, i, 0);
        cluster_leave(c, now, i);
    }
}

static void fault_one(struct cluster *c, const struct fault *f, uint32_t i)
{
    switch (f->kind) {
    case FAULT_DOWN: take_down(c, f->at_ps, i); break;
    case FAULT_UP: start_up(c, f->at_ps, i); break;
    case FAULT_SLOW:
        dp_set_slow(&c->workers[i].group, f->at_ps, f->factor);
        cluster_reschedule(c, i);
        break;
    case FAULT_DRAIN: drain(c, f->at_ps, i); break;
    }
}

static void apply_fault(struct cluster *c, const struct fault *f)
{
    size_t len = strlen(f->domain);
    for (uint32_t i = 0; i < c->n_workers; i++) {
        const char *d = c->workers[i].config.domain;
        bool in_domain = len && !strncmp(d, f->domain, len) && (d[len] == '/' || !d[len]);
        if (f->worker == i || (f->worker == UINT32_MAX && in_domain))
            fault_one(c, f, i);
    }
}

/* ---- time */

int64_t cluster_next_ps(const struct cluster *c)
{
    int64_t t = c->n_heap && !c->opt.lazy ? c->workers[c->heap[0]].next_ps : PS_NEVER;
    if (c->next_fault < c->n_faults && c->faults[c->next_fault].at_ps < t)
        t = c->faults[c->next_fault].at_ps;
    if (c->shared && shared_tier_next_ps(c->shared) < t)
        t = shared_tier_next_ps(c->shared);
    int64_t l = transfer_lease_next(c);
    return l < t ? l : t;
}

struct cache_ctx {
    const struct cluster *c;
    uint32_t worker;
    int64_t at_ps;
};

static void cache_change(void *ctx, const struct engine_cache_change *change)
{
    const struct cache_ctx *k = ctx;
    k->c->opt.on_cache(k->c->opt.on_cache_ctx, k->worker, k->at_ps, change);
}

/* Changes of the worker's caches are known when the pass that made them is over: now, if none is in flight. */
static void tell_changes(struct cluster *c, int64_t now, uint32_t w)
{
    const struct dp_group *g = &c->workers[w].group;
    if (!c->opt.on_cache || dp_in_pass(g))
        return;
    for (uint32_t r = 0; r < g->n; r++)
        engine_drain_cache_log(g->ranks[r], cache_change, &(struct cache_ctx){c, w, now});
}

static void advance_worker(struct cluster *c, uint32_t i, int64_t now)
{
    struct worker *w = &c->workers[i];
    if (w->state == WORKER_STARTING && w->ready_ps <= now) {
        w->state = WORKER_UP;
        cluster_event_new(c, CLUSTER_EV_WORKER_UP, now, i, 0);
    }
    if (worker_runs(w)) {
        dp_run(&w->group, now);
        tell_changes(c, now, i);
        transfer_collect(c, i);
        cluster_touch(c, i);
    }
    transfer_arrivals(c, now, i);
    cluster_leave(c, now, i);
    cluster_reschedule(c, i);
}

/* Passes and transfers between workers up to now, in order. */
static void advance_workers(struct cluster *c, int64_t now)
{
    while (!c->opt.lazy && c->n_heap && c->workers[c->heap[0]].next_ps <= now) {
        uint32_t w = c->heap[0];
        advance_worker(c, w, c->workers[w].next_ps);
    }
}

/* Reads and writes of the shared store that are complete by now. */
static void advance_shared(struct cluster *c, int64_t now)
{
    struct shared_tier_done done;
    while (shared_tier_pop(c->shared, now, &done)) {
        uint32_t w = done.client / ENGINE_MAX_DP;
        dp_shared_done(&c->workers[w].group, now, done.client % ENGINE_MAX_DP, &done);
        cluster_reschedule(c, w);
    }
}

void cluster_advance(struct cluster *c, int64_t until)
{
    while (c->shared && shared_tier_next_ps(c->shared) <= until) {
        int64_t t = shared_tier_next_ps(c->shared);
        advance_workers(c, t);
        advance_shared(c, t);
    }
    advance_workers(c, until);
    transfer_expire(c, until);
    while (c->next_fault < c->n_faults && c->faults[c->next_fault].at_ps <= until)
        apply_fault(c, &c->faults[c->next_fault++]);
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* In the order of their numbers, not in that in which they were touched: this depends on whether a worker that decodes
 * has a boundary at this instant or is in the middle of passes taken together, and transfers that begin now go by it. */
void cluster_start(struct cluster *c, int64_t now)
{
    for (uint32_t i = 0, sorted = 0; i < c->n_touched; i++) { /* which may grow on the way */
        if (i == sorted) {
            qsort(&c->touched[i], c->n_touched - i, sizeof *c->touched, by_number);
            sorted = c->n_touched;
        }
        uint32_t w = c->touched[i];
        c->workers[w].touched = false;
        if (worker_runs(&c->workers[w])) {
            dp_start(&c->workers[w].group, now, PS_NEVER);
            tell_changes(c, now, w);
            transfer_collect(c, w); /* blocks that were reserved */
        }
        cluster_reschedule(c, w);
    }
    c->n_touched = 0;
}

void cluster_drain(struct cluster *c)
{
    for (uint32_t i = 0; c->opt.lazy && i < c->n_workers; i++) {
        transfer_unbox(c, i);
        dp_run(&c->workers[i].group, PS_NEVER);
        transfer_collect(c, i);
    }
}

void cluster_wake(struct cluster *c, int64_t now)
{
    if (!c->opt.lazy)
        return;
    transfer_unbox_all(c);
    c->opt.lazy = false;
    for (uint32_t i = 0; i < c->n_workers; i++) {
        if (worker_runs(&c->workers[i]))
            dp_run(&c->workers[i].group, now);
        transfer_collect(c, i);
        cluster_touch(c, i);
    }
}

/* ---- looking in */

bool cluster_out_of_time(const struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_workers; i++) {
        for (uint32_t k = 0; k < c->workers[i].group.n; k++) {
            if (engine_out_of_time(c->workers[i].group.ranks[k]))
                return true;
        }
    }
    return false;
}

const struct engine *cluster_engine(const struct cluster *c, uint32_t worker)
{
    return c->workers[worker].group.ranks[0];
}

const struct dp_group *cluster_group(const struct cluster *c, uint32_t worker)
{
    return &c->workers[worker].group;
}

const struct shared_tier *cluster_shared(const struct cluster *c)
{
    return c->shared;
}

bool cluster_worker_up(const struct cluster *c, uint32_t worker)
{
    return worker_takes(&c->workers[worker]);
}

int64_t cluster_worker_held_ps(const struct cluster *c, uint32_t worker, int64_t now)
{
    const struct worker *w = &c->workers[worker];
    return w->held_total_ps + (w->state == WORKER_DOWN ? 0 : now - w->held_since_ps);
}
