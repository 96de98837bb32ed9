/* start.c - see start.h. */
#include "controller/serve/start.h"

#include <stdlib.h>
#include <string.h>

#include "controller/http/http_tls.h"
#include "controller/replay/profile.h"

/* ---- what a reload replaces */

static void *copy(const void *from, size_t n, size_t size)
{
    void *to = malloc(n * size + 1);
    if (to && n)
        memcpy(to, from, n * size);
    return to;
}

struct serve_live *serve_live_new(const struct serve_config *c, char *error)
{
    struct serve_live *l = calloc(1, sizeof *l);
    ytree_error(error, "out of memory");
    if (!l)
        return NULL;
    l->set = c->set;
    l->tenants = copy(c->tenants, c->n_tenants, sizeof *c->tenants);
    l->n_tenants = c->n_tenants;
    l->routes = copy(c->routes, c->n_routes, sizeof *c->routes);
    l->n_routes = c->n_routes;
    for (uint32_t i = 0; i < c->n_tenants; i++) {
        l->knows_keys |= c->tenants[i].by_key;
        l->knows_values |= !c->tenants[i].by_key;
    }
    bool ok = l->tenants && l->routes;
    if (ok && c->set.tls_cert[0]) {
        struct http_tls_options server = {.cert_file = c->set.tls_cert, .key_file = c->set.tls_key};
        l->listen_tls = http_tls_server_new(&server, error, YTREE_ERROR_BYTES);
        ok = l->listen_tls != NULL;
    }
    if (ok)
        return l;
    serve_live_free(l);
    return NULL;
}

void serve_live_free(struct serve_live *l)
{
    if (!l)
        return;
    http_tls_free(l->listen_tls);
    free(l->tenants);
    free(l->routes);
    free(l);
}

/* ---- pools and workers */

void serve_worker_set(struct serve_worker *w, const struct config_worker *from)
{
    w->present = true;
    w->leaving = false;
    w->generation++;
    snprintf(w->name, sizeof w->name, "%s", from->name);
    snprintf(w->host, sizeof w->host, "%s", from->host);
    snprintf(w->engine_id, sizeof w->engine_id, "%s", from->engine_id);
    snprintf(w->kv_address, sizeof w->kv_address, "%s", from->kv_address);
    snprintf(w->kv_events, sizeof w->kv_events, "%s", from->kv_events);
    snprintf(w->kv_replay, sizeof w->kv_replay, "%s", from->kv_replay);
    w->port = from->port;
    w->tls = from->tls;
    w->bootstrap_port = (uint16_t)from->bootstrap_port;
    /* not up: the poller has not heard of it yet. What is not known limits nothing */
    w->core = (struct core_worker_config){
        .role = (enum worker_role)from->role,
        .block_size = from->block_size,
        .num_gpu_blocks = from->blocks ? from->blocks : ENGINE_MAX_BLOCKS / 16,
        .max_num_seqs = from->max_num_seqs ? from->max_num_seqs : ENGINE_MAX_SEQS,
        .max_num_batched_tokens =
            from->max_num_batched_tokens ? from->max_num_batched_tokens : ENGINE_MAX_TOKENS,
        .max_model_len = from->max_model_len};
}

struct core_config serve_core_config(const struct serve_config *c, const struct config_pool *p,
                                     struct core_tenant *tenants)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_tenants; i++) {
        if (c->tenants[i].weight != 1)
            tenants[n++] = (struct core_tenant){c->tenants[i].id, c->tenants[i].weight};
    }
    return (struct core_config){.policy = p->policy,
                                .policy_param = p->policy_param,
                                .seed = c->seed,
                                .queue_max_requests = p->queue_max_requests,
                                .queue_max_bytes = p->queue_max_bytes,
                                .queue_timeout_ps = p->queue_timeout_ps,
                                .drop_late = p->drop_late,
                                .fair_quantum_tok = p->fair_quantum_tok,
                                .tenants = tenants,
                                .n_tenants = n,
                                .max_inflight_per_worker = p->max_inflight_per_worker,
                                .guess_cache = true,
                                .max_retries = p->max_retries,
                                .retry_partial = p->retry_partial,
                                .retry = p->retry,
                                .health = p->health,
                                .destination_first = p->dialect && p->dialect->at_once,
                                .max_requests = 1 << 20,
                                .tell = c->log_file[0] ? CORE_MAX_TOLD : 1};
}

/* The step times of a pool's profile into m; *p is what they were made of (a table is borrowed), to be freed after them.
 * Without a profile *p is NULL. */
static int load_profile(const struct config_pool *pool, struct step_params **p,
                        struct step_model *m, char *error)
{
    static struct profile_dirs dirs;
    char line[STACK_ERROR_BYTES];
    const char *why = "out of memory";
    uint64_t kv_bytes;
    uint32_t gpus;
    *p = NULL;
    if (!pool->profile[0])
        return WEIR_OK;
    profile_dirs_init(&dirs);
    *p = calloc(1, sizeof **p);
    if (*p && profile_find(*p, &kv_bytes, &gpus, pool->profile, ".", dirs.list, pool->name, line))
        why = line;
    else if (*p && !step_model_init(m, *p, &why))
        return WEIR_OK;
    ytree_error(error, "pool %.100s: profile: %.800s", pool->name, why);
    free(*p);
    *p = NULL;
    return WEIR_E_INPUT;
}

