/* fit.c - Gauss-Newton over held schedules; see fit.h. */
#include "controller/replay/fit.h"

#include <stdlib.h>
#include <string.h>

#include "controller/replay/fit_ledger.h"
#include "controller/replay/least_squares.h"

#define RESIDUALS 3 /* of one request */
#define ITERATIONS 15
#define SHORTEST_STEP 0.1
#define SMALLEST_GAIN 1e-3 /* of the cost, by one iteration */
#define PATTERN_ROUNDS 10

/* How far a prior may be off, relative to it, before it counts as much as PRIOR_WEIGHT outliers' residuals; in
 * the order of the ledger's items. */
#define PRIOR_WEIGHT 3
static const double prior_spread[LEDGER_ITEMS] = {0.3, 1, 0.3, 0.5, 1, 0.3, 0};
#define MIX_SPREAD 4 /* reading KV with the prefill's kernels may cost that many times k more */

/* How the time may be divided between the coefficients, where the search starts. */
static const double starts[][LEDGER_ITEMS] = {
    {0.50, 0.10, 0.15, 0.20, 0.01, 0.20, 0.01},
    {0.75, 0.05, 0.05, 0.10, 0.01, 0.10, 0.01},
    {0.30, 0.15, 0.15, 0.40, 0.01, 0.30, 0.05},
};
#define N_STARTS (sizeof starts / sizeof *starts)

/* ---- playing a recording */

static int play(struct cluster *cluster, const struct fit_case *c, struct fit_times *out)
{
    struct cluster_event ev;
    uint32_t next = 0;
    for (;;) {
        int64_t due = next < c->n ? c->requests[next].spec.arrival_ps : PS_NEVER;
        int64_t t = cluster_next_ps(cluster);
        t = due < t ? due : t;
        if (t == PS_NEVER)
            return WEIR_OK;
        cluster_advance(cluster, t);
        while (cluster_poll(cluster, &ev)) {
            if (ev.kind == CLUSTER_EV_DONE)
                out[ev.handle] = (struct fit_times){ev.record.first_token_ps, ev.record.end_ps,
                                                    ev.record.preemptions};
        }
        for (; next < c->n && c->requests[next].spec.arrival_ps <= t; next++) {
            int rc = cluster_submit(cluster, t, 0, &c->requests[next].spec, next, false);
            if (rc == WEIR_E_NOMEM)
                return rc;
        }
        cluster_start(cluster, t);
    }
}

int fit_predict(const struct fit_case *c, const struct step_params *step, struct fit_times *out)
{
    struct worker_config worker = c->worker;
    struct cluster_options options = {.kv_lease_ps = PS_NEVER};
    const char *why = NULL;
    if (step_model_init(&worker.engine.step, step, &why) ||
        engine_config_check(&worker.engine, &why))
        return WEIR_E_INVALID;
    for (uint32_t i = 0; i < c->n; i++)
        out[i] = (struct fit_times){-1, -1, 0};
    worker.starts_up = true;
    struct cluster *cluster = cluster_new(&worker, 1, &options);
    if (!cluster)
        return WEIR_E_NOMEM;
    int rc = play(cluster, c, out);
    cluster_free(cluster);
    return rc;
}

/* ---- what counts */

static bool has_times(const struct fit_request *r)
{
    return r->use && r->first_token_ps >= r->spec.arrival_ps &&
           r->last_token_ps >= r->first_token_ps;
}

static bool decodes(const struct fit_request *r)
{
    return has_times(r) && r->spec.output_tok > 1 && r->last_token_ps > r->first_token_ps;
}

/* The residuals of a request whose simulated times are wait and decode, ps. */
static void request_residuals(const struct fit_request *q, double wait, double decode, double *r)
{
    double real_wait = (double)(q->first_token_ps - q->spec.arrival_ps);
    double real_decode = (double)(q->last_token_ps - q->first_token_ps);
    r[0] = (wait - real_wait) / (real_wait + FIT_SLACK_PS);
    r[1] =
        decodes(q) ? FIT_DECODE_WEIGHT * (decode - real_decode) / (real_decode + FIT_SLACK_PS) : 0;
    r[2] = FIT_E2E_WEIGHT * (wait + decode - real_wait - real_decode) /
           (real_wait + real_decode + FIT_SLACK_PS);
}

struct fitting {
    const struct fit_case *c;
    struct step_params step;
    bool free[LEDGER_ITEMS];
    double scale
        [LEDGER_ITEMS]; /* the value with which a coefficient alone would explain all decoding */
    double prior[LEDGER_ITEMS]; /* 0: none */
    struct ledger_entry *entries;
    uint32_t plays;
};

static void prior_residuals(const struct fitting *f, const double *x, double *r)
{
    for (int j = 0; j < LEDGER_ITEMS; j++)
        r[j] = f->prior[j] > 0 && f->free[j]
                   ? PRIOR_WEIGHT * FIT_OUTLIER * (x[j] / f->prior[j] - 1) / prior_spread[j]
                   : 0;
    if (f->prior[LEDGER_CONTEXT] > 0)
        r[LEDGER_MIX] =
            PRIOR_WEIGHT * FIT_OUTLIER * x[LEDGER_MIX] / (MIX_SPREAD * f->prior[LEDGER_CONTEXT]);
}

