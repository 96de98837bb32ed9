/* dynamo_cost.c - blocks to prefill, less what is cached, plus blocks held while decoding.
 *
 *   prefill = (prefill_tok + prompt) / block_size
 *   credit  = overlap_score_credit * decay * cached / block_size
 *   decay   = 1 / (1 + d * (prefill_tok - min prefill_tok) / prompt)
 *   decode  = distinct prompt blocks of the requests in flight, with this one
 *   cost    = prefill_load_scale * max(0, prefill - credit) + decode
 *             + decode_active_request_weight * inflight
 *
 *   temperature 0: smallest cost, ties at random; T > 0: drawn with weights
 *   exp(-(cost - min) / ((max - min) * T))
 *
 *   leg      prefill - credit   decode
 *   whole    yes                yes, blocks shared with requests in flight count once
 *   prefill  yes                0 (track_active_blocks false)
 *   decode   0                  yes, all blocks of a request are its own (assume_kv_reuse false)
 *
 * Source: NVIDIA Dynamo, KV router, src/scheduling/selector/default.rs (baselines "Dynamo router
 * cost" 2.1), with its defaults; generated blocks are not counted (track-output-blocks false).
 *
 * The book of blocks in flight is a prefix_index of its own, with a reference for each request
 * and block. Whole blocks inside the prompt count (the source hashes no others): those that the
 * request's keys reach have names, those without a key are counted alone. One walk down the request
 * finds, for all workers of a block size, how many leading blocks are held already.
 *
 * Simplified: one tier, so no credit for host, disk or shared caches; no taints; each worker's
 * own block size; decay's request_blocks is prompt / block_size, not rounded up.
 */
#include <stdlib.h>
#include <string.h>

#include "controller/core/policies/policies.h"
#include "controller/core/prefix_index.h"
#include "predictor/mem.h"

enum { CREDIT, DECAY, PREFILL_SCALE, ACTIVE_WEIGHT, TEMPERATURE, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"overlap_score_credit", 1, 0, 100, "prefill blocks that a cached block takes off the cost"},
    {"overlap_score_credit_decay", 0, 0, 1000, "fall of that credit per request of prefill excess"},
    {"prefill_load_scale", 1, 0, 1000, "decode blocks that a prefill block weighs"},
    {"decode_active_request_weight", 0, 0, 1e6, "blocks that a request in flight weighs"},
    {"temperature", 0, 0, 1000, "0: lowest cost; above: softmax over costs scaled to 0..1"},
};

/* What the book has of a worker, beside its named blocks. */
struct load {
    uint64_t unnamed_blocks; /* in flight */
    uint32_t epoch;          /* times it went down: bookings of an earlier life are void */
};

/* What the book has of one request. */
struct booking {
    uint32_t worker_1;  /* worker + 1 of the whole or decode leg, 0: none */
    uint32_t prefill_1; /* worker + 1 of the prefill leg, which is not booked */
    uint32_t epoch;
    bool shared; /* booked by name */
};

struct dynamo {
    double credit, decay, prefill_scale, active_weight, temperature;
    struct prefix_index *book;
    struct load *load;           /* by worker */
    uint64_t *active_blocks;     /* by worker: distinct named ones, and those without a name */
    uint32_t *matched, *touched; /* of one pick: see prefix_index_match */
    double *cost;                /* by candidate; temperature > 0 */
    uint32_t *sizes, n_sizes, cap_sizes; /* block sizes in the book */
};

static void deinit(void *state)
{
    struct dynamo *s = state;
    prefix_index_free(s->book);
    free(s->load);
    free(s->active_blocks);
    free(s->matched);
    free(s->touched);
    free(s->cost);
    free(s->sizes);
    memset(s, 0, sizeof *s);
}

static void tune(void *state, const double *param)
{
    struct dynamo *s = state;
    s->credit = param[CREDIT];
    s->decay = param[DECAY];
    s->prefill_scale = param[PREFILL_SCALE];
    s->active_weight = param[ACTIVE_WEIGHT];
    s->temperature = param[TEMPERATURE];
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    struct dynamo *s = state;
    tune(state, param);
    s->book = prefix_index_new(n_workers, 0);
    s->load = calloc(n_workers, sizeof *s->load);
    s->active_blocks = calloc(n_workers, sizeof *s->active_blocks);
    s->matched = calloc(n_workers, sizeof *s->matched);
    s->touched = calloc(n_workers, sizeof *s->touched);
    s->cost = calloc(n_workers, sizeof *s->cost);
    if (s->book && s->load && s->active_blocks && s->matched && s->touched && s->cost)
        return 0;
    deinit(s);
    return WEIR_E_NOMEM;
}

