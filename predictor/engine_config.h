/* engine_config.h - the limits and rules of one engine, under the engines' own flag names.
 *
 * A zeroed struct is not valid: start from engine_config_default(). Capacity in blocks comes from the
 * user or from the engine, never from arithmetic (DESIGN 4).
 */
#ifndef WEIR_ENGINE_CONFIG_H
#define WEIR_ENGINE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/step.h"

enum worker_role { ROLE_BOTH, ROLE_PREFILL, ROLE_DECODE };
enum sched_kind { SCHED_VLLM, SCHED_SGLANG, SCHED_TRTLLM, SCHED_DYNOSIM };
enum sched_policy { SCHED_FCFS, SCHED_PRIORITY, SCHED_LPM };
enum evict_kind { EVICT_LRU, EVICT_LFU };
/* The two versions of the peer simulator that recordings exist of (engine-model.md 1.3b). */
enum dynosim_version { DYNOSIM_1_4_2, DYNOSIM_1_6_1 };
enum dynosim_engine { DYNOSIM_VLLM, DYNOSIM_SGLANG };

#define ENGINE_MAX_BLOCKS (UINT32_C(1) << 28)
#define ENGINE_MAX_SEQS 65536u
#define ENGINE_MAX_BLOCK_SIZE 65536u          /* tokens */
#define ENGINE_MAX_TOKENS (UINT32_C(1) << 28) /* every token limit below */
#define ENGINE_MAX_DP 1024u
#define ENGINE_MAX_GB_S 1e6                     /* every bandwidth */
#define ENGINE_MAX_KV_BYTES (UINT64_C(1) << 30) /* per token */
#define ENGINE_MAX_CONSERVATIVENESS 100.0
#define ENGINE_MAX_FIRST_BYTE_MS 3.6e6

struct engine_config {
    enum sched_kind scheduler;
    enum sched_policy policy; /* fcfs | priority (vllm); fcfs | lpm (sglang) */
    enum worker_role role;
    struct step_model step;

    uint32_t block_size;     /* tokens; sglang: page size */
    uint32_t num_gpu_blocks; /* as the engine reports it, null block included (vllm) */
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;       /* sglang: chunked_prefill_size plays this part */
    uint32_t max_model_len;                /* 0: unlimited */
    uint32_t long_prefill_token_threshold; /* 0: off */
    bool enable_prefix_caching;
    bool enable_chunked_prefill;
    /* vllm: the next pass is planned while one runs, so that what arrives or finishes in a pass counts
     * from the pass after the next one (vLLM >= 0.14 by default, except on CPU) */
    bool async_scheduling;
    enum evict_kind eviction;

    /* sglang (engine-model.md 1.4) */
    uint32_t max_prefill_tokens;
    uint32_t chunked_prefill_size;
    uint32_t clip_max_new_tokens;
    double schedule_conservativeness;

    enum dynosim_version dynosim_version;
    /* the engine that the peer simulator imitates; sglang: 1.6.1, workers of both phases */
    enum dynosim_engine dynosim_engine;

    /* host (CPU memory) tier; 0 blocks: off */
    uint32_t num_host_blocks;
    double h2d_bandwidth_gb_s, d2h_bandwidth_gb_s;
    /* shared tier behind the host tier; 0 blocks: off. Bandwidths are shared fairly by the workers. */
    uint32_t num_shared_blocks;
    double shared_first_byte_ms, shared_read_gb_s, shared_write_gb_s;

    uint64_t kv_bytes_per_token; /* for transfers and tiers; 0: transfers take no time */
    uint32_t
        dp_size; /* attention data-parallel ranks behind one worker, with a barrier; 1 = none */
};

/* Defaults of the engine named by kind (vLLM 0.32, SGLang, TensorRT-LLM, DynoSim: engine-model.md 1.2,
 * 1.4), with a linear step of W = 10 ms left for the caller to replace. */
void engine_config_default(struct engine_config *c, enum sched_kind kind);

/* The step times that engine_config_default sets. */
void engine_config_default_step(struct step_params *p, enum sched_kind kind);

/* 0 or WEIR_E_INVALID; *why names the field and the range (static text). */
WEIR_NODISCARD int engine_config_check(const struct engine_config *c, const char **why);

#endif
