/* policies.h - what the files in this folder share: the tables that policies.c lists, reading of
 * telemetry, and the blend of scores that two policies use.
 */
#ifndef WEIR_POLICIES_H
#define WEIR_POLICIES_H

#include "controller/core/policy.h"

extern const struct policy_ops policy_round_robin, policy_random, policy_power_of_two,
    policy_least_loaded, policy_lmetric, policy_cache_aware, policy_sticky, policy_dynamo_cost,
    policy_llmd_blend, policy_prefix_hash, policy_ttft_gate, policy_prob_admit;

#define POLICY_ROWS(table) ((uint32_t)(sizeof(table) / sizeof *(table)))
#define POLICY_NEEDS(kind) (1u << (kind))

/* Has this worker told how full its KV cache is? */
static inline bool policy_kv_known(const struct core_telemetry *t)
{
    return t->at_ps >= 0 && t->kv_total_blocks > 0;
}

/* Share of the KV cache in use, 0..1; 0 if it was never reported. */
static inline double policy_kv_usage(const struct core_telemetry *t)
{
    if (!policy_kv_known(t))
        return 0;
    return t->kv_used_blocks >= t->kv_total_blocks
               ? 1
               : (double)t->kv_used_blocks / (double)t->kv_total_blocks;
}

/* Requests waiting in the engine; 0 if it was never reported. */
static inline uint32_t policy_waiting(const struct core_telemetry *t)
{
    return t->at_ps >= 0 ? t->waiting : 0;
}

/* The candidate with the fewest requests in flight, ties at random. */
static inline uint32_t policy_fewest_inflight(const struct policy_view *v,
                                              const struct policy_query *q, struct rng *rng)
{
    struct policy_best best = policy_best_of(q);
    for (uint32_t i = 0; i < q->n_candidates; i++)
        policy_consider(&best, v->inflight[q->candidates[i]], q->candidates[i]);
    return policy_choose(&best, rng);
}

/* llmd_blend.c: weights of the three scores, and the candidate with the highest sum. */
struct llmd_blend {
    double queue, kv, prefix;
};

/* clang-format off */
#define LLMD_BLEND_PARAMS                                                                          \
    {"queue_weight", 2, 0, 1000, "weight of the queue score"},                                     \
    {"kv_weight", 2, 0, 1000, "weight of the free share of the KV cache"},                         \
    {"prefix_weight", 3, 0, 1000, "weight of the cached share of the prompt"}
/* clang-format on */
#define LLMD_BLEND_N_PARAMS 3
/* llm-d's approximate prefix index: blocks remembered per worker, and their least size. */
#define LLMD_PREFIX_BLOCKS 31250u
#define LLMD_PREFIX_BLOCK_TOK 64u

/* param: the values of LLMD_BLEND_PARAMS. */
void llmd_blend_init(struct llmd_blend *b, const double *param);
uint32_t llmd_blend_pick(const struct llmd_blend *b, const struct policy_view *v,
                         const struct policy_query *q, struct rng *rng);

#endif
