/* core.h - the decision core: admission queue, routing, P/D hand-off, retry, drain. One state machine
 * without I/O: events and a time in, commands out. `weir replay` drives it under virtual time; the
 * live server will drive the same object code from sockets.
 *
 * The core never learns a request's output length before the request is done, and knows of a worker
 * only what events told it: own dispatches and first tokens at once, telemetry and cache events when
 * the adapter delivers them. One thread at a time; no globals; no allocation after core_new except
 * growth of the request table up to its limit.
 */
#ifndef WEIR_CORE_H
#define WEIR_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine_config.h"
#include "predictor/error.h"
#include "predictor/units.h"

#define CORE_NO_WORKER UINT32_MAX
#define CORE_MAX_WORKERS 16384u
#define CORE_MAX_REQUESTS (1u << 24) /* core_config.max_requests, at most */
#define CORE_MAX_POLICY_PARAMS 16    /* rows in a policy's table */
/* Held requests that cannot go yet (too large for the workers that are open) and that others behind them
 * may pass; beyond, these wait too. */
#define CORE_MAX_PASSED 64

/* What may be known of a request when it arrives. Copied by the core, except keys, which the caller
 * keeps until the request's final command or event (done, rejected, failed for good). */
struct core_request {
    uint32_t prompt_tok;
    uint32_t max_tokens; /* 0: unknown */
    int32_t priority; /* smaller is more urgent; < 0 never shed by admitters that spare priority */
    uint64_t session, tenant; /* 0: none */
    const uint64_t *keys;     /* chained prefix keys, request.h */
    uint32_t n_keys, key_tok;
    int64_t slo_ttft_ps, slo_tpot_ps; /* PS_NEVER: none */
};

/* Load as an engine reports it. at_ps is when it was measured. */
struct core_telemetry {
    int64_t at_ps;
    uint32_t running, waiting;
    uint32_t kv_used_blocks, kv_total_blocks;
};

/* A change of a worker's prefix cache. Blocks are named by (key, depth) as in request.h: `depth` is the
 * index of the first block, blocks follow one another, keys[i] names block depth + i. */
struct core_cache_event {
    bool stored; /* false: removed */
    uint32_t depth, n_blocks;
    const uint64_t *keys;
};

enum core_event_kind {
    CORE_EV_ARRIVAL,      /* request, req filled */
    CORE_EV_PREFILL_DONE, /* request: its prefill leg ended on worker; KV waits there */
    CORE_EV_FIRST_TOKEN,  /* request, worker */
    CORE_EV_PROGRESS,     /* request, n = tokens streamed so far (only if core_needs() asks) */
    CORE_EV_DONE,         /* request, n = output tokens */
    CORE_EV_FAILED, /* request lost on worker (worker died, connection cut); partial: client already got bytes */
    CORE_EV_CANCELLED, /* the client went away */
    CORE_EV_WORKER_UP, /* worker may take requests (again); role and config as given at core_new */
    CORE_EV_WORKER_DOWN, /* its requests come back as CORE_EV_FAILED, one by one, before or after */
    CORE_EV_WORKER_DRAIN, /* no new requests; running ones end */
    CORE_EV_TELEMETRY,    /* worker, telemetry */
    CORE_EV_CACHE,        /* worker, cache */
    CORE_EV_TIMER,        /* now_ps reached core_next_timer_ps() */
};

struct core_event {
    enum core_event_kind kind;
    int64_t now_ps;   /* never runs back */
    uint32_t request; /* caller's handle, dense and reused after the request is over */
    uint32_t worker;
    uint32_t n;
    bool partial;
    union {
        const struct core_request *req;
        const struct core_telemetry *telemetry;
        const struct core_cache_event *cache;
    };
};

