/* The peer simulator's scheduler: what is its own, in small. bench/parity dynosim compares whole recordings. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "predictor/engine_internal.h"

#define MS PS_PER_MS
#define BLOCK 4

static struct engine *engine_of(enum dynosim_version version, enum worker_role role,
                                uint32_t blocks)
{
    struct engine_config c;
    struct step_params p = {.form = STEP_FIXED, .fixed_prefill_ms = 20, .fixed_decode_ms = 10};
    const char *why;
    engine_config_default(&c, SCHED_DYNOSIM);
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    c.dynosim_version = version;
    c.role = role;
    c.block_size = BLOCK;
    c.num_gpu_blocks = blocks; /* it has no null block */
    struct engine *e = engine_new(&c, 1);
    assert_non_null(e);
    return e;
}

static int submit(struct engine *e, int64_t now, uint32_t handle, uint32_t prompt, uint32_t output,
                  unsigned flags, uint32_t *slot)
{
    struct request_spec s = {
        .uid = handle, .prompt_tok = prompt, .output_tok = output, .max_tokens = output};
    return engine_submit(e, now, &s, handle, flags, slot);
}

static struct engine_event only_event(struct engine *e)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 1);
    struct engine_event copy = ev[0];
    engine_clear_events(e);
    return copy;
}

/* A pass is its prefill part and its decode part, one after the other. 1.4.2 decodes in the pass that ends the prompt;
 * in 1.6.1 the first token comes with the prefill. */
static void the_first_token_is_what_versions_differ_in(void **state)
{
    (void)state;
    uint32_t slot;
    struct engine *e = engine_of(DYNOSIM_1_4_2, ROLE_BOTH, 10);
    assert_int_equal(submit(e, 0, 1, 8, 3, 0, &slot), 0);
    engine_run(e, PS_PER_S);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.record.first_token_ps, 30 * MS);
    assert_int_equal(ev.record.end_ps, 50 * MS);
    engine_free(e);
    e = engine_of(DYNOSIM_1_6_1, ROLE_BOTH, 10);
    assert_int_equal(submit(e, 0, 1, 8, 3, 0, &slot), 0);
    engine_run(e, PS_PER_S);
    ev = only_event(e);
    assert_int_equal(ev.record.first_token_ps, 20 * MS);
    assert_int_equal(ev.record.end_ps, 40 * MS);
    engine_free(e);
}

static void all_blocks_are_for_requests(void **state)
{
    (void)state;
    uint32_t slot;
    struct engine *e = engine_of(DYNOSIM_1_6_1, ROLE_BOTH, 3);
    assert_int_equal(submit(e, 0, 1, 8, 5, 0, &slot), WEIR_E_TOO_LARGE);
    assert_int_equal(submit(e, 0, 1, 8, 4, 0, &slot), 0);
    engine_free(e);
}

static void a_decode_worker_takes_its_blocks_before_the_kv_comes(void **state)
{
    (void)state;
    uint32_t slot;
    struct engine *e = engine_of(DYNOSIM_1_6_1, ROLE_DECODE, 10);
    assert_int_equal(submit(e, 0, 1, 8, 3, ENGINE_REMOTE_KV, &slot), WEIR_E_INVALID);
    assert_int_equal(submit(e, 0, 1, 8, 3, ENGINE_REMOTE_KV | ENGINE_RESERVE, &slot), 0);
    engine_start(e, 0, PS_NEVER);
    assert_int_equal(only_event(e).kind, ENGINE_EV_RESERVED);
    assert_int_equal(engine_free_blocks(e), 8);
    engine_run(e, 5 * MS);
    engine_arrived(e, 5 * MS, slot);
    engine_run(e, PS_PER_S);
    struct engine_event ev = only_event(e);
    assert_int_equal(ev.record.first_token_ps, 15 * MS); /* it only decodes */
    assert_int_equal(ev.record.end_ps, 35 * MS);
    engine_free(e);
}

/* Who was refused for want of blocks tries again when anybody has left, in whatever way. */
static void the_refused_try_again_after_an_abort(void **state)
{
    (void)state;
    uint32_t first, second;
    for (int held = 0; held < 2; held++) {
        struct engine *e = engine_of(DYNOSIM_1_6_1, ROLE_DECODE, 6);
        unsigned flags = held ? ENGINE_PREFILL_ONLY : ENGINE_REMOTE_KV | ENGINE_RESERVE;
        assert_int_equal(submit(e, 0, 1, 16, 3, flags, &first), 0);
        engine_run(e, MS);
        engine_start(e, MS, PS_NEVER);
        engine_run(e, 2 * MS);
        engine_clear_events(e);
        assert_int_equal(submit(e, 2 * MS, 2, 16, 3, ENGINE_REMOTE_KV | ENGINE_RESERVE, &second),
                         0);
        engine_start(e, 2 * MS, PS_NEVER);
        engine_run(e, 3 * MS);
        uint32_t n;
        (void)engine_events(e, &n);
        assert_int_equal(n, 0);
        engine_abort(e, 3 * MS, first);
        engine_start(e, 3 * MS, PS_NEVER);
        engine_run(e, 50 * MS);
        assert_int_equal(only_event(e).kind, ENGINE_EV_RESERVED);
        engine_free(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_token_is_what_versions_differ_in),
        cmocka_unit_test(all_blocks_are_for_requests),
        cmocka_unit_test(a_decode_worker_takes_its_blocks_before_the_kv_comes),
        cmocka_unit_test(the_refused_try_again_after_an_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
