/* transfer.c - where each request is, and how its KV gets from a prefill to a decode worker; see cluster.h.
 *
 *   source first        prefill ... done, KV held | decode worker: queue, blocks | transfer ... | decode
 *   destination first   decode worker: queue, blocks | prefill ... done | transfer ... | decode
 */
#include <assert.h>
#include <string.h>

#include "predictor/cluster_internal.h"
#include "predictor/mem.h"

static struct leg *leg_of(struct cluster *c, uint32_t handle)
{
    if (handle >= c->legs_cap) {
        uint32_t old = c->legs_cap;
        MEM_GROW(c->legs, c->legs_cap, handle + 1);
        memset(&c->legs[old], 0, (c->legs_cap - old) * sizeof *c->legs);
    }
    return &c->legs[handle];
}

static struct dp_group *group_of(struct cluster *c, uint32_t worker)
{
    return &c->workers[worker].group;
}

static bool fits(const struct cluster *c, uint32_t worker, const struct request_spec *s)
{
    return engine_fits(c->workers[worker].group.ranks[0], s);
}

/* ---- leases */

static bool lease_holds(const struct cluster *c, const struct lease *l)
{
    const struct leg *leg = &c->legs[l->handle];
    return leg->live && leg->held && leg->lease_ps == l->at_ps;
}

/* Drops what need not be watched any more from the front of the queue. */
static void lease_trim(struct cluster *c)
{
    while (c->n_leases && !lease_holds(c, &c->leases[c->leases_first])) {
        c->leases_first = (c->leases_first + 1) % c->leases_cap;
        c->n_leases--;
    }
}

static void lease_begin(struct cluster *c, int64_t at, uint32_t handle)
{
    if (c->opt.kv_lease_ps == PS_NEVER)
        return;
    if (c->n_leases == c->leases_cap) { /* make the ring start at 0, then grow */
        struct lease *to = malloc(2 * (c->leases_cap + 8) * sizeof *to);
        if (!to)
            abort();
        for (uint32_t i = 0; i < c->n_leases; i++)
            to[i] = c->leases[(c->leases_first + i) % c->leases_cap];
        free(c->leases);
        c->leases = to;
        c->leases_first = 0;
        c->leases_cap = 2 * (c->leases_cap + 8);
    }
    c->legs[handle].lease_ps = at + c->opt.kv_lease_ps;
    c->leases[(c->leases_first + c->n_leases++) % c->leases_cap] =
        (struct lease){c->legs[handle].lease_ps, handle};
    lease_trim(c);
}

int64_t transfer_lease_next(const struct cluster *c)
{
    return c->n_leases ? c->leases[c->leases_first].at_ps : PS_NEVER;
}

/* ---- ends */

/* The request leaves every worker but `dead`, which has forgotten it already. */
static void withdraw(struct cluster *c, int64_t now, struct leg *leg, uint32_t dead)
{
    uint32_t from = leg->worker, to = leg->to;
    bool at_to = leg->reserving || leg->reserved;
    if (leg->moving)
        fair_share_cancel(&c->workers[from].uplink, now, leg->transfer);
    if (leg->there && from != dead) {
        dp_abort(group_of(c, from), now, leg->rank, leg->slot);
        cluster_touch(c, from);
    }
    if (at_to && to != dead) {
        dp_abort(group_of(c, to), now, leg->to_rank, leg->to_slot);
        cluster_touch(c, to);
        cluster_reschedule(c, to);
    }
    if (leg->reserving && !leg->there)
        c->workers[from].n_inbound--;
    leg->live = leg->there = leg->held = leg->moving = leg->reserving = leg->reserved = false;
    lease_trim(c);
    cluster_reschedule(c, from);
    if (from != dead)
        cluster_leave(c, now, from);
    if (at_to && to != dead)
        cluster_leave(c, now, to);
}

void transfer_lost(struct cluster *c, int64_t now, uint32_t dead, uint32_t handle)
{
    struct leg *leg = &c->legs[handle];
    withdraw(c, now, leg, dead);
    cluster_event_new(c, CLUSTER_EV_LOST, now, dead, handle)->partial = leg->tokens_out;
}

void transfer_worker_down(struct cluster *c, int64_t now, uint32_t dead)
{
    for (uint32_t h = 0; h < c->legs_cap; h++) {
        struct leg *leg = &c->legs[h];
        if (leg->live && leg->worker == dead && !leg->there) /* its blocks are being reserved */
            transfer_lost(c, now, dead, h);
    }
}

void cluster_cancel(struct cluster *c, int64_t now, uint32_t handle)
{
    struct leg *leg = leg_of(c, handle);
    if (leg->live && c->opt.lazy) { /* perhaps it has been over for long */
        transfer_unbox(c, leg->worker);
        dp_run(&c->workers[leg->worker].group, now);
        transfer_collect(c, leg->worker);
    }
    if (leg->live)
        withdraw(c, now, leg, UINT32_MAX);
}

