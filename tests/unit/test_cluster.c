/* Workers, faults and time: what cluster.h promises. Hand-over, leases and drains are in test_transfer.c, tiers in
 * test_tier.c, ranks in test_dp.c. Every step takes 10 ms.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/cluster.h"
#include "predictor/engine_internal.h"

#define MS PS_PER_MS
#define N 4

static void worker_init(struct worker_config *w)
{
    struct step_params p = {.form = STEP_LINEAR, .w_ms = 10};
    const char *why;
    memset(w, 0, sizeof *w);
    engine_config_default(&w->engine, SCHED_VLLM);
    assert_int_equal(step_model_init(&w->engine.step, &p, &why), 0);
    w->engine.block_size = 4;
    w->engine.num_gpu_blocks = 101;
    w->starts_up = true;
    w->gpus = 1;
}

/* N workers in rack1/node1, rack1/node2, rack10/node1, rack2/node1. */
static void fleet(struct worker_config *w)
{
    static const char *const domains[N] = {"rack1/node1", "rack1/node2", "rack10/node1",
                                           "rack2/node1"};
    for (int i = 0; i < N; i++) {
        worker_init(&w[i]);
        snprintf(w[i].domain, sizeof w[i].domain, "%s", domains[i]);
    }
}

static struct cluster *cluster_of(const struct worker_config *w, uint32_t n,
                                  struct cluster_options o)
{
    if (!o.kv_lease_ps)
        o.kv_lease_ps = PS_NEVER;
    struct cluster *c = cluster_new(w, n, &o);
    assert_non_null(c);
    return c;
}

static int submit(struct cluster *c, int64_t now, uint32_t worker, uint32_t handle, uint32_t prompt,
                  uint32_t output)
{
    struct request_spec s = {
        .uid = handle + 1, .prompt_tok = prompt, .output_tok = output, .max_tokens = output};
    return cluster_submit(c, now, worker, &s, handle, false);
}

/* Lets everything happen that does before `until`; then it is that time. */
static void run(struct cluster *c, int64_t until)
{
    int64_t t;
    while ((t = cluster_next_ps(c)) < until) {
        cluster_advance(c, t);
        cluster_start(c, t);
    }
    cluster_advance(c, until);
}

/* The next event; fails the test if there is none. */
static struct cluster_event event(struct cluster *c)
{
    struct cluster_event ev;
    assert_true(cluster_poll(c, &ev));
    return ev;
}

static void no_event(struct cluster *c)
{
    struct cluster_event ev;
    assert_false(cluster_poll(c, &ev));
}

/* ---- what is refused */

static void a_cluster_has_its_limits(void **state)
{
    (void)state;
    struct worker_config w[N];
    struct cluster_options o = {.kv_lease_ps = PS_NEVER};
    fleet(w);
    assert_null(cluster_new(w, CLUSTER_MAX_WORKERS + 1, &o)); /* looks at none of them */
    w[2].engine.block_size = 0;
    assert_null(cluster_new(w, N, &o));
    fleet(w);
    struct cluster *c = cluster_of(w, 0, o); /* nobody there: nothing ever happens */
    assert_int_equal(cluster_next_ps(c), PS_NEVER);
    assert_int_equal(submit(c, 0, 0, 0, 4, 1), WEIR_E_STATE);
    cluster_free(c);
    c = cluster_of(w, N, o);
    struct fault f = {.worker = 0};
    assert_int_equal(cluster_add_faults(c, &f, CLUSTER_MAX_FAULTS + 1), WEIR_E_LIMIT);
    assert_int_equal(cluster_add_faults(c, &f, 1), 0);
    cluster_free(c);
    cluster_free(NULL);
}

static void submit_says_why_not(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    w[1].starts_up = false;
    struct cluster *c = cluster_of(w, N, (struct cluster_options){0});
    assert_int_equal(submit(c, 0, N, 0, 4, 1), WEIR_E_STATE);
    assert_int_equal(submit(c, 0, UINT32_MAX, 0, 4, 1), WEIR_E_STATE);
    assert_int_equal(submit(c, 0, 1, 0, 4, 1), WEIR_E_STATE);
    assert_int_equal(submit(c, 0, 0, 0, 401, 1), WEIR_E_TOO_LARGE);
    assert_int_equal(submit(c, 0, 0, 0, 0, 1), WEIR_E_INVALID);
    assert_int_equal(submit(c, 0, 0, 0, 4, 1), 0);
    cluster_cancel(c, 0, 12345); /* nobody knows it: nothing to stop */
    cluster_free(c);
}

/* ---- time */

