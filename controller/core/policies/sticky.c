/* sticky.c - "sticky until saturated": workers that have the prefix, until they lag too far
 * behind.
 *
 *   warm          = cached / prompt >= affinity
 *   ttft_ms(w)    = prefill_tok(w) / peak_prefill_tok_per_s * 1000
 *   keep to warm workers if there are any, unless
 *       min ttft_ms(warm) - min ttft_ms(others) > max_ttft_penalty_ms     (0: never let go)
 *   of those kept, the smallest min(prefill_tok + uncached, token_load_cap_tok), ties at random
 *   decode leg: fewest requests in flight, ties at random
 *
 * prefill_tok: uncached prompt tokens of the requests there without a first token.
 *
 * Source: llm-d router, prefix-cache-affinity-filter, token-load-scorer and active-request-scorer
 * with the max-score picker: the guides' default since August 2026 (baselines 4.1). The
 * throughput was calibrated by them for Qwen3-32B on 2 H100: set it to what a worker of yours
 * prefills (chunk size / median TTFT of a chunk-sized prompt).
 *
 * Simplified: the hit is counted in tokens, not in blocks of 16; exploration, off by default
 * there, is left out. Prefixes are those of the precise index, from the engines' cache events.
 */
#include "controller/core/policies/policies.h"

enum { AFFINITY, MAX_TTFT_PENALTY, PEAK_PREFILL, TOKEN_LOAD_CAP, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"affinity", 0.80, 0, 1, "share of the prompt from which on a worker counts as warm"},
    {"max_ttft_penalty_ms", 18000, 0, 1e9, "TTFT in ms that warmth may cost; 0: any"},
    {"peak_prefill_tok_per_s", 15928, 1, 1e9, "tokens a worker prefills per second"},
    {"token_load_cap_tok", 4194304, 1, 1e12, "tokens from which on all workers count as equal"},
};

struct sticky {
    double affinity, max_penalty_ms, tok_per_s, cap_tok;
};

static void tune(void *state, const double *param)
{
    struct sticky *s = state;
    s->affinity = param[AFFINITY];
    s->max_penalty_ms = param[MAX_TTFT_PENALTY];
    s->tok_per_s = param[PEAK_PREFILL];
    s->cap_tok = param[TOKEN_LOAD_CAP];
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    (void)n_workers;
    tune(state, param);
    return 0;
}

/* The fewest cached tokens with cached / prompt >= affinity: spares a division per candidate. */
static uint32_t warm_from_tok(const struct sticky *s, uint32_t prompt_tok)
{
    uint32_t tok = (uint32_t)(s->affinity * prompt_tok); /* one off at most, by rounding */
    if (tok && (double)(tok - 1) / prompt_tok >= s->affinity)
        return tok - 1;
    return tok + ((double)tok / prompt_tok < s->affinity);
}

/* Whether only warm workers are kept. */
static bool stick(const struct sticky *s, const struct policy_view *v, const struct policy_query *q,
                  uint32_t warm_tok)
{
    uint64_t warm = UINT64_MAX, cold = UINT64_MAX; /* fewest tokens to prefill */
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        uint64_t tok = v->prefill_tok[w];
        if (q->cached_tok[w] >= warm_tok)
            warm = tok < warm ? tok : warm;
        else
            cold = tok < cold ? tok : cold;
    }
    if (warm == UINT64_MAX)
        return false;
    if (cold == UINT64_MAX || s->max_penalty_ms <= 0)
        return true;
    double penalty_ms = ((double)warm - (double)cold) / s->tok_per_s * 1000;
    return penalty_ms <= s->max_penalty_ms;
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    const struct sticky *s = state;
    struct policy_best best = policy_best_of(q);

    if (q->leg == POLICY_DECODE)
        return policy_fewest_inflight(v, q, rng);
    uint32_t warm_tok = warm_from_tok(s, q->req->prompt_tok);
    uint32_t from_tok = stick(s, v, q, warm_tok) ? warm_tok : 0;
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        if (q->cached_tok[w] < from_tok)
            continue;
        double tok = policy_real(v->prefill_tok[w] + policy_uncached_tok(q, w));
        policy_consider(&best, tok < s->cap_tok ? tok : s->cap_tok, w);
    }
    return policy_choose(&best, rng);
}

const struct policy_ops policy_sticky = {
    .name = "sticky",
    .summary =
        "workers with the prefix until they are too far behind, then fewest tokens to prefill",
    .source =
        "llm-d router, prefix-cache-affinity-filter + token-load-scorer (default since 2026-08)",
    .needs = POLICY_NEEDS(CORE_EV_FIRST_TOKEN),
    .prefix = POLICY_PREFIX_EVENTS,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct sticky),
    .init = init,
    .tune = tune,
    .pick = pick,
};
