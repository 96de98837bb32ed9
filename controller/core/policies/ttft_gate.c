/* ttft_gate.c - the worker with the lowest estimated TTFT; refuses what even that one would not
 * answer in time.
 *
 *   raw      = (prefill_tok + uncached) / prefill_tok_per_s + first_step_ms
 *   estimate = raw * median of actual / raw over the worker's last `window` requests
 *   lowest estimate, ties at random; above the request's TTFT target: POLICY_MISS_SLO
 *   decode leg: fewest requests in flight, ties at random, never refused
 *
 * prefill_tok: uncached prompt tokens of the requests there without a first token.
 *
 * Source: Layr-Labs/d-inference, coordinator, PR #360, recalibrated in #512 (baselines 4.6b):
 * state penalty + waiting prefill + own prefill + first decode step, times a sliding-window
 * median of actual / estimated; 429 when the estimate exceeds the target.
 *
 * Simplified: the state penalty (0 there for a model that is loaded) is left out, for the core
 * only offers workers that are up. The median is kept per worker, not per model and chip family,
 * and is 1 until min_samples are in. Actual is the time from dispatch to first token (or to the
 * end of the prefill leg), so time held in the admission queue counts neither there nor against
 * the target. Rates are measured per machine there; here one rate is a knob (default: llm-d's
 * calibration, see sticky.c) and the median makes up for the rest. Prefixes are guessed from
 * dispatches, within the limit of llm-d's index: that project's own way is not in our notes.
 */
#include <stdlib.h>
#include <string.h>

#include "controller/core/policies/policies.h"
#include "predictor/units.h"

#define WINDOW_MAX 256

enum { PREFILL_RATE, FIRST_STEP, WINDOW, MIN_SAMPLES, N_PARAMS };

static const struct policy_param params[N_PARAMS] = {
    {"prefill_tok_per_s", 15928, 1, 1e9, "tokens a worker prefills per second"},
    {"first_step_ms", 10, 0, 1e6, "duration in ms of the first decode step"},
    {"window", 64, 1, WINDOW_MAX, "requests per worker that the median is taken of"},
    {"min_samples", 8, 1, WINDOW_MAX, "requests before the median is used (at most the window)"},
};

/* The last actual / raw of a worker. */
struct window {
    double median; /* 1 until there are enough */
    uint32_t n, next;
};

struct ttft_gate {
    double ps_per_tok, first_step_ps;
    uint32_t window, min_samples;
    struct window *by_worker;
    float *ring, *sorted; /* window values per worker: as they came, and sorted */
    /* the last pick: its estimate, made before the request was in the books */
    const struct core_request *picked;
    uint32_t picked_worker;
    double picked_raw_ps;
};

struct sent {
    int64_t at_ps;
    double raw_ps;
    uint32_t worker_1; /* worker + 1, 0: not waiting for a first token */
};

static void deinit(void *state)
{
    struct ttft_gate *s = state;
    free(s->by_worker);
    free(s->ring);
    free(s->sorted);
    memset(s, 0, sizeof *s);
}

static int init(void *state, const double *param, uint32_t n_workers)
{
    struct ttft_gate *s = state;
    s->ps_per_tok = (double)PS_PER_S / param[PREFILL_RATE];
    s->first_step_ps = param[FIRST_STEP] * (double)PS_PER_MS;
    s->window = (uint32_t)param[WINDOW];
    s->min_samples = (uint32_t)param[MIN_SAMPLES];
    if (s->min_samples > s->window)
        s->min_samples = s->window;
    s->by_worker = calloc(n_workers, sizeof *s->by_worker);
    s->ring = calloc((size_t)n_workers * s->window, sizeof *s->ring);
    s->sorted = calloc((size_t)n_workers * s->window, sizeof *s->sorted);
    if (!s->by_worker || !s->ring || !s->sorted) {
        deinit(s);
        return WEIR_E_NOMEM;
    }
    for (uint32_t w = 0; w < n_workers; w++)
        s->by_worker[w].median = 1;
    return 0;
}

/* First index whose value is not below x. */
static uint32_t lower_bound(const float *sorted, uint32_t n, float x)
{
    uint32_t i = 0;
    while (i < n && sorted[i] < x)
        i++;
    return i;
}

