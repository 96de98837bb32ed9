/* config.h - what `weir serve` is told: a YAML file, options of the command line, secrets from files and the
 * environment.
 *
 *   weir.yaml ──┐
 *   options   ──┼─► config_load ─► struct serve_config ─► serve.c starts with it, or changes what runs (reload.h)
 *   defaults  ──┘   (config_keys.c: one table of all keys)
 *
 * Order: the table's defaults, the file, the options; an option of a pool's key goes to every pool. A fault in any of it is
 * one line that names the file and line (or the option) and says what was expected; nothing is half taken.
 * Secrets are in no message, and what is kept of an API key is its SHA-256.
 */
#ifndef WEIR_CONFIG_H
#define WEIR_CONFIG_H

#include "controller/config/keys.h"
#include "controller/core/policy.h"
#include "controller/serve/serve.h"
#include "controller/state/redis_url.h"

#define CONFIG_ADDRESS_BYTES 300u
#define CONFIG_TOKEN_BYTES 256u /* the admin token, with its NUL */
#define CONFIG_KEY_BYTES 4096u  /* an API key, at most */
#define CONFIG_MAX_SPARE_WORKERS 1024u

/* What a row of the table counts its offset from. */
enum config_scope {
    CONFIG_TOP,    /* struct serve_config */
    CONFIG_POOL,   /* pools[]: struct config_pool */
    CONFIG_WORKER, /* pools[].workers[]: struct config_worker */
    CONFIG_TENANT, /* tenants[]: struct config_tenant */
    CONFIG_ROUTE,  /* routes[]: struct serve_route */
    CONFIG_SCOPES
};

struct config_worker {
    char url[CONFIG_ADDRESS_BYTES], name[SERVE_HOST_BYTES];
    uint32_t role; /* enum worker_role */
    uint32_t bootstrap_port;
    char engine_id[SERVE_HOST_BYTES], kv_address[SERVE_HOST_BYTES];
    char kv_events[SERVE_HOST_BYTES], kv_replay[SERVE_HOST_BYTES];
    uint32_t blocks, block_size, max_model_len, max_num_seqs, max_num_batched_tokens;
    unsigned line; /* of the file; 0: command line */
    /* from url */
    char host[SERVE_HOST_BYTES];
    uint16_t port;
    bool tls;
};

struct config_pool {
    char name[SERVE_HOST_BYTES];
    uint32_t n_models;
    char models[SERVE_MAX_POOL_MODELS][SERVE_MODEL_BYTES];
    char policy[SERVE_HOST_BYTES];
    char profile[SERVE_PATH_BYTES]; /* of its workers' step times; empty: forecast.h's own */
    double policy_param[CORE_MAX_POLICY_PARAMS]; /* in the order of the policy's table */
    uint32_t handover;                           /* its place in the choices of the table */
    uint32_t max_inflight_per_worker, queue_max_requests, max_retries, spare_workers;
    uint64_t queue_max_bytes, fair_quantum_tok;
    int64_t queue_timeout_ps;
    bool retry_partial, drop_late;
    struct core_health_config health;
    struct core_retry_config retry;
    struct config_worker *workers;
    uint32_t n_workers, workers_cap;
    unsigned line;
    /* from the workers' roles and handover; NULL: no prefill and decode workers */
    const struct handover_dialect *dialect;
};

struct config_tenant {
    char name[64];
    char api_key_file[SERVE_PATH_BYTES], api_key_env[128], api_key_sha256[65];
    char header_value[SERVE_HOST_BYTES];
    uint32_t weight;
    int32_t priority;
};

struct serve_config {
    char listen[CONFIG_ADDRESS_BYTES], admin[CONFIG_ADDRESS_BYTES];
    char admin_token_file[SERVE_PATH_BYTES];
    char log_file[SERVE_PATH_BYTES], log_salt_file[SERVE_PATH_BYTES]; /* empty: none, random */
    uint64_t log_rotate_bytes;
    uint32_t poll_ms;
    uint64_t seed;
    char state[REDIS_URL_BYTES]; /* "none", or read into redis */
    struct redis_url redis;
    struct serve_settings set;
    struct config_pool *pools;
    uint32_t n_pools;
    struct serve_tenant *tenants; /* by id, ascending */
    uint32_t n_tenants;
    struct serve_route *routes;
    uint32_t n_routes;
    /* from admin and admin_token_file */
    char admin_host[SERVE_HOST_BYTES], admin_token[CONFIG_TOKEN_BYTES];
    uint16_t admin_port;
};

extern const struct key_table config_table;

/* The command line: which keys it sets. Borrows argv. */
struct config_args {
    const char *file; /* --config; NULL: none */
    bool check;       /* only that */
    struct config_given {
        const struct key *key;
        const char *value;
    } * given;
    uint32_t n_given;
};

/* 0; 1: an option that answers and ends (--help and the like; written to stdout); WEIR_E_INPUT or WEIR_E_NOMEM with
 * error (YTREE_ERROR_BYTES). config_args_free in any case. */
WEIR_NODISCARD int config_args_read(struct config_args *a, int argc, char **argv, char *error);
void config_args_free(struct config_args *a);

/* 0, or WEIR_E_INPUT, WEIR_E_IO, WEIR_E_NOMEM and one line in error (YTREE_ERROR_BYTES). config_free in any case. */
WEIR_NODISCARD int config_load(struct serve_config *c, const struct config_args *a, char *error);
/* The same from memory; name is for messages. */
WEIR_NODISCARD int config_load_text(struct serve_config *c, const struct config_args *a,
                                    const char *name, const char *text, size_t len, char *error);
void config_free(struct serve_config *c);

/* url into host, port and tls; the name becomes HOST:PORT if there is none. NULL, or what is wrong with it. */
const char *config_split_url(struct config_worker *w);

/* Names of keys that differ between two configs and that a running process cannot change, as a list in out ("": none). */
void config_fixed_changes(const struct serve_config *from, const struct serve_config *to, char *out,
                          size_t n);

/* What runs with `from` and cannot change stays: `to` gets the fixed keys of from, in pools of the same
 * name too. */
void config_keep_fixed(const struct serve_config *from, struct serve_config *to);

/* The table: for `--help-config`, or as the page deploy/serve.md. */
void config_print_reference(FILE *out, bool markdown);

#endif
