/* prop_tier.c - clusters with tiers below the GPU, data-parallel ranks, both hand-over modes, leases and faults:
 * passes taken together give what single steps give, to the last bit; every block is where it belongs when
 * all is over; every request ends once; time never runs back; a worker's clone goes on as the worker does.
 *
 * A case is a random cluster and a random hour of requests that share prefixes, driven by a caller that routes
 * by turns, tries a lost request again, and cancels some.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "predictor/cluster.h"
#include "predictor/engine_internal.h"
#include "predictor/hist.h"
#include "predictor/rng.h"
#include "predictor/shared_tier.h"
#include "predictor/units.h"
#include "tests/support/prop.h"

#define MAX_WORKERS 5u
#define MAX_REQUESTS 70u
#define MAX_KEYS 64u
#define MAX_FAULTS 6u
#define MAX_TRIES 4u
#define MAX_LOG 4096u

struct world {
    struct worker_config workers[MAX_WORKERS];
    struct cluster_options options;
    struct fault faults[MAX_FAULTS];
    uint32_t n_workers, n_faults, n_requests;
    bool pd, pairs;
    uint64_t keys[MAX_REQUESTS][MAX_KEYS];
    struct request_spec spec[MAX_REQUESTS];
    int64_t cancel_ps[MAX_REQUESTS]; /* PS_NEVER: not */
};

