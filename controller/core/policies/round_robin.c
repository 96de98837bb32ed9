/* round_robin.c - workers in turn.
 *
 *   i-th request of a leg -> candidates[i mod n]
 *
 * Source: the default of Dynamo's router and of many HTTP load balancers. Prefill and decode legs
 * count separately, as two pools behind two balancers would. When the set of candidates changes,
 * the turn goes on at the same count, so that a worker may be passed over or taken twice once.
 */
#include "controller/core/policies/policies.h"

struct round_robin {
    uint64_t count[POLICY_DECODE + 1]; /* by leg */
};

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct round_robin *s = state;
    (void)v;
    (void)rng;
    return q->candidates[s->count[q->leg]++ % q->n_candidates];
}

const struct policy_ops policy_round_robin = {
    .name = "round_robin",
    .summary = "workers in turn, whatever they are doing",
    .source = "default of Dynamo's router and of most HTTP load balancers",
    .prefix = POLICY_PREFIX_NONE,
    .state_bytes = sizeof(struct round_robin),
    .pick = pick,
};
