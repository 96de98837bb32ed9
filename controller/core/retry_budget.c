/* retry_budget.c - see retry_budget.h. */
#include "controller/core/retry_budget.h"

#include <string.h>

void retry_budget_init(struct retry_budget *b, bool on, uint32_t percent, uint32_t floor_per_s)
{
    *b = (struct retry_budget){.on = on, .percent = percent, .floor_per_s = floor_per_s};
}

void retry_budget_limit(struct retry_budget *b, bool on, uint32_t percent, uint32_t floor_per_s)
{
    b->on = on;
    b->percent = percent;
    b->floor_per_s = floor_per_s;
}

static void pass_time(struct retry_budget *b, int64_t now_ps)
{
    if (now_ps < retry_budget_again_ps(b))
        return;
    int64_t slot = now_ps / RETRY_SLOT_PS, n = slot - b->slot;
    if (n >= (int64_t)RETRY_SLOTS) {
        memset(b->slots, 0, sizeof b->slots);
        b->arrivals = b->retries = 0;
    }
    for (; n > 0 && n < (int64_t)RETRY_SLOTS; n--) {
        uint32_t oldest = (uint32_t)((slot - n + 1) % RETRY_SLOTS);
        b->arrivals -= b->slots[oldest].arrivals;
        b->retries -= b->slots[oldest].retries;
        b->slots[oldest].arrivals = b->slots[oldest].retries = 0;
    }
    b->slot = slot;
    b->place = (uint32_t)(slot % RETRY_SLOTS);
}

void retry_budget_arrival(struct retry_budget *b, int64_t now_ps)
{
    if (!b->on)
        return;
    pass_time(b, now_ps);
    b->slots[b->place].arrivals++;
    b->arrivals++;
}

bool retry_budget_take(struct retry_budget *b, int64_t now_ps)
{
    pass_time(b, now_ps);
    uint64_t floor = (uint64_t)b->floor_per_s * (RETRY_SLOTS * RETRY_SLOT_PS / PS_PER_S);
    if (b->on && (b->retries + 1) * 100 > b->arrivals * b->percent + floor * 100)
        return false;
    b->slots[b->place].retries++;
    b->retries++;
    return true;
}

int64_t retry_budget_again_ps(const struct retry_budget *b)
{
    return b->slot < PS_NEVER / RETRY_SLOT_PS ? (b->slot + 1) * RETRY_SLOT_PS : PS_NEVER;
}