static uint32_t between(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

static bool chance(struct rng *r, double p)
{
    return rng_unit(r) < p;
}

/* ---- a random world */

static void random_step(struct rng *r, struct step_model *m)
{
    static const struct step_params forms[] = {
        {.form = STEP_LINEAR,
         .w_ms = 6,
         .d0_ms_per_req = 0.03,
         .k_ms_per_tok = 1.7e-4,
         .p_ms_per_tok = 0.02},
        {.form = STEP_FIXED, .fixed_prefill_ms = 12, .fixed_decode_ms = 4},
        {.form = STEP_LINEAR,
         .w_ms = 5,
         .d0_ms_per_req = 0.1,
         .k_ms_per_tok = 1e-3,
         .p_ms_per_tok = 0.05,
         .q_ms_per_tok2 = 1e-6},
        {.form = STEP_LINEAR,
         .w_ms = 9,
         .d0_ms_per_req = 0.05,
         .k_ms_per_tok = 2e-5,
         .p_ms_per_tok = 0.03,
         .moe_experts = 64,
         .moe_active = 4,
         .moe_w_share = 0.7},
    };
    const char *why;
    assert_int_equal(step_model_init(m, &forms[rng_below(r, 4)], &why), 0);
}

static void random_engine(struct rng *r, struct engine_config *c, uint32_t block_size)
{
    static const enum sched_kind kinds[] = {SCHED_VLLM, SCHED_VLLM, SCHED_SGLANG, SCHED_TRTLLM,
                                            SCHED_DYNOSIM};
    engine_config_default(c, kinds[rng_below(r, 5)]);
    random_step(r, &c->step);
    c->block_size = block_size;
    c->num_gpu_blocks = between(r, 35, 140) * 16 / block_size + 2;
    c->max_num_seqs = between(r, 1, 12);
    c->max_num_batched_tokens = between(r, 64, 1024);
    c->chunked_prefill_size = between(r, 64, 1024);
    c->kv_bytes_per_token = 100000;
    if (c->scheduler == SCHED_VLLM) {
        c->policy = chance(r, 0.3) ? SCHED_PRIORITY : SCHED_FCFS;
        c->async_scheduling = chance(r, 0.3);
    }
    if (c->scheduler == SCHED_SGLANG)
        c->policy = chance(r, 0.5) ? SCHED_LPM : SCHED_FCFS;
    if (chance(r, 0.7))
        c->num_host_blocks = between(r, 5, 400);
    c->h2d_bandwidth_gb_s = chance(r, 0.2) ? 0 : 0.05 + rng_unit(r) * 4;
    c->d2h_bandwidth_gb_s = chance(r, 0.2) ? 0 : 0.05 + rng_unit(r) * 4;
    c->dp_size = chance(r, 0.4) ? between(r, 2, 4) : 1;
}

static void random_workers(struct rng *r, struct world *w)
{
    uint32_t block_size = 1u << between(r, 2, 5), n = between(r, 1, MAX_WORKERS - 2);
    bool store = chance(r, 0.6);
    struct engine_config shared = {.num_shared_blocks = between(r, 10, 1000),
                                   .shared_first_byte_ms = chance(r, 0.3) ? 0 : rng_unit(r) * 20,
                                   .shared_read_gb_s = chance(r, 0.2) ? 0 : 0.1 + rng_unit(r) * 4,
                                   .shared_write_gb_s = chance(r, 0.2) ? 0 : 0.1 + rng_unit(r) * 4};
    w->pd = chance(r, 0.5);
    w->pairs = chance(r, 0.5);
    w->n_workers = w->pd ? n + 2 : n;
    for (uint32_t i = 0; i < w->n_workers; i++) {
        struct engine_config *c = &w->workers[i].engine;
        random_engine(r, c, block_size);
        c->role = !w->pd ? ROLE_BOTH : i < 2 ? ROLE_PREFILL : ROLE_DECODE;
        bool tiers = c->scheduler != SCHED_DYNOSIM || c->role != ROLE_DECODE;
        if (!tiers)
            c->num_host_blocks = 0;
        if (tiers && store && chance(r, 0.8)) {
            c->num_shared_blocks = shared.num_shared_blocks;
            c->shared_first_byte_ms = shared.shared_first_byte_ms;
            c->shared_read_gb_s = shared.shared_read_gb_s;
            c->shared_write_gb_s = shared.shared_write_gb_s;
        }
        w->workers[i].starts_up = true;
        w->workers[i].startup_ps = between(r, 0, 300) * PS_PER_MS;
        w->workers[i].gpus = 1;
    }
}

/* Prefixes are shared among a few families, whose members go on differently at a random depth. */
static void random_requests(struct rng *r, struct world *w, int64_t span_ps)
{
    uint32_t key_tok = w->workers[0].engine.block_size * between(r, 1, 3);
    w->n_requests = between(r, 5, MAX_REQUESTS);
    for (uint32_t i = 0; i < w->n_requests; i++) {
        struct request_spec *s = &w->spec[i];
        uint64_t family = between(r, 1, 6), own = chance(r, 0.3) ? rng_u64(r) : family;
        uint32_t same = between(r, 0, 20), n = between(r, 1, 400) / key_tok + 1;
        for (uint32_t k = 0; k < n && k < MAX_KEYS; k++)
            w->keys[i][k] =
                request_chain_key(k ? w->keys[i][k - 1] : 0, (k < same ? family : own) * 1000 + k);
        n = n < MAX_KEYS ? n : MAX_KEYS;
        *s = (struct request_spec){.uid = i + 1,
                                   .prompt_tok = between(r, (n - 1) * key_tok + 1, n * key_tok),
                                   .output_tok = between(r, 1, chance(r, 0.2) ? 150 : 20),
                                   .priority = (int32_t)between(r, 0, 2),
                                   .arrival_ps = (int64_t)rng_below(r, (uint64_t)span_ps),
                                   .keys = w->keys[i],
                                   .n_keys = n,
                                   .key_tok = key_tok};
        if (chance(r, 0.2) && n > 1) /* a session: the next turn repeats this answer */
            s->prompt_tok = between(r, 1, (n - 1) * key_tok);
        s->max_tokens = s->output_tok + between(r, 0, 30);
    }
}

static int by_arrival(const void *a, const void *b)
{
    const struct request_spec *x = a, *y = b;
    return (x->arrival_ps > y->arrival_ps) - (x->arrival_ps < y->arrival_ps);
}

static int by_time(const void *a, const void *b)
{
    const struct fault *x = a, *y = b;
    return (x->at_ps > y->at_ps) - (x->at_ps < y->at_ps);
}

static void random_world(struct rng *r, struct world *w)
{
    int64_t span = between(r, 200, 8000) * PS_PER_MS;
    memset(w, 0, sizeof *w);
    random_workers(r, w);
    random_requests(r, w, span);
    qsort(w->spec, w->n_requests, sizeof w->spec[0], by_arrival);
    for (uint32_t h = 0; h < w->n_requests; h++)
        w->cancel_ps[h] =
            chance(r, 0.1) ? w->spec[h].arrival_ps + between(r, 0, 3000) * PS_PER_MS : PS_NEVER;
    w->n_faults = chance(r, 0.5) ? between(r, 1, MAX_FAULTS) : 0;
    for (uint32_t i = 0; i < w->n_faults; i++)
        w->faults[i] = (struct fault){.at_ps = (int64_t)rng_below(r, (uint64_t)span * 2),
                                      .kind = (enum fault_kind)rng_below(r, 4),
                                      .factor = chance(r, 0.5) ? 1 : 0.5 + rng_unit(r) * 3,
                                      .worker = (uint32_t)rng_below(r, w->n_workers)};
    qsort(w->faults, w->n_faults, sizeof w->faults[0], by_time);
    w->options = (struct cluster_options){
        .link = {.latency_ms = rng_unit(r), .bandwidth_gb_s = chance(r, 0.2) ? 0 : rng_unit(r) * 2},
        .transfer = chance(r, 0.5) ? TRANSFER_FULL_PROMPT : TRANSFER_DESTINATION_MISSING,
        .kv_lease_ps = chance(r, 0.5) ? between(r, 1, 400) * PS_PER_MS : PS_NEVER,
        .seed = rng_u64(r),
        .first_tokens = chance(r, 0.5),
    };
}

/* ---- played by turns */

struct entry {
    enum cluster_event_kind kind;
    int64_t at_ps;
    uint32_t handle, worker, reused, host, shared, preemptions;
    int64_t admit_ps, end_ps;
};

struct play {
    struct world *w;
    struct cluster *c;
    struct hist *itl;
    struct entry log[MAX_LOG];
    uint32_t n_log, next, turn, decode_turn;
    uint8_t tries[MAX_REQUESTS];
    uint32_t reserved_at[MAX_REQUESTS]; /* destination first: by whom */
    bool over[MAX_REQUESTS], sent[MAX_REQUESTS];
    int64_t now_ps;
};

/* The next worker that takes requests, from..to - 1; UINT32_MAX: none. */
static uint32_t turn_of(struct play *p, uint32_t *turn, uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < to - from; i++) {
        uint32_t worker = from + (*turn)++ % (to - from);
        if (cluster_worker_up(p->c, worker))
            return worker;
    }
    return UINT32_MAX;
}

