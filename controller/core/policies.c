/* policies.c - the list of policies. A new one: its file in policies/, its name in policies.h,
 * and a line here. The order is the order of `weir policies`.
 */
#include <string.h>

#include "controller/core/policies/policies.h"

const struct policy_ops *const core_policies[] = {
    &policy_round_robin, &policy_random,      &policy_power_of_two, &policy_least_loaded,
    &policy_lmetric,     &policy_cache_aware, &policy_sticky,       &policy_dynamo_cost,
    &policy_llmd_blend,  &policy_prefix_hash, &policy_ttft_gate,    &policy_prob_admit,
};

const uint32_t core_policies_count = POLICY_ROWS(core_policies);

const struct policy_ops *core_policy_find(const char *name)
{
    for (uint32_t i = 0; name && i < core_policies_count; i++) {
        if (strcmp(core_policies[i]->name, name) == 0)
            return core_policies[i];
    }
    return NULL;
}
