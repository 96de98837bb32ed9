/* fairness.c - see fairness.h. */
#include "controller/core/fairness.h"

#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/rng.h"

#define NONE UINT32_MAX
#define BUCKETS (2 * FAIR_MAX_FLOWS)
#define OTHERS 0u /* no place in the table: a band's own flow */
/* A round's share must hold the sums below 2^63: largest cost, prompt and answer of 2^32 tokens. */
#define MAX_QUANTUM (UINT64_C(1) << 31)

/* ---- life */

static const char *config_fault(const struct core_config *c)
{
    if (c->fair_quantum_tok > MAX_QUANTUM)
        return "fair_quantum_tok must be at most 2147483648";
    if (c->n_tenants > CORE_MAX_TENANTS || (c->n_tenants && !c->tenants))
        return "at most 4096 tenants can have a weight (CORE_MAX_TENANTS)";
    for (uint32_t i = 0; i < c->n_tenants; i++) {
        if (!c->tenants[i].weight || c->tenants[i].weight > CORE_MAX_TENANT_WEIGHT)
            return "a tenant's weight must be 1 to 1000";
    }
    return NULL;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const struct core_tenant *)a)->id, y = ((const struct core_tenant *)b)->id;
    return (x > y) - (x < y);
}

int fair_init(struct fair *f, const struct core_config *c, const char **why)
{
    memset(f, 0, sizeof *f);
    *why = config_fault(c);
    if (*why)
        return WEIR_E_INVALID;
    f->oldest = f->newest = NONE;
    f->quantum = c->fair_quantum_tok;
    f->mean_output_16 = UINT64_C(16) * FAIR_FIRST_OUTPUT_TOK;
    if (!f->quantum)
        return 0;
    *why = "out of memory";
    f->tenants = calloc(c->n_tenants + 1, sizeof *f->tenants);
    f->buckets = malloc(BUCKETS * sizeof *f->buckets);
    if (!f->tenants || !f->buckets) {
        fair_deinit(f);
        return WEIR_E_NOMEM;
    }
    memset(f->buckets, 0xff, BUCKETS * sizeof *f->buckets);
    f->n_tenants = c->n_tenants;
    MEM_COPY(f->tenants, c->tenants, c->n_tenants);
    qsort(f->tenants, f->n_tenants, sizeof *f->tenants, by_id);
    f->n_flows = OTHERS + 1;
    *why = NULL;
    return 0;
}

void fair_deinit(struct fair *f)
{
    free(f->tenants);
    free(f->buckets);
    free(f->flows);
    free(f->bands);
    memset(f, 0, sizeof *f);
}

/* ---- priorities of which somebody waits */

