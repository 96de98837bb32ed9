/* core.h - the decision core: admission queue, routing, P/D hand-off, retry, drain. One state machine
 * without I/O: events and a time in, commands out. `weir replay` drives it under virtual time, `weir serve`
 * from sockets; both link the same object code.
 *
 * The core never learns a request's output length before the request is done, and knows of a worker
 * only what events told it: own dispatches and first tokens at once, telemetry and cache events when
 * the adapter delivers them. One thread at a time; no globals; no allocation after core_new except
 * growth of tables up to their limits (mem.h: without memory for that, the process aborts).
 *
 * Where a request goes
 *   Whole to a worker of role both; where there are prefill workers, in two legs: prefill there, then decode
 *   on a decode worker that pulls the KV. Workers of role both help out where the others cannot take
 *   it now: with the whole request (local prefill) if no prefill worker is open or no decode worker is
 *   up, with the decode leg if no decode worker is open. Open: up, not draining, large enough for prompt
 *   and max_tokens (1 if unknown), below max_inflight_per_worker. Among those, the policy chooses.
 *   destination_first: the decode worker is chosen with the prefill worker, and has the request in its books
 *   from then on; if it dies before the prefill is done, another one is chosen then.
 *
 * Who waits
 *   Nobody for whom a worker is open. Otherwise a request waits (CORE_CMD_HOLD), smaller priority first,
 *   within one priority by turns of its tenants (fairness.h; off, or a single tenant: in order of arrival); a
 *   lost request keeps its place. One that cannot go lets others behind it pass (it may need a larger
 *   worker), however many wait.
 *   Also while no worker is up, as long as one may come up: all but draining ones may. Once none may, or when
 *   the queue is full or the wait too long while none is up: CORE_REASON_NO_WORKER.
 *   queue_max_requests and queue_max_bytes bound new arrivals. Requests that were let in already (lost ones, and those
 *   whose prefill is done and that wait for a decode worker) wait without counting against them: at most
 *   max_requests of them. queue_timeout_ps is for each wait. drop_late: who waits for admission (the first
 *   time or again) when slo_ttft_ps after its arrival have passed is refused, CORE_REASON_SLO.
 *
 * What is tried again
 *   A request that failed on a worker goes to another one, or to the same if no other of the role is up and
 *   large enough, max_retries times, from the beginning. Not if it was partly answered (the
 *   event says so, or PROGRESS did), unless retry_partial. With a retry budget, one that is beyond it waits until the
 *   budget allows it (CORE_CMD_HOLD), as long as the queue's timeout says.
 *
 * Who is left out
 *   Workers that fail or drag, for a while (health.h); they are not open then.
 */
#ifndef WEIR_CORE_H
#define WEIR_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/core/forecast.h"
#include "predictor/engine_config.h"
#include "predictor/error.h"
#include "predictor/units.h"

#define CORE_NO_WORKER UINT32_MAX
#define CORE_MAX_WORKERS 16384u
#define CORE_MAX_REQUESTS (1u << 24) /* core_config.max_requests, at most */
#define CORE_MAX_POLICY_PARAMS 16    /* rows in a policy's table */
#define CORE_MAX_TENANTS 4096u       /* rows in core_config.tenants */
#define CORE_MAX_TENANT_WEIGHT 1000u
#define CORE_MAX_FOREIGN_TOK (UINT64_C(1) << 48) /* core_load of CORE_EV_FOREIGN, at most */
#define CORE_MAX_UNREAD                                                                            \
    64 /* commands that may be unread: this many, and two for each of max_requests */

/* What may be known of a request when it arrives. Copied by the core, except keys, which the caller
 * keeps until the request is over: its DONE or CANCELLED event, or its REJECT command. */
struct core_request {
    uint32_t prompt_tok;
    uint32_t max_tokens; /* 0: unknown */
    int32_t priority; /* smaller is more urgent; < 0 never shed by admitters that spare priority */
    uint64_t session, tenant; /* 0: none */
    const uint64_t *keys;     /* chained prefix keys, request.h */
    uint32_t n_keys, key_tok;
    uint64_t bytes;                   /* of its body, for queue_max_bytes */
    int64_t slo_ttft_ps, slo_tpot_ps; /* PS_NEVER: none */
    bool
        streamed; /* its tokens are told as they come, so that forecasts can learn from their times */
};

/* Load as an engine reports it. at_ps is when it was measured. */
struct core_telemetry {
    int64_t at_ps;
    uint32_t running, waiting;
    uint32_t kv_used_blocks, kv_total_blocks;
};

/* What is in flight at a worker. */
struct core_load {
    uint32_t requests,
        prefilling;       /* of these, without a first token yet (or prefill leg not done) */
    uint64_t prefill_tok; /* their prompt tokens believed not cached when they were sent */
    uint64_t prompt_tok;  /* of all requests there */
};

