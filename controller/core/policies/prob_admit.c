/* prob_admit.c - sheds requests at random, ever more of them as the pool saturates; routes the
 * rest as llmd_blend does.
 *
 *   saturation = mean over the candidates of max(waiting / queue_threshold, usage / kv_threshold);
 *                1 for a worker without a report of the last stale_ms
 *   p          = min(saturation^power * factor, 1)
 *   a request with priority >= shed_from_priority is refused with probability p
 *
 * Source: llm-d router, probabilistic-admitter over its utilisation detector (baselines 4.1), which
 * polls every 50 ms and takes telemetry older than 200 ms for saturated: fail closed.
 *
 * Chosen here: smaller is more urgent in weir, the reverse of llm-d, where requests below 0 may
 * be shed and 0 may not. By weir's rule only negative priorities are spared; shed_from_priority 1
 * is llm-d's own border. Only the first leg of a request is shed, never a decode leg.
 */
#include "controller/core/policies/policies.h"
#include "predictor/units.h"

enum {
    POWER = LLMD_BLEND_N_PARAMS,
    FACTOR,
    QUEUE_THRESHOLD,
    KV_THRESHOLD,
    STALE,
    SHED_FROM,
    N_PARAMS
};

static const struct policy_param params[N_PARAMS] = {
    LLMD_BLEND_PARAMS,
    {"power", 5, 1, 16, "exponent of the saturation, a whole number (a fraction is cut off)"},
    {"factor", 300, 0, 1e9, "factor of the saturation's power"},
    {"queue_threshold", 5, 0.001, 1e6, "waiting requests at which a worker is saturated"},
    {"kv_threshold", 0.8, 0.001, 1, "share of the KV cache at which a worker is saturated"},
    {"stale_ms", 200, 0, 1e9,
     "age of a report from which its worker is taken for saturated; 0: none"},
    {"shed_from_priority", 0, -1e9, 1e9, "most urgent priority that may be shed"},
};

struct prob_admit {
    struct llmd_blend blend;
    uint32_t power;
    double factor, queue_threshold, kv_threshold, shed_from;
    int64_t stale_ps; /* 0: never */
};

static void tune(void *state, const double *param)
{
    struct prob_admit *s = state;
    llmd_blend_init(&s->blend, param);
    s->power = (uint32_t)param[POWER];
    s->factor = param[FACTOR];
    s->queue_threshold = param[QUEUE_THRESHOLD];
    s->kv_threshold = param[KV_THRESHOLD];
    s->stale_ps = ps_from_ms(param[STALE]);
    s->shed_from = param[SHED_FROM];
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    (void)n_workers;
    tune(state, param);
    return 0;
}

static double saturation_of(const struct prob_admit *s, const struct policy_view *v, uint32_t w)
{
    const struct core_telemetry *t = &v->telemetry[w];
    if (s->stale_ps && (t->at_ps < 0 || v->now_ps - t->at_ps > s->stale_ps))
        return 1;
    double queue = policy_waiting(t) / s->queue_threshold;
    double kv = policy_kv_usage(t) / s->kv_threshold;
    return queue > kv ? queue : kv;
}

static double shed_probability(const struct prob_admit *s, const struct policy_view *v,
                               const struct policy_query *q)
{
    double sum = 0, p = s->factor;
    for (uint32_t i = 0; i < q->n_candidates; i++)
        sum += saturation_of(s, v, q->candidates[i]);
    for (uint32_t i = 0; i < s->power; i++)
        p *= sum / q->n_candidates;
    return p;
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    const struct prob_admit *s = state;
    if (q->leg != POLICY_DECODE && q->req->priority >= s->shed_from &&
        rng_unit(rng) < shed_probability(s, v, q))
        return POLICY_SHED;
    return llmd_blend_pick(&s->blend, v, q, rng);
}

const struct policy_ops policy_prob_admit = {
    .name = "prob_admit",
    .summary = "sheds at random as the pool saturates, routes like llmd_blend",
    .source = "llm-d router, probabilistic-admitter",
    .needs = POLICY_NEEDS(CORE_EV_TELEMETRY),
    .prefix = POLICY_PREFIX_DISPATCH,
    .prefix_max_blocks = LLMD_PREFIX_BLOCKS,
    .prefix_min_block_tok = LLMD_PREFIX_BLOCK_TOK,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct prob_admit),
    .init = init,
    .tune = tune,
    .pick = pick,
};
