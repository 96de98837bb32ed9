/* test_fairness.c - whose turn it is: rounds, weights, debts, and what happens beyond the limit. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "controller/core/fairness.h"
#include "predictor/rng.h"

#define QUANTUM 1000

static struct core_request of(uint64_t tenant, int32_t priority)
{
    return (struct core_request){.tenant = tenant, .priority = priority, .prompt_tok = 1};
}

static void set_up(struct fair *f)
{
    const char *why;
    static const struct core_tenant tenants[] = {{.id = 7, .weight = 3}, {.id = 5, .weight = 2}};
    struct core_config c = {.fair_quantum_tok = QUANTUM, .tenants = tenants, .n_tenants = 2};
    assert_int_equal(fair_init(f, &c, &why), 0);
}

static struct fair_ticket enter(struct fair *f, uint64_t tenant, uint64_t cost)
{
    struct core_request r = of(tenant, 0);
    struct fair_ticket t;
    fair_enter(f, &r, cost, &t);
    return t;
}

static void leave(struct fair *f, uint64_t tenant, struct fair_ticket *t, bool sent)
{
    struct core_request r = of(tenant, 0);
    fair_leave(f, &r, t, sent);
}

static void test_bad_config(void **unused)
{
    struct fair f;
    const char *why;
    struct core_tenant t = {.id = 1, .weight = 1};
    struct core_config c = {.fair_quantum_tok = (UINT64_C(1) << 31) + 1};
    (void)unused;
    assert_int_equal(fair_init(&f, &c, &why), WEIR_E_INVALID);
    c = (struct core_config){.fair_quantum_tok = 1, .tenants = &t, .n_tenants = 1};
    t.weight = 0;
    assert_int_equal(fair_init(&f, &c, &why), WEIR_E_INVALID);
    t.weight = CORE_MAX_TENANT_WEIGHT + 1;
    assert_int_equal(fair_init(&f, &c, &why), WEIR_E_INVALID);
    t.weight = CORE_MAX_TENANT_WEIGHT;
    c.n_tenants = CORE_MAX_TENANTS + 1;
    assert_int_equal(fair_init(&f, &c, &why), WEIR_E_INVALID);
    c.n_tenants = 1;
    assert_int_equal(fair_init(&f, &c, &why), 0);
    fair_deinit(&f);
}

/* Off: everybody is in one round. */
static void test_off(void **unused)
{
    struct fair f;
    const char *why;
    struct core_config c = {0};
    (void)unused;
    assert_int_equal(fair_init(&f, &c, &why), 0);
    struct fair_ticket a = enter(&f, 1, 5000), b = enter(&f, 1, 5000);
    assert_int_equal(a.round, b.round);
    leave(&f, 1, &a, true);
    fair_deinit(&f);
}

/* Costs add up to rounds, by weight; a large request waits for as many rounds as it takes. */
static void test_rounds(void **unused)
{
    struct fair f;
    (void)unused;
    set_up(&f);
    assert_int_equal(enter(&f, 1, 400).round, 0);
    assert_int_equal(enter(&f, 1, 600).round, 0);
    assert_int_equal(enter(&f, 1, 1).round, 1);
    assert_int_equal(enter(&f, 1, 4000).round, 5); /* 999 of round 1, 1,000 of 2 to 4, 1 of 5 */
    assert_int_equal(enter(&f, 1, 999).round, 5);
    assert_int_equal(enter(&f, 7, 3000).round, 0);
    assert_int_equal(enter(&f, 7, 3000).round, 1);
    assert_int_equal(enter(&f, 5, 2001).round, 1);
    fair_deinit(&f);
}

/* Who begins to wait later begins in the round that is on. */
static void test_newcomer(void **unused)
{
    struct fair f;
    (void)unused;
    set_up(&f);
    struct fair_ticket a[4];
    for (int i = 0; i < 4; i++)
        a[i] = enter(&f, 1, QUANTUM);
    for (int i = 0; i < 3; i++)
        leave(&f, 1, &a[i], true);
    assert_int_equal(enter(&f, 2, 10).round, 2);
    leave(&f, 1, &a[3], true);
    fair_deinit(&f);
}