/* A change of a worker's prefix cache. Blocks are named by (key, depth) as in request.h: `depth` is the
 * index of the first block, blocks follow one another, keys[i] names block depth + i. */
struct core_cache_event {
    bool cleared; /* all blocks are gone; the rest is not read */
    bool stored;  /* false: removed */
    uint32_t depth, n_blocks;
    const uint64_t *keys;
};

/* In parentheses: the fields that are read. A request is named by its handle; worker must be the one that the
 * request is on. */
enum core_event_kind {
    CORE_EV_ARRIVAL,      /* (request, req) a handle that is not in use */
    CORE_EV_PREFILL_DONE, /* (request, worker) its prefill leg ended; the KV waits on worker */
    CORE_EV_FIRST_TOKEN,  /* (request, worker) */
    CORE_EV_PROGRESS, /* (request, worker, n) n tokens of the answer have been passed on in this try: never
                             fewer than before. Implies the first token */
    CORE_EV_DONE, /* (request, worker, n) n output tokens */
    CORE_EV_FAILED, /* (request, worker, partial) lost there: the worker died, the connection was cut, a lease
                             ran out; of a P/D request, on either side. partial: the client already got bytes */
    CORE_EV_CANCELLED, /* (request) the client went away */
    CORE_EV_WORKER_UP, /* (worker) may take requests (again); role and config as given at core_new */
    CORE_EV_WORKER_DOWN, /* (worker) its requests come back as CORE_EV_FAILED, one by one, before or after */
    CORE_EV_WORKER_DRAIN, /* (worker) no new requests until it comes up again; running ones end */
    CORE_EV_WORKER_ADDED, /* (worker, added) into a place that nobody has: a spare one, or one that is GONE. From then
                             on it is like any other; up as added->up says */
    CORE_EV_WORKER_GONE, /* (worker) for good: it is down or draining, and nothing is in flight there (core_get_worker);
                            its place is free. It loses what else was known of it */
    CORE_EV_TELEMETRY, /* (worker, telemetry) older than the last one, or of a worker that is down: ignored */
    CORE_EV_CACHE, /* (worker, cache) of a worker that is down: ignored */
    CORE_EV_FOREIGN, /* (worker, load) all that other controllers have in flight there, from now on. Policies and
                             forecasts see it with the own requests; max_inflight_per_worker, health and
                             core_worker_state count only those: whatever others say, or no longer say, holds
                             nobody up */
    CORE_EV_TIMER, /* () now_ps reached core_next_timer_ps() */
};

struct core_event {
    enum core_event_kind kind;
    int64_t now_ps;   /* never runs back */
    uint32_t request; /* caller's handle: below max_requests, reused once the request is over */
    uint32_t worker;
    uint32_t n;
    bool partial;
    bool error;             /* DONE: the answer was an error of the worker's own making (500) */
    int64_t first_token_ps; /* DONE: when the first token came; 0: not known, or told already */
    union {
        const struct core_request *req;
        const struct core_telemetry *telemetry;
        const struct core_cache_event *cache;
        const struct core_worker_config *added; /* copied */
        const struct core_load *load;
    };
};

enum core_reason {
    CORE_REASON_NONE,
    CORE_REASON_QUEUE_FULL, /* 429 */
    CORE_REASON_SATURATED,  /* 429: the policy shed it */
    CORE_REASON_SLO,        /* 429: its deadline cannot be met, or has passed */
    CORE_REASON_NO_WORKER,  /* 503: no worker is up that could serve it */
    CORE_REASON_TOO_LARGE,  /* 400: larger than any worker */
    CORE_REASON_RETRIES,    /* 502: lost, and tried often enough, or the retry budget is used up */
    CORE_REASON_PARTIAL,    /* 502: lost after it was partly answered */
    CORE_REASON_TIMEOUT,    /* 504: held longer than the queue's limit */
    CORE_REASON_COUNT
};

enum core_command_kind {
    CORE_CMD_DISPATCH,         /* the whole request to worker */
    CORE_CMD_DISPATCH_PREFILL, /* the prefill leg to worker; destination-first: peer is the decode worker */
    CORE_CMD_DISPATCH_DECODE, /* the decode leg to worker, KV pulled from peer */
    CORE_CMD_HOLD,            /* informs: it waits */
    CORE_CMD_REJECT,          /* over: reason, retry_after_ps */
    CORE_CMD_CANCEL, /* stop whatever it does on worker: after CANCELLED on all its workers, after FAILED
                                  on the other one, before a REJECT where its KV waits */
};