enum core_reason {
    CORE_REASON_NONE,
    CORE_REASON_QUEUE_FULL, /* 429 */
    CORE_REASON_SATURATED,  /* 429: the policy shed it */
    CORE_REASON_SLO,        /* 429: its deadline cannot be met */
    CORE_REASON_NO_WORKER,  /* 503: no worker is up for this role */
    CORE_REASON_TOO_LARGE,  /* 400: larger than any worker */
    CORE_REASON_RETRIES,    /* 502: lost, and the retry budget is used up */
    CORE_REASON_PARTIAL,    /* lost after it was partly answered */
    CORE_REASON_TIMEOUT,    /* 504: held longer than the queue's limit */
    CORE_REASON_COUNT
};

enum core_command_kind {
    CORE_CMD_DISPATCH,         /* whole request to worker */
    CORE_CMD_DISPATCH_PREFILL, /* prefill leg to worker; peer = decode worker if chosen already (destination-first), else CORE_NO_WORKER */
    CORE_CMD_DISPATCH_DECODE,  /* decode leg to worker, KV pulled from peer */
    CORE_CMD_HOLD,             /* informs: it waits in the admission queue */
    CORE_CMD_REJECT,           /* over: reason, retry_after_ps */
    CORE_CMD_CANCEL,           /* stop it on worker (both legs get one each) */
};

struct core_command {
    enum core_command_kind kind;
    uint32_t request, worker, peer;
    enum core_reason reason;
    int64_t retry_after_ps; /* a duration; PS_NEVER unknown */
    uint32_t attempt;       /* 0 first try */
    double
        overlap_tok; /* prompt tokens the policy believes are cached on worker; -1: it does not say */
};

struct core_worker_config {
    enum worker_role role;
    uint32_t block_size, num_gpu_blocks, max_num_seqs, max_num_batched_tokens, max_model_len;
    bool up; /* at start */
};

struct policy_ops; /* controller/core/policy.h */

struct core_config {
    const char *policy;                  /* a name from core_policies[] */
    const struct policy_ops *own_policy; /* an embedder's own, instead; NULL: none. Borrowed */
    uint64_t seed;
    uint32_t n_workers;
    const struct core_worker_config *workers; /* copied */
    uint32_t queue_max_requests; /* admission queue; at the limit: CORE_REASON_QUEUE_FULL */
    int64_t queue_timeout_ps;
    uint32_t max_inflight_per_worker; /* hold back above this many; 0: dispatch at once */
    uint32_t max_retries;
    bool retry_partial;     /* retry even when partly answered */
    bool destination_first; /* SGLang-style: decode worker chosen before prefill starts */
    uint32_t max_requests;  /* live requests; at the limit: CORE_REASON_QUEUE_FULL */
    const double *
        policy_param; /* values for the policy's knobs, in the order of its table; NULL: defaults */
};

struct core;

/* NULL and *why (static text) on a bad config or out of memory. */
struct core *core_new(const struct core_config *c, const char **why);
void core_free(struct core *c);

/* Takes one event; commands that follow from it are read with core_next until it returns false, before
 * the next core_event. 0, WEIR_E_INVALID (unknown request or worker, time ran back) or WEIR_E_LIMIT. */
WEIR_NODISCARD int core_event(struct core *c, const struct core_event *ev);
bool core_next(struct core *c, struct core_command *out);

/* When the core wants a CORE_EV_TIMER; PS_NEVER: not at all. */
int64_t core_next_timer_ps(const struct core *c);

/* Which event kinds the policy wants beyond the always needed ones, as a bit set 1 << core_event_kind:
 * adapters need not produce FIRST_TOKEN, PROGRESS, TELEMETRY or CACHE events that nobody reads. */
uint32_t core_needs(const struct core *c);

/* Counters by reason, and live totals, for reports and metrics. */
struct core_stats {
    uint64_t arrivals, dispatched, held, retried, done, cancelled, rejected[CORE_REASON_COUNT];
    uint32_t queued, inflight;
};
void core_get_stats(const struct core *c, struct core_stats *out);

#endif
