/* test_fleet.c - the books of the workers: who is open for what, the books themselves, and prefixes of workers with
 * blocks of different sizes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <string.h>

#include "controller/core/fleet.h"

#define N 6

static const struct policy_ops plain = {.name = "plain", .prefix = POLICY_PREFIX_NONE};
static const struct policy_ops events = {.name = "events", .prefix = POLICY_PREFIX_EVENTS};

/* Workers 0 to 3 of both roles, of 500, 1000, 1500 and 2000 tokens; 4 prefills, 5 decodes, without a limit. */
static void set_up(struct fleet *f, const struct policy_ops *policy, uint32_t max_inflight)
{
    struct core_worker_config w[N];
    const char *why;
    for (uint32_t i = 0; i < N; i++)
        w[i] = (struct core_worker_config){.role = i < 4 ? ROLE_BOTH : i - 3,
                                           .block_size = i % 2 ? 32 : 16,
                                           .max_model_len = i < 4 ? 500 * (i + 1) : 0,
                                           .up = true};
    w[3].num_gpu_blocks = 40; /* of 32 tokens: 1,280, which is less than 2,000 */
    struct core_config c = {
        .n_workers = N, .workers = w, .max_inflight_per_worker = max_inflight, .max_requests = 1};
    assert_int_equal(fleet_init(f, &c, policy, &why), 0);
    assert_null(why);
}

static void assert_candidates(struct fleet *f, enum worker_role role, uint64_t need, uint32_t avoid,
                              uint32_t n, const uint32_t *expect)
{
    const uint32_t *list;
    assert_int_equal(fleet_candidates(f, role, need, avoid, 0, &list), n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(list[i], expect[i]);
}
#define NOBODY(f, role, need, avoid) assert_candidates(f, role, need, avoid, 0, NULL)
#define ASSERT_CANDIDATES(f, role, need, avoid, ...)                                               \
    assert_candidates(f, role, need, avoid, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t),  \
                      (uint32_t[]){__VA_ARGS__})

static void test_candidates(void **unused)
{
    struct fleet f;
    (void)unused;
    set_up(&f, &plain, 0);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 500, CORE_NO_WORKER, 0, 1, 2, 3);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 501, CORE_NO_WORKER, 1, 2, 3);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1280, CORE_NO_WORKER, 2, 3);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1281, CORE_NO_WORKER, 2);
    NOBODY(&f, ROLE_BOTH, 1501, CORE_NO_WORKER);
    ASSERT_CANDIDATES(&f, ROLE_PREFILL, 1000000, CORE_NO_WORKER, 4);
    ASSERT_CANDIDATES(&f, ROLE_DECODE, 1, CORE_NO_WORKER, 5);

    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, 2, 0, 1, 3);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1400, 2, 2); /* no other is large enough */
    ASSERT_CANDIDATES(&f, ROLE_DECODE, 1, 5, 5);  /* there is no other */

    assert_true(fleet_drain(&f, 3));
    assert_false(fleet_drain(&f, 3));
    assert_true(fleet_down(&f, 0));
    assert_false(fleet_down(&f, 0));
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 1, 2);
    assert_true(fleet_up(&f, 3));
    assert_true(fleet_up(&f, 0));
    assert_false(fleet_up(&f, 0));
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 0, 1, 2, 3);
    fleet_deinit(&f);
}

static void test_reach(void **unused)
{
    struct fleet f;
    (void)unused;
    set_up(&f, &plain, 0);
    assert_int_equal(f.reach.ready[ROLE_BOTH], 1500);
    assert_true(fleet_down(&f, 2));
    assert_int_equal(f.reach.ready[ROLE_BOTH], 1280);
    assert_int_equal(f.reach.hope[ROLE_BOTH], 1500);
    assert_true(fleet_drain(&f, 2));
    assert_int_equal(f.reach.hope[ROLE_BOTH], 1280);
    assert_int_equal(f.reach.ever[ROLE_BOTH], 1500);
    assert_true(fleet_drain(&f, 5));
    assert_int_equal(f.reach.ready[ROLE_DECODE], 0);
    fleet_deinit(&f);
}