/* ---- the book */

static uint32_t prompt_blocks(const struct core_request *r, uint32_t block_size)
{
    return r->prompt_tok / block_size;
}

static void remember_size(struct dynamo *s, uint32_t block_size)
{
    for (uint32_t i = 0; i < s->n_sizes; i++) {
        if (s->sizes[i] == block_size)
            return;
    }
    MEM_GROW(s->sizes, s->cap_sizes, s->n_sizes + 1);
    s->sizes[s->n_sizes++] = block_size;
}

static void count(struct dynamo *s, uint32_t w, uint64_t unnamed_blocks)
{
    s->load[w].unnamed_blocks = unnamed_blocks;
    s->active_blocks[w] = unnamed_blocks + prefix_index_blocks(s->book, w);
}

static void dispatched(void *state, const struct policy_view *v, const struct policy_query *q,
                       uint32_t worker, void *request)
{
    struct dynamo *s = state;
    struct booking *b = request;
    const struct core_request *r = q->req;
    uint32_t size = v->config[worker].block_size;

    if (q->leg == POLICY_PREFILL) {
        b->prefill_1 = worker + 1;
        return;
    }
    b->worker_1 = worker + 1;
    b->epoch = s->load[worker].epoch;
    b->shared = q->leg == POLICY_WHOLE;
    struct prefix_chain p = policy_chain(r, size);
    uint32_t named = b->shared ? prefix_chain_blocks(&p, r->prompt_tok) : 0;
    if (named)
        remember_size(s, size);
    prefix_index_add(s->book, &p, named, worker);
    count(s, worker, s->load[worker].unnamed_blocks + prompt_blocks(r, size) - named);
}

static void left(void *state, const struct policy_view *v, const struct core_request *req,
                 uint32_t worker, void *request)
{
    struct dynamo *s = state;
    struct booking *b = request;
    uint32_t size = v->config[worker].block_size;

    if (b->prefill_1 == worker + 1) {
        b->prefill_1 = 0;
        return;
    }
    if (b->worker_1 != worker + 1)
        return;
    b->worker_1 = 0;
    if (b->epoch != s->load[worker].epoch)
        return;
    struct prefix_chain p = policy_chain(req, size);
    uint32_t named = b->shared ? prefix_chain_blocks(&p, req->prompt_tok) : 0;
    prefix_index_drop(s->book, &p, named, worker);
    count(s, worker, s->load[worker].unnamed_blocks - (prompt_blocks(req, size) - named));
}

static void worker_down(void *state, uint32_t worker)
{
    struct dynamo *s = state;
    prefix_index_forget(s->book, worker);
    s->load[worker].epoch++;
    count(s, worker, 0);
}

/* matched[w] = leading blocks of r in flight on w; returns how many workers are in touched. */
static uint32_t match(struct dynamo *s, const struct core_request *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_sizes; i++) {
        struct prefix_chain p = policy_chain(r, s->sizes[i]);
        n += prefix_index_match(s->book, &p, prefix_chain_blocks(&p, r->prompt_tok), s->matched,
                                s->touched + n);
    }
    return n;
}

/* ---- the cost */

/* What all candidates of one pick share. */
struct ask {
    const struct policy_view *v;
    const struct policy_query *q;
    double min_prefill_tok; /* if there is a decay */
    /* of the last candidate; nearly always of all */
    uint32_t block_size, need_blocks;
    double per_tok; /* cost of a token to prefill */
};

static double min_prefill_tok(const struct policy_view *v, const struct policy_query *q)
{
    uint64_t min = UINT64_MAX;
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint64_t tok = v->prefill_tok[q->candidates[i]];
        min = tok < min ? tok : min;
    }
    return (double)min;
}

static void in_blocks_of(const struct dynamo *s, struct ask *a, uint32_t block_size)
{
    a->block_size = block_size;
    a->need_blocks = prompt_blocks(a->q->req, block_size);
    a->per_tok = s->prefill_scale / block_size;
}

