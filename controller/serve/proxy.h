/* proxy.h - one thread of the inline path: requests come in on its listener, the hub says where they go, and answers
 * stream back. Nothing here blocks or decides.
 *
 *   client ─► http_server ─► openai_request ─► hub_arrive ─┐
 *                                                          ▼ command: dispatch, hold, reject, cancel
 *   client ◄─ http_reply ◄── answer (counts) ◄── http_call to the worker
 *
 * What may happen to a request, and what the client then gets:
 *   worker lost before a byte was passed on   the hub is told, and sends it elsewhere or refuses it (502)
 *   worker lost after the head of a stream    the same: the next worker's events follow that head
 *   worker lost in the middle                 a stream ends with an error event and [DONE], anything else is cut
 *   worker answers 502, 503 or 504            as lost before a byte; other answers of the engine are passed on as they are
 *   client gone                               all legs are closed at once, so that the engine stops
 */
#ifndef WEIR_PROXY_H
#define WEIR_PROXY_H

#include "controller/http/http_server.h"
#include "controller/serve/buckets.h"
#include "controller/serve/serve.h"

#define PROXY_ERROR_BYTES 512u
/* After a worker was seen to go down: how often its requests are looked at, for how long, and how long a stream of it may
 * be silent. What has not been answered at all is sent elsewhere at the first look. */
#define PROXY_WATCH_MS 200u
#define PROXY_WATCH_FOR_MS 30000u
#define PROXY_SILENT_MS 500u
/* A prefill leg's answer (one token and kv_transfer_params), kept whole. */
#define PROXY_MAX_PREFILL_ANSWER (HANDOVER_MAX_PARAMS_BYTES + (64u << 10))

struct proxy;

/* Counts of one thread since its start; written by it alone, read by any. */
struct proxy_counts {
    _Atomic uint64_t requests, answered, refused, failed, cut,
        left; /* left: clients that went away */
    _Atomic uint64_t redispatched,
        resent; /* resent: on a fresh connection, since a reused one was stale */
    /* ttft: from the arrival; the other two and tpot's: from the dispatch, of streams that were answered in one leg */
    struct buckets ttft, predicted_ttft, ttft_ratio, tpot, predicted_tpot, tpot_ratio;
    struct buckets hold, overhead;
    _Atomic uint64_t prompt_tok, output_tok, cached_tok;
    _Atomic uint64_t live;
};

/* On the thread that runs uv, before it does. http: of that loop. NULL and error. */
struct proxy *proxy_new(struct serve *serve, uv_loop_t *uv, struct http_loop *http, int listen_fd,
                        char error[PROXY_ERROR_BYTES]);

uint16_t proxy_port(const struct proxy *p);
int proxy_listen_fd(const struct proxy *p);
const struct proxy_counts *proxy_counts(const struct proxy *p);
/* Of its loop. */
const struct http_loop_laps *proxy_laps(const struct proxy *p);
/* Its place in a pool's hub, for events of workers. */
struct hub_loop *proxy_hub_loop(struct proxy *p, uint32_t pool);

/* Takes over what a reload has changed: settings, certificates, workers that came and went (their running calls go on).
 * On its thread, while nobody changes serve. */
void proxy_apply(struct proxy *p, const struct serve_live *conf);

/* No more connections; done() when the last request is over and the last connection closed. */
void proxy_drain(struct proxy *p, void (*done)(void *user), void *user);
/* Ends everything at once; connections are closed as the uv loop runs. */
void proxy_close(struct proxy *p);
/* After proxy_close and the end of its loop: until then other threads may read its counts. NULL is fine. */
void proxy_free(struct proxy *p);

#endif
