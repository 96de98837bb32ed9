/* What connections of one loop share: timers (under a clock that the test turns), tasks, pools, the date. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "controller/http/http_loop.c"
#include "predictor/rng.h"

/* --- timers ------------------------------------------------------------------------------------------------ */

enum { N_TIMERS = 200 };

static uv_loop_t uv;
static struct http_loop *loop;

struct probe {
    struct http_timer timer; /* first */
    uint64_t due;            /* UINT64_MAX: it must not fire */
    unsigned fired;
};

static struct probe probes[N_TIMERS];
static struct rng rng;

static uint64_t some_delay(void)
{
    static const uint64_t most[] = {1, 20, 300, 9000,
                                    200000}; /* the wheel goes round in 8,192 ms */
    return rng_u64(&rng) % most[rng_u64(&rng) % 5];
}

static void set(struct probe *p)
{
    uint64_t delay = some_delay();
    p->due = uv_now(&uv) + delay;
    http_timer_start(loop, &p->timer, delay);
}

/* Stops, starts and takes out timers, from within callbacks too. */
static void fiddle(void)
{
    struct probe *p = &probes[rng_u64(&rng) % N_TIMERS];
    switch (rng_u64(&rng) % 4) {
    case 0:
        http_timer_stop(&p->timer);
        p->due = UINT64_MAX;
        break;
    case 1:
        http_timer_deinit(loop, &p->timer);
        p->due = UINT64_MAX;
        break;
    default: set(p); break;
    }
}

static void on_fire(struct http_timer *timer)
{
    struct probe *p = (struct probe *)timer;
    assert_true(p->due != UINT64_MAX);
    assert_true(uv_now(&uv) >= p->due); /* never early */
    assert_true(uv_now(&uv) <=
                p->due + HTTP_TICK_MS + 60); /* 60: what the clock below jumps at most */
    p->due = UINT64_MAX;
    p->fired++;
    if (rng_u64(&rng) % 2)
        fiddle();
}

/* The loop sleeps until its timer is due, and sometimes a little longer. */
static void next_tick(void)
{
    uint64_t late = rng_u64(&rng) % 8 ? 0 : rng_u64(&rng) % 60;
    uint64_t at = loop->tick_at_ms;
    if (at > uv.time)
        uv.time = at;
    uv.time += late;
    on_tick(&loop->tick);
}

static void timers_fire_in_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        unsigned fired = 0;
        rng_init(&rng, seed);
        for (unsigned i = 0; i < N_TIMERS; i++) {
            http_timer_init(&probes[i].timer, on_fire);
            probes[i].due = UINT64_MAX;
            probes[i].fired = 0;
        }
        for (unsigned step = 0; step < 3000; step++) {
            fiddle();
            if (rng_u64(&rng) % 3 == 0) {
                uint64_t ahead = rng_u64(&rng) % 10;
                uv.time += ahead;
                if (uv.time >= loop->tick_at_ms)
                    on_tick(&loop->tick);
            }
            if (rng_u64(&rng) % 20 == 0 && loop->tick_at_ms != UINT64_MAX)
                next_tick();
        }
        while (loop->tick_at_ms != UINT64_MAX)
            next_tick();
        for (unsigned i = 0; i < N_TIMERS; i++) {
            assert_true(probes[i].due == UINT64_MAX); /* none was forgotten */
            assert_null(probes[i].timer.link);
            fired += probes[i].fired;
        }
        assert_true(fired > 500);
        for (unsigned i = 0; i < SLOT_WORDS; i++)
            assert_int_equal(loop->in_use[i], 0);
    }
}

static void on_count(struct http_timer *timer)
{
    ((struct probe *)timer)->fired++;
}

static void a_long_sleep(void **state)
{
    struct probe p = {.fired = 0};
    (void)state;
    http_timer_init(&p.timer, on_count);
    http_timer_start(loop, &p.timer, 1000);
    uv.time += 3600 * 1000; /* the machine was suspended */
    on_tick(&loop->tick);
    assert_int_equal(p.fired, 1);
    http_timer_start(loop, &p.timer, 1000);
    uv.time += 999;
    on_tick(&loop->tick);
    assert_int_equal(p.fired, 1);
    uv.time += HTTP_TICK_MS + 1;
    on_tick(&loop->tick);
    assert_int_equal(p.fired, 2);
}

/* Setting a timer later, as every byte received does, leaves it where it is in the wheel. */
static void later_is_a_store(void **state)
{
    struct probe p = {.fired = 0};
    (void)state;
    http_timer_init(&p.timer, on_count);
    http_timer_start(loop, &p.timer, 1000);
    struct http_timer **link = p.timer.link;
    uint64_t slot = p.timer.slot_ms;
    uv.time += 500;
    http_timer_start(loop, &p.timer, 1000);
    assert_ptr_equal(p.timer.link, link);
    assert_int_equal(p.timer.slot_ms, slot);
    while (!p.fired)
        next_tick();
    http_timer_deinit(loop, &p.timer);
}

/* --- tasks ------------------------------------------------------------------------------------------------- */

struct count_task {
    struct http_task task; /* first */
    unsigned runs, again;
    struct http_task *victim;
};

static void on_run(struct http_task *task)
{
    struct count_task *t = (struct count_task *)task;
    t->runs++;
    if (t->victim)
        http_task_deinit(loop, t->victim);
    if (t->again) {
        t->again--;
        http_task_post(loop, task);
    }
}