static void workers_go_on_side_by_side(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.first_tokens = true});
    assert_int_equal(submit(c, 0, 0, 0, 4, 3), 0);
    assert_int_equal(submit(c, 0, 1, 1, 4, 1), 0);
    cluster_start(c, 0);
    assert_int_equal(cluster_next_ps(c), 10 * MS);
    cluster_advance(c, 10 * MS);
    struct cluster_event ev = event(c); /* at one time: workers by number */
    assert_int_equal(ev.kind, CLUSTER_EV_FIRST_TOKEN);
    assert_int_equal(ev.worker, 0);
    ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_FIRST_TOKEN);
    assert_int_equal(ev.worker, 1);
    ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_DONE);
    assert_int_equal(ev.handle, 1);
    no_event(c);
    assert_int_equal(submit(c, 10 * MS, 1, 2, 4, 1), 0);
    cluster_start(c, 10 * MS);
    run(c, PS_PER_S);
    ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_FIRST_TOKEN);
    assert_int_equal(ev.at_ps, 20 * MS);
    assert_int_equal(event(c).handle, 2);
    ev = event(c);
    assert_int_equal(ev.handle, 0);
    assert_int_equal(ev.at_ps, 30 * MS);
    assert_int_equal(ev.record.end_ps, 30 * MS);
    assert_int_equal(cluster_next_ps(c), PS_NEVER);
    cluster_free(c);
}

static void stepping_is_the_slow_way_to_the_same_end(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    for (int stepping = 0; stepping < 2; stepping++) {
        struct cluster *c = cluster_of(w, N, (struct cluster_options){.stepping = stepping});
        uint32_t events = 0;
        assert_int_equal(submit(c, 0, 0, 0, 4, 101), 0);
        cluster_start(c, 0);
        for (int64_t t; (t = cluster_next_ps(c)) != PS_NEVER; events++) {
            cluster_advance(c, t);
            cluster_start(c, t);
        }
        assert_int_equal(events, stepping ? 101 : 2);
        assert_int_equal(event(c).at_ps, 1010 * MS);
        cluster_free(c);
    }
}

/* ---- faults */

static void add_fault(struct cluster *c, int64_t at, enum fault_kind kind, const char *domain,
                      double factor)
{
    struct fault f = {.at_ps = at, .kind = kind, .factor = factor, .worker = UINT32_MAX};
    snprintf(f.domain, sizeof f.domain, "%s", domain);
    assert_int_equal(cluster_add_faults(c, &f, 1), 0);
}

static void a_domain_takes_all_below_it_and_nobody_else(void **state)
{
    (void)state;
    struct worker_config w[N];
    static const struct {
        const char *domain;
        bool up[N];
    } cases[] = {
        {"rack1", {false, false, true, true}}, /* not rack10 */
        {"rack1/node2", {true, false, true, true}},
        {"rack10", {true, true, false, true}},
        {"rack", {true, true, true, true}}, /* a part of a name is no domain */
        {"rack1/node1/gpu0", {true, true, true, true}},
        {"", {true, true, true, true}},
    };
    fleet(w);
    for (unsigned k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct cluster *c = cluster_of(w, N, (struct cluster_options){0});
        add_fault(c, MS, FAULT_DOWN, cases[k].domain, 0);
        run(c, 2 * MS);
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(cluster_worker_up(c, i), cases[k].up[i]);
        cluster_free(c);
    }
}

static void the_dead_lose_their_requests(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.first_tokens = true});
    add_fault(c, 25 * MS, FAULT_DOWN, "rack1/node1", 0);
    assert_int_equal(submit(c, 0, 0, 0, 4, 50), 0); /* has answered in part by then */
    assert_int_equal(submit(c, 0, 2, 1, 4, 50), 0);
    cluster_start(c, 0);
    run(c, 22 * MS);
    assert_int_equal(submit(c, 22 * MS, 0, 2, 4, 50), 0);
    cluster_start(c, 22 * MS);
    assert_int_equal(event(c).kind, CLUSTER_EV_FIRST_TOKEN);
    assert_int_equal(event(c).kind, CLUSTER_EV_FIRST_TOKEN);
    run(c, 26 * MS);
    struct cluster_event ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_WORKER_DOWN);
    assert_int_equal(ev.worker, 0);
    assert_int_equal(ev.at_ps, 25 * MS);
    ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_LOST);
    assert_int_equal(ev.handle, 0);
    assert_true(ev.partial);
    ev = event(c);
    assert_int_equal(ev.handle, 2);
    assert_false(ev.partial);
    no_event(c);
    assert_int_equal(submit(c, 26 * MS, 0, 0, 4, 50), WEIR_E_STATE);
    assert_int_equal(submit(c, 26 * MS, 1, 0, 4, 1), 0); /* its number is free for another try */
    cluster_start(c, 26 * MS);
    run(c, PS_PER_S);
    ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_FIRST_TOKEN);
    ev = event(c);
    assert_int_equal(ev.handle, 0);
    assert_int_equal(ev.worker, 1);
    assert_int_equal(event(c).handle, 1);
    cluster_free(c);
}

