/* test_health.c - who is left out, for how long, and when the signal is distrusted. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <string.h>

#include "controller/core/health.h"

#define MAX 16
#define S PS_PER_S

static uint32_t inflight[MAX];

static struct core_health_config usual(void)
{
    return (struct core_health_config){.breaker_failures = 3,
                                       .outlier_failure_percent = 30,
                                       .outlier_latency_percent = 300,
                                       .outlier_interval_ps = 10 * S,
                                       .eject_ps = 4 * S,
                                       .eject_max_ps = 40 * S,
                                       .eject_max_percent = 34,
                                       .panic_percent = 50};
}

static int try_config(struct core_health_config config, uint32_t n, struct health *h)
{
    struct core_worker_config w[MAX];
    const char *why;
    for (uint32_t i = 0; i < n; i++)
        w[i] = (struct core_worker_config){.role = ROLE_BOTH, .block_size = 16, .up = true};
    memset(inflight, 0, sizeof inflight);
    struct core_config c = {.n_workers = n, .workers = w, .seed = 7, .health = config};
    int rc = health_init(h, &c, &why);
    assert_true(rc == 0 ? !why : why != NULL);
    return rc;
}

static void set_up(struct health *h, struct core_health_config config, uint32_t n)
{
    assert_int_equal(try_config(config, n, h), 0);
}

static void fail_often(struct health *h, uint32_t w, int n)
{
    while (n--)
        health_bad(h, w);
}

static bool admits(const struct health *h, uint32_t w)
{
    return health_admits(h, w, inflight[w]);
}

static void test_bad_config(void **unused)
{
    struct health h;
    struct core_health_config c = {0};
    (void)unused;
    set_up(&h, c, 1); /* all off */
    fail_often(&h, 0, 1000);
    assert_true(admits(&h, 0));
    assert_true(health_next_ps(&h) == PS_NEVER);
    health_deinit(&h);
    c = usual();
    c.outlier_interval_ps = 0;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
    c = usual();
    c.eject_ps = 0;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
    c = usual();
    c.eject_max_ps = c.eject_ps - 1;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
    c = usual();
    c.panic_percent = 101;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
    c = usual();
    c.outlier_latency_percent = 100;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
    c = usual();
    c.slow_start_ps = -1;
    assert_int_equal(try_config(c, 1, &h), WEIR_E_INVALID);
}

/* Closed, open, half-open; a success in between starts the count anew. */
static void test_breaker(void **unused)
{
    struct health h;
    (void)unused;
    set_up(&h, usual(), 4);
    health_tick(&h, 1 * S, inflight);
    fail_often(&h, 0, 2);
    health_good(&h, 0, 0, 0);
    fail_often(&h, 0, 2);
    assert_true(admits(&h, 0));
    fail_often(&h, 0, 1);
    assert_false(admits(&h, 0));
    assert_int_equal(h.workers[0].cause, CORE_HEALTH_FAILURES);
    int64_t until = health_next_ps(&h);
    assert_true(until >= 5 * S && until <= 6 * S); /* 4 s and up to a quarter */
    fail_often(&h, 0, 5);                          /* those still out there change nothing */
    health_good(&h, 0, 0, 0);
    health_tick(&h, until - 1, inflight);
    assert_int_equal(h.workers[0].state, CORE_HEALTH_EJECTED);
    inflight[0] = 2; /* hanging since before */
    health_tick(&h, until, inflight);
    assert_true(admits(&h, 0)); /* one to try it */
    inflight[0]++;
    assert_false(admits(&h, 0));
    inflight[0]--; /* its client left: another one */
    health_left(&h, 0, inflight[0]);
    assert_true(admits(&h, 0));
    inflight[0]++;
    health_good(&h, 0, 0, 0);
    assert_int_equal(h.workers[0].state, CORE_HEALTH_OK);
    assert_true(admits(&h, 0));
    assert_int_equal(h.ejections, 1);
    health_deinit(&h);
}

/* Twice as long each time, up to the limit; from the beginning after a good while. */
static void test_back_off(void **unused)
{
    static const int64_t expect[] = {4, 8, 16, 32, 40, 40};
    struct health h;
    (void)unused;
    set_up(&h, usual(), 4);
    int64_t now = 1 * S;
    health_tick(&h, now, inflight);
    fail_often(&h, 0, 2);
    for (int i = 0; i < 6; i++) {
        health_bad(&h, 0); /* from the second on: the one that tried it */
        int64_t ps = h.workers[0].until_ps - now;
        assert_true(ps >= expect[i] * S && ps <= expect[i] * S * 5 / 4);
        now = h.workers[0].until_ps;
        health_tick(&h, now, inflight);
        assert_int_equal(h.workers[0].state, CORE_HEALTH_PROBING);
    }
    health_good(&h, 0, 0, 0);
    now += 39 * S;
    health_tick(&h, now, inflight);
    fail_often(&h, 0, 3);
    assert_true(h.workers[0].until_ps - now >= 40 * S);
    now = h.workers[0].until_ps;
    health_tick(&h, now, inflight);
    health_good(&h, 0, 0, 0);
    now += 40 * S;
    health_tick(&h, now, inflight);
    fail_often(&h, 0, 3);
    assert_true(h.workers[0].until_ps - now <= 5 * S);
    health_deinit(&h);
}

