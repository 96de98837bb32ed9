/* engine_config.c - defaults and ranges of an engine's limits; see engine_config.h. */
#include "predictor/engine_config.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

/* H100 hosts: PCIe 5 x16 as copies between pinned memory and the GPU reach it. Off until a tier has
 * blocks, so these only matter once a user sets num_host_blocks or num_shared_blocks. */
#define DEFAULT_HOST_GB_S 50.0
#define DEFAULT_SHARED_GB_S 10.0
#define DEFAULT_SHARED_FIRST_BYTE_MS 1.0

#define DEFAULT_STEP_MS 10.0

void engine_config_default_step(struct step_params *p, enum sched_kind kind)
{
    *p = (struct step_params){.form = STEP_LINEAR, .w_ms = DEFAULT_STEP_MS, .scale = 1};
    if (kind == SCHED_DYNOSIM) {
        /* The peer simulator's built-in timing (engine-model.md 1.5). */
        *p = (struct step_params){
            .form = STEP_POLYNOMIAL,
            .pa = 4.209989e-07,
            .pb = 1.518344e-02,
            .pc = 16.50142,
            .da = -25.74,
            .db = 54.01,
            .dc = 5.74,
            .scale = 1,
        };
    }
}

static void default_step(struct engine_config *c, enum sched_kind kind)
{
    struct step_params p;
    engine_config_default_step(&p, kind);
    const char *why = NULL;
    int rc = step_model_init(&c->step, &p, &why);
    assert(rc == 0);
    (void)rc;
}

void engine_config_default(struct engine_config *c, enum sched_kind kind)
{
    memset(c, 0, sizeof *c);
    c->scheduler = kind;
    c->policy = SCHED_FCFS;
    c->role = ROLE_BOTH;
    default_step(c, kind);

    c->block_size = 16;
    c->num_gpu_blocks = 16384;
    c->max_num_seqs = 256;
    c->max_num_batched_tokens = 8192;
    c->max_model_len = 0;
    c->long_prefill_token_threshold = 0;
    c->enable_prefix_caching = true;
    c->enable_chunked_prefill = true;
    c->eviction = EVICT_LRU;

    c->max_prefill_tokens = 16384;
    c->chunked_prefill_size = 8192;
    c->clip_max_new_tokens = 4096;
    c->schedule_conservativeness = 1.0;

    c->dynosim_version = DYNOSIM_1_4_2;
    c->dynosim_engine = DYNOSIM_VLLM;

    c->num_host_blocks = 0;
    c->h2d_bandwidth_gb_s = DEFAULT_HOST_GB_S;
    c->d2h_bandwidth_gb_s = DEFAULT_HOST_GB_S;
    c->num_shared_blocks = 0;
    c->shared_first_byte_ms = DEFAULT_SHARED_FIRST_BYTE_MS;
    c->shared_read_gb_s = DEFAULT_SHARED_GB_S;
    c->shared_write_gb_s = DEFAULT_SHARED_GB_S;

    c->kv_bytes_per_token = 0;
    c->dp_size = 1;

    switch (kind) {
    case SCHED_VLLM: break;
    case SCHED_SGLANG:
        c->block_size = 1;
        c->num_gpu_blocks = 16384 * 16; /* the same tokens as the others have: pages of one token */
        break;
    case SCHED_TRTLLM: c->block_size = 32; break;
    case SCHED_DYNOSIM: c->block_size = 64; break;
    }
}

/* One whole-number field and what it may be. */
struct u32_rule {
    size_t offset;
    uint32_t min, max;
    const char *why;
};

#define RULE(field, lo, hi, text)                                                                  \
    {                                                                                              \
        offsetof(struct engine_config, field), (lo), (hi), text                                    \
    }

static const struct u32_rule u32_rules[] = {
    RULE(block_size, 1, ENGINE_MAX_BLOCK_SIZE, "block_size must be 1..65536 tokens"),
    RULE(num_gpu_blocks, 1, ENGINE_MAX_BLOCKS, "num_gpu_blocks must be 1..268435456"),
    RULE(max_num_seqs, 1, ENGINE_MAX_SEQS, "max_num_seqs must be 1..65536"),
    RULE(max_num_batched_tokens, 1, ENGINE_MAX_TOKENS,
         "max_num_batched_tokens must be 1..268435456"),
    RULE(max_model_len, 0, ENGINE_MAX_TOKENS, "max_model_len must be 0 (no limit)..268435456"),
    RULE(long_prefill_token_threshold, 0, ENGINE_MAX_TOKENS,
         "long_prefill_token_threshold must be 0 (off)..268435456"),
    RULE(max_prefill_tokens, 1, ENGINE_MAX_TOKENS, "max_prefill_tokens must be 1..268435456"),
    RULE(chunked_prefill_size, 1, ENGINE_MAX_TOKENS, "chunked_prefill_size must be 1..268435456"),
    RULE(clip_max_new_tokens, 1, ENGINE_MAX_TOKENS, "clip_max_new_tokens must be 1..268435456"),
    RULE(num_host_blocks, 0, ENGINE_MAX_BLOCKS, "num_host_blocks must be 0 (off)..268435456"),
    RULE(num_shared_blocks, 0, ENGINE_MAX_BLOCKS, "num_shared_blocks must be 0 (off)..268435456"),
    RULE(dp_size, 1, ENGINE_MAX_DP, "dp_size must be 1..1024"),
};