/* An answer longer than guessed is owed, and waited for; being away pays for it, and earns nothing. */
static void test_debt(void **unused)
{
    struct fair f;
    struct core_request r = of(1, 0);
    (void)unused;
    set_up(&f);
    struct fair_ticket other = enter(&f, 2, 10), a = enter(&f, 1, QUANTUM);
    leave(&f, 1, &a, true);
    fair_settle(&f, &r, &a, QUANTUM, 1000, true); /* 2,000 more */
    a = enter(&f, 1, QUANTUM);
    assert_int_equal(a.round, 3);
    leave(&f, 1, &a, false);
    fair_settle(&f, &r, &a, 0, 0, false); /* left: what it was charged comes back */
    a = enter(&f, 1, QUANTUM);
    assert_int_equal(a.round, 3);
    leave(&f, 1, &a, true); /* round 3 */
    fair_settle(&f, &r, &a, QUANTUM, 0, false);
    struct fair_ticket far = enter(&f, 2, 20 * QUANTUM);
    leave(&f, 2, &far, true);
    a = enter(&f, 1, QUANTUM + 1); /* 16 rounds away are worth no more than one */
    assert_int_equal(a.round, far.round + 1);
    leave(&f, 1, &a, true);
    leave(&f, 2, &other, true);
    fair_deinit(&f);
}

/* Cancelled requests do not keep a tenant behind. */
static void test_refund(void **unused)
{
    struct fair f;
    struct core_request r = of(1, 0);
    struct fair_ticket t[50];
    (void)unused;
    set_up(&f);
    struct fair_ticket other = enter(&f, 2, 10);
    for (int i = 0; i < 50; i++)
        t[i] = enter(&f, 1, QUANTUM);
    assert_int_equal(t[49].round, 49);
    for (int i = 0; i < 50; i++) {
        leave(&f, 1, &t[i], false);
        fair_settle(&f, &r, &t[i], 0, 0, false);
    }
    assert_true(enter(&f, 1, QUANTUM).round <= 1);
    leave(&f, 2, &other, true);
    fair_deinit(&f);
}

/* With nobody waiting, history is forgotten. */
static void test_fresh_start(void **unused)
{
    struct fair f;
    struct core_request r = of(1, 0);
    (void)unused;
    set_up(&f);
    struct fair_ticket a = enter(&f, 1, QUANTUM);
    leave(&f, 1, &a, true);
    fair_settle(&f, &r, &a, 1u << 30, 0, false); /* nobody waited for it */
    a = enter(&f, 1, QUANTUM);
    assert_int_equal(a.round, f.floor);
    fair_deinit(&f);
}

/* One who goes at once has a place for later: behind its own that waited before it. */
static void test_pass_and_return(void **unused)
{
    struct fair f;
    struct core_request r = of(1, 0);
    struct fair_ticket p, b;
    (void)unused;
    set_up(&f);
    fair_pass(&f, &r, &p);
    assert_int_equal(p.round, 0);
    (void)enter(&f, 1, 3 * QUANTUM);
    fair_pass(&f, &r, &p);
    b = enter(&f, 1, 1);
    assert_true(p.round == 2 && b.round == 3);
    fair_return(&f, &r, &p);
    fair_leave(&f, &r, &p, true);
    assert_int_equal(f.bands[0].waiting, 2);
    fair_leave(&f, &r, &b, true); /* sent, lost, waits again */
    fair_return(&f, &r, &b);
    assert_int_equal(f.flows[b.flow].waiting, 2);
    fair_leave(&f, &r, &b, true);
    assert_int_equal(f.flows[b.flow].waiting, 1);
    fair_deinit(&f);
}

