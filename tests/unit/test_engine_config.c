/* Engine defaults and the limits of engine_config_check. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "predictor/engine_config.h"

static const enum sched_kind kinds[] = {SCHED_VLLM, SCHED_SGLANG, SCHED_TRTLLM, SCHED_DYNOSIM};

static void defaults_are_valid(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct engine_config c;
        const char *why = "";
        engine_config_default(&c, kinds[i]);
        assert_int_equal(c.scheduler, kinds[i]);
        assert_int_equal(engine_config_check(&c, &why), 0);
        assert_true(c.enable_prefix_caching);
        assert_true(c.enable_chunked_prefill);
        assert_int_equal(c.max_num_seqs, 256);
        assert_int_equal(c.max_num_batched_tokens, 8192);
        assert_int_equal(c.max_prefill_tokens, 16384);
        assert_int_equal(c.chunked_prefill_size, 8192);
        assert_int_equal(c.clip_max_new_tokens, 4096);
        assert_true(fabs(c.schedule_conservativeness - 1.0) < 1e-12);
        assert_int_equal(c.dynosim_version, DYNOSIM_1_4_2);
        assert_int_equal(c.dp_size, 1);
    }
}

static void defaults_follow_the_engine(void **state)
{
    (void)state;
    static const uint32_t block_size[] = {16, 1, 32, 64};
    for (unsigned i = 0; i < 4; i++) {
        struct engine_config c;
        engine_config_default(&c, kinds[i]);
        assert_int_equal(c.block_size, block_size[i]);
        assert_int_equal(c.step.form, kinds[i] == SCHED_DYNOSIM ? STEP_POLYNOMIAL : STEP_LINEAR);
    }
    struct step_params p;
    engine_config_default_step(&p, SCHED_DYNOSIM);
    assert_true(fabs(p.pa - 4.209989e-07) < 1e-18);
    assert_true(fabs(p.dc - 5.74) < 1e-12);
}

/* A default with one field changed must be refused with a reason that names it. */
#define REFUSED(kind, field, value)                                                                \
    do {                                                                                           \
        struct engine_config c;                                                                    \
        const char *why = "";                                                                      \
        engine_config_default(&c, (kind));                                                         \
        c.field = (value);                                                                         \
        assert_int_equal(engine_config_check(&c, &why), WEIR_E_INVALID);                           \
        assert_non_null(strstr(why, #field));                                                      \
    } while (0)

static void limits_are_named(void **state)
{
    (void)state;
    REFUSED(SCHED_VLLM, block_size, 0);
    REFUSED(SCHED_VLLM, block_size, ENGINE_MAX_BLOCK_SIZE + 1);
    REFUSED(SCHED_VLLM, num_gpu_blocks, 0);
    REFUSED(SCHED_VLLM, num_gpu_blocks, 1); /* the null block alone */
    REFUSED(SCHED_VLLM, num_gpu_blocks, ENGINE_MAX_BLOCKS + 1);
    REFUSED(SCHED_VLLM, max_num_seqs, 0);
    REFUSED(SCHED_VLLM, max_num_seqs, ENGINE_MAX_SEQS + 1);
    REFUSED(SCHED_VLLM, max_num_batched_tokens, 0);
    REFUSED(SCHED_VLLM, max_num_batched_tokens, ENGINE_MAX_TOKENS + 1);
    REFUSED(SCHED_VLLM, max_model_len, ENGINE_MAX_TOKENS + 1);
    REFUSED(SCHED_VLLM, long_prefill_token_threshold, ENGINE_MAX_TOKENS + 1);
    REFUSED(SCHED_SGLANG, max_prefill_tokens, 0);
    REFUSED(SCHED_SGLANG, chunked_prefill_size, 0);
    REFUSED(SCHED_SGLANG, clip_max_new_tokens, 0);
    REFUSED(SCHED_SGLANG, schedule_conservativeness, -0.1);
    REFUSED(SCHED_SGLANG, schedule_conservativeness, NAN);
    REFUSED(SCHED_VLLM, num_host_blocks, ENGINE_MAX_BLOCKS + 1);
    REFUSED(SCHED_VLLM, num_shared_blocks, ENGINE_MAX_BLOCKS + 1);
    REFUSED(SCHED_VLLM, h2d_bandwidth_gb_s, -1.0);
    REFUSED(SCHED_VLLM, d2h_bandwidth_gb_s, INFINITY);
    REFUSED(SCHED_VLLM, shared_first_byte_ms, -1.0);
    REFUSED(SCHED_VLLM, shared_read_gb_s, NAN);
    REFUSED(SCHED_VLLM, shared_write_gb_s, ENGINE_MAX_GB_S * 2);
    REFUSED(SCHED_VLLM, kv_bytes_per_token, ENGINE_MAX_KV_BYTES + 1);
    REFUSED(SCHED_VLLM, dp_size, 0);
    REFUSED(SCHED_VLLM, dp_size, ENGINE_MAX_DP + 1);
    REFUSED(SCHED_VLLM, scheduler, (enum sched_kind)9);
    REFUSED(SCHED_VLLM, policy, (enum sched_policy)9);
    REFUSED(SCHED_VLLM, policy, SCHED_LPM);
    REFUSED(SCHED_SGLANG, policy, SCHED_PRIORITY);
    REFUSED(SCHED_VLLM, role, (enum worker_role)9);
    REFUSED(SCHED_VLLM, eviction, (enum evict_kind)9);
    REFUSED(SCHED_VLLM, dynosim_version, (enum dynosim_version)9);
    REFUSED(SCHED_VLLM, dynosim_engine, (enum dynosim_engine)9);
    REFUSED(SCHED_DYNOSIM, dynosim_engine, DYNOSIM_SGLANG); /* of version 1.6.1 only */
}

#undef REFUSED

/* Tiers need names to find blocks by, and a scheduler that has them. */
static void tiers_have_conditions(void **state)
{
    (void)state;
    struct engine_config c;
    const char *why = "";
    engine_config_default(&c, SCHED_VLLM);
    c.num_host_blocks = 10;
    assert_int_equal(engine_config_check(&c, &why), 0);
    c.enable_prefix_caching = false;
    assert_int_equal(engine_config_check(&c, &why), WEIR_E_INVALID);
    assert_non_null(strstr(why, "enable_prefix_caching"));
    engine_config_default(&c, SCHED_DYNOSIM);
    c.num_shared_blocks = 10;
    assert_int_equal(engine_config_check(&c, &why), 0);
    c.role = ROLE_DECODE;
    assert_int_equal(engine_config_check(&c, &why), WEIR_E_INVALID);
    assert_non_null(strstr(why, "num_shared_blocks"));
}

/* The ends of each range are inside. */
static void limits_are_inclusive(void **state)
{
    (void)state;
    struct engine_config c;
    const char *why = "";
    engine_config_default(&c, SCHED_VLLM);
    c.block_size = ENGINE_MAX_BLOCK_SIZE;
    c.num_gpu_blocks = 2;
    c.max_num_seqs = ENGINE_MAX_SEQS;
    c.max_num_batched_tokens = 1;
    c.max_model_len = ENGINE_MAX_TOKENS;
    c.num_host_blocks = ENGINE_MAX_BLOCKS;
    c.h2d_bandwidth_gb_s = 0;
    c.kv_bytes_per_token = ENGINE_MAX_KV_BYTES;
    c.dp_size = ENGINE_MAX_DP;
    c.policy = SCHED_PRIORITY;
    assert_int_equal(engine_config_check(&c, &why), 0);
    engine_config_default(&c, SCHED_SGLANG);
    c.policy = SCHED_LPM;
    c.num_gpu_blocks = 1;
    assert_int_equal(engine_config_check(&c, &why), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_valid),   cmocka_unit_test(defaults_follow_the_engine),
        cmocka_unit_test(limits_are_named),     cmocka_unit_test(tiers_have_conditions),
        cmocka_unit_test(limits_are_inclusive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