static void add_sample(struct ttft_gate *s, uint32_t w, float x)
{
    struct window *win = &s->by_worker[w];
    float *ring = s->ring + (size_t)w * s->window, *sorted = s->sorted + (size_t)w * s->window;

    if (win->n == s->window) { /* the oldest goes */
        uint32_t i = lower_bound(sorted, win->n, ring[win->next]);
        win->n--;
        memmove(sorted + i, sorted + i + 1, (win->n - i) * sizeof *sorted);
    }
    uint32_t i = lower_bound(sorted, win->n, x);
    memmove(sorted + i + 1, sorted + i, (win->n - i) * sizeof *sorted);
    sorted[i] = x;
    win->n++;
    ring[win->next] = x;
    win->next = (win->next + 1) % s->window;
    if (win->n >= s->min_samples)
        win->median = ((double)sorted[(win->n - 1) / 2] + (double)sorted[win->n / 2]) / 2;
}

static double raw_ps(const struct ttft_gate *s, const struct policy_view *v,
                     const struct policy_query *q, uint32_t w)
{
    double tok = policy_real(v->prefill_tok[w] + policy_uncached_tok(q, w));
    return tok * s->ps_per_tok + s->first_step_ps;
}

static uint32_t pick(void *state, const struct policy_view *v, const struct policy_query *q,
                     struct rng *rng)
{
    struct ttft_gate *s = state;
    struct policy_best best = policy_best_of(q);

    if (q->leg == POLICY_DECODE)
        return policy_fewest_inflight(v, q, rng);
    for (uint32_t i = 0; i < q->n_candidates; i++) {
        uint32_t w = q->candidates[i];
        policy_consider(&best, raw_ps(s, v, q, w) * s->by_worker[w].median, w);
    }
    if (q->req->slo_ttft_ps != PS_NEVER && best.cost > (double)q->req->slo_ttft_ps)
        return POLICY_MISS_SLO;
    s->picked = q->req;
    s->picked_worker = policy_choose(&best, rng);
    s->picked_raw_ps = raw_ps(s, v, q, s->picked_worker);
    return s->picked_worker;
}

static void dispatched(void *state, const struct policy_view *v, const struct policy_query *q,
                       uint32_t worker, void *request)
{
    struct ttft_gate *s = state;
    struct sent *sent = request;
    if (q->leg == POLICY_DECODE)
        return;
    bool as_picked = s->picked == q->req && s->picked_worker == worker;
    *sent = (struct sent){
        .at_ps = v->now_ps,
        .raw_ps = as_picked ? s->picked_raw_ps : raw_ps(s, v, q, worker),
        .worker_1 = worker + 1,
    };
    s->picked = NULL;
}

static void first_token(void *state, const struct policy_view *v, const struct core_request *req,
                        uint32_t worker, void *request)
{
    struct sent *sent = request;
    (void)req;
    if (sent->worker_1 != worker + 1)
        return;
    sent->worker_1 = 0;
    if (sent->raw_ps > 0)
        add_sample(state, worker, (float)((double)(v->now_ps - sent->at_ps) / sent->raw_ps));
}

static void left(void *state, const struct policy_view *v, const struct core_request *req,
                 uint32_t worker, void *request)
{
    struct sent *sent = request;
    (void)state;
    (void)v;
    (void)req;
    if (sent->worker_1 == worker + 1)
        sent->worker_1 = 0;
}

static void worker_down(void *state, uint32_t worker)
{
    struct ttft_gate *s = state;
    s->by_worker[worker] = (struct window){.median = 1};
}

const struct policy_ops policy_ttft_gate = {
    .name = "ttft_gate",
    .summary =
        "lowest estimated TTFT, corrected by past errors; refuses what would miss its target",
    .source = "Layr-Labs/d-inference coordinator, PR #360 and #512",
    .needs = POLICY_NEEDS(CORE_EV_FIRST_TOKEN),
    .prefix = POLICY_PREFIX_DISPATCH,
    .prefix_max_blocks = LLMD_PREFIX_BLOCKS,
    .prefix_min_block_tok = LLMD_PREFIX_BLOCK_TOK,
    .params = params,
    .n_params = N_PARAMS,
    .state_bytes = sizeof(struct ttft_gate),
    .request_bytes = sizeof(struct sent),
    .init = init,
    .deinit = deinit,
    .pick = pick,
    .dispatched = dispatched,
    .first_token = first_token,
    .left = left,
    .worker_down = worker_down,
};