/* Not all come back at once. */
static void test_jitter(void **unused)
{
    struct health h;
    int64_t until[8];
    (void)unused;
    set_up(&h, usual(), 8);
    for (uint32_t w = 0; w < 8; w++) {
        fail_often(&h, w, 3);
        until[w] = h.workers[w].until_ps;
        for (uint32_t v = 0; v < w; v++)
            assert_true(until[v] != until[w]);
    }
    health_deinit(&h);
}

/* Half of them sick are left out; more than half, and all are used. The last one is never shut out. */
static void test_panic(void **unused)
{
    struct health h;
    (void)unused;
    set_up(&h, usual(), 4);
    fail_often(&h, 0, 3);
    fail_often(&h, 1, 3);
    assert_true(!admits(&h, 0) && !admits(&h, 1) && admits(&h, 2));
    assert_false(h.panic[ROLE_BOTH]);
    h.changed = 0;
    fail_often(&h, 2, 3);
    assert_true(h.panic[ROLE_BOTH] && h.changed);
    for (uint32_t w = 0; w < 4; w++)
        assert_true(admits(&h, w));
    health_gone(&h, 0); /* two are left, of three: still too many */
    assert_true(h.panic[ROLE_BOTH]);
    health_gone(&h, 1);
    assert_false(h.panic[ROLE_BOTH]);
    assert_true(!admits(&h, 2) && admits(&h, 3));
    health_gone(&h, 3);
    assert_true(admits(&h, 2));
    health_up(&h, 0); /* one that comes back is as new */
    health_up(&h, 1);
    assert_true(!admits(&h, 2) && admits(&h, 0) && admits(&h, 1));
    health_deinit(&h);
    set_up(&h, usual(), 1);
    fail_often(&h, 0, 100);
    assert_true(admits(&h, 0));
    health_deinit(&h);
}

static void end(struct health *h, uint32_t w, int good, int bad, int64_t latency_ps)
{
    while (good--)
        health_good(h, w, latency_ps, 488);
    while (bad--) {
        health_bad(h, w);
        health_good(h, w, latency_ps, 488); /* not in a row */
    }
}

/* A worker whose requests fail much more often than those of others. */
static void test_failure_rate(void **unused)
{
    struct health h;
    (void)unused;
    set_up(&h, usual(), 6);
    for (uint32_t w = 0; w < 6; w++)
        end(&h, w, 30, 3, S);
    end(&h, 1, 0, 60, S); /* nearly half */
    end(&h, 2, 0, 10, S);
    health_tick(&h, 10 * S, inflight);
    assert_int_equal(h.workers[1].state, CORE_HEALTH_EJECTED);
    assert_int_equal(h.workers[1].cause, CORE_HEALTH_FAILURE_RATE);
    for (uint32_t w = 0; w < 6; w++)
        assert_true(w == 1 || h.workers[w].state == CORE_HEALTH_OK);
    assert_int_equal(h.workers[2].ended, 0); /* a new interval */
    health_deinit(&h);
}

/* One that takes much longer than others; not in a pool of two, and not with too few requests. */
static void test_latency(void **unused)
{
    struct health h;
    (void)unused;
    for (uint32_t n = 2; n <= 3; n++) {
        set_up(&h, usual(), n);
        for (uint32_t w = 0; w < n; w++)
            end(&h, w, 20, 0, w == 0 ? 4 * S : S);
        health_tick(&h, 10 * S, inflight);
        assert_int_equal(h.workers[0].state, n == 3 ? CORE_HEALTH_EJECTED : CORE_HEALTH_OK);
        assert_true(n == 2 || h.workers[0].cause == CORE_HEALTH_SLOW);
        health_deinit(&h);
    }
    set_up(&h, usual(), 3);
    end(&h, 0, 19, 0, 9 * S);
    end(&h, 1, 30, 0, S);
    end(&h, 2, 30, 0, S);
    health_tick(&h, 10 * S, inflight);
    assert_int_equal(h.workers[0].state, CORE_HEALTH_OK);
    end(&h, 0, 20, 0, 29 * S / 10); /* the limit is three times the median */
    end(&h, 1, 30, 0, S);
    end(&h, 2, 30, 0, S);
    health_tick(&h, 20 * S, inflight);
    assert_int_equal(h.workers[0].state, CORE_HEALTH_OK);
    health_deinit(&h);
}