void transfer_expire(struct cluster *c, int64_t now)
{
    while (c->n_leases && c->leases[c->leases_first].at_ps <= now) {
        uint32_t handle = c->leases[c->leases_first].handle;
        struct leg *leg = &c->legs[handle];
        uint32_t from = leg->worker;
        withdraw(c, now, leg, UINT32_MAX);
        cluster_event_new(c, CLUSTER_EV_LOST, now, from, handle);
    }
}

/* ---- on the way */

static int submit(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
                  uint32_t handle, bool prefill_only)
{
    struct dp_group *g = group_of(c, worker);
    uint32_t rank = dp_choose(g), slot;
    int rc = dp_submit(g, now, rank, s, handle, prefill_only ? ENGINE_PREFILL_ONLY : 0, &slot);
    if (!rc)
        c->legs[handle] = (struct leg){.worker = worker,
                                       .rank = rank,
                                       .slot = slot,
                                       .live = true,
                                       .there = true,
                                       .lease_ps = PS_NEVER};
    return rc;
}

/* ---- lazy mode: requests wait until there are several for a worker */

void transfer_unbox(struct cluster *c, uint32_t w)
{
    struct worker *k = &c->workers[w];
    uint32_t handle = k->first_boxed, n = k->n_boxed;
    c->n_boxed -= n;
    for (k->n_boxed = 0; n; n--) {
        struct leg leg = c->legs[handle];
        dp_run(&k->group, leg.at_ps);
        int rc = submit(c, leg.at_ps, w, &leg.spec, handle, leg.prefill_only);
        assert(!rc); /* box() has looked */
        (void)rc;
        handle = leg.next_boxed;
    }
    transfer_collect(c, w);
}

void transfer_unbox_all(struct cluster *c)
{
    for (uint32_t w = 0; c->n_boxed && w < c->n_workers; w++) {
        if (c->workers[w].n_boxed)
            transfer_unbox(c, w);
    }
}

static int box(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
               uint32_t handle, bool prefill_only)
{
    struct worker *k = &c->workers[worker];
    if (!s->prompt_tok || !s->output_tok)
        return WEIR_E_INVALID;
    if (!fits(c, worker, s))
        return WEIR_E_TOO_LARGE;
    c->legs[handle] = (struct leg){.worker = worker,
                                   .live = true,
                                   .boxed = true,
                                   .prefill_only = prefill_only,
                                   .lease_ps = PS_NEVER,
                                   .at_ps = now,
                                   .spec = *s};
    *(k->n_boxed ? &c->legs[k->last_boxed].next_boxed : &k->first_boxed) = handle;
    k->last_boxed = handle;
    c->n_boxed++;
    if (++k->n_boxed == CLUSTER_LAZY)
        transfer_unbox(c, worker);
    if (c->n_boxed == CLUSTER_LAZY_ALL + c->n_workers)
        transfer_unbox_all(c);
    return 0;
}

int cluster_submit(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
                   uint32_t handle, bool prefill_only)
{
    if (worker >= c->n_workers || !worker_takes(&c->workers[worker]))
        return WEIR_E_STATE;
    (void)leg_of(c, handle);
    if (c->opt.lazy)
        return box(c, now, worker, s, handle, prefill_only);
    int rc = submit(c, now, worker, s, handle, prefill_only);
    if (!rc)
        cluster_touch(c, worker);
    return rc;
}

int cluster_submit_pair(struct cluster *c, int64_t now, uint32_t worker, uint32_t decode,
                        const struct request_spec *s, uint32_t handle)
{
    if (worker >= c->n_workers || !worker_takes(&c->workers[worker]) || decode >= c->n_workers ||
        !worker_takes(&c->workers[decode]))
        return WEIR_E_STATE;
    if (!fits(c, worker, s))
        return WEIR_E_TOO_LARGE;
    struct leg *leg = leg_of(c, handle);
    struct dp_group *g = group_of(c, decode);
    uint32_t rank = dp_choose(g), slot;
    int rc = dp_submit(g, now, rank, s, handle, ENGINE_REMOTE_KV | ENGINE_RESERVE, &slot);
    if (rc)
        return rc;
    *leg = (struct leg){.worker = worker,
                        .to = decode,
                        .to_rank = rank,
                        .to_slot = slot,
                        .live = true,
                        .reserving = true,
                        .lease_ps = PS_NEVER,
                        .spec = *s};
    c->workers[worker].n_inbound++;
    cluster_touch(c, decode);
    return 0;
}

/* Tokens to move. */
static uint64_t missing_tok(const struct cluster *c, const struct leg *leg)
{
    uint32_t tok = leg->spec.prompt_tok;
    if (c->opt.transfer == TRANSFER_FULL_PROMPT)
        return tok;
    return tok - (leg->cached_tok < tok ? leg->cached_tok : tok);
}

static void begin_transfer(struct cluster *c, int64_t now, uint32_t handle)
{
    struct leg *leg = &c->legs[handle];
    struct worker *src = &c->workers[leg->worker];
    uint64_t bytes = missing_tok(c, leg) * src->config.engine.kv_bytes_per_token;
    leg->transfer = fair_share_add(&src->uplink, now, bytes, handle);
    leg->moving = true;
    cluster_reschedule(c, leg->worker);
}