/* The core of a pool; NULL and the line. steps: of its workers; NULL: not known. */
static struct hub *make_hub(const struct serve_config *c, const struct config_pool *p,
                            const struct step_model *steps, char *error)
{
    const char *why = "out of memory";
    struct hub *hub = NULL;
    struct core_tenant *tenants = calloc(CORE_MAX_TENANTS, sizeof *tenants);
    struct core_worker_config *core = calloc(p->n_workers, sizeof *core);
    if (tenants && core) {
        struct core_config cc = serve_core_config(c, p, tenants);
        for (uint32_t i = 0; i < p->n_workers; i++) {
            struct serve_worker w = {.present = false};
            serve_worker_set(&w, &p->workers[i]);
            core[i] = w.core;
            core[i].steps = steps;
        }
        cc.workers = core;
        cc.n_workers = p->n_workers;
        cc.spare_workers = p->spare_workers;
        hub = hub_new(&cc, &why);
    }
    free(core);
    free(tenants);
    if (!hub)
        ytree_error(error, "pool %.100s: %s", p->name, why);
    return hub;
}

static int make_pool(struct serve *s, uint32_t index, const struct serve_config *c,
                     const struct config_pool *from, char *error)
{
    struct serve_pool *p = &s->pools[index];
    snprintf(p->name, sizeof p->name, "%s", from->name);
    snprintf(p->policy, sizeof p->policy, "%s", from->policy);
    int rc = load_profile(from, &p->profile, &p->steps, error);
    if (rc)
        return rc;
    p->dialect = from->dialect;
    p->first_worker = s->n_workers;
    p->n_workers = from->n_workers + from->spare_workers;
    p->n_models = from->n_models;
    memcpy(p->models, from->models, sizeof p->models);
    for (uint32_t i = 0; i < p->n_workers; i++) {
        struct serve_worker *w = &s->workers[s->n_workers++];
        if (i < from->n_workers)
            serve_worker_set(w, &from->workers[i]);
        w->pool = index;
        w->index = i;
    }
    p->hub = make_hub(c, from, p->profile ? &p->steps : NULL, error);
    return p->hub ? WEIR_OK : WEIR_E_INPUT;
}

int serve_upstream_tls(struct serve *s, const struct serve_config *c, char *error)
{
    const char *ca = c->set.upstream_ca;
    struct http_tls_options client = {.ca_file = ca[0] ? ca : NULL};
    bool any = ca[0];
    for (uint32_t i = 0; i < c->n_pools; i++) {
        for (uint32_t k = 0; k < c->pools[i].n_workers; k++)
            any |= c->pools[i].workers[k].tls;
    }
    if (any && !s->upstream_tls)
        s->upstream_tls = http_tls_client_new(&client, error, YTREE_ERROR_BYTES);
    return any && !s->upstream_tls ? WEIR_E_INPUT : WEIR_OK;
}

int serve_check(const struct serve_config *c, char *error)
{
    struct serve s = {.n_pools = 0};
    int rc = serve_upstream_tls(&s, c, error);
    http_tls_free(s.upstream_tls);
    for (uint32_t i = 0; !rc && i < c->n_pools; i++) {
        struct step_params *profile;
        struct step_model steps;
        rc = load_profile(&c->pools[i], &profile, &steps, error);
        if (rc)
            break;
        struct hub *hub = make_hub(c, &c->pools[i], profile ? &steps : NULL, error);
        rc = hub ? WEIR_OK : WEIR_E_INPUT;
        hub_free(hub);
        free(profile);
    }
    if (rc)
        return rc;
    struct serve_live *live = serve_live_new(c, error);
    serve_live_free(live);
    return live ? WEIR_OK : WEIR_E_INPUT;
}

int serve_init(struct serve *s, const struct serve_config *c, char *error)
{
    uint32_t total = 0;
    int rc = WEIR_OK;
    for (uint32_t i = 0; i < c->n_pools; i++)
        total += c->pools[i].n_workers + c->pools[i].spare_workers;
    ytree_error(error, "out of memory");
    if (uv_rwlock_init(&s->models_lock))
        return WEIR_E_NOMEM;
    s->pools = calloc(c->n_pools, sizeof *s->pools);
    s->workers = calloc(total, sizeof *s->workers);
    if (!s->pools || !s->workers)
        return WEIR_E_NOMEM;
    for (uint32_t i = 0; !rc && i < c->n_pools; i++) {
        s->n_pools++;
        rc = make_pool(s, i, c, &c->pools[i], error);
    }
    if (!rc)
        rc = serve_upstream_tls(s, c, error);
    if (!rc && !(s->live = serve_live_new(c, error)))
        rc = WEIR_E_INPUT;
    return rc;
}

void serve_deinit(struct serve *s)
{
    for (uint32_t i = 0; i < s->n_pools; i++) {
        hub_free(s->pools[i].hub);
        free(s->pools[i].profile);
    }
    http_tls_free(s->upstream_tls);
    serve_live_free(s->live);
    uv_rwlock_destroy(&s->models_lock);
    free(s->pools);
    free(s->workers);
}
