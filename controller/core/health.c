/* health.c - see health.h. */
#include "controller/core/health.h"

#include <stdlib.h>
#include <string.h>

#define SEED UINT64_C(0x6865616c7468) /* "health": another stream than the policy's */

/* ---- life */

const char *health_fault(const struct core_health_config *c)
{
    bool outliers = c->outlier_failure_percent || c->outlier_latency_percent;
    if (outliers && c->outlier_interval_ps <= 0)
        return "health: outlier_interval_ps must be above 0";
    if ((outliers || c->breaker_failures) && (c->eject_ps <= 0 || c->eject_max_ps < c->eject_ps))
        return "health: eject_ps must be above 0, and eject_max_ps not below it";
    if (c->outlier_failure_percent > 100 || c->eject_max_percent > 100 || c->panic_percent > 100)
        return "health: a percentage must be at most 100";
    if (c->outlier_latency_percent && c->outlier_latency_percent <= 100)
        return "health: outlier_latency_percent must be above 100, or 0";
    if (c->slow_start_ps < 0)
        return "health: slow_start_ps must not be below 0";
    return NULL;
}

static bool compares(const struct health *h)
{
    return h->config.outlier_failure_percent || h->config.outlier_latency_percent;
}

static void decide_what_is_on(struct health *h)
{
    h->judges = h->config.breaker_failures || compares(h);
    h->ramps = h->config.slow_start_ps > 0;
}

int health_init(struct health *h, const struct core_config *c, const char **why)
{
    memset(h, 0, sizeof *h);
    *why = health_fault(&c->health);
    if (*why)
        return WEIR_E_INVALID;
    h->config = c->health;
    h->n = c->n_workers;
    h->judge_ps = h->next_ps = PS_NEVER;
    decide_what_is_on(h);
    rng_init(&h->rng, c->seed ^ SEED);
    h->workers = calloc(h->n, sizeof *h->workers);
    h->sort = calloc(h->n, sizeof *h->sort);
    *why = "out of memory";
    if (!h->workers || !h->sort) {
        health_deinit(h);
        return WEIR_E_NOMEM;
    }
    for (uint32_t w = 0; w < h->n; w++) {
        h->workers[w].role = c->workers[w].role;
        h->workers[w].ready = c->workers[w].up;
        h->n_ready[c->workers[w].role] += c->workers[w].up;
    }
    if (compares(h))
        h->judge_ps = h->next_ps = h->config.outlier_interval_ps;
    *why = NULL;
    return 0;
}

void health_deinit(struct health *h)
{
    free(h->workers);
    free(h->sort);
    memset(h, 0, sizeof *h);
}

/* ---- states */

/* Who is sick in a role may have changed. */
static void recount(struct health *h, enum worker_role role)
{
    uint32_t sick = h->n_sick[role], ready = h->n_ready[role];
    h->panic[role] =
        sick && (uint64_t)(ready - sick) * 100 < (uint64_t)h->config.panic_percent * ready;
    h->changed |= 1u << role;
}

static void enter(struct health *h, struct health_worker *k, enum core_health state)
{
    if (k->ready) {
        h->n_sick[k->role] -= k->state != CORE_HEALTH_OK;
        h->n_sick[k->role] += state != CORE_HEALTH_OK;
    }
    h->n_probing -= k->state == CORE_HEALTH_PROBING;
    h->n_probing += state == CORE_HEALTH_PROBING;
    k->state = state;
    recount(h, k->role);
}

/* The next end of an ejection, or the next judgement. */
static void plan(struct health *h)
{
    h->next_ps = h->judge_ps;
    for (uint32_t w = 0; w < h->n; w++) {
        const struct health_worker *k = &h->workers[w];
        if (k->state == CORE_HEALTH_EJECTED && k->until_ps < h->next_ps)
            h->next_ps = k->until_ps;
    }
}

static void forget_interval(struct health_worker *k)
{
    k->ended = k->failed = k->timed = 0;
    k->latency_ps = 0;
}

static void ramp(struct health *h, struct health_worker *k, bool on)
{
    on = on && h->ramps;
    h->n_ramping -= k->ramping;
    h->n_ramping += on;
    k->ramping = on;
    k->ramp_ps = h->now_ps;
}