struct core_command {
    enum core_command_kind kind;
    uint32_t request, worker, peer; /* CORE_NO_WORKER where there is none */
    enum core_reason reason;
    int64_t retry_after_ps; /* a duration; PS_NEVER unknown */
    uint32_t attempt;       /* 0: first try */
    double
        overlap_tok; /* prompt tokens believed to be cached on worker; -1: the policy does not ask */
    uint32_t told;   /* for core_told */
};

/* A worker that the policy could have chosen, as the core saw it then. */
struct core_candidate {
    uint32_t worker, inflight, cached_tok;
    uint64_t prefill_tok;     /* sent there and not prefilled yet */
    int64_t ttft_ps, tpot_ps; /* predicted, from now on (forecast.h) */
};

#define CORE_MAX_TOLD 8 /* candidates of one decision */

/* What a decision was made of. Of many candidates those with the least prefill work ahead, the request's own with it. */
struct core_told {
    uint32_t n_candidates; /* that there were */
    uint32_t n;
    struct core_candidate candidates[CORE_MAX_TOLD]; /* [0]: the chosen one, if one was */
};

/* What the core has to know of a worker. num_gpu_blocks: those that requests can use; 0: no limit, as with
 * max_model_len. */
struct core_worker_config {
    enum worker_role role;
    uint32_t block_size, num_gpu_blocks, max_num_seqs, max_num_batched_tokens, max_model_len;
    bool up; /* at start */
    const struct step_model
        *steps; /* what is believed of its speed; copied. NULL: forecast_generic */
};

/* Of a tenant that is to get more, or less, than others, whose weight is 1. */
struct core_tenant {
    uint64_t id;     /* core_request.tenant */
    uint32_t weight; /* 1 to CORE_MAX_TENANT_WEIGHT */
};

/* Who is left out because requests fail or drag there: health.h, which says what each does and where it is from. All
 * off: 0. */
struct core_health_config {
    uint32_t breaker_failures;        /* failures in a row that eject a worker; 0: none do */
    uint32_t outlier_failure_percent; /* points above the median of the role that do; 0: none do */
    uint32_t outlier_latency_percent; /* of the median of the role, above 100; 0: none does */
    int64_t outlier_interval_ps;      /* they are compared this often */
    int64_t eject_ps, eject_max_ps;   /* the first time, and at most */
    uint32_t eject_max_percent;       /* of a role's workers: no outlier is ejected beyond */
    uint32_t panic_percent;           /* fewer good ones of a role than that: all are used */
    int64_t slow_start_ps;            /* 0: none */
};

/* Tries again of requests that were lost: retry_budget.h. */
struct core_retry_config {
    bool budget;                   /* false: no limit but max_retries */
    uint32_t percent, floor_per_s; /* of arrivals; in any case, at least 1 */
};

struct policy_ops; /* controller/core/policy.h */

struct core_config {
    const char *policy;                  /* a name from core_policies[] */
    const struct policy_ops *own_policy; /* an embedder's own, instead; NULL: none. Borrowed */
    uint64_t seed;
    uint32_t n_workers;
    const struct core_worker_config *workers; /* copied */
    uint32_t spare_workers;      /* places for CORE_EV_WORKER_ADDED: numbers n_workers and on */
    uint32_t queue_max_requests; /* admission queue; at the limit: CORE_REASON_QUEUE_FULL */
    uint64_t queue_max_bytes;    /* of their bodies; 0: no limit. As above */
    int64_t queue_timeout_ps;
    bool drop_late; /* requests that wait for admission beyond slo_ttft_ps: CORE_REASON_SLO */
    /* fairness.h: tokens that a tenant of weight 1 may use in a round; 0: order of arrival. Smaller is fairer
     * from moment to moment; below the usual request's cost there is nothing to gain. At most 2^31 */
    uint64_t fair_quantum_tok;
    const struct core_tenant *tenants; /* with a weight other than 1; copied */
    uint32_t n_tenants;
    uint32_t max_inflight_per_worker; /* hold back above this many; 0: dispatch at once */
    /* for policies that reckon with the engines' cache events: what was sent to a worker counts as cached there until events
     * say otherwise, FLEET_GUESS_BLOCKS at most. For engines that tell nothing, and prompts that their events cannot name */
    bool guess_cache;
    uint32_t max_retries;
    bool retry_partial; /* retry even when partly answered */
    struct core_retry_config retry;
    struct core_health_config health;
    bool destination_first; /* SGLang-style: decode worker chosen before prefill starts */
    uint32_t max_requests;  /* live requests; at the limit: CORE_REASON_QUEUE_FULL */
    uint32_t
        tell; /* candidates of each decision for core_told, up to CORE_MAX_TOLD; 0: nothing is told or predicted */
    const double *
        policy_param; /* values for the policy's knobs, in the order of its table; NULL: defaults */
};

struct core;