/* ---- the problem with its schedule held: linear */

static int held_residuals(void *ctx, const double *x, double *r)
{
    const struct fitting *f = ctx;
    memset(r, 0, (size_t)f->c->n * RESIDUALS * sizeof *r);
    for (uint32_t i = 0; i < f->c->n; i++) {
        const struct fit_request *q = &f->c->requests[i];
        const struct ledger_entry *e = &f->entries[i];
        double wait = 0, decode = 0;
        if (!has_times(q) || e->times.last_token_ps < 0)
            continue;
        for (int j = 0; j < LEDGER_ITEMS; j++) {
            wait += x[j] * e->wait[j];
            decode += x[j] * e->decode[j];
        }
        request_residuals(q, wait * (double)PS_PER_MS, decode * (double)PS_PER_MS,
                          r + (size_t)i * RESIDUALS);
    }
    prior_residuals(f, x, r + (size_t)f->c->n * RESIDUALS);
    return 0;
}

/* ---- the true problem: plays the recording */

static int true_residuals(void *ctx, const double *x, double *r)
{
    struct fitting *f = ctx;
    ledger_set_coefficients(&f->step, x);
    int rc = ledger_play(f->c, &f->step, f->entries);
    if (rc)
        return rc;
    f->plays++;
    memset(r, 0, (size_t)f->c->n * RESIDUALS * sizeof *r);
    for (uint32_t i = 0; i < f->c->n; i++) {
        const struct fit_request *q = &f->c->requests[i];
        const struct fit_times *t = &f->entries[i].times;
        if (has_times(q) && t->last_token_ps >= 0)
            request_residuals(q, (double)(t->first_token_ps - q->spec.arrival_ps),
                              (double)(t->last_token_ps - t->first_token_ps),
                              r + (size_t)i * RESIDUALS);
    }
    prior_residuals(f, x, r + (size_t)f->c->n * RESIDUALS);
    return 0;
}

static void set_up(const struct fitting *f, struct lsq_problem *p)
{
    memset(p, 0, sizeof *p);
    p->ctx = (void *)(uintptr_t)f;
    p->n_unknowns = LEDGER_ITEMS;
    p->n_residuals = f->c->n * RESIDUALS + LEDGER_ITEMS;
    p->outlier = FIT_OUTLIER;
}

/* Bounds around x: 0 and beyond for what is searched, x itself for the others. */
static void set_bounds(const struct fitting *f, const double *x, struct lsq_problem *p)
{
    for (int j = 0; j < LEDGER_ITEMS; j++) {
        p->scale[j] = f->scale[j];
        p->low[j] = f->free[j] ? 0 : x[j];
        p->high[j] = f->free[j] ? STEP_MAX_MS / 2 : x[j];
    }
}

/* Cost at x; leaves its ledger in f->entries. */
static int true_cost(struct fitting *f, const double *x, double *cost)
{
    struct lsq_problem p;
    struct lsq_result result;
    double at[LEDGER_ITEMS];
    memcpy(at, x, sizeof at);
    set_up(f, &p);
    set_bounds(f, x, &p);
    p.residuals = true_residuals;
    int rc = lsq_minimise(&p, at, &result);
    *cost = result.cost;
    return rc;
}

/* From x on: Gauss-Newton with held schedules. */
static int descend(struct fitting *f, double *x, double *cost)
{
    static const double width = 0.01;
    struct lsq_problem p;
    struct lsq_result result;
    double trial[LEDGER_ITEMS], target[LEDGER_ITEMS], trial_cost = 0;
    set_up(f, &p);
    p.residuals = held_residuals;
    p.widths = &width;
    p.n_widths = 1;
    p.max_iterations = 60;
    int rc = true_cost(f, x, cost);
    for (int i = 0; i < ITERATIONS && rc == 0; i++) {
        double before = *cost, part = 1;
        memcpy(target, x, sizeof target);
        set_bounds(f, x, &p);
        rc = lsq_minimise(&p, target, &result);
        for (; rc == 0 && part > SHORTEST_STEP; part /= 2) {
            for (int j = 0; j < LEDGER_ITEMS; j++)
                trial[j] = x[j] + part * (target[j] - x[j]);
            rc = true_cost(f, trial, &trial_cost);
            if (rc == 0 && trial_cost < *cost)
                break;
        }
        if (rc || part <= SHORTEST_STEP)
            return rc;
        memcpy(x, trial, sizeof trial);
        *cost = trial_cost;
        if (*cost > before * (1 - SMALLEST_GAIN))
            break;
    }
    return rc;
}

static int polish(struct fitting *f, double *x, double *cost)
{
    struct lsq_problem p;
    struct lsq_result result;
    set_up(f, &p);
    set_bounds(f, x, &p);
    p.residuals = true_residuals;
    p.pattern_rounds = PATTERN_ROUNDS;
    int rc = lsq_minimise(&p, x, &result);
    *cost = result.cost;
    return rc;
}