static void slow_comes_and_goes(void **state)
{
    (void)state;
    struct worker_config w[N];
    struct fault f[2] = {{.at_ps = 15 * MS, .kind = FAULT_SLOW, .factor = 3, .worker = 0},
                         {.at_ps = 30 * MS, .kind = FAULT_SLOW, .factor = 1, .worker = 0}};
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){0});
    assert_int_equal(cluster_add_faults(c, f, 2), 0);
    assert_int_equal(submit(c, 0, 0, 0, 4, 5), 0);
    assert_int_equal(submit(c, 0, 1, 1, 4, 5), 0);
    cluster_start(c, 0);
    run(c, PS_PER_S);
    assert_int_equal(event(c).at_ps, 50 * MS); /* worker 1 */
    /* 10, 20 (the step was under way), 50, 60, 70 */
    assert_int_equal(event(c).at_ps, 70 * MS);
    cluster_free(c);
}

static void who_is_up_holds_gpus(void **state)
{
    (void)state;
    struct worker_config w[N];
    struct fault f[3] = {{.at_ps = 100 * MS, .kind = FAULT_UP, .worker = 0},
                         {.at_ps = 300 * MS, .kind = FAULT_DOWN, .worker = 0},
                         {.at_ps = 500 * MS, .kind = FAULT_UP, .worker = 0}};
    fleet(w);
    w[0].starts_up = false;
    w[0].startup_ps = 50 * MS;
    struct cluster *c = cluster_of(w, N, (struct cluster_options){0});
    assert_int_equal(cluster_add_faults(c, f, 3), 0);
    run(c, 120 * MS);
    assert_false(cluster_worker_up(c, 0)); /* still starting, on GPUs of its own */
    assert_int_equal(cluster_worker_held_ps(c, 0, 120 * MS), 20 * MS);
    run(c, 160 * MS);
    assert_true(cluster_worker_up(c, 0));
    struct cluster_event ev = event(c);
    assert_int_equal(ev.kind, CLUSTER_EV_WORKER_UP);
    assert_int_equal(ev.at_ps, 150 * MS);
    run(c, 400 * MS);
    assert_int_equal(cluster_worker_held_ps(c, 0, 400 * MS), 200 * MS);
    run(c, 600 * MS);
    assert_int_equal(cluster_worker_held_ps(c, 0, 600 * MS), 300 * MS);
    assert_int_equal(cluster_worker_held_ps(c, 1, 600 * MS), 600 * MS);
    cluster_free(c);
}

/* ---- lazy */

static void lazy_workers_tell_late_but_true(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.lazy = true});
    assert_int_equal(submit(c, 0, 0, 0, 4, 2), 0);
    assert_int_equal(cluster_next_ps(c), PS_NEVER);
    no_event(c);
    assert_int_equal(submit(c, 100 * MS, 0, 1, 4, 2), 0);
    no_event(c);
    assert_int_equal(submit(c, 105 * MS, 1, 2, 4, 20), 0);
    cluster_cancel(c, 106 * MS, 0); /* over for long: stops nobody, but that has to be found out */
    assert_int_equal(event(c).at_ps, 20 * MS);
    no_event(c);
    cluster_cancel(c, 130 * MS, 2);
    cluster_drain(c);
    struct cluster_event ev = event(c);
    assert_int_equal(ev.handle, 1);
    assert_int_equal(ev.at_ps, 120 * MS);
    no_event(c);
    cluster_free(c);
}

static void lazy_workers_run_when_enough_has_come(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.lazy = true});
    assert_int_equal(submit(c, 0, 1, 0, 4, 2), 0);
    for (uint32_t i = 1; i < CLUSTER_LAZY; i++)
        assert_int_equal(submit(c, 100 * i * MS, 0, i, 4, 2), 0);
    no_event(c);
    assert_int_equal(submit(c, 100 * CLUSTER_LAZY * MS, 0, CLUSTER_LAZY, 4, 2), 0);
    for (uint32_t i = 1; i < CLUSTER_LAZY; i++) { /* the last one has only arrived */
        struct cluster_event ev = event(c);
        assert_int_equal(ev.handle, i);
        assert_int_equal(ev.at_ps, (100 * i + 20) * MS);
    }
    no_event(c);
    cluster_drain(c);
    assert_int_equal(event(c).handle, CLUSTER_LAZY);
    assert_int_equal(event(c).handle, 0);
    cluster_free(c);
}