/* NULL and *why (static text) on a bad config or out of memory. */
struct core *core_new(const struct core_config *c, const char **why);
void core_free(struct core *c);

/* Takes one event. The commands that follow from it are read with core_next until it returns false; an event that
 * such a command leads to may be told before the rest is read: commands stay in order.
 * 0; WEIR_E_INVALID: nonsense (a handle not in use or in use already, the wrong worker, not in this state, time
 * runs back, a request without a prompt) or WEIR_E_LIMIT: more than 2 * max_requests + CORE_MAX_UNREAD commands
 * are unread. Either way nothing has changed, but that ejections
 * of workers may have ended by then. */
WEIR_NODISCARD int core_event(struct core *c, const struct core_event *ev);
bool core_next(struct core *c, struct core_command *out);

/* What the dispatch (or refusal by the policy) cmd was decided on; NULL: config.tell is 0, or nobody was asked. Valid
 * until the next event. */
const struct core_told *core_told(const struct core *c, const struct core_command *cmd);

/* What is believed of worker w: the books, and how far its forecasts were off. Zeros where there are none. */
struct core_belief {
    struct forecast_books books;
    struct forecast_bias bias;
    int64_t ttft_ps; /* predicted for a prompt of CORE_BELIEF_TOK uncached tokens, now */
};
#define CORE_BELIEF_TOK 1000u
struct core_belief core_belief_of(const struct core *c, uint32_t w);

/* Takes over from c what can change while requests are in flight: queue_max_requests, queue_max_bytes,
 * queue_timeout_ps (for waits that begin), drop_late, max_inflight_per_worker, max_retries, retry_partial, tenants, retry,
 * health, and policy_param (of the policy that there is; ignored if that has no `tune`).
 * Commands may follow, as from core_event. 0, WEIR_E_INVALID with *why, or WEIR_E_NOMEM: nothing has changed. */
WEIR_NODISCARD int core_reconfigure(struct core *c, const struct core_config *to, const char **why);

/* When the core wants a CORE_EV_TIMER; PS_NEVER: not at all. */
int64_t core_next_timer_ps(const struct core *c);

/* Which event kinds the policy wants beyond the always needed ones, as a bit set 1 << core_event_kind:
 * adapters need not produce FIRST_TOKEN, PROGRESS, TELEMETRY or CACHE events that nobody reads. */
uint32_t core_needs(const struct core *c);

/* Counters, and live totals, for reports and metrics. Every arrival ends in exactly one of done, cancelled and
 * rejected, or is still queued or in flight. */
struct core_stats {
    uint64_t arrivals;
    uint64_t dispatched; /* legs */
    uint64_t held;       /* waits, of new requests and others */
    uint64_t retried, done, cancelled, rejected[CORE_REASON_COUNT];
    uint32_t queued, inflight;
    uint64_t queued_bytes; /* of those that wait for admission */
    uint64_t delayed;      /* retries that had to wait for the retry budget */
    uint64_t ejections;    /* of workers, by breaker and as outliers */
    uint32_t ejected;      /* workers that are, now */
    uint32_t panics;       /* roles in panic, now */
};
void core_get_stats(const struct core *c, struct core_stats *out);

enum core_health {
    CORE_HEALTH_OK,
    CORE_HEALTH_EJECTED, /* left out */
    CORE_HEALTH_PROBING, /* tried with one request at a time */
    CORE_HEALTH_COUNT
};

enum core_health_cause {
    CORE_HEALTH_NO_CAUSE,
    CORE_HEALTH_FAILURES,     /* failures in a row */
    CORE_HEALTH_FAILURE_RATE, /* more of its requests fail than of others */
    CORE_HEALTH_SLOW,         /* its first tokens take longer than others' */
    CORE_HEALTH_CAUSES
};

/* A name for logs and metrics: lower case with underscores. */
const char *core_health_name(enum core_health h);
const char *core_health_cause_name(enum core_health_cause c);

/* What the core makes of a worker. */
struct core_worker_state {
    bool up, draining;
    bool vacant; /* a place that nobody has */
    bool used;   /* gets requests: up, not draining, and OK, probing or in a panic */
    enum core_health health;
    enum core_health_cause cause; /* of the last ejection */
    int64_t until_ps;             /* ejected: until then; else 0 */
    uint32_t failures;            /* in a row */
    uint32_t share;               /* in slow start: per mille of the others' load; else 1000 */
    uint32_t inflight;
};
/* What this core has at a worker, without CORE_EV_FOREIGN: what other controllers are to be told. */
struct core_load core_own_load(const struct core *c, uint32_t worker);

/* worker is below n_workers + spare_workers. */
void core_get_worker(const struct core *c, uint32_t worker, struct core_worker_state *out);

#endif
