/* prop_cluster.c - random fleets, what a caller sees of them:
 *
 *   lazy is eager       workers that run only when something is sent to them, or from some moment on are woken,
 *                       give the same records
 *   caches are told     what on_cache told, replayed, is what each worker has cached; stepped or not, the
 *                       same changes at the same times
 *   faults              by worker and by domain: who is up, who holds GPUs and since when, as a plain model
 *                       says it; whoever was in the domain loses all, nobody else loses anything
 *   links               bytes in are bytes out: no transfer is faster than its link, and a link that is never
 *                       idle moves its bandwidth, to the picosecond
 *   same seed           same bytes
 *
 * That passes taken together are single passes, in clusters with all their parts, is in prop_tier.c.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/cluster_internal.h"
#include "predictor/engine_internal.h"
#include "tests/support/kv_view.h"
#include "tests/support/prop.h"

#define MAX_WORKERS 6u
#define N_REQUESTS 60u
#define MAX_KEYS 64u
#define MAX_FAULTS 10u
#define MAX_TRIES 4u
#define MAX_LOG 2048u
#define MAX_CHANGES 20000u
#define MAX_BLOCKS 2048u
#define CASES 200u

struct fleet {
    struct worker_config workers[MAX_WORKERS];
    struct cluster_options options;
    struct fault faults[MAX_FAULTS];
    uint32_t n_workers, n_prefill, n_faults; /* workers before n_prefill prefill; 0: all do all */
    struct request_spec spec[N_REQUESTS];
    uint64_t keys[N_REQUESTS][MAX_KEYS];
    int64_t cancel_ps[N_REQUESTS]; /* PS_NEVER: not */
};

static uint32_t pick(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

static bool one_in(struct rng *r, uint32_t n)
{
    return rng_below(r, n) == 0;
}

/* ---- a random fleet */

static void random_worker(struct rng *r, struct worker_config *w, uint32_t i)
{
    static const struct step_params steps[] = {
        {.form = STEP_LINEAR, .w_ms = 6, .d0_ms_per_req = 0.03, .k_ms_per_tok = 2e-4},
        {.form = STEP_FIXED, .fixed_prefill_ms = 12, .fixed_decode_ms = 4},
        {.form = STEP_POLYNOMIAL, .pb = 0.015, .pc = 3, .da = -25.7, .db = 54, .dc = 5.7},
    };
    struct engine_config *c = &w->engine;
    const char *why = NULL;
    engine_config_default(c, (enum sched_kind)pick(r, 0, 2));
    assert_int_equal(step_model_init(&c->step, &steps[pick(r, 0, 2)], &why), 0);
    c->block_size = 1u << pick(r, 2, 5);
    c->num_gpu_blocks = pick(r, 300, 3000) / c->block_size + 2;
    c->max_num_seqs = pick(r, 1, 12);
    c->max_num_batched_tokens = pick(r, 64, 1024);
    c->kv_bytes_per_token = pick(r, 1000, 200000);
    c->eviction = one_in(r, 3) ? EVICT_LFU : EVICT_LRU;
    c->async_scheduling = c->scheduler == SCHED_VLLM && one_in(r, 3);
    w->starts_up = !one_in(r, 8);
    w->startup_ps = pick(r, 0, 3) * 100 * PS_PER_MS;
    w->gpus = 1;
    snprintf(w->domain, sizeof w->domain, "rack%u/node%u", i / 4, i / 2);
}

static void random_requests(struct rng *r, struct fleet *f, int64_t span)
{
    int64_t at = 0;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct request_spec *s = &f->spec[i];
        uint64_t family = pick(r, 1, 4);
        uint32_t same = pick(r, 0, 12), key_tok = 16;
        at += (int64_t)rng_below(r, (uint64_t)span / N_REQUESTS * 2);
        if (one_in(r,
                   3)) /* now and then at the very moment when a pass of whole milliseconds ends */
            at = at / (4 * PS_PER_MS) * (4 * PS_PER_MS);
        *s = (struct request_spec){.uid = i + 1,
                                   .prompt_tok = pick(r, 1, 300),
                                   .output_tok = pick(r, 1, one_in(r, 5) ? 120 : 25),
                                   .arrival_ps = at,
                                   .keys = f->keys[i],
                                   .key_tok = key_tok};
        s->max_tokens = s->output_tok;
        s->n_keys = (s->prompt_tok + key_tok - 1) / key_tok;
        for (uint32_t k = 0; k < s->n_keys; k++)
            f->keys[i][k] = request_chain_key(k ? f->keys[i][k - 1] : 0,
                                              (k < same ? family : i + 10) * 999 + k);
        f->cancel_ps[i] =
            one_in(r, 8) ? at + 1 + (int64_t)rng_below(r, 2000) * PS_PER_MS : PS_NEVER;
    }
}

