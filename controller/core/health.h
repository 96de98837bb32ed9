/* health.h - which workers to leave out, judged by what became of requests there: circuit breaker, outlier
 * ejection, panic threshold, slow start.
 *
 * Internal to the core. Telemetry and polls say whether a worker is up; this says whether it is any good.
 *
 *   OK ──failures in a row, or an outlier──► EJECTED ──time is up──► PROBING ──answer──► OK, slow start
 *                                               ▲                       │
 *                                               └───────failure─────────┘ (longer)
 *
 * Breaker: breaker_failures failures in a row eject a worker (Envoy, outlier detection, consecutive_5xx; 5
 * there). What fails is told by CORE_EV_FAILED, and by a CORE_EV_DONE whose answer was the worker's own
 * error; a refusal of the client's mistake is an answer (SGLang issue 25811: a breaker that counted 4xx took
 * out a whole fleet).
 *
 * Outliers: every outlier_interval_ps, workers of a role with HEALTH_MIN_ENDED requests in it are compared,
 * if there are HEALTH_MIN_PEERS of them. Ejected is who failed in outlier_failure_percent points more of its
 * requests than the median did, or whose time to the first token, for each token to be computed, is above
 * outlier_latency_percent of the median's. Envoy compares success rates with mean and standard deviation; the
 * median bears with a third of the workers being sick, and does not need many. At most eject_max_percent of a
 * role's workers may be out when an outlier is ejected, but always one (Envoy, max_ejection_percent).
 *
 * For how long: eject_ps, doubled each time that it happens again, up to eject_max_ps, and up to a quarter more
 * by chance, so that workers do not come back all at once (Envoy: base_ejection_time 30 s times the number of
 * ejections, max_ejection_time 300 s, max_ejection_time_jitter; doubling is Finagle's FailureAccrual). A
 * worker that was good for eject_max_ps begins anew. Then one request at a time tries it (half-open).
 *
 * Panic: if fewer than panic_percent of a role's workers that are up are OK, the signal is distrusted: all
 * that are up are used (Envoy, healthy_panic_threshold, 50 %; failures.md of other routers: a metrics
 * outage looks as if everyone hung). So the last worker is never shut out.
 *
 * Slow start: one that has come up, or back, may have in flight only a share of what the other candidates have
 * on average, from HEALTH_FIRST_SHARE per mille, growing in a line to all over slow_start_ps (HAProxy's slowstart; Envoy's
 * slow_start_config with aggression 1 and min_weight_percent 10), and one in any case. Where nobody else can take
 * a request, it does. With all of them in slow start there is nothing to compare with, and no limit.
 *
 * Time is as of the last health_tick. Chance comes from a generator of its own: the policy's numbers stay the same.
 */
#ifndef WEIR_HEALTH_H
#define WEIR_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/core/core.h"
#include "predictor/rng.h"

#define HEALTH_ROLES (ROLE_DECODE + 1)
/* A rate of failures or a mean needs some requests; Envoy asks for 100 of a web service and for 5 hosts. A
 * worker that generates ends a few requests a second. */
#define HEALTH_MIN_ENDED 20u
#define HEALTH_MIN_PEERS 3u
#define HEALTH_FIRST_SHARE 100u /* per mille */
#define HEALTH_MAX_TIMES 16u    /* doublings counted, at most */
/* Added to the tokens to be computed when times to the first token are compared: what a step costs that computes
 * nothing, in tokens (about 20 ms at 25,000 tokens/s). */
#define HEALTH_STEP_TOK 512u

struct health_worker {
    enum core_health state;
    enum core_health_cause cause; /* of the last ejection */
    enum worker_role role;
    bool ready;                    /* up and not draining */
    bool ramping;                  /* in slow start */
    uint32_t failures;             /* in a row */
    uint32_t times;                /* ejected, again and again */
    uint32_t least;                /* PROBING: the fewest requests in flight since that began */
    int64_t until_ps;              /* EJECTED */
    int64_t good_ps;               /* OK: since then */
    int64_t ramp_ps;               /* ramping: since then */
    uint32_t ended, failed, timed; /* in this interval */
    uint64_t latency_ps;           /* sum over timed: to the first token, for each token */
};

struct health {
    bool judges, ramps; /* what is on */
    struct core_health_config config;
    struct health_worker *workers;
    uint32_t n;
    uint64_t *sort;                                       /* room for a median */
    uint32_t n_ready[HEALTH_ROLES], n_sick[HEALTH_ROLES]; /* sick: ready, and not OK */
    uint32_t n_ramping, n_probing;
    bool panic[HEALTH_ROLES];
    uint32_t changed; /* bit set of roles: who of them is admitted has changed */
    int64_t now_ps, next_ps, judge_ps;
    uint64_t ejections;
    struct rng rng;
};

/* All workers as core_config says. 0, WEIR_E_NOMEM, or WEIR_E_INVALID with *why. On failure there is nothing to
 * deinit. */
WEIR_NODISCARD int health_init(struct health *h, const struct core_config *c, const char **why);
void health_deinit(struct health *h);
/* What is wrong with it; NULL: nothing. */
const char *health_fault(const struct core_health_config *c);
/* Judges by this from now on; who is ejected stays so until its time is up, unless nobody judges any more. */
void health_judge_by(struct health *h, const struct core_health_config *c);

/* Time passes: ejections end, outliers are found. */
void health_tick(struct health *h, int64_t now_ps, const uint32_t *inflight);
/* When it wants a tick; PS_NEVER: not at all. */
static inline int64_t health_next_ps(const struct health *h)
{
    return h->next_ps;
}

/* w comes up, or is no longer to get requests: down, or draining. */
void health_up(struct health *h, uint32_t w);
/* Another worker has w's place, which is not ready: nothing is known of it. */
void health_new(struct health *h, uint32_t w, enum worker_role role);
void health_gone(struct health *h, uint32_t w);

/* A request ended there: well, with its first token latency_ps after it was sent (0: not known) and
 * uncached_tok to be computed, or not. */
void health_good(struct health *h, uint32_t w, int64_t latency_ps, uint32_t uncached_tok);
void health_bad(struct health *h, uint32_t w);
/* One is no longer in flight there: so many are now. */
static inline void health_left(struct health *h, uint32_t w, uint32_t inflight)
{
    if (h->n_probing && inflight < h->workers[w].least)
        h->workers[w].least = inflight;
}

/* Whether w, with so many in flight, may get one more. */
static inline bool health_admits(const struct health *h, uint32_t w, uint32_t inflight)
{
    const struct health_worker *k = &h->workers[w];
    return k->state == CORE_HEALTH_OK || h->panic[k->role] ||
           (k->state == CORE_HEALTH_PROBING && inflight <= k->least);
}

/* Whether w gets requests like any other. */
static inline bool health_trusts(const struct health *h, uint32_t w)
{
    return h->workers[w].state == CORE_HEALTH_OK || h->panic[h->workers[w].role];
}

/* What w may have of its share, per mille: 1000 but in slow start. */
uint32_t health_share(const struct health *h, uint32_t w);

/* Leaves those out of a list of candidates that have their share, as long as others remain: list to out (they may be
 * the same). Returns how many. */
uint32_t health_thin(struct health *h, const uint32_t *list, uint32_t n, const uint32_t *inflight,
                     uint32_t *out);

#endif