/* The first band whose priority is not more urgent. */
static uint32_t band_at(const struct fair *f, int32_t priority)
{
    uint32_t low = 0, high = f->n_bands;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (f->bands[mid].priority < priority)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* NULL: nobody of this priority waits. */
static struct fair_band *find_band(struct fair *f, int32_t priority)
{
    uint32_t i = band_at(f, priority);
    return i < f->n_bands && f->bands[i].priority == priority ? &f->bands[i] : NULL;
}

static struct fair_band *enter_band(struct fair *f, int32_t priority)
{
    struct fair_band *b = find_band(f, priority);
    if (!b) {
        uint32_t i = band_at(f, priority);
        MEM_GROW(f->bands, f->bands_cap, f->n_bands + 1);
        b = &f->bands[i];
        memmove(b + 1, b, (f->n_bands - i) * sizeof *b);
        *b = (struct fair_band){
            .priority = priority, .round = f->floor, .life = ++f->lives, .others = {.weight = 1}};
        f->n_bands++;
    }
    b->waiting++;
    return b;
}

static void leave_band(struct fair *f, struct fair_band *b)
{
    if (--b->waiting)
        return;
    f->n_bands--;
    memmove(b, b + 1, (size_t)(f->bands + f->n_bands - b) * sizeof *b);
}

/* ---- flows */

static uint32_t *bucket_of(const struct fair *f, uint64_t tenant, int32_t priority)
{
    return &f->buckets[rng_mix64(tenant ^ rng_mix64((uint32_t)priority)) % BUCKETS];
}

static uint32_t find_flow(const struct fair *f, uint64_t tenant, int32_t priority)
{
    uint32_t i = *bucket_of(f, tenant, priority);
    while (i != NONE && (f->flows[i].tenant != tenant || f->flows[i].priority != priority))
        i = f->flows[i].next;
    return i;
}

static uint32_t weight_of(const struct fair *f, uint64_t tenant)
{
    const struct core_tenant key = {.id = tenant}, *found;
    found = bsearch(&key, f->tenants, f->n_tenants, sizeof key, by_id);
    return found ? found->weight : 1;
}

int fair_reweigh(struct fair *f, const struct core_config *c, const char **why)
{
    *why = config_fault(c);
    if (*why)
        return WEIR_E_INVALID;
    *why = "out of memory";
    struct core_tenant *tenants = calloc(c->n_tenants + 1, sizeof *tenants);
    if (!tenants)
        return WEIR_E_NOMEM;
    *why = NULL;
    free(f->tenants);
    f->tenants = tenants;
    f->n_tenants = c->n_tenants;
    MEM_COPY(f->tenants, c->tenants, c->n_tenants);
    qsort(f->tenants, f->n_tenants, sizeof *f->tenants, by_id);
    for (uint32_t i = 1; i < f->n_flows; i++)
        f->flows[i].weight = weight_of(f, f->flows[i].tenant);
    return 0;
}

/* Flows with nothing waiting, in the order in which they became so. */
static void idle_push(struct fair *f, uint32_t i)
{
    f->flows[i].older = f->newest;
    f->flows[i].newer = NONE;
    *(f->newest == NONE ? &f->oldest : &f->flows[f->newest].newer) = i;
    f->newest = i;
}

static void idle_remove(struct fair *f, uint32_t i)
{
    const struct fair_flow *w = &f->flows[i];
    *(w->older == NONE ? &f->oldest : &f->flows[w->older].newer) = w->newer;
    *(w->newer == NONE ? &f->newest : &f->flows[w->newer].older) = w->older;
}

static void unlink_flow(struct fair *f, uint32_t i)
{
    uint32_t *link = bucket_of(f, f->flows[i].tenant, f->flows[i].priority);
    while (*link != i)
        link = &f->flows[*link].next;
    *link = f->flows[i].next;
}

/* A place for a new flow, idle; OTHERS: all have requests waiting. */
static uint32_t free_flow(struct fair *f)
{
    uint32_t i = f->n_flows;
    if (i <= FAIR_MAX_FLOWS) {
        MEM_GROW(f->flows, f->flows_cap, i + 1);
        f->n_flows++;
        idle_push(f, i);
        return i;
    }
    i = f->oldest;
    if (i == NONE)
        return OTHERS;
    unlink_flow(f, i);
    return i;
}

static uint32_t flow_of(struct fair *f, uint64_t tenant, int32_t priority)
{
    uint32_t i = find_flow(f, tenant, priority);
    if (i != NONE)
        return i;
    i = free_flow(f);
    if (i == OTHERS)
        return i;
    struct fair_flow *w = &f->flows[i];
    uint32_t older = w->older, newer = w->newer, *bucket = bucket_of(f, tenant, priority);
    *w = (struct fair_flow){.tenant = tenant,
                            .priority = priority,
                            .weight = weight_of(f, tenant),
                            .older = older,
                            .newer = newer,
                            .next = *bucket};
    *bucket = i;
    return i;
}

/* ---- rounds */

static int64_t share_of(const struct fair *f, const struct fair_flow *w)
{
    return (int64_t)(f->quantum * w->weight);
}

/* The flow is in this round at least. Rounds that it let pass pay what it owed, and no more; what was charged for
 * requests that are gone comes back as rounds. */
static void catch_up(const struct fair *f, struct fair_flow *w, const struct fair_band *b)
{
    int64_t share = share_of(f, w);
    if (w->life != b->life) { /* nobody waited in between: all begin anew */
        w->life = b->life;
        w->round = b->round;
        w->left = share;
        w->live = 0;
        return;
    }
    if (w->waiting)
        return;
    if (w->round < b->round) {
        uint64_t passed = b->round - w->round;
        int64_t owed = w->left < 0 ? -w->left : 0;
        w->left = passed > (uint64_t)(owed / share) + 1 ? share : (int64_t)passed * share - owed;
        w->left = w->left < share ? w->left : share;
        w->round = b->round;
    } else if (!w->live &&
               w->left >= share) { /* else one that is out would be behind its juniors */
        uint64_t back = (uint64_t)(w->left / share);
        back = back < w->round - b->round ? back : w->round - b->round;
        w->round -= back;
        w->left -= (int64_t)back * share;
    }
}

/* Takes cost from the flow's share, in as many rounds as it needs. */
static void charge(const struct fair *f, struct fair_flow *w, uint64_t cost)
{
    int64_t share = share_of(f, w), missing = (int64_t)cost - w->left;
    if (missing > 0) {
        int64_t rounds = (missing + share - 1) / share;
        w->round += (uint64_t)rounds;
        w->left += rounds * share;
    }
    w->left -= (int64_t)cost;
}

/* NULL: the flow that was charged is gone, or has begun anew. b: of its priority, NULL if nobody of it waits. */
static struct fair_flow *charged_flow(struct fair *f, const struct core_request *r,
                                      const struct fair_ticket *t, struct fair_band *b)
{
    if (!t->live || !b || b->life != t->life)
        return NULL;
    if (t->flow == OTHERS)
        return &b->others;
    struct fair_flow *w = &f->flows[t->flow];
    return w->tenant == r->tenant && w->priority == r->priority ? w : NULL;
}

static void begin_to_wait(struct fair *f, struct fair_flow *w, struct fair_ticket *t)
{
    t->counted = true;
    if (!w->waiting++ && t->flow != OTHERS)
        idle_remove(f, t->flow);
}

uint64_t fair_cost(const struct fair *f, const struct core_request *r, uint32_t uncached_tok)
{
    uint64_t output = (f->mean_output_16 + 8) / 16;
    if (r->max_tokens && r->max_tokens < output)
        output = r->max_tokens;
    return uncached_tok + FAIR_OUTPUT_COST * output + 1; /* nothing is free */
}

void fair_pass(struct fair *f, const struct core_request *r, struct fair_ticket *t)
{
    *t = (struct fair_ticket){.round = f->floor};
    struct fair_band *b = f->n_bands ? find_band(f, r->priority) : NULL;
    if (!b)
        return;
    uint32_t flow = find_flow(f, r->tenant, r->priority);
    t->flow = flow == NONE ? OTHERS : flow;
    struct fair_flow *w = flow == NONE ? &b->others : &f->flows[flow];
    t->round = b->round;
    if (w->life != b->life)
        return;
    t->round = w->round > b->round ? w->round : b->round;
    t->life = b->life;
    t->live = true;
    w->live++;
    if (t->round > f->floor) /* nobody who comes later is before it */
        f->floor = t->round;
}

void fair_enter(struct fair *f, const struct core_request *r, uint64_t cost, struct fair_ticket *t)
{
    *t = (struct fair_ticket){0};
    if (!f->quantum)
        return;
    struct fair_band *b = enter_band(f, r->priority);
    t->flow = flow_of(f, r->tenant, r->priority);
    struct fair_flow *w = t->flow == OTHERS ? &b->others : &f->flows[t->flow];
    catch_up(f, w, b);
    charge(f, w, cost);
    begin_to_wait(f, w, t);
    t->round = w->round;
    t->cost = cost;
    t->life = w->life;
    t->live = true;
    w->live++;
}

void fair_return(struct fair *f, const struct core_request *r, struct fair_ticket *t)
{
    if (!f->quantum)
        return;
    struct fair_flow *w = charged_flow(f, r, t, enter_band(f, r->priority));
    if (w)
        begin_to_wait(f, w, t);
}

void fair_leave(struct fair *f, const struct core_request *r, struct fair_ticket *t, bool sent)
{
    if (!f->quantum)
        return;
    struct fair_band *b = find_band(f, r->priority);
    if (sent && t->round > b->round)
        b->round = t->round;
    if (sent && t->round > f->floor)
        f->floor = t->round;
    if (t->counted && !--charged_flow(f, r, t, b)->waiting && t->flow != OTHERS)
        idle_push(f, t->flow);
    t->counted = false;
    leave_band(f, b);
}

void fair_settle(struct fair *f, const struct core_request *r, struct fair_ticket *t,
                 uint32_t uncached_tok, uint32_t output_tok, bool done)
{
    if (!f->quantum)
        return;
    if (done)
        f->mean_output_16 += output_tok - f->mean_output_16 / 16;
    struct fair_flow *w = charged_flow(f, r, t, find_band(f, r->priority));
    if (w && t->cost)
        w->left += (int64_t)t->cost - uncached_tok - (int64_t)FAIR_OUTPUT_COST * output_tok;
    if (w)
        w->live--;
    t->live = false;
}
