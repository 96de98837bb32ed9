/* power_of_two.c - two workers drawn at random, the less loaded of them.
 *
 *   load = share of the KV cache in use, if both have reported it; else requests in flight of both
 *   the lower load wins, a tie goes to the one drawn first
 *
 * Source: SMG, model_gateway/src/policies/power_of_two.rs (baselines 4.2). Simplified: SMG
 * compares tokens in the KV cache, here it is the share of blocks, which is the same thing on
 * equal workers and the better one on unequal ones.
 */
#include "controller/core/policies/policies.h"

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    (void)state;
    uint32_t n = q->n_candidates;
    if (n == 1)
        return q->candidates[0];
    uint64_t i = rng_below(rng, n), j = i + 1 + rng_below(rng, n - 1);
    uint32_t a = q->candidates[i], b = q->candidates[j < n ? j : j - n];
    const struct core_telemetry *ta = &v->telemetry[a], *tb = &v->telemetry[b];
    if (policy_kv_known(ta) && policy_kv_known(tb))
        return policy_kv_usage(tb) < policy_kv_usage(ta) ? b : a;
    return v->inflight[b] < v->inflight[a] ? b : a;
}

const struct policy_ops policy_power_of_two = {
    .name = "power_of_two",
    .summary = "two workers at random, of these the one with more free KV (or fewer requests)",
    .source = "SMG power_of_two.rs",
    .needs = POLICY_NEEDS(CORE_EV_TELEMETRY),
    .prefix = POLICY_PREFIX_NONE,
    .pick = pick,
};
