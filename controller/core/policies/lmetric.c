/* lmetric.c - two indicators multiplied: work to prefill, and size of the batch.
 *
 *   prefill or whole:  (prefill_tok + uncached) * (inflight + 1)
 *   decode leg:        (inflight_tok + prompt)  * (inflight + 1)
 *
 * smallest wins, ties at random. prefill_tok: uncached prompt tokens of the requests there
 * without a first token; uncached: this prompt's tokens not cached there, at least 1, for an
 * engine always computes the last one.
 *
 * Source: LMetric, "Simple is Better - Multiplication May Be All You Need for LLM Request
 * Scheduling", arXiv 2603.15202: new prefill tokens if routed there, times current batch size.
 * Weights cancel in the comparison, so there are no knobs.
 *
 * Chosen here: both factors count this request too, so that neither is ever 0 (the paper's
 * failure case is both near zero). The paper has no decode pools; on a decode leg there is
 * nothing to prefill, and the tokens of context, which each decoding step reads, take that place.
 */
#include "controller/core/policies/policies.h"

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct policy_best best = policy_best_of(q);
    uint32_t prompt_tok = q->req->prompt_tok;
    (void)state;

    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        uint64_t tok;
        if (q->leg == POLICY_DECODE) {
            tok = v->inflight_tok[w] + prompt_tok;
        } else {
            uint32_t uncached = policy_uncached_tok(q, w);
            tok = v->prefill_tok[w] + (uncached ? uncached : 1);
        }
        policy_consider(&best, policy_real(tok) * ((double)v->inflight[w] + 1), w);
    }
    return policy_choose(&best, rng);
}

const struct policy_ops policy_lmetric = {
    .name = "lmetric",
    .summary = "smallest product of tokens to prefill and requests in the batch",
    .source = "LMetric, arXiv 2603.15202",
    .needs = POLICY_NEEDS(CORE_EV_FIRST_TOKEN),
    .prefix = POLICY_PREFIX_EVENTS,
    .pick = pick,
};