static int by_time(const void *a, const void *b)
{
    const struct fault *x = a, *y = b;
    return (x->at_ps > y->at_ps) - (x->at_ps < y->at_ps);
}

static void random_faults(struct rng *r, struct fleet *f, int64_t span)
{
    f->n_faults = pick(r, 0, MAX_FAULTS);
    for (uint32_t i = 0; i < f->n_faults; i++) {
        struct fault *x = &f->faults[i];
        *x = (struct fault){.at_ps = (int64_t)rng_below(r, (uint64_t)span * 2),
                            .kind = (enum fault_kind)pick(r, 0, 3),
                            .factor = one_in(r, 2) ? 1 : 0.5 + 3 * rng_unit(r),
                            .worker = pick(r, 0, f->n_workers - 1)};
        if (!one_in(r, 2))
            continue;
        x->worker = UINT32_MAX;
        snprintf(x->domain, sizeof x->domain, one_in(r, 2) ? "rack%u" : "rack%u/node%u",
                 pick(r, 0, 1), pick(r, 0, 2));
    }
    qsort(f->faults, f->n_faults, sizeof f->faults[0], by_time);
}

static void random_fleet(struct rng *r, struct fleet *f)
{
    int64_t span = pick(r, 300, 6000) * PS_PER_MS;
    memset(f, 0, sizeof *f);
    f->n_workers = pick(r, 2, MAX_WORKERS);
    f->n_prefill = one_in(r, 2) ? pick(r, 1, f->n_workers - 1) : 0;
    for (uint32_t i = 0; i < f->n_workers; i++) {
        random_worker(r, &f->workers[i], i);
        if (f->n_prefill)
            f->workers[i].engine.role = i < f->n_prefill ? ROLE_PREFILL : ROLE_DECODE;
    }
    random_requests(r, f, span);
    random_faults(r, f, span);
    f->options = (struct cluster_options){
        .link = {.latency_ms = one_in(r, 3) ? 0 : rng_unit(r),
                 .bandwidth_gb_s = one_in(r, 4) ? 0 : 0.01 + rng_unit(r)},
        .kv_lease_ps = one_in(r, 2) ? pick(r, 1, 400) * PS_PER_MS : PS_NEVER,
        .transfer = one_in(r, 2) ? TRANSFER_FULL_PROMPT : TRANSFER_DESTINATION_MISSING,
        .seed = rng_u64(r),
        .first_tokens = one_in(r, 2),
    };
}

/* Everybody does everything, and nothing breaks: what lazy mode is for. */
static void make_calm(struct fleet *f)
{
    f->n_prefill = f->n_faults = 0;
    for (uint32_t i = 0; i < f->n_workers; i++) {
        f->workers[i].engine.role = ROLE_BOTH;
        f->workers[i].starts_up = true;
    }
}

/* ---- a caller, who routes by turns and tries again what was lost */

struct change {
    int64_t at_ps;
    uint32_t worker, depth;
    bool stored, down; /* down: the worker lost everything */
    uint64_t name;
};

/* A transfer, as an onlooker sees it. */
struct sight {
    int64_t begin_ps;
    uint64_t bytes;
    uint32_t worker;
    bool moving;
};

struct link_total { /* since the link was idle last */
    int64_t begin_ps;
    uint64_t bytes;
    uint32_t n;
    bool cancelled;
};

struct run {
    const struct fleet *f;
    struct cluster *c;
    struct hist *itl;
    int64_t now_ps;
    uint32_t next, turn, decode_turn, n_log, n_changes;
    uint8_t tries[N_REQUESTS];
    bool late; /* lazy: events come late */
    bool over[N_REQUESTS], sent[N_REQUESTS];
    struct cluster_event log[MAX_LOG];
    struct change changes[MAX_CHANGES];
    struct sight sights[N_REQUESTS];
    struct link_total links[MAX_WORKERS];
    uint64_t n_transfers, n_lost;
};

