/* hub.h - the decision core, shared by the event loops of `weir serve`.
 *
 *   loop 0 ──┐ events                      ┌──► commands for its own requests, at once
 *   loop 1 ──┼──► mutex ─ core_event() ────┤
 *   loop n ──┘    (about a microsecond)    └──► commands for another loop's: its mailbox, and a wake-up
 *
 * A decision takes about a microsecond, so one lock costs less than any sharing of the core's state would; and
 * what one loop learns all others know at their next decision. Every request belongs to one loop and is touched
 * by no other; a command that reaches a mailbox after its request is over is dropped there (generations).
 *
 * Time for the core is the loops' monotonic clock, read under the lock, so it never runs back. The core's timer
 * runs on loop 0.
 */
#ifndef WEIR_HUB_H
#define WEIR_HUB_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "controller/core/core.h"
#include "controller/serve/buckets.h"

#define HUB_MAX_LOOPS 256u

struct hub;

/* One request, embedded in what its loop keeps of it. The fields are the hub's. */
struct hub_request {
    uint32_t handle, generation;
    struct hub_loop *loop;
};

/* What the core wants done with a request, on the loop of that request; told: what that was decided on (core_told), or
 * NULL. After CORE_CMD_REJECT the request is over for the hub. Called from within hub_* functions of that loop, or from
 * its mailbox; it may call hub_* functions. */
typedef void (*hub_command_fn)(void *loop_user, struct hub_request *r,
                               const struct core_command *cmd, const struct core_told *told);

/* core_config as for core_new; its workers are up as given. NULL and *why. */
struct hub *hub_new(const struct core_config *config, const char **why);
/* All loops must have been closed. NULL is fine. */
void hub_free(struct hub *h);

/* Joins a loop, on its thread (or before it runs). The first one keeps the core's timer. NULL: out of memory, or
 * HUB_MAX_LOOPS. */
struct hub_loop *hub_join(struct hub *h, uv_loop_t *uv, hub_command_fn command, void *loop_user);
/* On its thread, with no request left; memory is freed as the uv loop runs. */
void hub_leave(struct hub_loop *l);

/* ---- events of requests, on the loop they belong to */

/* A new request. q's keys stay the caller's until the request is over. 0, or WEIR_E_LIMIT (the table of requests is
 * full: nothing has been asked of the core; to be told as CORE_REASON_QUEUE_FULL), WEIR_E_INVALID (q). */
WEIR_NODISCARD int hub_arrive(struct hub_loop *l, struct hub_request *r,
                              const struct core_request *q);
void hub_prefill_done(struct hub_request *r, uint32_t worker);
void hub_first_token(struct hub_request *r, uint32_t worker);
void hub_progress(struct hub_request *r, uint32_t worker, uint32_t output_tok);
/* Over: answered. first_ns: when its first token came, by uv_hrtime; 0: not known. error: the answer was an error of the
 * worker's own making. */
void hub_done(struct hub_request *r, uint32_t worker, uint32_t output_tok, uint64_t first_ns,
              bool error);
/* Lost on a worker; a command follows (another dispatch, or CORE_CMD_REJECT), perhaps from within. */
void hub_failed(struct hub_request *r, uint32_t worker, bool partial);
/* Over: the client left. Legs in flight are the caller's to stop; no command follows. */
void hub_cancelled(struct hub_request *r);

/* Bits 1 << core_event_kind of the events that somebody reads: others need not be sent. */
uint32_t hub_needs(const struct hub *h);

/* ---- events of workers, from any loop */

void hub_worker(struct hub_loop *l, uint32_t worker, enum core_event_kind up_down_or_drain);
/* A worker into a place that is vacant: CORE_EV_WORKER_ADDED. */
void hub_worker_added(struct hub_loop *l, uint32_t worker, const struct core_worker_config *c);
/* As core_reconfigure, from any loop. */
WEIR_NODISCARD int hub_reconfigure(struct hub_loop *l, const struct core_config *to,
                                   const char **why);
void hub_telemetry(struct hub_loop *l, uint32_t worker, const struct core_telemetry *t);
void hub_cache(struct hub_loop *l, uint32_t worker, const struct core_cache_event *ev);

/* All that other controllers have at a worker: CORE_EV_FOREIGN. */
void hub_foreign(struct hub_loop *l, uint32_t worker, const struct core_load *load);

/* Sends `moved` when what is in flight has changed since hub_own_loads was last called. Before any request; NULL: no more. */
void hub_watch(struct hub *h, uv_async_t *moved);
/* core_own_load of workers 0 to n - 1. */
void hub_own_loads(struct hub *h, struct core_load *out, uint32_t n);

/* Now, on the core's clock (ps since hub_new). */
int64_t hub_now_ps(const struct hub *h);

/* What the hub itself did, and the core's counters. */
struct hub_stats {
    struct core_stats core;
    uint64_t events,
        refused; /* refused: events that the core did not take (a bug of the adapter; logged) */
    uint64_t mailed,
        stale; /* commands through mailboxes; of these, dropped because their request was over */
    struct buckets decide; /* arrivals: time from lock to unlock */
    uint64_t decide_max_ns;
};
void hub_get_stats(struct hub *h, struct hub_stats *out);

/* What the core makes of a worker, and the time that until_ps is to be compared with. */
int64_t hub_get_worker(struct hub *h, uint32_t worker, struct core_worker_state *out);
/* What the core believes of a worker. */
struct core_belief hub_belief(struct hub *h, uint32_t worker);

#endif
