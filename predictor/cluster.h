/* cluster.h - simulated workers, the links between them, and what goes wrong with them.
 *
 * A cluster advances by events in the order (time, kind, number): passes that end, then workers that become
 * ready, then transfers, then whatever the caller brings. The caller's loop:
 *
 *     while ((t = min(cluster_next_ps(c), own next event)) != PS_NEVER) {
 *         cluster_advance(c, t);                  everything inside happens up to and at t
 *         while (cluster_poll(c, &ev)) ...        what came out; may submit, hand off, cancel at t
 *         own events at t: cluster_submit(c, t, ...)
 *         (again, until nothing more happens at t)
 *         cluster_start(c, t);                    workers that can begin a pass do
 *     }
 *
 * Lazy mode, for callers who need no answer before they ask the next question: a worker runs only when
 * CLUSTER_LAZY requests have been sent to it (or CLUSTER_LAZY_ALL and one for each worker to all of them, or one of
 * its requests is cancelled), and events come late (but with their true times). Same results, no event heap, and one
 * worker's state is at hand while it is used.
 * It is off, whatever the options say, where workers depend on each other or on the hour: with roles, a shared
 * store or faults.
 */
#ifndef WEIR_CLUSTER_H
#define WEIR_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine.h"
#include "predictor/engine_config.h"
#include "predictor/dp.h"

#define CLUSTER_MAX_WORKERS 16384u
#define CLUSTER_MAX_FAULTS 65536u
#define CLUSTER_DOMAIN_BYTES 96
#define CLUSTER_LAZY 16u
#define CLUSTER_LAZY_ALL 256u

enum fault_kind {
    FAULT_DOWN, /* worker dies: all its requests and KV are lost; also one that is starting */
    FAULT_UP, /* starts again (ready after its start-up time), with an empty cache; one that drains stays */
    FAULT_SLOW,  /* every step takes factor times as long, from the next one on (1 ends it) */
    FAULT_DRAIN, /* no new requests; when the last one has left, so does the worker (WORKER_DOWN) */
};

struct fault {
    int64_t at_ps;
    enum fault_kind kind;
    double factor; /* FAULT_SLOW */
    /* whom: one worker, or every worker whose domain path starts with `domain` ("rack1/node0") */
    uint32_t worker; /* UINT32_MAX: by domain */
    char domain[CLUSTER_DOMAIN_BYTES];
};

/* A prefill worker's uplink: latency + bytes / fair share of bandwidth among the transfers in flight on it. The
 * receiving side is not a limit: a decode worker takes in as much as its senders send (their links are the
 * narrow ones when each worker has a NIC of its own and transfers spread over decode workers). Transfers to
 * one worker at once are then too fast by at most the number of senders. */
struct link_config {
    double latency_ms;
    double bandwidth_gb_s; /* 0: no limit */
    bool unshared;         /* every transfer has all of it, as in DynoSim (engine-model.md 1.6) */
};

/* In which order a request gets its places (engine-model.md 1.6).
 * Source first (vLLM, TensorRT-LLM): prefill; then a decode worker is chosen (cluster_handoff), where the
 * request queues up for blocks; from the pass boundary on at which it gets them the KV is moved, and it joins
 * the next pass after that. (vLLM: NixlConnector asks for the KV in the step whose schedule allocated the
 * blocks, WAITING_FOR_REMOTE_KVS; DynoSim 1.6.1 the same, recorded in bench/parity.)
 * Destination first (SGLang: disaggregation's pre-allocation queue): it queues up at a decode worker for
 * blocks; when it has them, the prefill worker gets it; the KV then has its place (cluster_submit_pair,
 * then cluster_handoff). */
enum handoff_mode { HANDOFF_SOURCE_FIRST, HANDOFF_DESTINATION_FIRST };
/* Of the KV of the prompt: all is moved, or what the decode worker has not cached when the transfer begins
 * (when the blocks are reserved). */
enum transfer_mode { TRANSFER_FULL_PROMPT, TRANSFER_DESTINATION_MISSING };

struct worker_config {
    struct engine_config engine;
    int64_t startup_ps;
    char domain[CLUSTER_DOMAIN_BYTES]; /* failure-domain path, rack/node/gpu; may be empty */
    bool starts_up;                    /* ready at time 0 (else after an UP fault) */
    uint32_t gpus;                     /* for GPU-hours: tp * pp * ...; of all dp ranks */
    uint32_t pool;                     /* index into the stack's pools */
};

