/* proxy_internal.h - what proxy.c (requests and clients) and proxy_legs.c (calls to workers) share. */
#ifndef WEIR_PROXY_INTERNAL_H
#define WEIR_PROXY_INTERNAL_H

#include "controller/http/http_client.h"
#include "controller/openai/answer.h"
#include "controller/openai/openai_error.h"
#include "controller/openai/openai_request.h"
#include "controller/serve/proxy.h"
#include "controller/serve/seen.h"
#include "controller/serve/tokens.h"

struct proxy_request;

/* A body with the changes that a hand-over needs. Five kilobytes, so only requests that are handed over have it, until they
 * are written. */
struct leg_changes {
    struct handover_edit edit;
    struct json_edit body;
    struct http_slice slices[JSON_EDIT_MAX_SLICES];
};

/* A call to one worker for a request. */
struct leg {
    struct proxy_request *request;
    struct http_call *call;          /* NULL: none in flight */
    uint32_t worker;                 /* in the pool's core; CORE_NO_WORKER: none */
    bool resent;                     /* a stale connection has been forgiven */
    uint32_t losses;                 /* the worker's, when this was sent */
    uint64_t heard_ms;               /* when the last byte of it came; 0: none has */
    struct http_slice whole;         /* the body as the client sent it */
    struct leg_changes *changes;     /* or with the changes of a hand-over; NULL: none were made */
    const struct http_slice *slices; /* what is sent: one of the two */
    size_t n_slices;
};

struct proxy_request {
    struct hub_request hub;
    struct proxy *proxy;
    const struct serve_pool *pool;
    struct http_exchange *ex; /* NULL: the client is gone, or has its answer */
    bool told;                /* the hub knows that it is over */
    bool passthrough;         /* a path of the allow-list: no hub, no answer scan */

    struct openai_request q;
    struct core_request core;
    uint64_t model; /* hash */
    uint64_t *keys;

    struct leg prefill, answer_leg;
    char *prefill_answer;
    size_t prefill_len;
    bool prefill_done;
    uint32_t prefill_worker;

    struct answer answer;
    bool head_sent, first_told;
    bool answer_silent; /* nothing of its body has come yet */
    bool worker_error;  /* the answer is an error of the worker's own making */
    bool can_restart;   /* a stream of which only the head has gone out: another worker may go on */
    uint64_t arrived_ns, first_ns;
    struct seen seen;
    struct http_timer comment;         /* of a held stream */
    struct proxy_request *prev, *next; /* in proxy->live */
};

struct proxy {
    struct serve *serve;
    const struct serve_live *conf; /* as of the last reload */
    uv_loop_t *uv;
    struct http_loop *http;
    struct http_server *server;
    struct http_client *client;
    struct http_upstream **upstreams; /* by serve.workers; NULL: nobody has the place */
    uint32_t *generations;            /* of the places' workers, as of upstreams */
    struct hub_loop *hubs[SERVE_MAX_POOLS];
    struct openai_reader *reader;
    struct tokens tokens;
    struct proxy_request *live, *spare;
    uint32_t n_spare;
    struct proxy_counts counts;
    struct seen_ring ring;
    uint64_t id_seed;
    void (*drained)(void *user);
    void *drained_user;
    uint64_t random;         /* for rooms and ids */
    struct http_timer watch; /* for losses of workers */
    uint32_t losses;         /* of serve: those that were seen */
    uint64_t watch_until_ms;
};

/* ---- proxy_legs.c */

/* Carries out a dispatch of the hub. */
void legs_dispatch(struct proxy_request *r, const struct core_command *cmd);
/* Stops the calls on this worker; CORE_NO_WORKER: on all. */
void legs_cancel(struct proxy_request *r, uint32_t worker);
/* Ends those of its calls whose worker has gone down since they were sent, if nothing has come of them or they are silent. */
void legs_look_for_losses(struct proxy_request *r, uint64_t now_ms);
/* What the legs have to send is sent, or will not be: their bodies are not needed any more. */
void legs_drop_bodies(struct proxy_request *r);
/* A request of the allow-list, to a worker of its pool. */
void legs_pass(struct proxy_request *r, uint32_t worker);

/* ---- proxy.c */

/* The answer has begun: head and, where wanted, weir's own fields. */
void proxy_answer_head(struct proxy_request *r, const struct http_head *head);
/* The request will not be sent again: its memory is given back, if all of it has been written. */
void proxy_request_sent(struct proxy_request *r);
/* An answer that cannot follow the head that has gone out already (comments, or a worker's that was lost): its error becomes
 * an event. The legs are stopped. */
void proxy_refuse_late(struct proxy_request *r, const struct http_part *p);
/* The answer is complete and passed on. */
void proxy_answered(struct proxy_request *r);
/* The worker was lost after bytes of it had been passed on. */
void proxy_cut(struct proxy_request *r, const char *detail);
void proxy_refuse(struct proxy_request *r, const struct openai_error *e, int64_t retry_after_ps);
/* Gives r back once neither client nor hub nor call needs it. */
void proxy_release(struct proxy_request *r);

static inline void proxy_count(_Atomic uint64_t *c, uint64_t n)
{
    /* one writer: no locked instruction needed */
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

#endif