/* Many workers, of which none gets enough: all run when all together have so many. */
static void lazy_workers_run_when_all_have_enough(void **state)
{
    (void)state;
    enum { MANY = 300 };
    struct worker_config *w = calloc(MANY, sizeof *w), one[N];
    fleet(one);
    for (uint32_t i = 0; i < MANY; i++)
        w[i] = one[0];
    struct cluster *c = cluster_of(w, MANY, (struct cluster_options){.lazy = true});
    uint32_t n = CLUSTER_LAZY_ALL + MANY;
    for (uint32_t i = 0; i < n - 1; i++)
        assert_int_equal(submit(c, i < MANY ? 0 : PS_PER_S, i % MANY, i, 4, 2), 0);
    no_event(c);
    assert_int_equal(submit(c, PS_PER_S, (n - 1) % MANY, n - 1, 4, 2), 0);
    for (uint32_t i = 0; i < CLUSTER_LAZY_ALL; i++) /* those that somebody came behind */
        assert_int_equal(event(c).handle, i);
    no_event(c);
    cluster_free(c);
    free(w);
}

static void lazy_workers_can_be_woken(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.lazy = true});
    assert_int_equal(submit(c, 0, 0, 0, 4, 2), 0);
    assert_int_equal(submit(c, 0, 1, 1, 4, 10), 0);
    cluster_wake(c, 55 * MS);
    assert_int_equal(event(c).at_ps, 20 * MS);
    no_event(c);
    cluster_start(c, 55 * MS);
    assert_int_equal(submit(c, 55 * MS, 0, 2, 4, 1), 0);
    cluster_start(c, 55 * MS);
    run(c, PS_PER_S);
    assert_int_equal(event(c).at_ps, 65 * MS);
    assert_int_equal(event(c).at_ps, 100 * MS);
    cluster_free(c);
}

static void nobody_is_lazy_where_it_matters(void **state)
{
    (void)state;
    struct worker_config w[N];
    fleet(w);
    struct cluster *c = cluster_of(w, N, (struct cluster_options){.lazy = true});
    add_fault(c, 15 * MS, FAULT_DOWN, "rack1", 0);
    assert_int_equal(submit(c, 0, 0, 0, 4, 1), 0);
    cluster_start(c, 0);
    assert_int_equal(cluster_next_ps(c), 10 * MS);
    run(c, PS_PER_S);
    cluster_free(c);
    w[0].engine.role = ROLE_PREFILL;
    w[1].engine.role = ROLE_DECODE;
    c = cluster_of(w, N, (struct cluster_options){.lazy = true});
    assert_int_equal(submit(c, 0, 2, 0, 4, 1), 0);
    cluster_start(c, 0);
    assert_int_equal(cluster_next_ps(c), 10 * MS);
    cluster_free(c);
}

/* ---- caches */

struct told {
    int64_t at_ps;
    uint32_t worker, blocks, n;
};

static void on_cache(void *ctx, uint32_t worker, int64_t at_ps, const struct engine_cache_change *c)
{
    struct told *t = ctx;
    *t = (struct told){at_ps, worker, c->n_blocks, t->n + 1};
}

static void a_change_is_told_when_its_step_has_ended(void **state)
{
    (void)state;
    struct worker_config w[N];
    struct told t = {0};
    fleet(w);
    struct cluster *c =
        cluster_of(w, N, (struct cluster_options){.on_cache = on_cache, .on_cache_ctx = &t});
    add_fault(c, 35 * MS, FAULT_DOWN, "rack1/node2", 0);
    assert_int_equal(submit(c, 0, 1, 0, 8, 20), 0);
    cluster_start(c, 0);
    assert_int_equal(t.n, 0);
    run(c, 11 * MS);
    assert_int_equal(t.n, 1);
    assert_int_equal(t.at_ps, 10 * MS);
    assert_int_equal(t.worker, 1);
    assert_int_equal(t.blocks, 2);
    run(c, 32 * MS);
    assert_int_equal(submit(c, 32 * MS, 1, 1, 12, 20), 0); /* would be there at 50 */
    cluster_start(c, 32 * MS);
    run(c, PS_PER_S);
    assert_int_equal(t.n, 1); /* it died before, and all its cache with it */
    cluster_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cluster_has_its_limits),
        cmocka_unit_test(submit_says_why_not),
        cmocka_unit_test(workers_go_on_side_by_side),
        cmocka_unit_test(stepping_is_the_slow_way_to_the_same_end),
        cmocka_unit_test(a_domain_takes_all_below_it_and_nobody_else),
        cmocka_unit_test(the_dead_lose_their_requests),
        cmocka_unit_test(slow_comes_and_goes),
        cmocka_unit_test(who_is_up_holds_gpus),
        cmocka_unit_test(lazy_workers_tell_late_but_true),
        cmocka_unit_test(lazy_workers_run_when_enough_has_come),
        cmocka_unit_test(lazy_workers_run_when_all_have_enough),
        cmocka_unit_test(lazy_workers_can_be_woken),
        cmocka_unit_test(nobody_is_lazy_where_it_matters),
        cmocka_unit_test(a_change_is_told_when_its_step_has_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
