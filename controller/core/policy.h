/* policy.h - what a routing policy is: one file in policies/ that ends in a `const struct policy_ops`, and one
 * line in policies.c.
 *
 * The core keeps the books (what is in flight where, telemetry, who has which prefix) and asks the policy one
 * question: which of these candidates? A policy is a pure function of what it is shown, its own state and the
 * random numbers it is given: no clock, no I/O, no globals.
 */
#ifndef WEIR_POLICY_H
#define WEIR_POLICY_H

#include <float.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "controller/core/core.h"
#include "controller/core/prefix_index.h"
#include "predictor/rng.h"

/* Where knowledge of workers' prefix caches comes from. */
enum policy_prefix {
    POLICY_PREFIX_NONE,
    POLICY_PREFIX_EVENTS, /* the engines' cache events, at their age */
    POLICY_PREFIX_DISPATCH, /* guessed: a worker has the prefixes of what was sent to it (bounded LRU) */
};

struct policy_param {
    const char *name; /* as in the stack file: policy_params: {POLICY: {NAME: value}} */
    double def, min, max;
    const char *help; /* with its unit; one line */
};

/* The shadow's books. Arrays are indexed by worker number; valid during one call. */
struct policy_view {
    int64_t now_ps;
    uint32_t n_workers;
    uint32_t block_size; /* of all workers; 0: they differ, see config */
    const struct core_worker_config *config;
    /* of own requests, and of other controllers' as far as they are known (CORE_EV_FOREIGN) */
    const uint32_t *inflight;    /* requests there, not over */
    const uint32_t *prefilling;  /* of these, without a first token yet (or prefill leg not done) */
    const uint64_t *prefill_tok; /* their prompt tokens believed not cached when they were sent */
    const uint64_t *inflight_tok;           /* prompt tokens of all requests in flight there */
    const struct core_telemetry *telemetry; /* last reported; at_ps < 0: never */
};

enum policy_leg { POLICY_WHOLE, POLICY_PREFILL, POLICY_DECODE };

struct policy_query {
    const struct core_request *req;
    enum policy_leg leg;
    uint32_t source; /* POLICY_DECODE: the worker that holds the KV; else CORE_NO_WORKER */
    const uint32_t *candidates; /* worker numbers, ascending: up, of the right role, large enough */
    uint32_t n_candidates;      /* >= 1 */
    /* by worker number: prompt tokens believed cached there; all 0 without knowledge */
    const uint32_t *cached_tok;
    uint32_t *scratch; /* room for n_candidates numbers, for the policy's own use during the call */
};

/* Instead of a worker. */
#define POLICY_SHED (UINT32_MAX - 1)     /* refuse: saturated (429) */
#define POLICY_MISS_SLO (UINT32_MAX - 2) /* refuse: its deadline cannot be met (429) */

struct policy_ops {
    const char *name;    /* lower case with underscores */
    const char *summary; /* one line */
    const char *source;  /* the project, file and version, or the paper, that it follows */
    uint32_t
        needs; /* events beyond the always needed ones: 1u << CORE_EV_FIRST_TOKEN | 1u << CORE_EV_TELEMETRY */
    enum policy_prefix prefix;
    /* POLICY_PREFIX_DISPATCH: blocks kept per worker, least recently used go (0: no limit), and the least
     * size of a block in tokens (a worker's own blocks where they are larger) */
    uint32_t prefix_max_blocks, prefix_min_block_tok;
    const struct policy_param *params;
    uint32_t n_params;

    size_t state_bytes;   /* zeroed, one per core */
    size_t request_bytes; /* zeroed, one per live request */

    /* All but pick may be NULL. param: one value per params row. 0 or WEIR_E_NOMEM. */
    int (*init)(void *state, const double *param, uint32_t n_workers);
    /* Other values, while requests are in flight. NULL where there are parameters: they are fixed from init on. */
    void (*tune)(void *state, const double *param);
    void (*deinit)(void *state);
    /* A candidate, POLICY_SHED or POLICY_MISS_SLO. */
    uint32_t (*pick)(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng);
    /* The request has been sent to worker (once for each leg and each retry). */
    void (*dispatched)(void *state, const struct policy_view *v, const struct policy_query *q,
                       uint32_t worker, void *request);
    /* Its first token came, or its prefill leg is done. */
    void (*first_token)(void *state, const struct policy_view *v, const struct core_request *req,
                        uint32_t worker, void *request);
    /* It has left worker: done, lost, cancelled, or handed over to another worker. */
    void (*left)(void *state, const struct policy_view *v, const struct core_request *req,
                 uint32_t worker, void *request);
    /* worker died: whatever was known of it is void. */
    void (*worker_down)(void *state, uint32_t worker);
};

extern const struct policy_ops *const core_policies[];
extern const uint32_t core_policies_count;

/* NULL: no such policy. */
const struct policy_ops *core_policy_find(const char *name);

/* ---- what several policies use */

/* A count of tokens or blocks, which is far below 2^63: the signed conversion is one instruction. */
static inline double policy_real(uint64_t n)
{
    return (double)(int64_t)n;
}

/* The candidates with the smallest cost so far. */
struct policy_best {
    double cost;
    uint32_t n, *workers;
};

static inline struct policy_best policy_best_of(const struct policy_query *q)
{
    return (struct policy_best){.cost = DBL_MAX, .workers = q->scratch};
}

static inline void policy_consider(struct policy_best *b, double cost, uint32_t worker)
{
    if (cost > b->cost)
        return;
    if (cost < b->cost) {
        b->cost = cost;
        b->n = 0;
    }
    b->workers[b->n++] = worker;
}

/* One of them, uniformly (nothing is drawn for a single one). */
static inline uint32_t policy_choose(const struct policy_best *b, struct rng *rng)
{
    return b->workers[b->n > 1 ? rng_below(rng, b->n) : 0];
}

/* The request's prompt in blocks of this size, for prefix_index.h. */
static inline struct prefix_chain policy_chain(const struct core_request *r, uint32_t block_tok)
{
    return (struct prefix_chain){
        .keys = r->keys, .n_keys = r->n_keys, .key_tok = r->key_tok, .block_tok = block_tok};
}

/* Tokens of this prompt that worker would have to compute. */
static inline uint32_t policy_uncached_tok(const struct policy_query *q, uint32_t worker)
{
    uint32_t c = q->cached_tok[worker];
    return c < q->req->prompt_tok ? q->req->prompt_tok - c : 0;
}

#endif
