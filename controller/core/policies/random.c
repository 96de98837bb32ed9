/* random.c - any worker, uniformly. Source: vLLM router and SMG, `random`. */
#include "controller/core/policies/policies.h"

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    (void)state;
    (void)v;
    if (q->n_candidates == 1)
        return q->candidates[0];
    return q->candidates[rng_below(rng, q->n_candidates)];
}

const struct policy_ops policy_random = {
    .name = "random",
    .summary = "any worker, uniformly",
    .source = "vLLM router and SMG (formerly SGLang router), policy random",
    .prefix = POLICY_PREFIX_NONE,
    .pick = pick,
};