static void tasks(void **state)
{
    struct count_task a = {0}, b = {0}, c = {0};
    (void)state;
    http_task_init(&a.task, on_run);
    http_task_init(&b.task, on_run);
    http_task_init(&c.task, on_run);
    a.victim = &b.task;
    c.again = 2;
    http_task_post(loop, &a.task);
    http_task_post(loop, &b.task);
    http_task_post(loop, &c.task);
    http_task_post(loop, &c.task); /* once, though posted twice */
    on_idle(&loop->idle);
    assert_int_equal(a.runs, 1);
    assert_int_equal(b.runs, 0);
    assert_int_equal(c.runs, 1); /* what it posted waits for the next turn */
    on_idle(&loop->idle);
    assert_int_equal(c.runs, 2);
    on_idle(&loop->idle);
    assert_int_equal(c.runs, 3);
    on_idle(&loop->idle);
    assert_int_equal(a.runs + b.runs + c.runs, 4);
    assert_null(loop->tasks);
    http_task_deinit(loop, &a.task);
}

/* --- pools ------------------------------------------------------------------------------------------------- */

static void pools_are_bounded(void **state)
{
    enum { N = 1000 };
    static struct http_block *blocks[N];
    struct http_body bodies[100] = {{NULL, 0, 0}};
    (void)state;
    for (unsigned i = 0; i < N; i++)
        blocks[i] = http_block_get(loop);
    for (unsigned i = 0; i < N; i++)
        http_block_put(loop, blocks[i]);
    struct http_loop_stats stats = http_loop_stats(loop);
    assert_int_equal(stats.blocks_used, 0);
    assert_true(stats.blocks_idle > 0 &&
                stats.blocks_idle * sizeof(struct http_block) <= HTTP_POOL_BYTES);
    struct http_block *last =
        blocks[stats.blocks_idle - 1]; /* the last one that was kept comes first */
    assert_ptr_equal(http_block_get(loop), last);
    http_block_put(loop, last);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(http_body_grow(loop, &bodies[i], 1000000), 0);
    for (unsigned i = 0; i < 100; i++)
        http_body_put(loop, &bodies[i]);
    stats = http_loop_stats(loop);
    assert_int_equal(stats.body_bytes_used, 0);
    assert_true(stats.body_bytes_idle > 0 && stats.body_bytes_idle <= HTTP_POOL_BYTES);
}

static void bodies_keep_what_is_in_them(void **state)
{
    struct http_body body = {NULL, 0, 0};
    (void)state;
    assert_int_equal(http_body_grow(loop, &body, 1), 0);
    assert_int_equal(body.cap, 65536);
    memset(body.at, 'x', 65536);
    body.len = 65536;
    assert_int_equal(http_body_grow(loop, &body, 65537), 0);
    assert_int_equal(body.cap, 131072);
    for (unsigned i = 0; i < 65536; i++)
        assert_int_equal(body.at[i], 'x');
    assert_int_equal(http_body_grow(loop, &body, (size_t)1 << 40), WEIR_E_NOMEM);
    assert_int_equal(body.len, 65536);
    http_body_put(loop, &body);
    http_body_put(loop, &body); /* nothing more to give back */
}

static void spin(struct http_task *task)
{
    uint64_t until = uv_hrtime() + 2 * HTTP_LONG_LAP_NS;
    (void)task;
    while (uv_hrtime() < until) {
    }
}

/* A callback that keeps the loop is counted, once: as the loop's own doing, or the system's. */
static void long_callbacks_are_counted(void **state)
{
    const struct http_loop_laps *laps = http_loop_laps(loop);
    struct http_task task;
    (void)state;
    assert_int_equal(laps->blocked + laps->preempted, 0);
    http_task_init(&task, spin);
    for (unsigned i = 1; i <= 3; i++) {
        http_task_post(loop, &task);
        uv_run(&uv, UV_RUN_NOWAIT);
        assert_int_equal(laps->blocked + laps->preempted, i);
    }
    assert_true(!laps->blocked || laps->longest_ns >= 2 * HTTP_LONG_LAP_NS);
}

static void date(void **state)
{
    (void)state;
    struct http_slice d = http_loop_date(loop);
    char text[40];
    struct tm tm = {0};
    snprintf(text, sizeof text, "%.*s", (int)d.len, d.s);
    assert_non_null(strptime(text, "%a, %d %b %Y %H:%M:%S GMT", &tm));
    assert_true(llabs((long long)timegm(&tm) - (long long)time(NULL)) <= 2);
    assert_ptr_equal(http_loop_date(loop).s, d.s);
}

static int set_up(void **state)
{
    (void)state;
    uv_loop_init(&uv);
    loop = http_loop_new(&uv);
    return loop ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    http_loop_free(loop);
    http_loop_free(NULL);
    uv_run(&uv, UV_RUN_DEFAULT);
    return uv_loop_close(&uv);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(timers_fire_in_time),        T(a_long_sleep),
        T(later_is_a_store),           T(tasks),
        T(pools_are_bounded),          T(bodies_keep_what_is_in_them),
        T(long_callbacks_are_counted), T(date),
    };
    return cmocka_run_group_tests_name("http_loop", tests, NULL, NULL);
}
