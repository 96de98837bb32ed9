/* poller.h - asks the engines how they are: /metrics at the poll interval, /v1/models now and then, on one event loop.
 * What it hears goes to the hub as telemetry, and as worker up and down.
 *
 *   unknown ── first good answer ──► up ── POLLER_DOWN_AFTER failures in a row ──► down ── good answer ──► up
 *
 * A worker gets no requests before its first good answer. An engine without a /metrics page (404) is asked for /health
 * instead, and then says no more than that it lives. A page that is not an engine's is a failure: "healthy" by
 * status alone has been seen while an engine was still loading (failures.md 10).
 *
 * Where a worker publishes KV events and the policy reckons with them, they are read on the same loop (kv_feed.h), from when
 * the worker is up and a model of its pool is known: prompts are named by model.
 */
#ifndef WEIR_POLLER_H
#define WEIR_POLLER_H

#include "controller/engines/engine_metrics.h"
#include "controller/engines/kv_feed.h"
#include "controller/http/http_client.h"
#include "controller/serve/proxy.h"

#define POLLER_DOWN_AFTER 3u
#define POLLER_MAX_BYTES (4u << 20) /* of one answer; a larger one is a failure */
#define POLLER_MODELS_EVERY_MS 30000u

enum poller_state { POLLER_UNKNOWN, POLLER_UP, POLLER_DOWN, POLLER_DRAINING };
const char *poller_state_name(enum poller_state s);

/* What is known of a worker; for /admin/state. Read it on the poller's thread. */
struct poller_worker {
    enum poller_state state;
    uint32_t failures;      /* in a row */
    uint64_t polls, failed; /* since the start */
    uint64_t changed_ms;    /* loop time at which the state began */
    uint64_t answered_ms;   /* loop time of the last good answer; 0: never */
    struct engine_metrics metrics;
    char why[128]; /* of the last failure */
};

struct poller;

/* Polls every worker of serve each interval_ms, through proxy's hub loops. NULL: out of memory. */
struct poller *poller_new(struct serve *serve, struct proxy *proxy, struct http_loop *http,
                          uint32_t interval_ms);
/* Memory is freed as the uv loop runs. */
void poller_close(struct poller *p);

/* A worker has taken a place, or left it: it is polled from now on, or no longer. */
void poller_watch(struct poller *p, uint32_t worker);
void poller_unwatch(struct poller *p, uint32_t worker);

/* What came of its KV events; zero where none are read. */
void poller_kv_stats(const struct poller *p, uint32_t worker, struct kv_feed_stats *out);

const struct poller_worker *poller_worker_at(const struct poller *p, uint32_t worker);
/* A worker takes no new requests from now on (operator's wish), or may again. */
void poller_drain(struct poller *p, uint32_t worker, bool on);
/* How many workers are up. */
uint32_t poller_up(const struct poller *p);

#endif
