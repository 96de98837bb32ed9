/* serve.h - what the parts of `weir serve` share: the workers, the pools that they form, and the settings.
 *
 *   config ──► struct serve (all threads, read-only but for atomics)
 *                pools[]    workers that serve the same models, one decision core (hub.h) each
 *                workers[]  an engine's address, role and dialect
 *   thread ──► struct proxy (proxy.h): listener, upstream connections, requests in flight
 *              thread 0 also polls the engines (poller.h) and answers the admin listener (admin.h)
 */
#ifndef WEIR_SERVE_H
#define WEIR_SERVE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "controller/core/core.h"
#include "controller/openai/handover.h"
#include "controller/serve/hub.h"

#define SERVE_MAX_WORKERS 4096u
#define SERVE_MAX_POOLS 64u
#define SERVE_MAX_ALLOWED 64u     /* extra paths */
#define SERVE_MODEL_BYTES 256u    /* with the final NUL */
#define SERVE_MAX_POOL_MODELS 64u /* names (models and LoRA adapters) of one pool */
#define SERVE_HOST_BYTES 256u
#define SERVE_PATH_BYTES 1024u
#define SERVE_DIGEST_BYTES 32u
#define SERVE_MAX_ROUTES 64u
#define SERVE_KEY_TOK_DRIFT 8u /* an eighth */

/* A place for a worker. Places are the first thread's to change, while no other looks (proxy_apply). */
struct serve_worker {
    bool present;        /* else nobody has the place */
    bool leaving;        /* a reload took it out: it gets nothing new, and goes when it is empty */
    uint32_t generation; /* changes with who has the place */
    char name
        [SERVE_HOST_BYTES]; /* host:port, or as the config calls it: for headers, logs, metrics */
    char host[SERVE_HOST_BYTES];
    uint16_t port;
    bool tls;
    uint32_t pool, index; /* index: its number in the pool's core */
    struct core_worker_config core;
    /* hand-over of KV, where its role is prefill or decode */
    uint16_t bootstrap_port;
    char engine_id[SERVE_HOST_BYTES], kv_address[SERVE_HOST_BYTES];
    /* where it publishes KV events, and replays them; empty: nowhere */
    char kv_events[SERVE_HOST_BYTES], kv_replay[SERVE_HOST_BYTES];
    atomic_uint
        losses; /* how often it was seen to go down: what was sent before is lost, if it stays silent */
};

struct serve_pool {
    char name[SERVE_HOST_BYTES], policy[SERVE_HOST_BYTES];
    /* of the pool's profile; NULL: none */
    struct step_params *profile;
    struct step_model steps;
    /* tokens of OPENAI_CHUNK_BYTES of a prompt, the same for all threads and requests, or keys of one prefix would name
     * other blocks each time; follows the learned ratio when that is SERVE_KEY_TOK_DRIFT off. 0: none yet */
    _Atomic uint32_t key_tok;
    struct hub *hub;
    const struct handover_dialect *dialect; /* NULL: no prefill and decode workers */
    uint32_t first_worker, n_workers;       /* in serve.workers; with those that nobody has */
    uint32_t n_models;                      /* 0: takes every model that no other pool names */
    char models[SERVE_MAX_POOL_MODELS][SERVE_MODEL_BYTES];
};

/* All settings of the request path; defaults in config_keys.c. */
struct serve_settings {
    char listen_host[SERVE_HOST_BYTES];
    uint16_t listen_port;
    uint32_t threads;
    char tls_cert[SERVE_PATH_BYTES], tls_key[SERVE_PATH_BYTES]; /* of the listener; empty: plain */
    char upstream_ca[SERVE_PATH_BYTES]; /* for https workers; empty: the system's */
    uint64_t max_body_bytes, max_buffered_bytes;
    uint32_t max_connections, header_timeout_ms, body_timeout_ms, idle_timeout_ms, write_timeout_ms;
    uint32_t connect_timeout_ms;
    uint32_t
        first_byte_timeout_ms; /* from dispatch to the first byte of an answer's body; 0: none */
    uint32_t stall_timeout_ms; /* then between two pieces of it; 0: none */
    uint32_t hold_comment_ms;  /* a held stream gets an SSE comment this often; 0: never */
    int64_t slo_ttft_ps, slo_tpot_ps; /* of requests that bring none */
    bool trust_headers;               /* priority, tenant and SLO headers of clients count */
    bool explain_headers;             /* responses carry x-weir-... */
    char tenant_header[64];
    double bytes_per_tok; /* until a model's own ratio is known */
    uint32_t n_allowed;
    char allowed[SERVE_MAX_ALLOWED]
                [SERVE_HOST_BYTES]; /* paths that go to any worker of a pool as they are */
};

/* Deadlines and priority of one path. */
struct serve_route {
    char path[SERVE_HOST_BYTES];
    int64_t slo_ttft_ps, slo_tpot_ps; /* PS_NEVER: none */
    int32_t priority;
};

/* A tenant that the config knows. Others are equal, of weight 1. */
struct serve_tenant {
    char name[64];
    uint64_t id; /* serve_tenant_id of its API key's SHA-256, or of its header's value */
    bool by_key;
    uint8_t digest[SERVE_DIGEST_BYTES]; /* SHA-256 of the API key, or of the header's value */
    uint32_t weight;
    int32_t priority;
};

static inline uint64_t serve_tenant_id(const uint8_t digest[SERVE_DIGEST_BYTES])
{
    uint64_t id;
    memcpy(&id, digest, sizeof id);
    return id | 1; /* 0: none */
}

struct http_tls;
struct reqlog;

/* What a reload replaces, as a whole; read-only. A thread takes the next one between two events. */
struct serve_live {
    struct serve_settings set;
    struct serve_tenant *tenants; /* by id, ascending */
    uint32_t n_tenants;
    bool knows_keys, knows_values; /* tenants are known by API keys, by the header's values */
    struct serve_route *routes;
    uint32_t n_routes;
    struct http_tls *listen_tls; /* NULL: plain */
};

struct serve {
    struct serve_live *live;       /* of the first thread; the others have theirs (proxy.h) */
    struct http_tls *upstream_tls; /* NULL: no worker is https */
    struct reqlog *log;            /* of requests; NULL: none is written */
    uv_rwlock_t models_lock;       /* of the pools' models: the poller writes them */
    struct serve_pool *pools;
    uint32_t n_pools;
    struct serve_worker *workers;
    uint32_t n_workers;
    atomic_bool draining;
    atomic_uint workers_up;            /* as the poller sees them */
    atomic_uint losses;                /* of all workers */
    uint32_t reloads, reloads_refused; /* of the config, for metrics; of the first thread */
    bool reload_failed;                /* the last one was refused */
};

/* The pool that takes a model: the one that names it, else the first that names none, else (a model that nobody
 * names and no such pool) NULL. len 0: the request names no model: the only pool there is, else NULL. */
const struct serve_pool *serve_pool_of(struct serve *s, const char *model, size_t len);

#endif
