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

static void push(struct hold_queue *q, uint32_t handle, int32_t priority, uint64_t seq,
                 int64_t deadline_ps)
{
    hold_queue_push(q, handle,
                    &(struct hold_entry){.priority = priority,
                                         .seq = seq,
                                         .need_tok = 100,
                                         .bytes = 10,
                                         .deadline_ps = deadline_ps});
}

static void assert_line(const struct hold_queue *q, uint32_t n, const uint32_t *handles)
{
    uint32_t h = hold_queue_first(q, UINT64_MAX);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(h, handles[i]);
        h = hold_queue_after(q, h, UINT64_MAX);
    }
    assert_int_equal(h, HOLD_NONE);
    assert_int_equal(q->n, n);
    assert_int_equal(q->bytes, 10 * n);
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

    push(&q, 7, 0, 10, 100);
    push(&q, 3, 0, 11, 101);
    push(&q, 100000, -5, 12, 102); /* more urgent; the table grows */
    push(&q, 4, 5, 13, 102);
    push(&q, 5, 0, 9, 103); /* an earlier arrival that comes back */
    push(&q, 6, INT32_MIN, 14, 104);
    push(&q, 8, INT32_MAX, 15, 104);
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
    push(&q, 5, 0, 16, PS_NEVER);
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
        push(&q, h, (int32_t)(h % 3), h, h);
    for (uint32_t next, h = hold_queue_first(&q, UINT64_MAX); h != HOLD_NONE; h = next) {
        next = hold_queue_after(&q, h, UINT64_MAX);
        if (n++ % 3 != 1)
            hold_queue_remove(&q, h);
    }
    ASSERT_LINE(&q, 3, 4, 5);
    hold_queue_deinit(&q);
}

/* Rounds go before order of arrival, priorities before rounds. */
static void test_rounds(void **unused)
{
    struct hold_queue q;
    (void)unused;
    hold_queue_init(&q);
    for (uint32_t h = 0; h < 8; h++)
        hold_queue_push(&q, h,
                        &(struct hold_entry){.priority = -(int32_t)(h / 4),
                                             .round = 3 - h % 4 / 2,
                                             .seq = h,
                                             .need_tok = 1,
                                             .bytes = 10,
                                             .deadline_ps = PS_NEVER});
    ASSERT_LINE(&q, 6, 7, 4, 5, 2, 3, 0, 1);
    assert_int_equal(hold_queue_soonest(&q), HOLD_NONE);
    hold_queue_deinit(&q);
}

struct naive {
    bool in;
    uint64_t entered;
    struct hold_entry e;
};

static bool is_ahead(const struct hold_entry *a, const struct hold_entry *b)
{
    if (a->priority != b->priority)
        return a->priority < b->priority;
    return a->round != b->round ? a->round < b->round : a->seq < b->seq;
}

static bool comes_sooner(const struct naive *a, const struct naive *b)
{
    return a->e.deadline_ps != b->e.deadline_ps ? a->e.deadline_ps < b->e.deadline_ps
                                                : a->entered < b->entered;
}

/* The first behind `last` (NULL: of all) that needs less than below_tok. */
static uint32_t next_in(const struct naive *m, const struct naive *last, uint64_t below_tok)
{
    uint32_t best = HOLD_NONE;
    for (uint32_t h = 0; h < N; h++) {
        if (m[h].in && m[h].e.need_tok < below_tok && (!last || is_ahead(&last->e, &m[h].e)) &&
            (best == HOLD_NONE || is_ahead(&m[h].e, &m[best].e)))
            best = h;
    }
    return best;
}

static void compare(const struct hold_queue *q, const struct naive *m, uint64_t below_tok)
{
    uint32_t soonest = HOLD_NONE, n = 0, h;
    uint64_t bytes = 0;
    for (h = 0; h < N; h++) {
        n += m[h].in;
        bytes += m[h].in ? m[h].e.bytes : 0;
        if (m[h].in && m[h].e.deadline_ps != PS_NEVER &&
            (soonest == HOLD_NONE || comes_sooner(&m[h], &m[soonest])))
            soonest = h;
    }
    assert_int_equal(q->n, n);
    assert_int_equal(q->bytes, bytes);
    assert_int_equal(hold_queue_soonest(q), soonest);
    h = hold_queue_first(q, below_tok);
    assert_int_equal(h, next_in(m, NULL, below_tok));
    for (; h != HOLD_NONE; h = hold_queue_after(q, h, below_tok))
        assert_int_equal(hold_queue_after(q, h, below_tok), next_in(m, &m[h], below_tok));
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
    for (uint32_t i = 1; i < 3000; i++) {
        uint32_t h = (uint32_t)rng_below(&rng, N);
        if (m[h].in) {
            hold_queue_remove(&q, h);
            m[h].in = false;
        } else { /* half come back with the place that they had */
            bool again = m[h].e.seq && rng_below(&rng, 2);
            if (!again)
                m[h].e = (struct hold_entry){.priority = (int32_t)rng_below(&rng, 4) - 2,
                                             .round = rng_below(&rng, 3),
                                             .seq = i,
                                             .need_tok = rng_below(&rng, 20),
                                             .bytes = rng_below(&rng, 1000)};
            m[h].in = true;
            m[h].entered = i;
            m[h].e.deadline_ps = rng_below(&rng, 4) ? (int64_t)rng_below(&rng, 100) : PS_NEVER;
            hold_queue_push(&q, h, &m[h].e);
        }
        compare(&q, m, i % 3 ? rng_below(&rng, 22) : UINT64_MAX);
    }
    hold_queue_deinit(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_walk_and_remove),
        cmocka_unit_test(test_rounds),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
