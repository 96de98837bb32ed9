/* prefix_hash.c - requests that begin alike go to the same worker, unless it has more than its
 * share.
 *
 *   h      = hash of the first prefix_tok tokens
 *   order  = candidates by mix(h, worker), largest first (rendezvous hashing)
 *   limit  = load_factor * (total in flight + 1) / candidates
 *   the first in that order with inflight <= limit
 *
 * Source: SMG, model_gateway/src/policies/prefix_hash.rs (baselines 4.2): consistent hashing with
 * bounded loads. Some candidate is always at or below the mean, so with a factor of at least 1
 * there always is one within the limit.
 *
 * Different here: rendezvous hashing in place of a ring of virtual nodes, which spreads more
 * evenly, needs no memory, copes with any set of candidates, and costs the same pass that the
 * mean costs. An overloaded worker's requests go to the next in order, as SMG's documentation of
 * the load factor has it (its code takes the least loaded one). The prefix is rounded up to whole
 * keys of the request, and ends with the prompt. Without keys the session decides, without a
 * session chance (SMG refuses requests without tokens).
 */
#include "controller/core/policies/policies.h"

enum { PREFIX_TOK, LOAD_FACTOR, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"prefix_tok", 256, 1, 1e9, "tokens from the prompt's start that are hashed"},
    {"load_factor", 1.25, 1, 1e6, "multiple of the mean in-flight requests a worker may have"},
};

struct prefix_hash {
    uint32_t prefix_tok;
    double load_factor;
};

static void tune(void *state, const double *param)
{
    struct prefix_hash *s = state;
    s->prefix_tok = (uint32_t)param[PREFIX_TOK];
    s->load_factor = param[LOAD_FACTOR];
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    (void)n_workers;
    tune(state, param);
    return 0;
}

static uint64_t prefix_key(const struct prefix_hash *s, const struct core_request *r,
                           struct rng *rng)
{
    if (r->n_keys && r->key_tok) {
        uint32_t tok = r->prompt_tok < s->prefix_tok ? r->prompt_tok : s->prefix_tok;
        uint32_t i = tok ? (tok - 1) / r->key_tok : 0;
        return rng_mix64(r->keys[i < r->n_keys ? i : r->n_keys - 1]);
    }
    return r->session ? rng_mix64(r->session) : rng_u64(rng);
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    const struct prefix_hash *s = state;
    uint64_t total = 1, most = 0, key = prefix_key(s, q->req, rng);
    uint32_t best = q->candidates[0];

    for (uint32_t i = 0; i < q->n_candidates; i++)
        total += v->inflight[q->candidates[i]];
    double limit = (double)total / (double)q->n_candidates * s->load_factor;
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        uint64_t rank = rng_mix64(key + w);
        if (rank >= most && v->inflight[w] <= limit) {
            most = rank;
            best = w;
        }
    }
    return best;
}

const struct policy_ops policy_prefix_hash = {
    .name = "prefix_hash",
    .summary = "consistent hashing of the prompt's first tokens, with bounded load",
    .source = "SMG prefix_hash.rs; rendezvous hashing in place of its ring",
    .prefix = POLICY_PREFIX_NONE,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct prefix_hash),
    .init = init,
    .tune = tune,
    .pick = pick,
};