static void eject(struct health *h, struct health_worker *k, enum core_health_cause cause)
{
    int64_t ps = h->config.eject_ps, max = h->config.eject_max_ps;
    if (k->state == CORE_HEALTH_OK && h->now_ps - k->good_ps >= max)
        k->times = 0;
    for (uint32_t i = 0; i < k->times && ps < max; i++)
        ps = ps > max / 2 ? max : 2 * ps;
    ps += (int64_t)rng_below(&h->rng, (uint64_t)ps / 4 + 1);
    if (k->times < HEALTH_MAX_TIMES)
        k->times++;
    k->until_ps = ps < PS_NEVER - h->now_ps ? h->now_ps + ps : PS_NEVER;
    k->cause = cause;
    k->failures = 0;
    forget_interval(k);
    ramp(h, k, false);
    enter(h, k, CORE_HEALTH_EJECTED);
    h->ejections++;
    plan(h);
}

static void recover(struct health *h, struct health_worker *k)
{
    k->good_ps = h->now_ps;
    k->failures = 0;
    ramp(h, k, true);
    enter(h, k, CORE_HEALTH_OK);
}

void health_judge_by(struct health *h, const struct core_health_config *c)
{
    int64_t every = c->outlier_interval_ps;
    if (!memcmp(&h->config, c, sizeof *c))
        return;
    h->config = *c;
    decide_what_is_on(h);
    for (uint32_t w = 0; w < h->n; w++) {
        struct health_worker *k = &h->workers[w];
        if (!h->judges && k->state != CORE_HEALTH_OK)
            recover(h, k);
        if (!h->ramps && k->ramping)
            ramp(h, k, false);
        forget_interval(k);
    }
    h->judge_ps = !compares(h)                   ? PS_NEVER
                  : every < PS_NEVER - h->now_ps ? h->now_ps + every
                                                 : PS_NEVER;
    for (int role = 0; role < HEALTH_ROLES; role++)
        recount(h, (enum worker_role)role); /* the panic threshold */
    plan(h);
}

void health_up(struct health *h, uint32_t w)
{
    struct health_worker *k = &h->workers[w];
    if (k->ready)
        return;
    k->ready = true;
    h->n_ready[k->role]++;
    recover(h, k); /* not sick before either: health_gone */
}

void health_new(struct health *h, uint32_t w, enum worker_role role)
{
    h->workers[w] = (struct health_worker){.role = role};
}

void health_gone(struct health *h, uint32_t w)
{
    struct health_worker *k = &h->workers[w];
    if (!k->ready)
        return;
    bool was_ejected = k->state == CORE_HEALTH_EJECTED;
    ramp(h, k, false);
    enter(h, k, CORE_HEALTH_OK);
    k->ready = false;
    h->n_ready[k->role]--;
    k->failures = 0;
    forget_interval(k);
    recount(h, k->role);
    if (was_ejected)
        plan(h);
}

void health_good(struct health *h, uint32_t w, int64_t latency_ps, uint32_t uncached_tok)
{
    struct health_worker *k = &h->workers[w];
    if (!h->judges || !k->ready)
        return;
    k->failures = 0;
    k->ended++;
    if (latency_ps > 0) {
        k->timed++;
        k->latency_ps += (uint64_t)latency_ps / ((uint64_t)uncached_tok + HEALTH_STEP_TOK);
    }
    if (k->state == CORE_HEALTH_PROBING)
        recover(h, k);
}

void health_bad(struct health *h, uint32_t w)
{
    struct health_worker *k = &h->workers[w];
    if (!h->judges || !k->ready || k->state == CORE_HEALTH_EJECTED)
        return;
    k->failures++;
    k->ended++;
    k->failed++;
    if (k->state == CORE_HEALTH_PROBING)
        eject(h, k, k->cause);
    else if (h->config.breaker_failures && k->failures >= h->config.breaker_failures)
        eject(h, k, CORE_HEALTH_FAILURES);
}

/* ---- outliers */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t failure_permyriad(const struct health_worker *k)
{
    return (uint64_t)k->failed * 10000 / k->ended;
}

static uint64_t mean_latency_ps(const struct health_worker *k)
{
    return k->latency_ps / k->timed;
}

static bool can_be_compared(const struct health_worker *k, enum core_health_cause cause)
{
    return k->ready && k->state == CORE_HEALTH_OK &&
           (cause == CORE_HEALTH_SLOW ? k->timed : k->ended) >= HEALTH_MIN_ENDED;
}

