/* prop_fair_share.c - one link against a naive fluid: every transfer's rest is kept and lowered by hand from one
 * change to the next. Also: total work is served without a gap, cancelling gives the share back, pops that
 * come late change nothing, and a copy goes on as the original.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predictor/fair_share.h"
#include "predictor/rng.h"
#include "predictor/units.h"
#include "tests/support/prop.h"

#define MAX_TRANSFERS 120u

struct transfer {
    long double rest_bytes, sent_ps; /* naive; sent_ps < 0: not yet */
    int64_t arrived_ps;              /* by fair_share; < 0: not yet */
    uint32_t id;
    bool cancelled;
};

struct bed {
    struct fair_share s, late, copy;
    struct transfer t[MAX_TRANSFERS];
    uint32_t n, n_sent, n_arrived, n_late, order[MAX_TRANSFERS];
    long double naive_ps, bytes_per_ps;
    int64_t latency_ps;
};

/* ---- the naive fluid */

static bool sending(const struct transfer *t)
{
    return !t->cancelled && t->sent_ps < 0;
}

static void naive_run(struct bed *b, int64_t until)
{
    while (b->naive_ps < until) {
        uint32_t active = 0, first = MAX_TRANSFERS;
        for (uint32_t i = 0; i < b->n; i++) {
            if (!sending(&b->t[i]))
                continue;
            active++;
            if (first == MAX_TRANSFERS || b->t[i].rest_bytes < b->t[first].rest_bytes)
                first = i;
        }
        long double dt = until - b->naive_ps, share = active ? b->bytes_per_ps / active : 0;
        bool ends = active && b->t[first].rest_bytes <= share * dt;
        if (ends)
            dt = b->t[first].rest_bytes / share;
        for (uint32_t i = 0; i < b->n; i++) {
            if (sending(&b->t[i]))
                b->t[i].rest_bytes -= share * dt;
        }
        b->naive_ps += dt;
        if (!ends)
            b->naive_ps = until;
        else
            b->t[first].sent_ps = b->naive_ps;
        b->n_sent += ends;
    }
}

static void naive_add(struct bed *b, int64_t now, uint64_t bytes)
{
    naive_run(b, now);
    bool at_once = !bytes || b->bytes_per_ps == 0;
    b->t[b->n] = (struct transfer){
        .rest_bytes = bytes, .sent_ps = at_once ? (long double)now : -1, .arrived_ps = -1};
}

/* ---- what fair_share says */

static void arrived(struct bed *b, int64_t at, uint32_t handle)
{
    struct transfer *t = &b->t[handle];
    assert_true(handle < b->n && t->arrived_ps < 0 && !t->cancelled);
    t->arrived_ps = at;
    b->order[b->n_arrived++] = handle;
}

/* Pops everything at its time, up to now. */
static void take_until(struct bed *b, int64_t now)
{
    uint32_t handle;
    for (int64_t t; (t = fair_share_next_ps(&b->s)) <= now;) {
        assert_true(fair_share_pop(&b->s, t, &handle));
        arrived(b, t, handle);
    }
    assert_false(fair_share_pop(&b->s, now, &handle));
}

/* The other one is popped only now. */
static void take_late(struct fair_share *s, struct bed *b, uint32_t *n, int64_t now)
{
    uint32_t handle;
    while (fair_share_pop(s, now, &handle))
        assert_int_equal(handle, b->order[(*n)++]);
    assert_int_equal(*n, b->n_arrived);
}

static void add(struct bed *b, int64_t now, uint64_t bytes)
{
    naive_add(b, now, bytes);
    b->t[b->n].id = fair_share_add(&b->s, now, bytes, b->n);
    assert_int_equal(fair_share_add(&b->late, now, bytes, b->n), b->t[b->n].id);
    b->n++;
}

static void cancel(struct bed *b, int64_t now, uint32_t i)
{
    if (b->t[i].cancelled || b->t[i].arrived_ps >= 0)
        return;
    naive_run(b, now);
    fair_share_cancel(&b->s, now, b->t[i].id);
    fair_share_cancel(&b->late, now, b->t[i].id);
    b->t[i].cancelled = true;
}

