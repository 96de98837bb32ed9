/* http_loop.h - what all HTTP connections of one event loop share: pooled buffers, coarse timers, the Date text.
 * One a thread, beside its uv_loop_t; nothing here may be used from another thread.
 *
 * Memory: a connection without a message in progress holds no buffer. Buffers of HTTP_BLOCK_BYTES (a head, or a whole
 * request with a small body, or bytes that could not be written yet) and the larger ones of bodies go back to
 * the loop, which keeps up to HTTP_POOL_BYTES of each kind for the next message and frees the rest.
 *
 * Timers: a wheel of HTTP_WHEEL_SLOTS lists. A timer fires up to HTTP_TICK_MS late, never early. Setting one to later
 * than it was costs a store, so every byte received may do it.
 */
#ifndef WEIR_HTTP_LOOP_H
#define WEIR_HTTP_LOOP_H

#include <stdatomic.h>
#include <uv.h>

#include "controller/http/http_headers.h"
#include "predictor/error.h"

#define HTTP_BLOCK_BYTES (32u << 10)
#define HTTP_READ_BYTES (64u << 10) /* one read of a body that streams through */
#define HTTP_POOL_BYTES (16u << 20) /* of idle buffers, for each kind */
#define HTTP_WHEEL_SLOTS 512u
#define HTTP_TICK_MS 16u

struct http_loop;

/* NULL: out of memory. The uv loop has to outlive it. */
struct http_loop *http_loop_new(uv_loop_t *uv);
/* Servers and clients on it must be gone. Memory is freed when the uv loop has run once more. NULL is fine. */
void http_loop_free(struct http_loop *loop);

uv_loop_t *http_loop_uv(const struct http_loop *loop);

struct http_timer {
    struct http_timer *next, **link; /* link: what points to this one; NULL when not in the wheel */
    uint64_t at_ms;                  /* when to fire; UINT64_MAX: stopped */
    uint64_t slot_ms;                /* when the wheel looks at it next */
    void (*fire)(struct http_timer *timer);
};

void http_timer_init(struct http_timer *timer, void (*fire)(struct http_timer *timer));
/* (Re)starts it to fire once in delay_ms from now (the loop's time). */
void http_timer_start(struct http_loop *loop, struct http_timer *timer, uint64_t delay_ms);
/* It will not fire; it may still be in the wheel. */
static inline void http_timer_stop(struct http_timer *timer)
{
    timer->at_ms = UINT64_MAX;
}
/* Takes it out of the wheel: before its memory goes away. */
void http_timer_deinit(struct http_loop *loop, struct http_timer *timer);

/* Something to do once the running callback is over, before the loop waits again: what must not be done from within a
 * function that promises not to call back. */
struct http_task {
    struct http_task *next, **link; /* link: NULL when not posted */
    void (*run)(struct http_task *task);
};

void http_task_init(struct http_task *task, void (*run)(struct http_task *task));
/* Runs once, also when posted twice. */
void http_task_post(struct http_loop *loop, struct http_task *task);
/* Before its memory goes away. */
void http_task_deinit(struct http_loop *loop, struct http_task *task);

/* The current time as a Date value ("Sun, 06 Nov 1994 08:49:37 GMT"), made anew once a second. */
struct http_slice http_loop_date(struct http_loop *loop);

/* What the loop's pools hold, for metrics and tests. */
struct http_loop_stats {
    uint64_t blocks_used, blocks_idle; /* of HTTP_BLOCK_BYTES and some */
    uint64_t body_bytes_used, body_bytes_idle;
    uint64_t mallocs; /* since the start; flat when warm */
};
struct http_loop_stats http_loop_stats(const struct http_loop *loop);

/* How long the loop's callbacks take, one by one: all connections wait for each of them. */
#define HTTP_LONG_LAP_NS UINT64_C(1000000)
struct http_loop_laps {
    _Atomic uint64_t longest_ns; /* of those in which the system did not take the processor away */
    _Atomic uint64_t blocked;    /* that took HTTP_LONG_LAP_NS or more, all by themselves */
    _Atomic uint64_t preempted;  /* or since others had the processor meanwhile */
};
/* May be read from any thread while the loop lives. */
const struct http_loop_laps *http_loop_laps(const struct http_loop *loop);

/* --- for http_io, http_server and http_client ----------------------------------------------------------- */

struct http_block {
    struct http_block *next;
    uint32_t from, to; /* bytes in use, for the owner */
    struct http_head head;
    char bytes[HTTP_BLOCK_BYTES];
};

struct http_block *http_block_get(struct http_loop *loop); /* aborts without memory */
void http_block_put(struct http_loop *loop, struct http_block *block);

/* A buffer for a body. */
struct http_body {
    char *at;
    size_t len, cap;
};
/* Room for `want` bytes in all (a power of two from 64 KiB on); keeps what is in it. 0 or WEIR_E_NOMEM. */
WEIR_NODISCARD int http_body_grow(struct http_loop *loop, struct http_body *body, size_t want);
void http_body_put(struct http_loop *loop, struct http_body *body);

/* One buffer of HTTP_READ_BYTES for reads whose bytes are used up within the callback; one for TLS records. */
char *http_loop_scratch(struct http_loop *loop);
char *http_loop_records(struct http_loop *loop);

/* Around every callback from the system. What has no such frame counts with the one before it. */
void http_lap_begin(struct http_loop *loop);
void http_lap_end(struct http_loop *loop);

#endif