static void on_cache(void *ctx, uint32_t worker, int64_t at_ps, const struct engine_cache_change *c)
{
    struct run *p = ctx;
    assert_true(at_ps == p->now_ps);
    for (uint32_t i = 0; i < c->n_blocks; i++) {
        assert_true(p->n_changes < MAX_CHANGES);
        p->changes[p->n_changes++] = (struct change){.at_ps = at_ps,
                                                     .worker = worker,
                                                     .depth = c->depth + i,
                                                     .stored = c->stored,
                                                     .name = c->names[i]};
    }
}

static void end(struct run *p, uint32_t h)
{
    assert_false(p->over[h]); /* nothing is answered twice */
    p->over[h] = true;
}

static uint32_t turn_of(struct run *p, uint32_t *turn, uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < to - from; i++) {
        uint32_t w = from + (*turn)++ % (to - from);
        if (cluster_worker_up(p->c, w))
            return w;
    }
    return UINT32_MAX;
}

static void send(struct run *p, uint32_t h)
{
    const struct fleet *f = p->f;
    uint32_t to = turn_of(p, &p->turn, 0, f->n_prefill ? f->n_prefill : f->n_workers);
    p->sent[h] = true;
    if (to == UINT32_MAX || cluster_submit(p->c, p->now_ps, to, &f->spec[h], h, f->n_prefill > 0))
        end(p, h);
}

static void again(struct run *p, uint32_t h)
{
    if (++p->tries[h] == MAX_TRIES)
        end(p, h);
    else
        send(p, h);
}

static void hand_over(struct run *p, uint32_t h)
{
    const struct fleet *f = p->f;
    uint32_t to = turn_of(p, &p->decode_turn, f->n_prefill, f->n_workers);
    if (to != UINT32_MAX && !cluster_handoff(p->c, p->now_ps, to, &f->spec[h], h))
        return;
    cluster_cancel(p->c, p->now_ps, h);
    again(p, h);
}

static void check_done(const struct run *p, const struct cluster_event *ev)
{
    const struct request_spec *s = &p->f->spec[ev->handle];
    const struct engine_record *r = &ev->record;
    assert_int_equal(r->end_ps, ev->at_ps);
    assert_int_equal(r->output_tok, s->output_tok);
    assert_true(s->arrival_ps <= r->first_admit_ps && r->first_admit_ps < r->first_token_ps &&
                r->first_token_ps <= r->end_ps);
}

static void hear(struct run *p)
{
    struct cluster_event ev;
    while (cluster_poll(p->c, &ev)) {
        assert_true(p->n_log < MAX_LOG);
        assert_true(p->late ? ev.at_ps <= p->now_ps : ev.at_ps == p->now_ps);
        p->log[p->n_log++] = ev;
        switch (ev.kind) {
        case CLUSTER_EV_PREFILL_DONE: hand_over(p, ev.handle); break;
        case CLUSTER_EV_DONE:
            check_done(p, &ev);
            end(p, ev.handle);
            break;
        case CLUSTER_EV_LOST:
            p->n_lost++;
            again(p, ev.handle);
            break;
        case CLUSTER_EV_WORKER_DOWN:
            assert_true(p->n_changes < MAX_CHANGES);
            p->changes[p->n_changes++] =
                (struct change){.at_ps = ev.at_ps, .worker = ev.worker, .down = true};
            break;
        default: break;
        }
    }
}

static int64_t own_next(const struct run *p)
{
    int64_t t = p->next < N_REQUESTS ? p->f->spec[p->next].arrival_ps : PS_NEVER;
    for (uint32_t h = 0; h < N_REQUESTS; h++) {
        if (p->sent[h] && !p->over[h] && p->f->cancel_ps[h] < t && p->f->cancel_ps[h] >= p->now_ps)
            t = p->f->cancel_ps[h];
    }
    return t;
}

static void own_events(struct run *p)
{
    for (uint32_t h = 0; h < N_REQUESTS; h++) {
        if (p->sent[h] && !p->over[h] && p->f->cancel_ps[h] == p->now_ps) {
            cluster_cancel(p->c, p->now_ps, h);
            hear(p); /* lazy: it may have been over */
            if (!p->over[h])
                end(p, h);
        }
    }
    while (p->next < N_REQUESTS && p->f->spec[p->next].arrival_ps <= p->now_ps)
        send(p, p->next++);
}

