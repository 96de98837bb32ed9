/* cluster.c - see cluster.h. */
#include "predictor/cluster.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/fair_share.h"
#include "predictor/mem.h"
#include "predictor/rng.h"

#define NO_WORKER UINT32_MAX

enum worker_state { WORKER_DOWN, WORKER_STARTING, WORKER_UP };

struct worker {
    struct engine *engine;
    struct worker_config config;
    enum worker_state state;
    int64_t ready_ps; /* STARTING: when it will be up */
    int64_t up_since_ps, up_total_ps;
    struct fair_share uplink; /* KV leaves through it; only workers that prefill have one */
    bool has_uplink, touched;
    int64_t next_ps; /* key in the heap */
    uint32_t heap_pos;
};

/* Where a request is. */
struct leg {
    uint32_t worker, slot; /* of the engine that works on it now, or holds its KV */
    uint32_t to;           /* decode worker, while KV is on its way */
    uint32_t transfer;     /* in worker's uplink */
    bool live, moving, held, tokens_out;
    int64_t lease_ps;
    struct request_spec spec; /* while moving */
};

struct cluster {
    struct cluster_options opt;
    struct worker *workers;
    uint32_t n_workers;
    uint32_t *heap, n_heap; /* workers by next_ps, then number */
    struct leg *legs;
    uint32_t legs_cap;
    uint32_t *touched, n_touched;
    struct fault *faults;
    uint32_t n_faults, next_fault;
    uint32_t n_held; /* legs whose lease may run out */

    struct cluster_event *events;
    uint32_t events_head, n_events, events_cap;
};

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
    int64_t t = w->state == WORKER_STARTING ? w->ready_ps : engine_next_ps(w->engine);
    if (w->has_uplink) {
        int64_t u = fair_share_next_ps(&w->uplink);
        t = u < t ? u : t;
    }
    return t;
}

static void reschedule(struct cluster *c, uint32_t w)
{
    if (c->opt.lazy)
        return;
    c->workers[w].next_ps = worker_next(&c->workers[w]);
    heap_fix(c, w);
}

static void touch(struct cluster *c, uint32_t w)
{
    if (c->workers[w].touched || c->opt.lazy)
        return;
    c->workers[w].touched = true;
    c->touched[c->n_touched++] = w;
}

/* ---- life */

static int init_worker(struct cluster *c, uint32_t i, const struct worker_config *wc)
{
    struct worker *w = &c->workers[i];
    w->config = *wc;
    w->engine = engine_new(&wc->engine, rng_mix64(c->opt.seed + i));
    if (!w->engine)
        return WEIR_E_NOMEM;
    engine_set_itl(w->engine, c->opt.itl);
    engine_set_stepping(w->engine, c->opt.stepping);
    engine_want_first_tokens(w->engine, c->opt.first_tokens);
    engine_log_cache(w->engine, c->opt.on_cache != NULL);
    w->state = wc->starts_up ? WORKER_UP : WORKER_DOWN;
    w->next_ps = PS_NEVER;
    heap_set(c, i, i);
    c->n_heap++;
    if (wc->engine.role != ROLE_PREFILL)
        return 0;
    w->has_uplink = true;
    return fair_share_init(&w->uplink, c->opt.link.bandwidth_gb_s,
                           ps_from_ms(c->opt.link.latency_ms));
}

struct cluster *cluster_new(const struct worker_config *workers, uint32_t n,
                            const struct cluster_options *opt)
{
    struct cluster *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->opt = *opt;
    c->workers = calloc(n ? n : 1, sizeof *c->workers);
    c->heap = calloc(n ? n : 1, sizeof *c->heap);
    c->touched = calloc(n ? n : 1, sizeof *c->touched);
    if (!c->workers || !c->heap || !c->touched)
        goto fail;
    for (; c->n_workers < n; c->n_workers++) {
        if (init_worker(c, c->n_workers, &workers[c->n_workers])) {
            c->n_workers++; /* half made: freed like the others */
            goto fail;
        }
    }
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
        engine_free(c->workers[i].engine);
        if (c->workers[i].has_uplink)
            fair_share_deinit(&c->workers[i].uplink);
    }
    free(c->workers);
    free(c->heap);
    free(c->touched);
    free(c->legs);
    free(c->faults);
    free(c->events);
    free(c);
}

