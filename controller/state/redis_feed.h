/* redis_feed.h - the shared store: records and dispatches to Redis and from it, on one event loop, without ever making
 * anybody wait.
 *
 *   put_worker()     ─► key weir:v1:worker:NAME (SET PX lease), name in weir:v1:names, entry of stream weir:v1:workers
 *   put_dispatches() ─► entry of stream weir:v1:dispatches
 *   ops.worker(), ops.dispatches()  ◄─ XREAD BLOCK of both streams, on a connection of its own
 *   ops.worker()     ◄─ full read (names, then MGET): after each connect, after a gap, and every FEED_FULL_READ_MS
 *   ops.worker_gone() ◄─ a lease ran out, by this process' clock; not while there is no connection
 *
 * Streams are bounded (MAXLEN ~). What goes out is bounded, too: at most FEED_MAX_PENDING commands without an answer;
 * beyond, and while there is no connection, a put is dropped and counted: what is put are totals that the next put says
 * again. A Redis that does not answer for FEED_TIMEOUT_MS is left, and tried again after a pause that doubles from
 * FEED_RETRY_MIN_MS to FEED_RETRY_MAX_MS, half of it random. Names are resolved off the loop. Errors are counted by
 * kind. Nothing here is needed for routing.
 */
#ifndef WEIR_REDIS_FEED_H
#define WEIR_REDIS_FEED_H

#include <uv.h>

#include "controller/state/record.h"
#include "controller/state/redis_url.h"

#define FEED_MAX_PENDING 64u
#define FEED_MAX_WORKERS                                                                           \
    4096u /* whose leases are watched; more are refused, and counted as dropped */
#define FEED_TIMEOUT_MS 1000u
#define FEED_BLOCK_MS 300u /* of XREAD: well below the timeout */
#define FEED_RETRY_MIN_MS 100u
#define FEED_RETRY_MAX_MS 2000u
#define FEED_FULL_READ_MS 10000u
#define FEED_READ_ENTRIES 128u  /* of one XREAD */
#define FEED_WORKERS_LEN "1024" /* entries of the streams, about */
#define FEED_DISPATCHES_LEN "4096"
#define FEED_ERROR_BYTES 256u

enum feed_error {
    FEED_E_CONNECT, /* no such name, refused, unreachable, TLS */
    FEED_E_TIMEOUT, /* it does not answer */
    FEED_E_CLOSED,  /* the connection was lost */
    FEED_E_AUTH,    /* it does not let us in, or not do this */
    FEED_E_TYPE,    /* a key of ours is something else */
    FEED_E_FULL,    /* out of memory */
    FEED_E_ANSWER,  /* any other error, or an answer of an unexpected form */
    FEED_ERRORS
};
const char *feed_error_name(enum feed_error e);

struct feed_ops {
    void (*worker)(void *user, const struct worker_record *r);
    void (*worker_gone)(void *user, const char *name);
    void (*dispatches)(void *user, const struct dispatches *d); /* own ones, too */
};

struct feed_stats {
    bool connected;
    uint64_t connects, errors[FEED_ERRORS];
    uint64_t refused[RECORD_FAULTS]; /* what was read and not taken, by fault */
    uint64_t sent, dropped, received, full_reads, gaps;
    uint32_t workers;  /* with a lease */
    uint64_t heard_ms; /* loop time of the last answer; 0: never */
    char why[160];     /* of the last error */
};

struct redis_feed;

/* ops NULL: it only writes. NULL and error: out of memory, or rediss:// and no TLS to be had. */
struct redis_feed *redis_feed_new(uv_loop_t *uv, const struct redis_url *url,
                                  const struct feed_ops *ops, void *user, uint64_t seed,
                                  char error[FEED_ERROR_BYTES]);
/* No more callbacks; memory is freed as the uv loop runs. NULL is fine. */
void redis_feed_close(struct redis_feed *f);

/* Whether n puts would be sent now. */
bool redis_feed_ready(const struct redis_feed *f, uint32_t n);
/* 0; WEIR_E_LIMIT: dropped and counted (no connection, or too much without an answer); WEIR_E_INVALID: no
 * message. */
WEIR_NODISCARD int redis_feed_put_worker(struct redis_feed *f, const struct worker_record *r);
WEIR_NODISCARD int redis_feed_put_dispatches(struct redis_feed *f, const struct dispatches *d);

const struct feed_stats *redis_feed_stats(const struct redis_feed *f);

/* Unix time in us, for the messages. */
int64_t redis_feed_unix_us(void);

#endif