static struct run *run_new(const struct fleet *f, bool stepping, bool lazy, bool caches)
{
    struct run *p = calloc(1, sizeof *p);
    struct cluster_options o = f->options;
    assert_non_null(p);
    p->f = f;
    p->itl = hist_new();
    assert_non_null(p->itl);
    o.itl = p->itl;
    o.stepping = stepping;
    o.lazy = p->late = lazy;
    o.on_cache = caches ? on_cache : NULL;
    o.on_cache_ctx = p;
    p->c = cluster_new(f->workers, f->n_workers, &o);
    assert_non_null(p->c);
    assert_int_equal(cluster_add_faults(p->c, f->faults, f->n_faults), 0);
    return p;
}

static void run_free(struct run *p)
{
    cluster_free(p->c);
    hist_free(p->itl);
    free(p);
}

/* The next moment at which anything happens, all of it; false: nothing does before `until`. */
static bool moment(struct run *p, int64_t until)
{
    int64_t t = cluster_next_ps(p->c), own = own_next(p);
    t = own < t ? own : t;
    if (t == PS_NEVER || t >= until)
        return false;
    assert_true(t >= p->now_ps); /* time never runs back */
    p->now_ps = t;
    do {
        cluster_advance(p->c, t);
        hear(p);
        own_events(p);
    } while (cluster_next_ps(p->c) <= t);
    cluster_start(p->c, t);
    return true;
}

static void check_end(const struct run *p)
{
    for (uint32_t h = 0; h < N_REQUESTS; h++)
        assert_true(p->over[h]); /* nothing is lost */
    for (uint32_t i = 0; i < p->f->n_workers; i++) {
        const struct dp_group *g = cluster_group(p->c, i);
        assert_true(dp_empty(g));
        assert_int_equal(kv_free_blocks(&g->ranks[0]->kv), g->ranks[0]->kv.usable);
        assert_null(kv_validate(&g->ranks[0]->kv));
    }
}

static void run_out(struct run *p)
{
    while (moment(p, PS_NEVER))
        ;
    check_end(p);
}

/* ---- comparing two runs */

static void compare_totals(const struct run *a, const struct run *b)
{
    assert_int_equal(hist_count(a->itl), hist_count(b->itl));
    for (int q = 0; q <= 20; q++)
        assert_int_equal(hist_quantile_ps(a->itl, q / 20.0), hist_quantile_ps(b->itl, q / 20.0));
    for (uint32_t i = 0; i < a->f->n_workers; i++) {
        struct engine_stats x, y;
        dp_get_stats(cluster_group(a->c, i), &x);
        dp_get_stats(cluster_group(b->c, i), &y);
        assert_memory_equal(&x, &y, sizeof x);
    }
}

static void compare_logs(const struct run *a, const struct run *b)
{
    assert_int_equal(a->n_log, b->n_log);
    for (uint32_t i = 0; i < a->n_log; i++) {
        const struct cluster_event *x = &a->log[i], *y = &b->log[i];
        assert_int_equal(x->kind, y->kind);
        assert_int_equal(x->at_ps, y->at_ps);
        assert_int_equal(x->handle, y->handle);
        assert_int_equal(x->worker, y->worker);
        assert_int_equal(x->partial, y->partial);
        assert_memory_equal(&x->record, &y->record, sizeof x->record);
    }
    compare_totals(a, b);
}

/* ---- same seed */

static void same_seed(uint64_t seed)
{
    static struct fleet f;
    struct rng r;
    rng_init(&r, seed);
    random_fleet(&r, &f);
    struct run *a = run_new(&f, false, false, false), *b = run_new(&f, false, false, false);
    while (moment(a, PS_NEVER)) /* side by side: they know nothing of each other */
        moment(b, PS_NEVER);
    moment(b, PS_NEVER);
    check_end(a);
    check_end(b);
    compare_logs(a, b);
    run_free(a);
    run_free(b);
}

/* ---- lazy */

