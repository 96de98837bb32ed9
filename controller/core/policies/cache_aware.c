/* cache_aware.c - the worker that has most of the prompt, unless load has become uneven.
 *
 *   uneven = max - min > balance_abs  and  max > balance_rel * min     (requests in flight)
 *   uneven                              -> fewest in flight, the first of equals
 *   else best match > cache_threshold   -> best match
 *   else                                -> smallest tree, the first of equals
 *
 * match: share of the prompt believed cached; tree: prompt tokens put there by dispatches.
 *
 * Source: SMG (formerly the SGLang router), model_gateway/src/policies/cache_aware.rs, its token
 * tree; defaults of its command line (baselines 4.2; its library's defaults are 0.5, 32 and 1.1).
 * It knows prefixes from its own dispatches only, hence POLICY_PREFIX_DISPATCH.
 *
 * Chosen here: equal matches go to fewer requests in flight, then the smaller tree, then the
 * first (what SMG does in its event-driven mode; the tree mode takes any). Evicting runs with
 * every dispatch, not each 120 s, and limits a tree to 67,108,864 tokens in blocks of 16. A
 * worker that went down begins with an empty tree; SMG leaves its entries to the LRU.
 */
#include <stdlib.h>

#include "controller/core/policies/policies.h"

#define TREE_MAX_TOK UINT64_C(67108864)
#define TREE_BLOCK_TOK 16

enum { CACHE_THRESHOLD, BALANCE_ABS, BALANCE_REL, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"cache_threshold", 0.3, 0, 1, "share of the prompt above which the best match is followed"},
    {"balance_abs", 64, 0, 1e6, "requests between most and least loaded before load decides"},
    {"balance_rel", 1.5, 1, 1e6, "ratio of most to least loaded before load decides"},
};

struct cache_aware {
    double threshold, abs, rel;
    uint64_t *tree_tok; /* by worker */
};

static void tune(void *state, const double *param)
{
    struct cache_aware *s = state;
    s->threshold = param[CACHE_THRESHOLD];
    s->abs = param[BALANCE_ABS];
    s->rel = param[BALANCE_REL];
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    struct cache_aware *s = state;
    tune(state, param);
    s->tree_tok = calloc(n_workers, sizeof *s->tree_tok);
    return s->tree_tok ? 0 : WEIR_E_NOMEM;
}

static void deinit(void *state)
{
    struct cache_aware *s = state;
    free(s->tree_tok);
    s->tree_tok = NULL;
}

static bool better_match(const struct cache_aware *s, const struct policy_view *v,
                         const struct policy_query *q, uint32_t w, uint32_t than)
{
    if (q->cached_tok[w] != q->cached_tok[than])
        return q->cached_tok[w] > q->cached_tok[than];
    if (v->inflight[w] != v->inflight[than])
        return v->inflight[w] < v->inflight[than];
    return s->tree_tok[w] < s->tree_tok[than];
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct cache_aware *s = state;
    uint32_t fewest = q->candidates[0], match = fewest, smallest = fewest;
    uint32_t most = v->inflight[fewest];
    (void)rng;

    for (uint32_t i = 1; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        if (v->inflight[w] < v->inflight[fewest])
            fewest = w;
        if (v->inflight[w] > most)
            most = v->inflight[w];
        if (s->tree_tok[w] < s->tree_tok[smallest])
            smallest = w;
        if (q->cached_tok[w] && better_match(s, v, q, w, match))
            match = w;
    }
    double max = most, min = v->inflight[fewest];
    if (max - min > s->abs && max > s->rel * min)
        return fewest;
    if ((double)q->cached_tok[match] / (double)q->req->prompt_tok > s->threshold)
        return match;
    return smallest;
}

static void dispatched(void *state, const struct policy_view *v, const struct policy_query *q,
                       uint32_t worker, void *request)
{
    struct cache_aware *s = state;
    (void)v;
    (void)request;
    uint64_t tok = s->tree_tok[worker] + policy_uncached_tok(q, worker);
    s->tree_tok[worker] = tok < TREE_MAX_TOK ? tok : TREE_MAX_TOK;
}

static void worker_down(void *state, uint32_t worker)
{
    struct cache_aware *s = state;
    s->tree_tok[worker] = 0;
}

const struct policy_ops policy_cache_aware = {
    .name = "cache_aware",
    .summary = "longest prefix match while load is even, else fewest requests in flight",
    .source = "SMG (formerly SGLang router) cache_aware.rs, defaults of its command line",
    .prefix = POLICY_PREFIX_DISPATCH,
    .prefix_max_blocks = TREE_MAX_TOK / TREE_BLOCK_TOK,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct cache_aware),
    .init = init,
    .tune = tune,
    .deinit = deinit,
    .pick = pick,
    .dispatched = dispatched,
    .worker_down = worker_down,
};
