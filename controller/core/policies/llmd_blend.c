/* llmd_blend.c - three scores from 0 to 1, weighted and added; the highest sum wins.
 *
 *   queue  = (max - waiting) / (max - min) over the candidates, 1 if all wait alike
 *   kv     = 1 - usage of the KV cache
 *   prefix = cached / prompt
 *   score  = queue_weight * queue + kv_weight * kv + prefix_weight * prefix, ties at random
 *
 * Source: llm-d router (Gateway API inference extension), the default of its code: weights 2, 2
 * and 3 of queue, KV and prefix scorers, max-score picker (baselines 4.1). waiting and usage are
 * the last the engine reported; the prefix is guessed from dispatches, 31,250 blocks a server,
 * least recently used go.
 *
 * Simplified: blocks of the prefix are the engine's (llm-d hashes blocks of at least 64 tokens
 * and matches at most 131,072 tokens); a worker that never reported counts as empty; old
 * telemetry counts as it is.
 */
#include "controller/core/policies/policies.h"

static const struct policy_param params[] = {LLMD_BLEND_PARAMS};

void llmd_blend_init(struct llmd_blend *b, const double *param)
{
    *b = (struct llmd_blend){.queue = param[0], .kv = param[1], .prefix = param[2]};
}

uint32_t llmd_blend_pick(const struct llmd_blend *b, const struct policy_view *v,
                         const struct policy_query *q, struct rng *rng)
{
    uint32_t min = UINT32_MAX, max = 0;
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t waiting = policy_waiting(&v->telemetry[q->candidates[i]]);
        min = waiting < min ? waiting : min;
        max = waiting > max ? waiting : max;
    }
    double per_waiting = max > min ? b->queue / ((double)max - (double)min) : 0;
    double per_cached_tok = b->prefix / q->req->prompt_tok;
    struct policy_best best = policy_best_of(q);
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        const struct core_telemetry *t = &v->telemetry[w];
        double queue = per_waiting * (max - policy_waiting(t)); /* all alike: 0 is as good as 1 */
        double kv = b->kv * (1 - policy_kv_usage(t));
        double prefix = per_cached_tok * (q->req->prompt_tok - policy_uncached_tok(q, w));
        policy_consider(&best, -(queue + kv + prefix), w);
    }
    return policy_choose(&best, rng);
}

static void tune(void *state, const double *param)
{
    llmd_blend_init(state, param);
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    (void)n_workers;
    tune(state, param);
    return 0;
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    return llmd_blend_pick(state, v, q, rng);
}

const struct policy_ops policy_llmd_blend = {
    .name = "llmd_blend",
    .summary = "weighted sum of short queue, free KV and cached share of the prompt",
    .source = "llm-d router / Gateway API inference extension, weights 2, 2, 3 of its code",
    .needs = POLICY_NEEDS(CORE_EV_TELEMETRY),
    .prefix = POLICY_PREFIX_DISPATCH,
    .prefix_max_blocks = LLMD_PREFIX_BLOCKS,
    .prefix_min_block_tok = LLMD_PREFIX_BLOCK_TOK,
    .params = params,
    .n_params = POLICY_ROWS(params),
    .state_bytes = sizeof(struct llmd_blend),
    .init = init,
    .tune = tune,
    .pick = pick,
};