static int by_place(const void *a, const void *b)
{
    const struct cluster_event *x = a, *y = b;
    if (x->at_ps != y->at_ps)
        return x->at_ps < y->at_ps ? -1 : 1;
    if (x->handle != y->handle)
        return x->handle < y->handle ? -1 : 1;
    return (x->kind > y->kind) - (x->kind < y->kind);
}

static void lazy_is_eager(uint64_t seed)
{
    static struct fleet f;
    struct rng r;
    rng_init(&r, seed);
    random_fleet(&r, &f);
    make_calm(&f);
    struct run *eager = run_new(&f, one_in(&r, 2), false, false);
    struct run *lazy = run_new(&f, false, true, false);
    bool wakes = one_in(&r, 2);
    int64_t wake =
        wakes ? (int64_t)rng_below(&r, (uint64_t)f.spec[N_REQUESTS - 1].arrival_ps + 1) : PS_NEVER;
    run_out(eager);
    while (moment(lazy, wake))
        ;
    if (wakes) {
        lazy->now_ps = wake;
        cluster_wake(lazy->c, wake);
        hear(lazy);
        lazy->late = false;
        cluster_start(lazy->c, wake);
        run_out(lazy);
    } else {
        cluster_drain(lazy->c);
        lazy->now_ps = PS_NEVER;
        hear(lazy);
        check_end(lazy);
    }
    qsort(eager->log, eager->n_log, sizeof *eager->log, by_place);
    qsort(lazy->log, lazy->n_log, sizeof *lazy->log, by_place);
    compare_logs(eager, lazy);
    run_free(eager);
    run_free(lazy);
}

/* ---- caches */

static int by_worker(const void *a, const void *b)
{
    const struct change *x = *(const struct change *const *)a,
                        *y = *(const struct change *const *)b;
    if (x->worker != y->worker)
        return x->worker < y->worker ? -1 : 1;
    return (x > y) - (x < y); /* each worker's in their order */
}

static void compare_changes(const struct run *a, const struct run *b)
{
    static const struct change *x[MAX_CHANGES], *y[MAX_CHANGES];
    assert_int_equal(a->n_changes, b->n_changes);
    for (uint32_t i = 0; i < a->n_changes; i++) {
        x[i] = &a->changes[i];
        y[i] = &b->changes[i];
    }
    qsort(x, a->n_changes, sizeof x[0], by_worker);
    qsort(y, a->n_changes, sizeof y[0], by_worker);
    for (uint32_t i = 0; i < a->n_changes; i++) {
        assert_int_equal(x[i]->at_ps, y[i]->at_ps);
        assert_int_equal(x[i]->worker, y[i]->worker);
        assert_int_equal(x[i]->depth, y[i]->depth);
        assert_int_equal(x[i]->stored, y[i]->stored);
        assert_int_equal(x[i]->down, y[i]->down);
        assert_int_equal(x[i]->name, y[i]->name);
    }
}

/* What the changes of worker w leave is what it has cached. */
static void check_mirror(const struct run *p, uint32_t w)
{
    static struct kv_view_block set[MAX_BLOCKS], view[MAX_BLOCKS];
    uint32_t n = 0, k;
    for (uint32_t i = 0; i < p->n_changes; i++) {
        const struct change *c = &p->changes[i];
        if (c->worker != w)
            continue;
        for (k = 0; k < n && (set[k].name != c->name || set[k].depth != c->depth); k++)
            ;
        if (c->down) {
            n = 0;
            continue;
        }
        assert_true((k == n) == c->stored);
        assert_true(n < MAX_BLOCKS);
        if (c->stored)
            set[n++] = (struct kv_view_block){c->name, c->depth, 0, 0};
        else
            set[k] = set[--n];
    }
    qsort(set, n, sizeof *set, kv_view_compare);
    uint32_t m = kv_view_named(&cluster_group(p->c, w)->ranks[0]->kv, view, MAX_BLOCKS);
    k = 0;
    for (uint32_t i = 0; i < m; i++) {
        if (i && view[i].name == view[i - 1].name && view[i].depth == view[i - 1].depth)
            continue; /* a copy */
        assert_true(k < n);
        assert_int_equal(view[i].name, set[k].name);
        assert_int_equal(view[i].depth, set[k++].depth);
    }
    assert_int_equal(k, n);
}