struct double_rule {
    size_t offset;
    double min, max;
    const char *why;
};

static const struct double_rule double_rules[] = {
    RULE(schedule_conservativeness, 0.0, ENGINE_MAX_CONSERVATIVENESS,
         "schedule_conservativeness must be 0..100"),
    RULE(h2d_bandwidth_gb_s, 0.0, ENGINE_MAX_GB_S, "h2d_bandwidth_gb_s must be 0 (no limit)..1e6"),
    RULE(d2h_bandwidth_gb_s, 0.0, ENGINE_MAX_GB_S, "d2h_bandwidth_gb_s must be 0 (no limit)..1e6"),
    RULE(shared_first_byte_ms, 0.0, ENGINE_MAX_FIRST_BYTE_MS,
         "shared_first_byte_ms must be 0..3.6e6"),
    RULE(shared_read_gb_s, 0.0, ENGINE_MAX_GB_S, "shared_read_gb_s must be 0 (no limit)..1e6"),
    RULE(shared_write_gb_s, 0.0, ENGINE_MAX_GB_S, "shared_write_gb_s must be 0 (no limit)..1e6"),
};

#undef RULE

/* Enumerations and rules between fields. NULL: fine. */
static const char *check_choices(const struct engine_config *c)
{
    if ((unsigned)c->scheduler > SCHED_DYNOSIM)
        return "scheduler must be vllm, sglang, trtllm or dynosim";
    if ((unsigned)c->policy > SCHED_LPM)
        return "policy must be fcfs, priority or lpm";
    if ((unsigned)c->role > ROLE_DECODE)
        return "role must be both, prefill or decode";
    if ((unsigned)c->eviction > EVICT_LFU)
        return "eviction must be lru or lfu";
    if ((unsigned)c->dynosim_version > DYNOSIM_1_6_1)
        return "dynosim_version must be 1.4.2 or 1.6.1";
    if ((unsigned)c->dynosim_engine > DYNOSIM_SGLANG)
        return "dynosim_engine must be vllm or sglang";
    if (c->scheduler == SCHED_DYNOSIM && c->dynosim_engine == DYNOSIM_SGLANG &&
        (c->dynosim_version != DYNOSIM_1_6_1 || c->role != ROLE_BOTH))
        return "dynosim_engine sglang is for dynosim_version 1.6.1 and workers of both phases";
    if ((unsigned)c->step.form > STEP_POLYNOMIAL)
        return "step must come from step_model_init";
    if (c->policy == SCHED_PRIORITY && c->scheduler != SCHED_VLLM)
        return "policy priority belongs to scheduler vllm";
    if (c->policy == SCHED_LPM && c->scheduler != SCHED_SGLANG)
        return "policy lpm belongs to scheduler sglang";
    if (c->async_scheduling && c->scheduler != SCHED_VLLM)
        return "async_scheduling belongs to scheduler vllm";
    if (c->scheduler == SCHED_VLLM && c->num_gpu_blocks < 2)
        return "num_gpu_blocks must be at least 2 for scheduler vllm, which keeps one as the null "
               "block";
    if ((c->num_host_blocks || c->num_shared_blocks) && !c->enable_prefix_caching)
        return "num_host_blocks and num_shared_blocks need enable_prefix_caching, by which blocks "
               "are found again";
    if ((c->num_host_blocks || c->num_shared_blocks) && c->scheduler == SCHED_DYNOSIM &&
        c->role == ROLE_DECODE)
        return "num_host_blocks and num_shared_blocks are not for decode workers of scheduler "
               "dynosim: the peer simulator offloads in aggregated workers only";
    if (c->kv_bytes_per_token > ENGINE_MAX_KV_BYTES)
        return "kv_bytes_per_token must be 0 (transfers take no time)..1073741824";
    return NULL;
}

int engine_config_check(const struct engine_config *c, const char **why)
{
    for (size_t i = 0; i < sizeof u32_rules / sizeof u32_rules[0]; i++) {
        uint32_t v;
        memcpy(&v, (const char *)c + u32_rules[i].offset, sizeof v);
        if (v < u32_rules[i].min || v > u32_rules[i].max) {
            *why = u32_rules[i].why;
            return WEIR_E_INVALID;
        }
    }
    for (size_t i = 0; i < sizeof double_rules / sizeof double_rules[0]; i++) {
        double v;
        memcpy(&v, (const char *)c + double_rules[i].offset, sizeof v);
        if (!isfinite(v) || v < double_rules[i].min || v > double_rules[i].max) {
            *why = double_rules[i].why;
            return WEIR_E_INVALID;
        }
    }
    const char *bad = check_choices(c);
    if (bad) {
        *why = bad;
        return WEIR_E_INVALID;
    }
    return WEIR_OK;
}
