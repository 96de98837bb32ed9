/* seen.h - what the path remembers of a request so that others can see it: the id that it carries, when things happened, what
 * was decided and predicted. Out of it come response headers, histograms, the request log and the recent decisions of
 * /admin/state.
 *
 *   seen_begin ── seen_command... ── seen_sent... ── seen_head ── seen_first ── seen_over ── seen_end
 *      id          told, held        to a worker                                outcome       log, memory
 */
#ifndef WEIR_SEEN_H
#define WEIR_SEEN_H

#include <uv.h>

#include "controller/core/core.h"
#include "controller/http/http_headers.h"
#include "controller/serve/request_log.h"

#define SEEN_RECENT 16u  /* requests that a thread remembers */
#define SEEN_MADE_ID 32u /* hex digits of an id that weir makes */

struct http_exchange;
struct proxy;
struct proxy_request;

/* In proxy_request. */
struct seen {
    char id[REQLOG_ID_BYTES]; /* the client's X-Request-Id where it is sane, else made */
    bool id_made;
    bool asked;     /* the core was: it is for the log */
    bool predicted; /* `told` is of the dispatch that answered */
    struct core_told told;
    uint64_t decided_ns, held_from_ns, held_ns, sent_ns, head_ns, over_ns; /* 0: not */
    double overlap_tok;
    uint32_t retries;
    int status;                   /* of HTTP */
    const char *outcome, *reason; /* static */
};

/* A request that is over, for /admin/state. */
struct seen_recent {
    int64_t ended_us; /* since 1970; 0: none yet */
    char id[REQLOG_ID_BYTES], worker[REQLOG_NAME_BYTES];
    const char *outcome, *reason;
    uint32_t prompt_tok, cached_tok, output_tok, n_candidates, retries;
    int64_t ttft_ns, tpot_ns, predicted_ttft_ns, predicted_tpot_ns; /* from dispatch; -1: none */
};

/* Of a proxy. */
struct seen_ring {
    uv_mutex_t lock;
    struct seen_recent recent[SEEN_RECENT];
    uint32_t next;
};

/* An id is sane with 1 to 128 letters, digits and -_.:~+/=@ */
bool seen_sane_id(struct http_slice id);

void seen_begin(struct proxy_request *r, const struct http_head *head);
/* A dispatch, a hold or a refusal of the core; told: NULL: nothing. */
void seen_command(struct proxy_request *r, const struct core_command *cmd,
                  const struct core_told *told);
/* A leg goes out. */
void seen_sent(struct proxy_request *r);
/* The answer's head has come. Adds the fields that `explain` wants, and the id. */
void seen_head(struct proxy_request *r, const struct http_head *head);
/* X-Request-Id on what weir answers itself. */
void seen_refusal(struct proxy_request *r, struct http_exchange *ex);
/* The first token has come. */
void seen_first(struct proxy_request *r);
/* How it ended; only the first call counts. */
void seen_over(struct proxy_request *r, const char *outcome, const char *reason);
/* The request goes: the last one. Takes its keys for the log. */
void seen_end(struct proxy_request *r);

/* The ring's last ones, latest first; how many. From any thread. */
uint32_t seen_recent(struct proxy *p, struct seen_recent out[SEEN_RECENT]);

#endif