static void test_limit(void **unused)
{
    struct fleet f;
    struct core_request r = {.prompt_tok = 100};
    (void)unused;
    set_up(&f, &plain, 2);
    fleet_book(&f, 1, &r, true, 70);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 0, 1, 2, 3);
    fleet_book(&f, 1, &r, false, 0);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 0, 2, 3);
    fleet_book(&f, 1, &r, false, 0); /* a decode leg that was promised may go beyond */
    assert_int_equal(f.inflight[1], 3);
    assert_int_equal(f.inflight_tok[1], 300);
    assert_int_equal(f.prefilling[1], 1);
    assert_int_equal(f.prefill_tok[1], 70);
    fleet_prefilled(&f, 1, 70);
    assert_int_equal(f.prefilling[1] + f.prefill_tok[1], 0);
    fleet_unbook(&f, 1, &r);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 0, 2, 3);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 501, 2, 3);
    fleet_unbook(&f, 1, &r);
    ASSERT_CANDIDATES(&f, ROLE_BOTH, 1, CORE_NO_WORKER, 0, 1, 2, 3);
    assert_true(fleet_down(&f, 0));
    assert_true(fleet_down(&f, 3));
    fleet_book(&f, 1, &r, false, 0);
    fleet_book(&f, 1, &r, false, 0);
    NOBODY(&f, ROLE_BOTH, 1, 2); /* 2 is open, but 1 is up: wait for it */
    fleet_unbook(&f, 1, &r);
    fleet_unbook(&f, 1, &r);
    fleet_unbook(&f, 1, &r);
    assert_int_equal(f.inflight[1] + f.inflight_tok[1], 0);
    fleet_deinit(&f);
}

/* One prompt, asked of workers with blocks of 16 and of 32 tokens at once. */
static void test_match(void **unused)
{
    struct fleet f;
    uint64_t keys[3] = {1, 2, 3}, names16[4] = {1, 1, 1, 1}, names32[3] = {1, 1, 2};
    struct core_request r = {.prompt_tok = 150, .keys = keys, .n_keys = 3, .key_tok = 64};
    struct core_cache_event e16 = {.stored = true, .n_blocks = 4, .keys = names16};
    struct core_cache_event e32 = {.stored = true, .n_blocks = 3, .keys = names32};
    uint32_t expect[N] = {64, 96}, nothing[N] = {0};
    (void)unused;
    set_up(&f, &events, 0);
    fleet_cache_event(&f, 0, &e16);
    fleet_cache_event(&f, 1, &e32);
    fleet_match(&f, &r);
    assert_memory_equal(f.cached_tok, expect, sizeof expect);
    fleet_forget_match(&f);
    assert_memory_equal(f.cached_tok, nothing, sizeof nothing);
    fleet_guess_cached(&f, 2, &r); /* nothing is guessed where engines tell */
    r.prompt_tok = 95;             /* two whole blocks of 32 */
    expect[1] = 64;
    fleet_match(&f, &r);
    assert_memory_equal(f.cached_tok, expect, sizeof expect);
    fleet_forget_match(&f);
    assert_true(fleet_down(&f, 0));
    fleet_cache_event(&f, 0, &e16); /* from before: ignored */
    fleet_match(&f, &r);
    expect[0] = 0;
    assert_memory_equal(f.cached_tok, expect, sizeof expect);
    fleet_forget_match(&f);
    fleet_cache_event(&f, 1, &(struct core_cache_event){.cleared = true});
    fleet_match(&f, &r);
    assert_memory_equal(f.cached_tok, nothing, sizeof nothing);
    fleet_deinit(&f);
}

/* Guesses and events in one belief: what was sent there is there until an event says that it went. */
static void test_guesses(void **unused)
{
    struct fleet f;
    uint64_t keys[3] = {1, 2, 3}, last[2] = {3, 3};
    struct core_request r = {.prompt_tok = 192, .keys = keys, .n_keys = 3, .key_tok = 64};
    struct core_cache_event gone = {.depth = 4, .n_blocks = 2, .keys = last};
    struct core_worker_config w = {.role = ROLE_BOTH, .block_size = 32, .up = true};
    struct core_config c = {.n_workers = 1, .workers = &w, .max_requests = 1, .guess_cache = true};
    const char *why;
    (void)unused;
    assert_int_equal(fleet_init(&f, &c, &events, &why), 0);
    fleet_guess_cached(&f, 0, &r);
    fleet_match(&f, &r);
    assert_int_equal(f.cached_tok[0], 192);
    fleet_forget_match(&f);
    fleet_cache_event(&f, 0, &gone);
    fleet_match(&f, &r);
    assert_int_equal(f.cached_tok[0], 128);
    fleet_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_candidates), cmocka_unit_test(test_reach),
        cmocka_unit_test(test_limit),      cmocka_unit_test(test_match),
        cmocka_unit_test(test_guesses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