static inline double cost(const struct dynamo *s, struct ask *a, uint32_t w)
{
    const struct core_request *r = a->q->req;
    double total = 0;

    if (!a->v->block_size && a->v->config[w].block_size != a->block_size)
        in_blocks_of(s, a, a->v->config[w].block_size);
    if (a->q->leg != POLICY_DECODE) {
        double prefill_tok = policy_real(a->v->prefill_tok[w]);
        double credit_tok = s->credit * (double)(r->prompt_tok - policy_uncached_tok(a->q, w));
        if (s->decay > 0)
            credit_tok /= 1 + s->decay * (prefill_tok - a->min_prefill_tok) / r->prompt_tok;
        double tok = prefill_tok + r->prompt_tok - credit_tok;
        total = (tok > 0 ? tok : 0) * a->per_tok;
    }
    if (a->q->leg != POLICY_PREFILL)
        total += policy_real(s->active_blocks[w] + a->need_blocks - s->matched[w]);
    return total + s->active_weight * a->v->inflight[w];
}

/* e^x for x <= 0, by range reduction to |r| <= ln 2 / 2 and the Taylor series to r^13: relative
 * error below 1e-15; 0 below -708. Same bits on every machine. */
static double exp_of_negative(double x)
{
    static const double c[] = {
        /* 1 / n!, n = 13 .. 0 */
        1.0 / 6227020800,
        1.0 / 479001600,
        1.0 / 39916800,
        1.0 / 3628800,
        1.0 / 362880,
        1.0 / 40320,
        1.0 / 5040,
        1.0 / 720,
        1.0 / 120,
        1.0 / 24,
        1.0 / 6,
        0.5,
        1,
        1,
    };
    const double inv_ln2 = 0x1.71547652b82fep+0;
    const double ln2_hi = 0x1.62e42fee00000p-1, ln2_lo = 0x1.a39ef35793c76p-33;

    if (x < -708)
        return 0;
    int n = (int)(x * inv_ln2 - 0.5);
    double r = (x - n * ln2_hi) - n * ln2_lo, e = c[0];
    for (size_t i = 1; i < sizeof c / sizeof *c; i++)
        e = e * r + c[i];
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return e * scale;
}

static uint32_t draw(struct dynamo *s, struct ask *a, struct rng *rng)
{
    const struct policy_query *q = a->q;
    double min = 0, max = 0, sum = 0;

    for (uint32_t i = 0; i < q->n_candidates; i++) {
        double c = s->cost[i] = cost(s, a, q->candidates[i]);
        min = i && min < c ? min : c;
        max = i && max > c ? max : c;
    }
    double scale = (max - min) * s->temperature;
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        s->cost[i] = scale > 0 ? exp_of_negative((min - s->cost[i]) / scale) : 1;
        sum += s->cost[i];
    }
    double at = rng_unit(rng) * sum;
    uint32_t last = q->n_candidates - 1;
    for (uint32_t i = 0; i < last; i++) {
        if (at < s->cost[i])
            return q->candidates[i];
        at -= s->cost[i];
    }
    return q->candidates[last];
}

static uint32_t cheapest(const struct dynamo *s, struct ask *a, struct rng *rng)
{
    const struct policy_query *q = a->q;
    struct policy_best best = policy_best_of(q);
    for (uint32_t i = 0; i < q->n_candidates; i++)
        policy_consider(&best, cost(s, a, q->candidates[i]), q->candidates[i]);
    return policy_choose(&best, rng);
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct dynamo *s = state;
    struct ask a = {.v = v, .q = q};

    if (q->n_candidates == 1)
        return q->candidates[0];
    if (v->block_size)
        in_blocks_of(s, &a, v->block_size);
    if (s->decay > 0 && q->leg != POLICY_DECODE)
        a.min_prefill_tok = min_prefill_tok(v, q);
    uint32_t n_touched = q->leg == POLICY_WHOLE ? match(s, q->req) : 0;
    uint32_t w = s->temperature > 0 ? draw(s, &a, rng) : cheapest(s, &a, rng);
    for (uint32_t i = 0; i < n_touched; i++)
        s->matched[s->touched[i]] = 0;
    return w;
}

const struct policy_ops policy_dynamo_cost = {
    .name = "dynamo_cost",
    .summary = "fewest prefill blocks less cached ones, plus blocks of the requests in flight",
    .source = "NVIDIA Dynamo KV router, scheduling/selector/default.rs, default knobs",
    .needs = POLICY_NEEDS(CORE_EV_FIRST_TOKEN),
    .prefix = POLICY_PREFIX_EVENTS,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct dynamo),
    .request_bytes = sizeof(struct booking),
    .init = init,
    .tune = tune,
    .deinit = deinit,
    .pick = pick,
    .dispatched = dispatched,
    .left = left,
    .worker_down = worker_down,
};