struct cluster_options {
    struct link_config link; /* one per prefill worker: its uplink */
    enum transfer_mode transfer;
    int64_t
        kv_lease_ps; /* how long a prefill worker keeps KV that is not pulled; PS_NEVER: for ever */
    uint64_t seed;
    bool stepping; /* no fast-forward */
    bool lazy;
    bool first_tokens; /* events wanted */
    /* called for every change of a prefix cache (with dp_size, of any rank's: a router that takes a worker for
     * one cache believes what a rank drops to be gone), at_ps = end of the step that made it; NULL: not wanted */
    void (*on_cache)(void *ctx, uint32_t worker, int64_t at_ps,
                     const struct engine_cache_change *change);
    void *on_cache_ctx;
    struct hist *itl; /* borrowed; may be NULL */
};

enum cluster_event_kind {
    CLUSTER_EV_FIRST_TOKEN,
    CLUSTER_EV_PREFILL_DONE, /* the prefill leg; KV waits on worker for cluster_handoff */
    CLUSTER_EV_DONE,
    CLUSTER_EV_LOST, /* worker died, or the KV's lease ran out (then also a pull under way is cut off: to be
                        planned anew); partial: tokens had come out */
    CLUSTER_EV_WORKER_UP,
    CLUSTER_EV_WORKER_DOWN, /* died, or was drained and has nothing left */
    CLUSTER_EV_WORKER_DRAIN,
};

struct cluster_event {
    enum cluster_event_kind kind;
    int64_t at_ps;
    uint32_t handle, worker;
    bool partial;
    struct engine_record record; /* DONE: of the leg that ended; PREFILL_DONE: of the prefill leg */
};

struct cluster;

/* Workers with num_shared_blocks share one store, which has to look the same to all of them: same shared_*,
 * block_size and kv_bytes_per_token (shared_tier_same); then `lazy` counts for nothing.
 * NULL: out of memory, more than CLUSTER_MAX_WORKERS, a config that engine_config_check refuses, or workers that
 * disagree on the store. */
struct cluster *cluster_new(const struct worker_config *workers, uint32_t n,
                            const struct cluster_options *opt);
void cluster_free(struct cluster *c);

/* Faults to come; copied, instead of those that were. 0, WEIR_E_NOMEM, WEIR_E_LIMIT (more than CLUSTER_MAX_FAULTS) or
 * WEIR_E_INVALID (not sorted by time, no such worker, factor of FAULT_SLOW not above 0). */
WEIR_NODISCARD int cluster_add_faults(struct cluster *c, const struct fault *faults, uint32_t n);

/* Sends a request to a worker at time now. handle: the caller's number for it, dense. prefill_only: the
 * prefill leg. Errors of engine_submit, or WEIR_E_STATE (worker is down). */
WEIR_NODISCARD int cluster_submit(struct cluster *c, int64_t now, uint32_t worker,
                                  const struct request_spec *s, uint32_t handle, bool prefill_only);

/* The prefill leg, destination first: `decode` reserves blocks for it, then `worker` gets it. Errors as above. */
WEIR_NODISCARD int cluster_submit_pair(struct cluster *c, int64_t now, uint32_t worker,
                                       uint32_t decode, const struct request_spec *s,
                                       uint32_t handle);

/* Pulls the KV of handle's finished prefill leg to `worker`, where it then decodes; blocks reserved on
 * another one are given back. (Without a lease that can wait for ever in a full fleet: for blocks there that are
 * reserved for prompts which wait for the blocks that this KV holds.) WEIR_E_STATE (no such KV, or the worker
 * takes nothing), WEIR_E_TOO_LARGE. */
WEIR_NODISCARD int cluster_handoff(struct cluster *c, int64_t now, uint32_t worker,
                                   const struct request_spec *s, uint32_t handle);

/* Stops whatever handle does anywhere. */
void cluster_cancel(struct cluster *c, int64_t now, uint32_t handle);

int64_t cluster_next_ps(const struct cluster *c);
void cluster_advance(struct cluster *c, int64_t until);
bool cluster_poll(struct cluster *c, struct cluster_event *ev);
void cluster_start(struct cluster *c, int64_t now);
/* Lazy mode: runs every worker to the end of its work. */
void cluster_drain(struct cluster *c);
/* Ends lazy mode: from now on answers matter. */
void cluster_wake(struct cluster *c, int64_t now);

const struct dp_group *cluster_group(const struct cluster *c, uint32_t worker);
/* Its first rank. */
const struct engine *cluster_engine(const struct cluster *c, uint32_t worker);
/* Whether some worker still had something to do at PS_LIMIT, after which no pass begins. */
bool cluster_out_of_time(const struct cluster *c);
/* The store that workers share; NULL: none. */
const struct shared_tier *cluster_shared(const struct cluster *c);
bool cluster_worker_up(const struct cluster *c, uint32_t worker);
/* Time this worker has held its GPUs, up to now: from the beginning of its start-up until it is down. */
int64_t cluster_worker_held_ps(const struct cluster *c, uint32_t worker, int64_t now);

#endif