/* What is more than this is an outlier; UINT64_MAX: too few to say. */
static uint64_t bound(struct health *h, enum worker_role role, enum core_health_cause cause)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < h->n; w++) {
        const struct health_worker *k = &h->workers[w];
        if (k->role == role && can_be_compared(k, cause))
            h->sort[n++] = cause == CORE_HEALTH_SLOW ? mean_latency_ps(k) : failure_permyriad(k);
    }
    if (n < HEALTH_MIN_PEERS)
        return UINT64_MAX;
    qsort(h->sort, n, sizeof *h->sort, by_value);
    uint64_t median = h->sort[(n - 1) / 2];
    if (cause == CORE_HEALTH_SLOW)
        return median / 100 * h->config.outlier_latency_percent;
    return median + UINT64_C(100) * h->config.outlier_failure_percent;
}

static bool may_eject_one(const struct health *h, enum worker_role role)
{
    uint64_t most = (uint64_t)h->n_ready[role] * h->config.eject_max_percent / 100;
    return h->n_sick[role] < (most ? most : 1);
}

static void judge(struct health *h, enum worker_role role, enum core_health_cause cause)
{
    uint64_t limit = bound(h, role, cause);
    for (uint32_t w = 0; limit != UINT64_MAX && w < h->n; w++) {
        struct health_worker *k = &h->workers[w];
        if (k->role != role || !can_be_compared(k, cause))
            continue;
        uint64_t x = cause == CORE_HEALTH_SLOW ? mean_latency_ps(k) : failure_permyriad(k);
        if (x > limit && may_eject_one(h, role))
            eject(h, k, cause);
    }
}

static void judge_all(struct health *h)
{
    for (int role = 0; role < HEALTH_ROLES; role++) {
        if (h->config.outlier_failure_percent)
            judge(h, (enum worker_role)role, CORE_HEALTH_FAILURE_RATE);
        if (h->config.outlier_latency_percent)
            judge(h, (enum worker_role)role, CORE_HEALTH_SLOW);
    }
    for (uint32_t w = 0; w < h->n; w++)
        forget_interval(&h->workers[w]);
    int64_t every = h->config.outlier_interval_ps;
    h->judge_ps = every < PS_NEVER - h->now_ps ? h->now_ps + every : PS_NEVER;
}

void health_tick(struct health *h, int64_t now_ps, const uint32_t *inflight)
{
    h->now_ps = now_ps;
    if (now_ps < h->next_ps || now_ps == PS_NEVER)
        return;
    if (now_ps >= h->judge_ps)
        judge_all(h);
    for (uint32_t w = 0; w < h->n; w++) {
        struct health_worker *k = &h->workers[w];
        if (k->state != CORE_HEALTH_EJECTED || k->until_ps > now_ps)
            continue;
        k->least = inflight[w];
        enter(h, k, CORE_HEALTH_PROBING);
    }
    plan(h);
}

/* ---- slow start */

uint32_t health_share(const struct health *h, uint32_t w)
{
    const struct health_worker *k = &h->workers[w];
    int64_t passed = h->now_ps - k->ramp_ps, whole = h->config.slow_start_ps;
    if (!k->ramping || passed >= whole)
        return 1000;
    int64_t grown = (1000 - (int64_t)HEALTH_FIRST_SHARE) * (passed / 1000) / (whole / 1000 + 1);
    return HEALTH_FIRST_SHARE + (uint32_t)grown;
}

uint32_t health_thin(struct health *h, const uint32_t *list, uint32_t n, const uint32_t *inflight,
                     uint32_t *out)
{
    uint64_t sum = 0, others = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct health_worker *k = &h->workers[list[i]];
        if (k->ramping && h->now_ps - k->ramp_ps >= h->config.slow_start_ps)
            ramp(h, k, false);
        if (!k->ramping) {
            sum += inflight[list[i]];
            others++;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t w = list[i];
        /* in flight against share * sum / others, and one in any case */
        if (others && h->workers[w].ramping && inflight[w] &&
            inflight[w] * others * 1000 >= sum * health_share(h, w))
            continue;
        out[kept++] = w;
    }
    return kept;
}

/* ---- names */

const char *core_health_name(enum core_health h)
{
    static const char *const names[CORE_HEALTH_COUNT] = {"ok", "ejected", "probing"};
    return names[h];
}

const char *core_health_cause_name(enum core_health_cause c)
{
    static const char *const names[CORE_HEALTH_CAUSES] = {"none", "failures", "failure_rate",
                                                          "slow"};
    return names[c];
}