/* No more outliers are out than the config says, but always one. */
static void test_most(void **unused)
{
    struct health h;
    struct core_health_config c = usual();
    (void)unused;
    for (int percent = 10; percent <= 50; percent += 20) {
        uint32_t out = 0;
        c.eject_max_percent = (uint32_t)percent;
        c.panic_percent = 0;
        set_up(&h, c, 7);
        for (uint32_t w = 0; w < 7; w++)
            end(&h, w, 20, 0, w < 3 ? 100 * S : S);
        health_tick(&h, 10 * S, inflight);
        for (uint32_t w = 0; w < 7; w++)
            out += h.workers[w].state == CORE_HEALTH_EJECTED;
        assert_int_equal(out, percent == 10 ? 1 : percent == 30 ? 2 : 3);
        health_deinit(&h);
    }
}

/* A new worker's share grows; nobody is left out where there is nobody else. */
static void test_slow_start(void **unused)
{
    static const uint32_t list[] = {0, 1, 2};
    struct core_health_config c = {.slow_start_ps = 100 * S};
    struct health h;
    uint32_t out[3];
    (void)unused;
    set_up(&h, c, 3);
    assert_int_equal(h.n_ramping, 0); /* there from the beginning */
    health_tick(&h, 1000 * S, inflight);
    health_gone(&h, 2);
    health_up(&h, 2);
    assert_int_equal(health_share(&h, 2), 100);
    inflight[0] = inflight[1] = 20;
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 3); /* it has none: one in any case */
    inflight[2] = 1;
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 3); /* a tenth of 20 */
    inflight[2] = 2;
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 2);
    assert_true(out[0] == 0 && out[1] == 1);
    assert_int_equal(health_thin(&h, list + 2, 1, inflight, out), 1); /* alone */
    health_tick(&h, 1050 * S, inflight);
    assert_in_range(health_share(&h, 2), 530, 550);
    inflight[2] = 10;
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 3);
    inflight[2] = 11;
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 2);
    health_tick(&h, 1100 * S, inflight);
    inflight[2] = 100;
    assert_int_equal(health_share(&h, 2), 1000);
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 3);
    assert_int_equal(h.n_ramping, 0);
    for (uint32_t w = 0; w < 3; w++) { /* all new: nothing to compare with */
        health_gone(&h, w);
        health_up(&h, w);
    }
    assert_int_equal(health_thin(&h, list, 3, inflight, out), 3);
    health_deinit(&h);
}

/* Same seed, same times. */
static void test_repeatable(void **unused)
{
    struct health a, b;
    (void)unused;
    set_up(&a, usual(), 4);
    set_up(&b, usual(), 4);
    fail_often(&a, 1, 3);
    fail_often(&b, 1, 3);
    assert_int_equal(a.workers[1].until_ps, b.workers[1].until_ps);
    health_deinit(&a);
    health_deinit(&b);
}

/* Another config: panic is asked again, ejections stay; with nothing that ejects, nobody is out. */
static void test_reconfigure(void **unused)
{
    struct health h;
    struct core_health_config c = usual();
    (void)unused;
    set_up(&h, c, 4);
    fail_often(&h, 0, 3);
    fail_often(&h, 1, 3);
    assert_false(admits(&h, 0));
    c.panic_percent = 60;
    health_judge_by(&h, &c);
    assert_true(h.panic[ROLE_BOTH] && admits(&h, 0));
    c.panic_percent = 0;
    health_judge_by(&h, &c);
    assert_false(admits(&h, 0));
    health_judge_by(&h, &(struct core_health_config){0});
    assert_true(admits(&h, 0) && health_next_ps(&h) == PS_NEVER);
    health_deinit(&h);
}

static void test_names(void **unused)
{
    (void)unused;
    for (int i = 0; i < CORE_HEALTH_COUNT; i++)
        assert_non_null(core_health_name((enum core_health)i));
    for (int i = 0; i < CORE_HEALTH_CAUSES; i++)
        assert_non_null(core_health_cause_name((enum core_health_cause)i));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_config), cmocka_unit_test(test_breaker),
        cmocka_unit_test(test_back_off),   cmocka_unit_test(test_jitter),
        cmocka_unit_test(test_panic),      cmocka_unit_test(test_failure_rate),
        cmocka_unit_test(test_latency),    cmocka_unit_test(test_most),
        cmocka_unit_test(test_slow_start), cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_names),      cmocka_unit_test(test_reconfigure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