static void end(struct play *p, uint32_t h)
{
    assert_false(p->over[h]);
    p->over[h] = true;
}

static void send(struct play *p, uint32_t h)
{
    const struct world *w = p->w;
    uint32_t n = w->n_workers, to = turn_of(p, &p->turn, 0, w->pd ? 2 : n);
    int rc = WEIR_E_STATE;
    p->sent[h] = true;
    if (to != UINT32_MAX && w->pd && w->pairs) {
        uint32_t decode = turn_of(p, &p->decode_turn, 2, n);
        p->reserved_at[h] = decode;
        if (decode != UINT32_MAX)
            rc = cluster_submit_pair(p->c, p->now_ps, to, decode, &w->spec[h], h);
    } else if (to != UINT32_MAX) {
        rc = cluster_submit(p->c, p->now_ps, to, &w->spec[h], h, w->pd);
    }
    if (rc)
        end(p, h); /* too large, or nobody is there */
}

static void again(struct play *p, uint32_t h)
{
    if (++p->tries[h] == MAX_TRIES)
        end(p, h);
    else
        send(p, h);
}

/* The KV of h is done. Destination first it has its place already; now and then it goes to another one: only with a
 * lease, for without one it may wait for blocks that are reserved for prompts that wait for its own. */
static void hand_over(struct play *p, uint32_t h)
{
    const struct world *w = p->w;
    uint32_t to = turn_of(p, &p->decode_turn, 2, w->n_workers);
    bool stay = h % 7 || w->options.kv_lease_ps == PS_NEVER;
    if (w->pairs && stay && cluster_worker_up(p->c, p->reserved_at[h]))
        to = p->reserved_at[h];
    if (to == UINT32_MAX || cluster_handoff(p->c, p->now_ps, to, &w->spec[h], h)) {
        cluster_cancel(p->c, p->now_ps, h);
        again(p, h);
    }
}