int cluster_add_faults(struct cluster *c, const struct fault *faults, uint32_t n)
{
    if (!n)
        return 0;
    struct fault *p = malloc(n * sizeof *p);
    if (!p)
        return WEIR_E_NOMEM;
    memcpy(p, faults, n * sizeof *p);
    free(c->faults);
    c->faults = p;
    c->n_faults = n;
    c->next_fault = 0;
    return 0;
}

/* ---- events out */

static struct cluster_event *event_new(struct cluster *c, enum cluster_event_kind kind, int64_t at,
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

static struct leg *leg_of(struct cluster *c, uint32_t handle)
{
    if (handle >= c->legs_cap) {
        uint32_t old = c->legs_cap;
        MEM_GROW(c->legs, c->legs_cap, handle + 1);
        memset(&c->legs[old], 0, (c->legs_cap - old) * sizeof *c->legs);
    }
    return &c->legs[handle];
}

/* Moves an engine's events out. */
static void collect(struct cluster *c, uint32_t w)
{
    struct engine *e = c->workers[w].engine;
    uint32_t n;
    const struct engine_event *in = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++) {
        struct leg *leg = &c->legs[in[i].handle];
        enum cluster_event_kind kind = CLUSTER_EV_DONE;
        if (in[i].kind == ENGINE_EV_FIRST_TOKEN) {
            kind = CLUSTER_EV_FIRST_TOKEN;
            leg->tokens_out = true;
        } else if (in[i].kind == ENGINE_EV_PREFILL_DONE) {
            kind = CLUSTER_EV_PREFILL_DONE;
            leg->held = true;
            if (c->opt.kv_lease_ps != PS_NEVER) {
                leg->lease_ps = in[i].at_ps + c->opt.kv_lease_ps;
                c->n_held++;
            }
        } else {
            leg->live = false;
        }
        event_new(c, kind, in[i].at_ps, w, in[i].handle)->record = in[i].record;
    }
    engine_clear_events(e);
}

/* ---- requests */

int cluster_submit(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
                   uint32_t handle, bool prefill_only)
{
    struct worker *w = &c->workers[worker];
    if (worker >= c->n_workers || w->state != WORKER_UP)
        return WEIR_E_STATE;
    struct leg *leg = leg_of(c, handle);
    if (c->opt.lazy) {
        engine_run(w->engine, now);
        collect(c, worker);
    }
    uint32_t slot;
    int rc =
        engine_submit(w->engine, now, s, handle, prefill_only ? ENGINE_PREFILL_ONLY : 0, &slot);
    if (rc)
        return rc;
    *leg = (struct leg){.worker = worker, .slot = slot, .live = true};
    touch(c, worker);
    return 0;
}

/* The source's KV is free again. */
static void release_source(struct cluster *c, int64_t now, struct leg *leg)
{
    if (leg->held && c->opt.kv_lease_ps != PS_NEVER)
        c->n_held--;
    leg->held = false;
    engine_release(c->workers[leg->worker].engine, now, leg->slot);
    touch(c, leg->worker);
}

static int enter_decode(struct cluster *c, int64_t now, uint32_t handle, uint32_t worker,
                        const struct request_spec *s)
{
    struct leg *leg = &c->legs[handle];
    uint32_t slot;
    if (c->workers[worker].state != WORKER_UP)
        return WEIR_E_STATE;
    int rc = engine_submit(c->workers[worker].engine, now, s, handle, ENGINE_REMOTE_KV, &slot);
    if (rc)
        return rc;
    *leg = (struct leg){.worker = worker, .slot = slot, .live = true};
    touch(c, worker);
    return 0;
}