/* ---- sizes: decode times against the load meanwhile */

/* How much work the time between the first and the last token of requests[i] holds, if every request generated its
 * tokens evenly and was prefilled at the moment of its first token. */
static void load_meanwhile(const struct fit_case *c, uint32_t i, double work[LEDGER_ITEMS])
{
    const struct fit_request *me = &c->requests[i];
    memset(work, 0, LEDGER_ITEMS * sizeof *work);
    work[LEDGER_PASS] = work[LEDGER_EXPERTS] = me->spec.output_tok - 1;
    for (uint32_t j = 0; j < c->n; j++) {
        const struct fit_request *r = &c->requests[j];
        if (!decodes(r))
            continue;
        double prompt = r->spec.prompt_tok, output = r->spec.output_tok;
        if (r->first_token_ps > me->first_token_ps && r->first_token_ps <= me->last_token_ps) {
            work[LEDGER_PREFILL] += prompt;
            work[LEDGER_ATTENTION] += prompt * prompt / 2;
        }
        int64_t from =
            r->first_token_ps > me->first_token_ps ? r->first_token_ps : me->first_token_ps;
        int64_t to = r->last_token_ps < me->last_token_ps ? r->last_token_ps : me->last_token_ps;
        if (to <= from)
            continue;
        double tok =
            (output - 1) * (double)(to - from) / (double)(r->last_token_ps - r->first_token_ps);
        work[LEDGER_DECODE] += tok;
        work[LEDGER_CONTEXT] += tok * (prompt + output / 2);
    }
    work[LEDGER_MIX] = work[LEDGER_CONTEXT];
}

static int find_scales(struct fitting *f)
{
    double sum[LEDGER_ITEMS] = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < f->c->n; i++) {
        const struct fit_request *r = &f->c->requests[i];
        if (!decodes(r))
            continue;
        double work[LEDGER_ITEMS], ms = ms_from_ps(r->last_token_ps - r->first_token_ps);
        load_meanwhile(f->c, i, work);
        for (int j = 0; j < LEDGER_ITEMS; j++)
            sum[j] += work[j] / ms;
        n++;
    }
    if (!n)
        return WEIR_E_INVALID;
    if (sum[LEDGER_PREFILL] ==
        0) { /* nobody was prefilled meanwhile: prompts cost something all the same */
        sum[LEDGER_PREFILL] = 100 * sum[LEDGER_PASS];
        sum[LEDGER_ATTENTION] = 1000 * sum[LEDGER_PREFILL];
    }
    for (int j = 0; j < LEDGER_ITEMS; j++)
        f->scale[j] = n / sum[j];
    return 0;
}

/* ---- the fit */

static int search(struct fitting *f, struct fit_result *out)
{
    double x[LEDGER_ITEMS], best[LEDGER_ITEMS], given[LEDGER_ITEMS], cost = 0;
    int rc = find_scales(f);
    ledger_coefficients(&f->step, given);
    for (uint32_t s = 0; s <= N_STARTS && rc == 0; s++) {
        if (s == N_STARTS && f->prior[LEDGER_PASS] == 0)
            break;
        for (int j = 0; j < LEDGER_ITEMS; j++) {
            x[j] = starts[s % N_STARTS][j] * f->scale[j];
            if (s == N_STARTS && f->prior[j] > 0)
                x[j] = f->prior[j];
            if (!f->free[j])
                x[j] = given[j];
        }
        rc = descend(f, x, &cost);
        if (rc == 0 && (s == 0 || cost < out->cost)) {
            out->cost = cost;
            memcpy(best, x, sizeof best);
        }
    }
    if (rc == 0)
        rc = polish(f, best, &out->cost);
    if (rc == 0)
        ledger_set_coefficients(&f->step, best);
    return rc;
}

/* Requests that say something; -1: not in order. */
static int64_t count_used(const struct fit_case *c)
{
    int64_t used = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (i && c->requests[i].spec.arrival_ps < c->requests[i - 1].spec.arrival_ps)
            return -1;
        used += has_times(&c->requests[i]);
    }
    return used;
}

int fit_step(const struct fit_case *c, const struct fit_options *options, struct step_params *step,
             struct fit_result *out)
{
    struct fitting f = {.c = c, .step = *step};
    *out = (struct fit_result){0};
    if (step->form != STEP_LINEAR || c->n > FIT_MAX_REQUESTS)
        return WEIR_E_INVALID;
    int64_t used = count_used(c);
    if (used <= 0)
        return WEIR_E_INVALID;
    if (options->prior)
        ledger_coefficients(options->prior, f.prior);
    for (int j = 0; j < LEDGER_ITEMS; j++)
        f.free[j] = options->unknowns >> j & 1;
    f.free[LEDGER_EXPERTS] &= step->moe_experts > 0;
    f.entries = calloc(c->n, sizeof *f.entries);
    if (!f.entries)
        return WEIR_E_NOMEM;
    int rc = search(&f, out);
    free(f.entries);
    if (rc)
        return rc;
    *step = f.step;
    out->plays = f.plays;
    out->used = (uint32_t)used;
    out->cost /= (double)used;
    return 0;
}