/* Every finish is rounded up to a whole ps, which delays those after it by that much at most. */
static void check_times(const struct bed *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        const struct transfer *t = &b->t[i];
        if (t->cancelled)
            continue;
        long double late = (long double)t->arrived_ps - t->sent_ps - b->latency_ps;
        if (t->arrived_ps < 0 || late < -0.01L || late > b->n + 1)
            fail_msg("transfer %u arrives at %lld, naively at %.3Lf", i, (long long)t->arrived_ps,
                     t->sent_ps + b->latency_ps);
    }
}

static void link_of(struct rng *r, struct bed *b)
{
    static const double gb_s[] = {0, 0.001, 0.37, 1, 50, 450.5};
    double bandwidth = gb_s[rng_below(r, 6)];
    b->latency_ps = rng_below(r, 3) ? (int64_t)rng_below(r, 2000000) : 0;
    b->bytes_per_ps = (long double)bandwidth / 1000;
    assert_int_equal(fair_share_init(&b->s, bandwidth, b->latency_ps), 0);
    assert_int_equal(fair_share_init(&b->late, bandwidth, b->latency_ps), 0);
    assert_int_equal(fair_share_init(&b->copy, 1, 1), 0);
}

static void against_naive_fluid(uint64_t seed)
{
    static struct bed b;
    memset(&b, 0, sizeof b);
    struct rng r;
    rng_init(&r, seed);
    link_of(&r, &b);
    int64_t now = 0;
    uint64_t gap = 1 + rng_below(&r, 4000000), size = 1 + rng_below(&r, 5000);
    uint32_t want = 1 + (uint32_t)rng_below(&r, MAX_TRANSFERS),
             calm = 1 + (uint32_t)rng_below(&r, 9);
    while (b.n < want) {
        now += rng_below(&r, 4) ? (int64_t)rng_below(&r, gap) : 0;
        take_until(&b, now);
        take_late(&b.late, &b, &b.n_late, now);
        if (b.n && rng_below(&r, calm) == 0)
            cancel(&b, now, (uint32_t)rng_below(&r, b.n));
        add(&b, now, rng_below(&r, 12) ? rng_below(&r, size) : 0);
    }
    assert_int_equal(fair_share_copy(&b.copy, &b.s), 0);
    uint32_t n_copy = b.n_arrived;
    take_until(&b, PS_LIMIT);
    take_late(&b.late, &b, &b.n_late, PS_LIMIT);
    take_late(&b.copy, &b, &n_copy, PS_LIMIT);
    assert_int_equal(fair_share_next_ps(&b.s), PS_NEVER);
    naive_run(&b, now + (int64_t)1000 * PS_PER_S);
    check_times(&b);
    fair_share_deinit(&b.s);
    fair_share_deinit(&b.late);
    fair_share_deinit(&b.copy);
}

/* As long as something is sending, the link sends at its full rate: n transfers that overlap end when their
 * bytes would end in one piece, whoever comes when. */
static void work_is_conserved(uint64_t seed)
{
    struct fair_share s;
    struct rng r;
    rng_init(&r, seed);
    assert_int_equal(fair_share_init(&s, 1, 0), 0); /* a byte in 1000 ps */
    uint32_t n = 2 + (uint32_t)rng_below(&r, 500), handle = 0, got = 0;
    int64_t now = (int64_t)rng_below(&r, 1000), end = now, last = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t bytes = 1 + rng_below(&r, 10000);
        fair_share_add(&s, now, bytes, i);
        end += (int64_t)bytes * 1000;
        now += (int64_t)rng_below(&r, (uint64_t)(end - now)); /* before it is idle */
    }
    for (; (last = fair_share_next_ps(&s)) != PS_NEVER; got++) {
        assert_true(last <= end + n);
        assert_true(fair_share_pop(&s, last > now ? last : now, &handle));
        if (got == n - 1)
            assert_true(last >= end);
    }
    assert_int_equal(got, n);
    fair_share_deinit(&s);
}

static void link_is_a_fluid(void **state)
{
    (void)state;
    prop_run("link_is_a_fluid", 3000, against_naive_fluid);
}

static void link_is_never_idle(void **state)
{
    (void)state;
    prop_run("link_is_never_idle", 500, work_is_conserved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(link_is_a_fluid, prop_teardown),
        cmocka_unit_test_teardown(link_is_never_idle, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
