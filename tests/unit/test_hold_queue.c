/* test_hold_queue.c - who is next in line, and whose deadline: against plain arrays. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdbool.h>
#include <string.h>

#include "controller/core/hold_queue.h"
#include "predictor/rng.h"

#define N 64

static void assert_line(const struct hold_queue *q, uint32_t n, const uint32_t *handles)
{
    uint32_t h = hold_queue_first(q);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(h, handles[i]);
        h = hold_queue_after(q, h);
    }
    assert_int_equal(h, HOLD_NONE);
    assert_int_equal(q->n, n);
}
#define ASSERT_LINE(q, ...)                                                                        \
    assert_line(q, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t), (uint32_t[]){__VA_ARGS__})

static void test_line(void **unused)
{
    struct hold_queue q;
    (void)unused;
    hold_queue_init(&q);
    assert_line(&q, 0, NULL);
    assert_int_equal(hold_queue_soonest(&q), HOLD_NONE);
    assert_true(hold_queue_deadline_ps(&q) == PS_NEVER);

    hold_queue_push(&q, 7, 0, 10, 100);
    hold_queue_push(&q, 3, 0, 11, 101);
    hold_queue_push(&q, 100000, -5, 12, 102); /* more urgent; the table grows */
    hold_queue_push(&q, 4, 5, 13, 102);
    hold_queue_push(&q, 5, 0, 9, 103); /* an earlier arrival that comes back */
    hold_queue_push(&q, 6, INT32_MIN, 14, 104);
    hold_queue_push(&q, 8, INT32_MAX, 15, 104);
    ASSERT_LINE(&q, 6, 100000, 5, 7, 3, 4, 8);
    assert_int_equal(hold_queue_soonest(&q), 7);
    assert_int_equal(hold_queue_deadline_ps(&q), 100);

    hold_queue_remove(&q, 7);
    assert_int_equal(hold_queue_soonest(&q), 3);
    hold_queue_remove(&q, 6); /* alone in its priority */
    hold_queue_remove(&q, 3);
    ASSERT_LINE(&q, 100000, 5, 4, 8);
    assert_int_equal(hold_queue_deadline_ps(&q), 102);
    hold_queue_remove(&q, 8);
    hold_queue_remove(&q, 100000);
    hold_queue_remove(&q, 4);
    hold_queue_remove(&q, 5);
    assert_line(&q, 0, NULL);
    assert_int_equal(hold_queue_soonest(&q), HOLD_NONE);
    hold_queue_push(&q, 5, 0, 16, PS_NEVER);
    ASSERT_LINE(&q, 5);
    hold_queue_deinit(&q);
}

/* A walk that takes out what it stands on. */
static void test_walk_and_remove(void **unused)
{
    struct hold_queue q;
    uint32_t n = 0;
    (void)unused;
    hold_queue_init(&q);
    for (uint32_t h = 0; h < 9; h++)
        hold_queue_push(&q, h, (int32_t)(h % 3), h, h);
    for (uint32_t next, h = hold_queue_first(&q); h != HOLD_NONE; h = next) {
        next = hold_queue_after(&q, h);
        if (n++ % 3 != 1)
            hold_queue_remove(&q, h);
    }
    ASSERT_LINE(&q, 3, 4, 5);
    hold_queue_deinit(&q);
}

struct naive {
    bool in;
    int32_t priority;
    uint64_t seq, entered;
};

static void compare(const struct hold_queue *q, const struct naive *m)
{
    uint32_t soonest = HOLD_NONE, n = 0, last = HOLD_NONE;
    for (uint32_t h = 0; h < N; h++) {
        n += m[h].in;
        if (m[h].in && (soonest == HOLD_NONE || m[h].entered < m[soonest].entered))
            soonest = h;
    }
    assert_int_equal(q->n, n);
    assert_int_equal(hold_queue_soonest(q), soonest);
    for (uint32_t h = hold_queue_first(q); h != HOLD_NONE; h = hold_queue_after(q, h), n--) {
        assert_true(m[h].in);
        if (last != HOLD_NONE)
            assert_true(m[last].priority < m[h].priority ||
                        (m[last].priority == m[h].priority && m[last].seq < m[h].seq));
        last = h;
    }
    assert_int_equal(n, 0);
}

static void test_random(void **unused)
{
    struct hold_queue q;
    struct naive m[N];
    struct rng rng;
    (void)unused;
    memset(m, 0, sizeof m);
    rng_init(&rng, 1);
    hold_queue_init(&q);
    for (uint32_t i = 1; i < 5000; i++) {
        uint32_t h = (uint32_t)rng_below(&rng, N);
        if (m[h].in) {
            hold_queue_remove(&q, h);
            m[h].in = false;
        } else { /* half come back with the number that they had */
            bool again = m[h].seq && rng_below(&rng, 2);
            m[h] =
                (struct naive){.in = true,
                               .priority = again ? m[h].priority : (int32_t)rng_below(&rng, 4) - 2,
                               .seq = again ? m[h].seq : i,
                               .entered = i};
            hold_queue_push(&q, h, m[h].priority, m[h].seq, i);
        }
        compare(&q, m);
    }
    hold_queue_deinit(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_walk_and_remove),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