static void note(struct play *p, const struct cluster_event *ev)
{
    assert_true(p->n_log < MAX_LOG);
    assert_true(ev->at_ps <= p->now_ps);
    p->log[p->n_log++] = (struct entry){.kind = ev->kind,
                                        .at_ps = ev->at_ps,
                                        .handle = ev->handle,
                                        .worker = ev->worker,
                                        .reused = ev->record.reused_all_tok,
                                        .host = ev->record.host_tok,
                                        .shared = ev->record.shared_tok,
                                        .preemptions = ev->record.preemptions,
                                        .admit_ps = ev->record.first_admit_ps,
                                        .end_ps = ev->record.end_ps};
}

static void hear(struct play *p)
{
    struct cluster_event ev;
    while (cluster_poll(p->c, &ev)) {
        note(p, &ev);
        if (ev.kind == CLUSTER_EV_PREFILL_DONE)
            hand_over(p, ev.handle);
        else if (ev.kind == CLUSTER_EV_DONE)
            end(p, ev.handle);
        else if (ev.kind == CLUSTER_EV_LOST)
            again(p, ev.handle);
    }
}

static int64_t own_next(const struct play *p)
{
    const struct world *w = p->w;
    int64_t t = p->next < w->n_requests ? w->spec[p->next].arrival_ps : PS_NEVER;
    for (uint32_t h = 0; h < w->n_requests; h++) {
        if (p->sent[h] && !p->over[h] && w->cancel_ps[h] < t && w->cancel_ps[h] >= p->now_ps)
            t = w->cancel_ps[h];
    }
    return t;
}

static void own_events(struct play *p)
{
    const struct world *w = p->w;
    for (uint32_t h = 0; h < w->n_requests; h++) {
        if (p->sent[h] && !p->over[h] && w->cancel_ps[h] == p->now_ps) {
            cluster_cancel(p->c, p->now_ps, h);
            end(p, h);
        }
    }
    while (p->next < w->n_requests && w->spec[p->next].arrival_ps <= p->now_ps)
        send(p, p->next++);
}

static void check(const struct play *p)
{
    for (uint32_t i = 0; i < p->w->n_workers; i++) {
        const struct dp_group *g = cluster_group(p->c, i);
        for (uint32_t k = 0; k < g->n; k++) {
            const char *why = kv_validate(&g->ranks[k]->kv);
            if (!why)
                why = tiers_validate(g->ranks[k]);
            assert_null(why);
        }
    }
    if (cluster_shared(p->c))
        assert_null(shared_tier_validate(cluster_shared(p->c)));
}

/* Until nothing happens any more, or until_ps. */
static void play(struct play *p, int64_t until_ps)
{
    for (uint32_t n = 0;; n++) {
        int64_t t = cluster_next_ps(p->c), own = own_next(p);
        t = own < t ? own : t;
        if (t == PS_NEVER || t > until_ps)
            return;
        assert_true(t >= p->now_ps);
        assert_true(n < 1000000);
        p->now_ps = t;
        do {
            cluster_advance(p->c, t);
            hear(p);
            own_events(p);
        } while (cluster_next_ps(p->c) <= t);
        cluster_start(p->c, t);
        if (n % 64 == 0)
            check(p);
    }
}

static struct play *play_new(struct world *w, bool stepping)
{
    struct play *p = calloc(1, sizeof *p);
    struct cluster_options o = w->options;
    assert_non_null(p);
    p->w = w;
    p->itl = hist_new();
    o.itl = p->itl;
    o.stepping = stepping;
    p->c = cluster_new(w->workers, w->n_workers, &o);
    assert_non_null(p->c);
    assert_int_equal(cluster_add_faults(p->c, w->faults, w->n_faults), 0);
    return p;
}