int cluster_handoff(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
                    uint32_t handle)
{
    struct leg *leg = leg_of(c, handle);
    if (!leg->live || !leg->held || worker >= c->n_workers || c->workers[worker].state != WORKER_UP)
        return WEIR_E_STATE;
    if (!engine_fits(c->workers[worker].engine, s))
        return WEIR_E_TOO_LARGE;
    struct worker *src = &c->workers[leg->worker];
    uint64_t tok = s->prompt_tok;
    if (c->opt.transfer == TRANSFER_DESTINATION_MISSING)
        tok -= engine_cached_tok(c->workers[worker].engine, s);
    leg->moving = true;
    leg->to = worker;
    leg->spec = *s;
    leg->transfer =
        fair_share_add(&src->uplink, now, tok * src->config.engine.kv_bytes_per_token, handle);
    reschedule(c, leg->worker);
    return 0;
}

/* A transfer out of worker w is complete. */
static void arrive(struct cluster *c, int64_t now, uint32_t handle)
{
    struct leg *leg = &c->legs[handle];
    struct request_spec spec = leg->spec;
    uint32_t to = leg->to, from = leg->worker;
    release_source(c, now, leg);
    if (enter_decode(c, now, handle, to, &spec)) {
        leg->live = false;
        event_new(c, CLUSTER_EV_LOST, now, from, handle);
    }
}

static void lose(struct cluster *c, int64_t now, uint32_t worker, uint32_t handle)
{
    struct leg *leg = &c->legs[handle];
    leg->live = false;
    event_new(c, CLUSTER_EV_LOST, now, worker, handle)->partial = leg->tokens_out;
}

void cluster_cancel(struct cluster *c, int64_t now, uint32_t handle)
{
    struct leg *leg = leg_of(c, handle);
    if (!leg->live)
        return;
    struct worker *w = &c->workers[leg->worker];
    leg->live = false;
    if (leg->moving)
        fair_share_cancel(&w->uplink, now, leg->transfer);
    if (leg->held) {
        release_source(c, now, leg);
    } else {
        engine_abort(w->engine, now, leg->slot);
        touch(c, leg->worker);
    }
    reschedule(c, leg->worker);
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
    struct leg *leg = &k->c->legs[handle];
    if (leg->moving)
        fair_share_cancel(&k->c->workers[k->worker].uplink, k->now, leg->transfer);
    if (leg->held && k->c->opt.kv_lease_ps != PS_NEVER)
        k->c->n_held--;
    lose(k->c, k->now, k->worker, handle);
}

static void take_down(struct cluster *c, int64_t now, uint32_t i)
{
    struct worker *w = &c->workers[i];
    if (w->state == WORKER_DOWN)
        return;
    if (w->state == WORKER_UP)
        w->up_total_ps += now - w->up_since_ps;
    w->state = WORKER_DOWN;
    event_new(c, CLUSTER_EV_WORKER_DOWN, now, i, 0);
    engine_kill(w->engine, now, killed, &(struct kill_ctx){c, now, i});
    /* KV on its way to this worker has nowhere to go: it arrives, and is lost then (arrive) */
    reschedule(c, i);
}