static void caches_are_told(uint64_t seed)
{
    static struct fleet f;
    struct rng r;
    rng_init(&r, seed);
    random_fleet(&r, &f);
    struct run *fast = run_new(&f, false, false, true), *slow = run_new(&f, true, false, true);
    run_out(fast);
    run_out(slow);
    compare_logs(fast, slow);
    compare_changes(fast, slow);
    for (uint32_t i = 0; i < f.n_workers; i++)
        check_mirror(fast, i);
    run_free(fast);
    run_free(slow);
}

/* ---- faults */

struct
    life { /* of a worker, worked out from the faults alone, but for when a drained one has nothing left */
    bool up, draining;
    int64_t ready_ps; /* starting: when it is up; PS_NEVER: it is not starting */
    int64_t since_ps, total_ps;
};

static bool struck(const struct fleet *f, const struct fault *x, uint32_t w)
{
    size_t n = strlen(x->domain);
    const char *d = f->workers[w].domain;
    if (x->worker != UINT32_MAX)
        return x->worker == w;
    return !strncmp(d, x->domain, n) && (d[n] == 0 || d[n] == '/');
}

static void leave(struct life *l, int64_t now)
{
    if (l->up || l->draining || l->ready_ps != PS_NEVER)
        l->total_ps += now - l->since_ps;
    l->up = l->draining = false;
    l->ready_ps = PS_NEVER;
}

static void strike(const struct fleet *f, struct life *l, const struct fault *x, uint32_t w)
{
    bool starting = l->ready_ps != PS_NEVER;
    switch (x->kind) {
    case FAULT_DOWN: leave(l, x->at_ps); break;
    case FAULT_UP:
        if (l->draining) {
            l->draining = false;
            l->up = true;
        } else if (!l->up && !starting) {
            l->ready_ps = x->at_ps + f->workers[w].startup_ps;
            l->since_ps = x->at_ps;
        }
        break;
    case FAULT_DRAIN:
        if (starting)
            leave(l, x->at_ps);
        l->draining |= l->up;
        l->up = false;
        break;
    case FAULT_SLOW: break;
    }
}

/* Brings the lives up to now_ps and compares. */
static void follow(const struct run *p, struct life *lives, uint32_t *next_fault)
{
    const struct fleet *f = p->f;
    int64_t now = p->now_ps;
    for (uint32_t w = 0; w < f->n_workers; w++) {
        if (lives[w].ready_ps <= now) {
            lives[w].ready_ps = PS_NEVER;
            lives[w].up = true;
        }
    }
    for (; *next_fault < f->n_faults && f->faults[*next_fault].at_ps <= now; ++*next_fault) {
        for (uint32_t w = 0; w < f->n_workers; w++) {
            if (struck(f, &f->faults[*next_fault], w))
                strike(f, &lives[w], &f->faults[*next_fault], w);
        }
    }
    for (uint32_t w = 0; w < f->n_workers; w++) {
        struct life *l = &lives[w];
        bool gone = p->c->workers[w].state == WORKER_DOWN;
        if (l->draining && gone) {
            assert_true(dp_empty(cluster_group(p->c, w)));
            leave(l, now);
        }
        if (l->ready_ps <= now) { /* no start-up time */
            l->ready_ps = PS_NEVER;
            l->up = true;
        }
        assert_int_equal(cluster_worker_up(p->c, w), l->up);
        bool holds = l->up || l->draining || l->ready_ps != PS_NEVER;
        assert_int_equal(cluster_worker_held_ps(p->c, w, now),
                         l->total_ps + (holds ? now - l->since_ps : 0));
        if (!l->up && !l->draining)
            assert_true(dp_empty(cluster_group(p->c, w)));
    }
}

static void faults_strike(uint64_t seed)
{
    static struct fleet f;
    struct life lives[MAX_WORKERS] = {0};
    uint32_t next_fault = 0;
    struct rng r;
    rng_init(&r, seed);
    random_fleet(&r, &f);
    for (uint32_t w = 0; w < f.n_workers; w++)
        lives[w] = (struct life){.up = f.workers[w].starts_up, .ready_ps = PS_NEVER};
    struct run *p = run_new(&f, false, false, false);
    while (moment(p, PS_NEVER))
        follow(p, lives, &next_fault);
    assert_int_equal(next_fault, f.n_faults);
    if (!f.n_faults && f.options.kv_lease_ps == PS_NEVER)
        assert_int_equal(p->n_lost, 0);
    check_end(p);
    run_free(p);
}