static void play_free(struct play *p)
{
    cluster_free(p->c);
    hist_free(p->itl);
    free(p);
}

/* ---- what must hold */

static void assert_same_hist(const struct hist *a, const struct hist *b)
{
    assert_int_equal(hist_count(a), hist_count(b));
    assert_int_equal(hist_min_ps(a), hist_min_ps(b));
    assert_int_equal(hist_max_ps(a), hist_max_ps(b));
    for (uint32_t q = 0; q <= 20; q++)
        assert_int_equal(hist_quantile_ps(a, q / 20.0), hist_quantile_ps(b, q / 20.0));
}

static void assert_same_stats(const struct play *a, const struct play *b)
{
    for (uint32_t i = 0; i < a->w->n_workers; i++) {
        struct engine_stats x, y;
        dp_get_stats(cluster_group(a->c, i), &x);
        dp_get_stats(cluster_group(b->c, i), &y);
        assert_int_equal(x.passes, y.passes);
        assert_int_equal(x.busy_ps, y.busy_ps);
        assert_int_equal(x.prompt_tok, y.prompt_tok);
        assert_int_equal(x.output_tok, y.output_tok);
        assert_int_equal(x.reused_tok, y.reused_tok);
        assert_int_equal(x.preemptions, y.preemptions);
        assert_int_equal(x.host_tok, y.host_tok);
        assert_int_equal(x.shared_tok, y.shared_tok);
        assert_int_equal(x.stored_tok, y.stored_tok);
        assert_int_equal(x.not_stored_tok, y.not_stored_tok);
        assert_int_equal(cluster_worker_held_ps(a->c, i, a->now_ps),
                         cluster_worker_held_ps(b->c, i, a->now_ps));
    }
}

/* Nothing is in use when all requests are over. */
static void assert_all_given_back(const struct play *p)
{
    for (uint32_t h = 0; h < p->w->n_requests; h++)
        assert_true(p->over[h]);
    for (uint32_t i = 0; i < p->w->n_workers; i++) {
        const struct dp_group *g = cluster_group(p->c, i);
        assert_true(dp_empty(g));
        for (uint32_t k = 0; k < g->n; k++)
            assert_int_equal(kv_free_blocks(&g->ranks[k]->kv), g->ranks[k]->kv.usable);
    }
    check(p);
}

static void same_fast_and_stepped(uint64_t seed)
{
    static struct world w;
    struct rng r;
    rng_init(&r, seed);
    random_world(&r, &w);
    struct play *fast = play_new(&w, false), *slow = play_new(&w, true);
    play(fast, PS_NEVER);
    play(slow, PS_NEVER);
    assert_int_equal(fast->n_log, slow->n_log);
    for (uint32_t i = 0; i < fast->n_log; i++)
        assert_memory_equal(&fast->log[i], &slow->log[i], sizeof fast->log[i]);
    assert_same_hist(fast->itl, slow->itl);
    assert_same_stats(fast, slow);
    assert_all_given_back(fast);
    play_free(fast);
    play_free(slow);
}

