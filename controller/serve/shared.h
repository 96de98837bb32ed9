/* shared.h - what this controller and others tell one another through the shared store (state: in the config), so that
 * several of them in front of the same workers do not herd. On the first thread's loop.
 *
 *   hub moved ─► SHARED_GATHER_MS later: own loads that changed ─► dispatches stream ─► the others
 *   every SHARED_WHOLE_MS: all own loads, as a sign of life
 *   the others' messages ─► foreign.h ─► hub_foreign() of each worker whose sum changed
 *   workers' records (weir agent) ─► their failure state, for metrics
 *
 * Workers are told apart by HOST:PORT, whatever the configs call them. All that is read counts only while it is fresh:
 * without the store, this controller is on its own within SHARED_LEASE_MS. Nothing here delays a request.
 */
#ifndef WEIR_SHARED_H
#define WEIR_SHARED_H

#include "controller/serve/proxy.h"
#include "controller/state/redis_feed.h"

#define SHARED_GATHER_MS 1u
#define SHARED_TICK_MS 100u
#define SHARED_WHOLE_MS 1000u
#define SHARED_LEASE_MS 3000u /* three whole messages may be lost */

struct shared;

/* NULL and error (FEED_ERROR_BYTES). */
struct shared *shared_new(struct serve *serve, struct proxy *proxy, uv_loop_t *uv,
                          const struct redis_url *url, char *error);
/* Memory is freed as the uv loop runs; others forget what was in flight here when its lease runs out. NULL is fine. */
void shared_close(struct shared *s);

struct shared_stats {
    const struct feed_stats *feed;
    uint32_t controllers; /* others, now */
    uint64_t foreign;     /* their requests at workers that are ours, too */
    uint64_t gaps;        /* messages of others that are missing */
    uint64_t ignored;     /* repeats, and those of more than FOREIGN_MAX_CONTROLLERS */
    double age_s;         /* since the store last answered; -1: never */
};
struct shared_stats shared_stats(const struct shared *s);

/* What the agent beside a worker says of it: enum record_failure; -1: there is none. */
int shared_failure(const struct shared *s, uint32_t worker);

#endif