/* The decode worker has blocks for it: its KV can be moved or, destination first, its prefill can begin. */
static void reserved(struct cluster *c, int64_t now, uint32_t handle, uint32_t cached_tok)
{
    struct leg *leg = &c->legs[handle];
    assert(leg->reserving);
    leg->reserving = false;
    leg->reserved = true;
    leg->cached_tok = cached_tok;
    if (leg->there) {
        begin_transfer(c, now, handle);
        return;
    }
    c->workers[leg->worker].n_inbound--;
    struct dp_group *g = group_of(c, leg->worker);
    leg->rank = dp_choose(g);
    int rc = dp_submit(g, now, leg->rank, &leg->spec, handle, ENGINE_PREFILL_ONLY, &leg->slot);
    if (rc) { /* not for its size, and it would be lost had the worker died */
        transfer_lost(c, now, leg->worker, handle);
        return;
    }
    leg->there = true;
    cluster_touch(c, leg->worker);
}

/* Blocks that were reserved on another worker are given back. */
static void give_back(struct cluster *c, int64_t now, struct leg *leg)
{
    dp_abort(group_of(c, leg->to), now, leg->to_rank, leg->to_slot);
    cluster_touch(c, leg->to);
    leg->reserved = false;
    cluster_leave(c, now, leg->to);
}

int cluster_handoff(struct cluster *c, int64_t now, uint32_t worker, const struct request_spec *s,
                    uint32_t handle)
{
    struct leg *leg = leg_of(c, handle);
    if (!leg->live || !leg->held || leg->moving || leg->reserving || worker >= c->n_workers)
        return WEIR_E_STATE;
    bool mine = leg->reserved && leg->to == worker;
    if (!(mine ? worker_runs(&c->workers[worker]) : worker_takes(&c->workers[worker])))
        return WEIR_E_STATE;
    if (!fits(c, worker, s))
        return WEIR_E_TOO_LARGE;
    leg->spec = *s;
    if (mine) {
        begin_transfer(c, now, handle);
        return 0;
    }
    if (leg->reserved) /* another one was chosen in the end */
        give_back(c, now, leg);
    struct dp_group *g = group_of(c, worker);
    uint32_t rank = dp_choose(g), slot;
    int rc = dp_submit(g, now, rank, s, handle, ENGINE_REMOTE_KV | ENGINE_RESERVE, &slot);
    if (rc)
        return rc;
    leg->to = worker;
    leg->to_rank = rank;
    leg->to_slot = slot;
    leg->reserving = true;
    cluster_touch(c, worker);
    return 0;
}

/* The KV is at the decode worker. */
static void arrive(struct cluster *c, int64_t now, uint32_t handle)
{
    struct leg *leg = &c->legs[handle];
    uint32_t from = leg->worker, to = leg->to;
    dp_release(group_of(c, from), now, leg->rank, leg->slot);
    cluster_touch(c, from);
    dp_arrived(group_of(c, to), now, leg->to_rank, leg->to_slot);
    cluster_touch(c, to);
    *leg = (struct leg){.worker = to,
                        .rank = leg->to_rank,
                        .slot = leg->to_slot,
                        .live = true,
                        .there = true,
                        .lease_ps = PS_NEVER};
    lease_trim(c);
    cluster_leave(c, now, from);
}

void transfer_arrivals(struct cluster *c, int64_t now, uint32_t w)
{
    uint32_t handle;
    while (c->workers[w].has_uplink && fair_share_pop(&c->workers[w].uplink, now, &handle))
        arrive(c, now, handle);
}

static void collect_one(struct cluster *c, uint32_t w, const struct engine_event *in)
{
    struct leg *leg = &c->legs[in->handle];
    enum cluster_event_kind kind = CLUSTER_EV_DONE;
    switch (in->kind) {
    case ENGINE_EV_RESERVED: reserved(c, in->at_ps, in->handle, in->record.reused_tok); return;
    case ENGINE_EV_FIRST_TOKEN:
        kind = CLUSTER_EV_FIRST_TOKEN;
        leg->tokens_out = true;
        break;
    case ENGINE_EV_PREFILL_DONE:
        kind = CLUSTER_EV_PREFILL_DONE;
        leg->held = true;
        lease_begin(c, in->at_ps, in->handle);
        break;
    case ENGINE_EV_DONE: leg->live = leg->there = false; break;
    }
    cluster_event_new(c, kind, in->at_ps, w, in->handle)->record = in->record;
}

void transfer_collect(struct cluster *c, uint32_t w)
{
    const struct dp_group *g = group_of(c, w);
    for (uint32_t r = 0; r < g->n; r++) {
        uint32_t n;
        const struct engine_event *in = engine_events(g->ranks[r], &n);
        for (uint32_t i = 0; i < n; i++)
            collect_one(c, w, &in[i]);
        engine_clear_events(g->ranks[r]);
    }
}
