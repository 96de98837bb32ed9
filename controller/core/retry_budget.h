/* retry_budget.h - how many requests may be tried again: a share of the recent ones, and so many a second in any
 * case, so that failures cannot multiply the load (Finagle's RetryBudget: ttl 10 s, percentCanRetry 20 %,
 * minRetriesPerSec 10; Envoy's retry_budget: 20 % of what is active, min_retry_concurrency 3). Over the 10 s before
 * any retry, itself included:
 *
 *   retries <= percent / 100 * arrivals + floor_per_s * 10
 *
 * Internal to the core. Arrivals and retries are counted in RETRY_SLOTS slots of RETRY_SLOT_PS; the oldest is
 * forgotten as time goes on. All in integers.
 */
#ifndef WEIR_RETRY_BUDGET_H
#define WEIR_RETRY_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/units.h"

#define RETRY_SLOTS 100u
#define RETRY_SLOT_PS (PS_PER_S / 10)

struct retry_budget {
    bool on;
    uint32_t percent, floor_per_s;
    struct {
        uint32_t arrivals, retries;
    } slots[RETRY_SLOTS];
    uint64_t arrivals, retries; /* of all slots */
    int64_t slot;               /* the current one, counted from time 0 */
    uint32_t place;             /* where it is in slots */
};

void retry_budget_init(struct retry_budget *b, bool on, uint32_t percent, uint32_t floor_per_s);
/* Other limits; what has been counted stays. */
void retry_budget_limit(struct retry_budget *b, bool on, uint32_t percent, uint32_t floor_per_s);
/* A request has arrived (not counted while there is no budget). now_ps never runs back. */
void retry_budget_arrival(struct retry_budget *b, int64_t now_ps);
/* Whether one more retry is within the budget; if so, it is counted. */
bool retry_budget_take(struct retry_budget *b, int64_t now_ps);
/* When to ask again after a no. */
int64_t retry_budget_again_ps(const struct retry_budget *b);

#endif