/* ---- links */

static uint64_t bytes_of(const struct run *p, const struct leg *leg)
{
    uint64_t tok = leg->spec.prompt_tok;
    if (p->f->options.transfer == TRANSFER_DESTINATION_MISSING)
        tok -= leg->cached_tok < tok ? leg->cached_tok : tok;
    return tok * p->f->workers[leg->worker].engine.kv_bytes_per_token;
}

static int64_t latency_of(const struct run *p)
{
    return ps_from_ms(p->f->options.link.latency_ms);
}

static void transfer_over(struct run *p, struct sight *s, bool arrived)
{
    struct link_total *l = &p->links[s->worker];
    double gb_s = p->f->options.link.bandwidth_gb_s;
    int64_t took = p->now_ps - s->begin_ps;
    s->moving = false;
    l->n--;
    p->n_transfers += arrived;
    if (!arrived)
        l->cancelled = true;
    if (arrived)
        assert_true(took >= latency_of(p));
    if (arrived && gb_s > 0)
        assert_true((double)(took - latency_of(p)) >= (double)s->bytes / gb_s * 1e3 - 1);
    if (arrived && gb_s == 0)
        assert_int_equal(took, latency_of(p));
    if (l->n)
        return;
    /* never idle since begin_ps: it moved its bandwidth, up to a rounding each */
    double sent_ps = (double)(p->now_ps - latency_of(p) - l->begin_ps);
    double least_ps = gb_s > 0 ? (double)l->bytes / gb_s * 1e3 : 0;
    if (!l->cancelled && latency_of(p) == 0)
        assert_true(sent_ps >= least_ps - N_REQUESTS && sent_ps <= least_ps + N_REQUESTS);
    *l = (struct link_total){0};
}

static void watch(struct run *p)
{
    for (uint32_t h = 0; h < N_REQUESTS && h < p->c->legs_cap; h++) {
        const struct leg *leg = &p->c->legs[h];
        struct sight *s = &p->sights[h];
        if (s->moving && !leg->moving)
            transfer_over(p, s,
                          leg->live && leg->there && !leg->held && leg->worker >= p->f->n_prefill);
        if (s->moving || !leg->moving)
            continue;
        *s = (struct sight){p->now_ps, bytes_of(p, leg), leg->worker, true};
        struct link_total *l = &p->links[s->worker];
        if (!l->n++)
            l->begin_ps = p->now_ps;
        l->bytes += s->bytes;
    }
}

static uint64_t all_transfers;

static void links_conserve(uint64_t seed)
{
    static struct fleet f;
    struct rng r;
    rng_init(&r, seed);
    random_fleet(&r, &f);
    f.n_prefill = pick(&r, 1, f.n_workers - 1);
    for (uint32_t i = 0; i < f.n_workers; i++)
        f.workers[i].engine.role = i < f.n_prefill ? ROLE_PREFILL : ROLE_DECODE;
    f.options.link.bandwidth_gb_s = one_in(&r, 5) ? 0 : pick(&r, 10, 300) / 1000.0;
    struct run *p = run_new(&f, false, false, false);
    while (moment(p, PS_NEVER))
        watch(p);
    check_end(p);
    for (uint32_t w = 0; w < f.n_workers; w++)
        assert_int_equal(p->links[w].n, 0);
    all_transfers += p->n_transfers;
    run_free(p);
}

static void seeds(void **state)
{
    (void)state;
    prop_run("same seed", CASES, same_seed);
}

static void lazy(void **state)
{
    (void)state;
    prop_run("lazy is eager", CASES, lazy_is_eager);
}

static void caches(void **state)
{
    (void)state;
    prop_run("caches are told", CASES, caches_are_told);
}

static void faults(void **state)
{
    (void)state;
    prop_run("faults", CASES, faults_strike);
}

static void links(void **state)
{
    (void)state;
    prop_run("links", CASES, links_conserve);
    if (!prop_single())
        assert_true(all_transfers > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(seeds, prop_teardown),
        cmocka_unit_test_teardown(lazy, prop_teardown),
        cmocka_unit_test_teardown(caches, prop_teardown),
        cmocka_unit_test_teardown(faults, prop_teardown),
        cmocka_unit_test_teardown(links, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