/* A worker alone, with host memory and ranks: its copy, taken at any moment, goes on as it does. */
static void clone_goes_on(uint64_t seed)
{
    static struct world w;
    struct rng r;
    struct dp_group copy;
    rng_init(&r, seed);
    random_world(&r, &w);
    w.n_workers = 1;
    w.pd = false;
    w.n_faults = 0;
    w.workers[0].engine.role = ROLE_BOTH;
    w.workers[0].engine.num_shared_blocks = 0;
    w.options.on_cache = NULL;
    for (uint32_t h = 0; h < w.n_requests; h++)
        w.cancel_ps[h] = PS_NEVER;
    struct play *p = play_new(&w, chance(&r, 0.5));
    play(p, (int64_t)rng_below(&r, 8000) * PS_PER_MS);
    p->next = w.n_requests; /* nobody else comes */
    assert_int_equal(dp_init(&copy, &w.workers[0].engine, 1), 0);
    assert_int_equal(dp_copy(&copy, cluster_group(p->c, 0)), 0);
    uint32_t from = p->n_log, n = 0;
    play(p, PS_NEVER);
    dp_run(&copy, PS_LIMIT);
    for (uint32_t k = 0; k < copy.n; k++) {
        uint32_t m;
        const struct engine_event *ev = engine_events(copy.ranks[k], &m);
        for (uint32_t i = 0; i < m; i++) {
            if (ev[i].kind != ENGINE_EV_DONE)
                continue;
            n++;
            uint32_t j = from;
            while (j < p->n_log &&
                   (p->log[j].kind != CLUSTER_EV_DONE || p->log[j].handle != ev[i].handle))
                j++;
            assert_true(j < p->n_log);
            assert_int_equal(p->log[j].at_ps, ev[i].at_ps);
            assert_int_equal(p->log[j].admit_ps, ev[i].record.first_admit_ps);
            assert_int_equal(p->log[j].host, ev[i].record.host_tok);
            assert_int_equal(p->log[j].preemptions, ev[i].record.preemptions);
        }
    }
    for (uint32_t j = from; j < p->n_log; j++)
        n -= p->log[j].kind == CLUSTER_EV_DONE;
    assert_int_equal(n, 0);
    dp_deinit(&copy);
    play_free(p);
}

/* Workers that run only when something is sent to them do the same. */
static void same_lazy(uint64_t seed)
{
    static struct world w;
    struct rng r;
    struct cluster_event ev;
    rng_init(&r, seed);
    random_world(&r, &w);
    w.pd = false;
    w.n_faults = 0;
    for (uint32_t i = 0; i < w.n_workers; i++) {
        w.workers[i].engine.role = ROLE_BOTH;
        w.workers[i].engine.num_shared_blocks = 0; /* or they could not be lazy */
    }
    for (uint32_t h = 0; h < w.n_requests; h++)
        w.cancel_ps[h] = PS_NEVER;
    struct play *p = play_new(&w, false);
    play(p, PS_NEVER);
    w.options.lazy = true;
    struct play *lazy = play_new(&w, chance(&r, 0.2));
    assert_int_equal(cluster_next_ps(lazy->c), PS_NEVER);
    while (lazy->next < w.n_requests) {
        lazy->now_ps = w.spec[lazy->next].arrival_ps;
        own_events(lazy);
    }
    cluster_drain(lazy->c);
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_log; i++)
        n += p->log[i].kind == CLUSTER_EV_DONE;
    while (cluster_poll(lazy->c, &ev)) {
        if (ev.kind != CLUSTER_EV_DONE)
            continue;
        uint32_t j = 0;
        while (p->log[j].kind != CLUSTER_EV_DONE || p->log[j].handle != ev.handle)
            assert_true(++j < p->n_log);
        assert_int_equal(p->log[j].at_ps, ev.at_ps);
        assert_int_equal(p->log[j].worker, ev.worker);
        assert_int_equal(p->log[j].host, ev.record.host_tok);
        assert_int_equal(p->log[j].reused, ev.record.reused_all_tok);
        n--;
    }
    assert_int_equal(n, 0);
    assert_same_hist(p->itl, lazy->itl);
    assert_same_stats(p, lazy);
    play_free(p);
    play_free(lazy);
}

static void fast_is_stepped(void **state)
{
    (void)state;
    prop_run("fast_is_stepped", 150, same_fast_and_stepped);
}

static void clone_is_original(void **state)
{
    (void)state;
    prop_run("clone_is_original", 150, clone_goes_on);
}

static void lazy_is_prompt(void **state)
{
    (void)state;
    prop_run("lazy_is_prompt", 150, same_lazy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(fast_is_stepped, prop_teardown),
        cmocka_unit_test_teardown(clone_is_original, prop_teardown),
        cmocka_unit_test_teardown(lazy_is_prompt, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