/* The table is full of tenants that wait: others share one turn; once one has gone, its place is used again. */
static void test_limit(void **unused)
{
    struct fair f;
    (void)unused;
    set_up(&f);
    struct fair_ticket *t = calloc(FAIR_MAX_FLOWS, sizeof *t);
    assert_non_null(t);
    for (uint32_t i = 0; i < FAIR_MAX_FLOWS; i++)
        t[i] = enter(&f, 1000 + i, QUANTUM);
    struct fair_ticket a = enter(&f, 1, QUANTUM), b = enter(&f, 2, QUANTUM);
    assert_true(a.round == 0 && b.round == 1); /* as one tenant */
    assert_int_equal(f.n_flows, FAIR_MAX_FLOWS + 1);
    leave(&f, 1000, &t[0], true);
    struct fair_ticket d = enter(&f, 3, QUANTUM);
    assert_int_equal(d.round, 0);
    assert_int_equal(f.n_flows, FAIR_MAX_FLOWS + 1);
    struct core_request r = of(1000, 0);
    fair_settle(&f, &r, &t[0], 1u << 30, 0, false); /* whose flow is another's by now */
    assert_int_equal(enter(&f, 3, QUANTUM).round, 1);
    leave(&f, 1, &a, true);
    leave(&f, 2, &b, true);
    r = of(1, 0);
    fair_settle(&f, &r, &a, 3 * QUANTUM, 0, false); /* all of those beyond the limit owe it */
    assert_true(enter(&f, 2, QUANTUM).round >= 3);
    free(t);
    fair_deinit(&f);
}

/* Priorities have rounds of their own. */
static void test_priorities(void **unused)
{
    struct fair f;
    struct fair_ticket t;
    (void)unused;
    set_up(&f);
    for (int32_t p = 20; p-- > 0;) {
        struct core_request r = of(1, p * 7 % 20);
        fair_enter(&f, &r, (uint64_t)p * QUANTUM + 1, &t);
        assert_int_equal(t.round, p);
    }
    assert_int_equal(f.n_bands, 20);
    for (uint32_t i = 1; i < 20; i++)
        assert_true(f.bands[i - 1].priority < f.bands[i].priority);
    fair_deinit(&f);
}

/* The bound that the header names, over random requests of tenants that always have some waiting. */
static void test_bound(void **unused)
{
    enum { TENANTS = 5, WAITING = 8, MAX_COST = 5000 };
    static const uint64_t ids[TENANTS] = {1, 2, 3, 5, 7}, weight[TENANTS] = {1, 1, 1, 2, 3};
    struct fair f;
    struct rng rng;
    struct {
        struct fair_ticket t;
        uint64_t seq;
    } q[TENANTS][WAITING];
    uint64_t got[TENANTS] = {0}, seq = 0, spread = 0;
    (void)unused;
    set_up(&f);
    rng_init(&rng, 3);
    for (int i = 0; i < TENANTS * WAITING; i++) {
        q[i / WAITING][i % WAITING].t = enter(&f, ids[i / WAITING], 1 + rng_below(&rng, MAX_COST));
        q[i / WAITING][i % WAITING].seq = seq++;
    }
    for (int step = 0; step < 20000; step++) {
        int k = 0, w = 0;
        for (int i = 0; i < TENANTS * WAITING; i++) {
            if (q[i / WAITING][i % WAITING].t.round < q[k][w].t.round ||
                (q[i / WAITING][i % WAITING].t.round == q[k][w].t.round &&
                 q[i / WAITING][i % WAITING].seq < q[k][w].seq)) {
                k = i / WAITING;
                w = i % WAITING;
            }
        }
        struct core_request r = of(ids[k], 0);
        got[k] += q[k][w].t.cost;
        fair_leave(&f, &r, &q[k][w].t, true);
        fair_settle(&f, &r, &q[k][w].t, (uint32_t)q[k][w].t.cost, 0, false);
        q[k][w].t = enter(&f, ids[k], 1 + rng_below(&rng, MAX_COST));
        q[k][w].seq = seq++;
        for (int a = 0; a < TENANTS; a++) {
            for (int b = 0; b < a; b++) {
                uint64_t x = got[a] / weight[a], y = got[b] / weight[b];
                uint64_t d = x > y ? x - y : y - x;
                assert_true(d <= QUANTUM + MAX_COST / weight[a] + MAX_COST / weight[b]);
                spread = d > spread ? d : spread;
            }
        }
    }
    assert_true(spread > QUANTUM / 2); /* it was a contest */
    fair_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_config),  cmocka_unit_test(test_off),
        cmocka_unit_test(test_rounds),      cmocka_unit_test(test_newcomer),
        cmocka_unit_test(test_debt),        cmocka_unit_test(test_refund),
        cmocka_unit_test(test_fresh_start), cmocka_unit_test(test_pass_and_return),
        cmocka_unit_test(test_limit),       cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