static void fault_one(struct cluster *c, const struct fault *f, uint32_t i)
{
    struct worker *w = &c->workers[i];
    switch (f->kind) {
    case FAULT_DOWN: take_down(c, f->at_ps, i); break;
    case FAULT_UP:
        if (w->state != WORKER_DOWN)
            break;
        w->state = WORKER_STARTING;
        w->ready_ps = f->at_ps + w->config.startup_ps;
        reschedule(c, i);
        break;
    case FAULT_SLOW: engine_set_slow(w->engine, f->factor); break;
    case FAULT_DRAIN: event_new(c, CLUSTER_EV_WORKER_DRAIN, f->at_ps, i, 0); break;
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

static int64_t lease_next(const struct cluster *c)
{
    int64_t t = PS_NEVER;
    for (uint32_t i = 0; c->n_held && i < c->legs_cap; i++) {
        if (c->legs[i].live && c->legs[i].held && c->legs[i].lease_ps < t)
            t = c->legs[i].lease_ps;
    }
    return t;
}

static void lease_expire(struct cluster *c, int64_t now)
{
    for (uint32_t i = 0; c->n_held && i < c->legs_cap; i++) {
        struct leg *leg = &c->legs[i];
        if (!leg->live || !leg->held || leg->lease_ps > now)
            continue;
        uint32_t from = leg->worker;
        if (leg->moving)
            fair_share_cancel(&c->workers[from].uplink, now, leg->transfer);
        release_source(c, now, leg);
        lose(c, now, from, i);
        reschedule(c, from);
    }
}

int64_t cluster_next_ps(const struct cluster *c)
{
    int64_t t = c->n_heap && !c->opt.lazy ? c->workers[c->heap[0]].next_ps : PS_NEVER;
    if (c->next_fault < c->n_faults && c->faults[c->next_fault].at_ps < t)
        t = c->faults[c->next_fault].at_ps;
    int64_t l = lease_next(c);
    return l < t ? l : t;
}

static void advance_worker(struct cluster *c, uint32_t i, int64_t now)
{
    struct worker *w = &c->workers[i];
    uint32_t handle;
    if (w->state == WORKER_STARTING && w->ready_ps <= now) {
        w->state = WORKER_UP;
        w->up_since_ps = now;
        event_new(c, CLUSTER_EV_WORKER_UP, now, i, 0);
    }
    if (w->state == WORKER_UP) {
        engine_run(w->engine, now);
        collect(c, i);
        touch(c, i);
    }
    while (w->has_uplink && fair_share_pop(&w->uplink, now, &handle))
        arrive(c, now, handle);
    reschedule(c, i);
}

void cluster_advance(struct cluster *c, int64_t until)
{
    while (!c->opt.lazy && c->n_heap && c->workers[c->heap[0]].next_ps <= until) {
        uint32_t w = c->heap[0];
        advance_worker(c, w, c->workers[w].next_ps);
    }
    if (c->n_held)
        lease_expire(c, until);
    while (c->next_fault < c->n_faults && c->faults[c->next_fault].at_ps <= until)
        apply_fault(c, &c->faults[c->next_fault++]);
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

/* Changes that the last pass left behind happened now, those of the pass that begins happen at its end. */
static void start_logged(struct cluster *c, uint32_t w, int64_t now)
{
    struct engine *e = c->workers[w].engine;
    engine_drain_cache_log(e, cache_change, &(struct cache_ctx){c, w, now});
    engine_start(e, now, PS_NEVER);
    int64_t end = engine_next_ps(e);
    engine_drain_cache_log(e, cache_change, &(struct cache_ctx){c, w, end == PS_NEVER ? now : end});
}

void cluster_start(struct cluster *c, int64_t now)
{
    for (uint32_t i = 0; i < c->n_touched; i++) {
        uint32_t w = c->touched[i];
        c->workers[w].touched = false;
        if (c->workers[w].state == WORKER_UP && c->opt.on_cache)
            start_logged(c, w, now);
        else if (c->workers[w].state == WORKER_UP)
            engine_start(c->workers[w].engine, now, PS_NEVER);
        reschedule(c, w);
    }
    c->n_touched = 0;
}

void cluster_drain(struct cluster *c)
{
    for (uint32_t i = 0; c->opt.lazy && i < c->n_workers; i++) {
        engine_run(c->workers[i].engine, PS_NEVER);
        collect(c, i);
    }
}

void cluster_wake(struct cluster *c, int64_t now)
{
    if (!c->opt.lazy)
        return;
    c->opt.lazy = false;
    for (uint32_t i = 0; i < c->n_workers; i++) {
        if (c->workers[i].state == WORKER_UP)
            engine_run(c->workers[i].engine, now);
        collect(c, i);
        touch(c, i);
    }
}

/* ---- looking in */

const struct engine *cluster_engine(const struct cluster *c, uint32_t worker)
{
    return c->workers[worker].engine;
}

bool cluster_worker_up(const struct cluster *c, uint32_t worker)
{
    return c->workers[worker].state == WORKER_UP;
}

int64_t cluster_worker_up_ps(const struct cluster *c, uint32_t worker, int64_t now)
{
    const struct worker *w = &c->workers[worker];
    return w->up_total_ps + (w->state == WORKER_UP ? now - w->up_since_ps : 0);
}
