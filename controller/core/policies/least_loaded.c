/* least_loaded.c - the worker that would be through with its queue first, with a barrier where
 * the KV cache fills up.
 *
 *   score = (queued_tok + sent_tok) / throughput + kv_pressure_weight * k / (1 - k)
 *
 * in seconds, smallest wins, the first of equals. queued_tok: uncached prompt tokens queued there
 * at the last report; sent_tok: prompt tokens sent there since; k: KV usage, at most 0.999. A
 * worker without a fresh report scores inflight * mean_prefill_tok / throughput, so that where none
 * has one the fewest requests in flight win.
 *
 * Source: SMG, model_gateway/src/policies/least_load.rs (baselines 4.2); all defaults are its
 * own, and so is the staleness of three polls of 10 s.
 *
 * Simplified: the telemetry here counts waiting requests, not their tokens, so queued_tok is the
 * router's own count of prompt tokens without a first token, read when a report is first seen.
 * SMG uses the generation rate where an engine reports one; here throughput is always the knob. A
 * report's age is counted from when it was measured, not from when it was received.
 */
#include <stdlib.h>

#include "controller/core/policies/policies.h"
#include "predictor/units.h"

#define KV_USAGE_MAX 0.999 /* keeps the barrier finite; SMG clamps there too */

enum { KV_PRESSURE_WEIGHT, THROUGHPUT, MEAN_PREFILL, REPORT_TTL, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"kv_pressure_weight", 0.15, 0, 1000, "weight of the KV barrier k / (1 - k), in seconds"},
    {"throughput_tok_per_s", 2000, 1, 1e9, "tokens a worker takes off its queue, per second"},
    {"mean_prefill_tok", 1024, 1, 1e7, "tokens of a request on a worker without a fresh report"},
    {"report_ttl_s", 30, 0.001, 1e6, "age in seconds from which a worker's report is ignored"},
};

struct work {
    int64_t report_ps; /* the report this is counted from */
    uint64_t tok;      /* queued at that report, and sent since */
};

struct least_loaded {
    double kv_pressure_weight, s_per_tok, mean_prefill_tok;
    int64_t ttl_ps;
    struct work *work; /* by worker */
};

static const struct work no_work = {.report_ps = -1};

static void tune(void *state, const double *param)
{
    struct least_loaded *s = state;
    s->kv_pressure_weight = param[KV_PRESSURE_WEIGHT];
    s->s_per_tok = 1 / param[THROUGHPUT];
    s->mean_prefill_tok = param[MEAN_PREFILL];
    s->ttl_ps = ps_from_ms(param[REPORT_TTL] * 1000);
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    struct least_loaded *s = state;
    tune(state, param);
    s->work = malloc(n_workers * sizeof *s->work);
    if (!s->work)
        return WEIR_E_NOMEM;
    for (uint32_t w = 0; w < n_workers; w++)
        s->work[w] = no_work;
    return 0;
}

static void deinit(void *state)
{
    struct least_loaded *s = state;
    free(s->work);
    s->work = NULL;
}

static double drain_s(struct least_loaded *s, const struct policy_view *v, uint32_t w)
{
    const struct core_telemetry *t = &v->telemetry[w];
    struct work *work = &s->work[w];
    if (work->report_ps != t->at_ps)
        *work = (struct work){t->at_ps, v->prefill_tok[w]};
    double k = policy_kv_usage(t);
    k = k < KV_USAGE_MAX ? k : KV_USAGE_MAX;
    return (double)work->tok * s->s_per_tok + s->kv_pressure_weight * k / (1 - k);
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct least_loaded *s = state;
    uint32_t best = q->candidates[0];
    double best_score = 0;
    (void)rng;

    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        int64_t at_ps = v->telemetry[w].at_ps;
        bool fresh = at_ps >= 0 && v->now_ps - at_ps <= s->ttl_ps;
        double score =
            fresh ? drain_s(s, v, w) : v->inflight[w] * s->mean_prefill_tok * s->s_per_tok;
        if (i == 0 || score < best_score) {
            best_score = score;
            best = w;
        }
    }
    return best;
}

static void dispatched(void *state, const struct policy_view *v, const struct policy_query *q,
                       uint32_t worker, void *request)
{
    struct least_loaded *s = state;
    (void)v;
    (void)request;
    s->work[worker].tok += q->req->prompt_tok;
}

static void worker_down(void *state, uint32_t worker)
{
    struct least_loaded *s = state;
    s->work[worker] = no_work;
}

const struct policy_ops policy_least_loaded = {
    .name = "least_loaded",
    .summary = "shortest time to drain the queued tokens, plus a barrier where KV fills up",
    .source = "SMG least_load.rs",
    .needs = POLICY_NEEDS(CORE_EV_FIRST_TOKEN) | POLICY_NEEDS(CORE_EV_TELEMETRY),
    .prefix = POLICY_PREFIX_NONE,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct least_loaded),
    .init = init,
    .tune = tune,
    .deinit = deinit,
    .pick = pick,
    .dispatched = dispatched,
    .worker_down = worker_down,
};
